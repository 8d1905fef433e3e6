"""Claim: from a folder of photographs to a search in minutes, and what has changed since in seconds.

    python benchmarks/archive.py --images IMAGES --encoder ENCODER [--files 100000] [--out docs/results/archive]

Links IMAGES (a folder of photographs) into a folder of its own, but for the last 100 of them; makes an archive of it
and searches; adds the 100, removes 10, renames 5, and syncs again. Then an archive of --files small pictures, with an
encoder that reads their pixels: how long a sync takes that finds nothing new. Every step is a command of its own, as
a person would give it, so starting Python and loading the encoder are in its time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crovca.archive.demo_archive import write_pixel_encoder

ADDED, REMOVED, RENAMED = 100, 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    # Links are hard ones, so the folder has to be on the photographs' disk, or they are copied.
    with tempfile.TemporaryDirectory() as folder:
        rows = photographs(arguments.images.resolve(), arguments.encoder, Path(folder))
        rows += many_files(arguments.files, Path(folder))
    table = ["| | pictures | seconds |", "|---|---|---|"]
    table += [f"| {row['what']} | {row['pictures']:,} | {row['seconds']:.1f} |" for row in rows]
    print("\n".join(table))
    if arguments.out is not None:
        arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        command = f"python benchmarks/archive.py --images IMAGES --encoder ENCODER --files {arguments.files}"
        text = f"# {arguments.out.name}\n\nMade by\n\n```\n{command} --out docs/results/{arguments.out.name}\n```\n\n"
        note = f"On {os.cpu_count()} cores; each row is a command of its own, from its start to its end."
        arguments.out.with_suffix(".md").write_text(f"{text}{note}\n\n" + "\n".join(table) + "\n")


def photographs(images: Path, encoder: str, folder: Path) -> list[dict[str, Any]]:
    """The archive of real photographs: made, searched, and synced after changes."""
    root, archive = folder / "photographs", folder / "archive"
    names = sorted(str(file.relative_to(images)) for file in images.rglob("*") if file.suffix.lower() == ".jpg")
    drawn = np.random.default_rng(0).permutation(len(names))
    later = [names[row] for row in drawn[:ADDED]]
    first = [names[row] for row in drawn[ADDED:]]
    for name in first:
        link(images / name, root / name)
    made = timed("archive", "init", str(root), "--encoder", encoder, "-o", str(archive))[0]
    synced, said = timed("archive", "sync", str(archive), "--json")
    assert said["items"] + said["left_out"] == len(first), said
    found, _ = timed("search", str(archive), "--image", str(root / first[0]), "-k", "5", "--json")
    for name in later:
        link(images / name, root / name)
    for name in first[:REMOVED]:
        (root / name).unlink()
    for name in first[REMOVED : REMOVED + RENAMED]:
        (root / name).rename((root / name).with_suffix(".moved.jpg"))
    again, said = timed("archive", "sync", str(archive), "--json")
    expected = {"new": ADDED, "removed": REMOVED, "moved": RENAMED, "changed": 0}
    assert {key: said[key] for key in expected} == expected, said
    nothing, _ = timed("archive", "sync", str(archive), "--json")
    changes = f"{ADDED} new, {REMOVED} removed, {RENAMED} renamed: sync"
    return [
        {"what": "init, first sync, first search", "pictures": len(first), "seconds": made + synced + found},
        {"what": "one search by a picture", "pictures": len(first), "seconds": found},
        {"what": changes, "pictures": said["items"], "seconds": again},
        {"what": "nothing changed: sync", "pictures": said["items"], "seconds": nothing},
    ]


def many_files(count: int, folder: Path) -> list[dict[str, Any]]:
    """An archive of many small pictures: the first sync, and one that finds nothing new."""
    root, archive, encoder = folder / "many", folder / "many-archive", folder / "encoder"
    rng = np.random.default_rng(0)
    for number in range(count):
        file = root / f"{number // 1000:03}" / f"{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(file)
    write_pixel_encoder(encoder)
    timed("archive", "init", str(root), "--encoder", str(encoder), "-o", str(archive))
    first, said = timed("archive", "sync", str(archive), "--json")
    assert said["items"] == count, said
    nothing, said = timed("archive", "sync", str(archive), "--json")
    assert said["unchanged"] == count, said
    return [
        {"what": "small files, an encoder of no cost: first sync", "pictures": count, "seconds": first},
        {"what": "small files, nothing changed: sync", "pictures": count, "seconds": nothing},
    ]


def link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where disks differ."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def timed(*command: str) -> tuple[float, Any]:
    """Seconds of a command, and what it printed as JSON."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "crovca.cli.main", *command], stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - started
    return seconds, json.loads(done.stdout) if "--json" in command else None


if __name__ == "__main__":
    main()
