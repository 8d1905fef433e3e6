"""Claim: edited photographs are found among others: precision at least 0.98, recall at least 0.92, over all pairs.

    python benchmarks/duplicates.py --images IMAGES --encoder ENCODER [--photographs 1000] [--seed 1]
        [--look-alikes FILE.tsv] [--out docs/results/duplicates]

Draws photographs, makes three of six edits of each (JPEG quality 40; half size; a crop of 90 % by 90 %; brightness and
contrast; 3 degrees; a mark), puts them among all the others, makes an archive and asks ``crovca duplicates``. Every two
pictures of one photograph are a pair to find. Pairs of FILE are left out: photographs that were in IMAGES twice before.

Then how long it takes to find candidates among --items embeddings, which are mixed from those of two photographs of the
archive that are near each other, with noise; 2 % of them are others moved as an edit moved its photograph.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from crovca.archive.duplicates import near_pairs
from crovca.data.embeddings import unit_rows
from crovca.index.index import HashIndex
from crovca.index.originals import Loss, Originals

EDITS: dict[str, Callable[[Any, random.Random], Any]] = {
    "jpeg": lambda image, chance: image,
    "half": lambda image, chance: image.resize((max(1, image.width // 2), max(1, image.height // 2)), 3),
    "crop": lambda image, chance: cropped(image, chance),
    "bright": lambda image, chance: ImageEnhance.Contrast(
        ImageEnhance.Brightness(image).enhance(chance.choice([0.75, 1.3]))
    ).enhance(chance.choice([0.75, 1.3])),
    "turned": lambda image, chance: image.rotate(chance.choice([-3, 3]), 3, fillcolor=(255, 255, 255)),
    "marked": lambda image, chance: marked(image),
}


def cropped(image: Any, chance: random.Random) -> Any:
    width, height = round(image.width * 0.9), round(image.height * 0.9)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


def marked(image: Any) -> Any:
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    font = ImageFont.load_default(max(12, image.width // 10))
    place = image.width * 0.08, image.height * 0.75
    ImageDraw.Draw(layer).text(place, "(c) photo archive", fill=(255, 255, 255, 128), font=font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def fill(images: Path, root: Path, count: int, seed: int) -> dict[str, str]:
    """Photographs and edits below ``root``: of each id, which photograph it is."""
    chance = random.Random(seed)
    photographs = sorted(file.relative_to(images) for file in images.rglob("*.jpg"))
    origin = {}
    for name in photographs:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(images / name)
        origin[str(name)] = str(name)
    for name in chance.sample(photographs, count):
        for edit in chance.sample(list(EDITS), 3):
            with Image.open(images / name) as image:
                made = EDITS[edit](image.convert("RGB"), chance)
            id = f"{name.parent}/{name.stem}.{edit}.jpg"
            made.save(root / id, quality=40 if edit == "jpeg" else 92)
            origin[id] = str(name)
    return origin


def pairs_of(groups: list[list[str]]) -> set[frozenset[str]]:
    return {frozenset(pair) for group in groups for pair in combinations(group, 2)}


def crovca(*arguments: Any) -> tuple[str, float]:
    """What a command prints, and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "crovca.cli.main", *map(str, arguments)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return ran.stdout, time.perf_counter() - started


def candidates(index: Path, origin: dict[str, str], count: int) -> dict[str, Any]:
    """Of how many planted pairs among ``count`` embeddings are candidates, and in what time."""
    with HashIndex.open(index) as opened:
        rows = opened.view().live()
        ids = [str(id) for id in opened.view().ids(rows)]
        values = unit_rows(opened.view().originals().take(rows)[:])
    at = {id: number for number, id in enumerate(ids)}
    moves = np.array([values[at[id]] - values[at[name]] for id, name in origin.items() if id != name])
    photographs = values[[at[id] for id, name in origin.items() if id == name]]
    near = np.argsort(-(photographs @ photographs.T), axis=1)[:, :20]
    rng = np.random.default_rng(0)
    planted = count // 50
    sources = rng.choice(count - planted, planted, replace=False)
    parts = []
    for start in range(0, count - planted, 1 << 14):
        size = min(1 << 14, count - planted - start)
        one = rng.integers(0, len(photographs), size)
        other, share = near[one, rng.integers(0, 20, size)], rng.uniform(0.3, 1, (size, 1)).astype(np.float32)
        noise = 1 + 0.5 * rng.standard_normal((size, values.shape[1]), np.float32)
        mixed = noise * (share * photographs[one] + (1 - share) * photographs[other])
        parts.append(Originals.of(np.maximum(mixed, 0), "int8", Loss())[0])
    made = Originals.concatenate(parts)
    for start in range(0, planted, 1 << 14):
        some = unit_rows(made[sources[start : start + (1 << 14)]])
        moved = some + moves[rng.integers(0, len(moves), len(some))]
        parts.append(Originals.of(np.maximum(moved, 0), "int8", Loss())[0])
    made = one_segment(parts)
    started = time.perf_counter()
    first, second = near_pairs(made, np.arange(count))
    seconds = time.perf_counter() - started
    found = np.isin(sources * count + np.arange(count - planted, count), first * count + second)
    return {"embeddings": count, "planted pairs": planted, "found": round(float(found.mean()), 4),
            "candidates": len(first), "seconds": round(seconds, 1)}  # fmt: skip


def one_segment(parts: list[Originals]) -> Originals:
    arrays = np.concatenate([array for part in parts for array in part.arrays])
    return Originals((arrays,), np.concatenate([part.scales for part in parts]), np.arange(len(arrays)))


def table_of(row: dict[str, Any]) -> list[str]:
    return [f"| {' | '.join(row)} |", "|---" * len(row) + "|", f"| {' | '.join(f'{one:,}' for one in row.values())} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--look-alikes", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    known: set[frozenset[str]] = set()
    if arguments.look_alikes is not None:
        known = {frozenset(line.split("\t")[:2]) for line in arguments.look_alikes.read_text().splitlines()}
    with tempfile.TemporaryDirectory() as folder:
        root, archive = Path(folder) / "pictures", Path(folder) / "archive"
        origin = fill(arguments.images.resolve(), root, arguments.photographs, arguments.seed)
        crovca("archive", "init", root, "--encoder", arguments.encoder, "-o", archive)
        _, synced = crovca("archive", "sync", archive)
        said, first = crovca("duplicates", archive, "--json")
        again, second = crovca("duplicates", archive, "--json")
        many = candidates(archive / "index", origin, arguments.items)
    found = json.loads(said)
    assert json.loads(again)["groups"] == found["groups"]
    groups = [
        [group["keep"], *(one["id"] for one in group["items"] if one["kind"] != "burst")] for group in found["groups"]
    ]
    photographs: dict[str, list[str]] = {}
    for id, name in origin.items():
        photographs.setdefault(name, []).append(id)
    true = pairs_of(list(photographs.values()))
    told = {pair for pair in pairs_of(groups) if frozenset(origin[id] for id in pair) not in known}
    row = {
        "pictures": found["pictures"],
        "pairs": len(true),
        "precision": round(len(told & true) / len(told), 4),
        "recall": round(len(told & true) / len(true), 4),
        "candidates": found["candidates"],
        "compared": found["compared"],
        "seconds": round(first, 1),
        "seconds again": round(second, 1),
    }
    wrong = sorted(sorted(pair) for pair in told - true)
    table = [*table_of(row), "", "Candidates among many:", "", *table_of(many)]
    print("\n".join(table), *wrong[:20], f"synced in {synced:.0f} s", sep="\n")
    if arguments.out is not None:
        arguments.out.with_suffix(".json").write_text(json.dumps([row, many], indent=1) + "\n")
        command = (
            f"python benchmarks/duplicates.py --images IMAGES --encoder ENCODER --photographs {arguments.photographs} "
            f"--seed {arguments.seed}{' --look-alikes FILE' if known else ''} --items {arguments.items} "
            f"--out docs/results/{arguments.out.name}"
        )
        note = f"On {os.cpu_count()} cores. 'again' is the second run, which compares nothing anew."
        text = f"# {arguments.out.name}\n\nMade by\n\n```\n{command}\n```\n\n{note}\n\n"
        arguments.out.with_suffix(".md").write_text(text + "\n".join(table) + "\n")


if __name__ == "__main__":
    main()
