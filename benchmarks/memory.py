"""Claim: training on a store of 1 M x 1,280 float16 stays under 2 GiB of anonymous memory.

Writes the store (2.6 GB) into a temporary folder, trains in a process of its own, and samples that process's
anonymous resident memory (RssAnon of /proc/PID/status) ten times a second.

    python benchmarks/memory.py [--items 1000000] [--epochs 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, SHARD, CLUSTERS = 1280, 65536, 2000


def write_store(folder: Path, items: int) -> None:
    """A store of clustered embeddings, written part by part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    centers = random.normal(size=(CLUSTERS, WIDTH)).astype(np.float16)
    parts: list[dict[str, str | int]] = []
    for start in range(0, items, SHARD):
        rows = min(SHARD, items - start)
        part = folder / f"part-{len(parts):05d}"
        part.mkdir(parents=True)
        values = np.lib.format.open_memmap(part / "embeddings.npy", "w+", np.float16, (rows, WIDTH))
        for block in range(0, rows, 4096):
            size = min(4096, rows - block)
            noise = random.normal(size=(size, WIDTH)).astype(np.float16)
            values[block : block + size] = centers[random.integers(CLUSTERS, size=size)] + noise
        values.flush()
        pq.write_table(pa.table({"id": np.arange(start, start + rows)}), part / "items.parquet")
        parts.append({"name": part.name, "rows": rows})
    manifest = {"format_version": 1, "d": WIDTH, "v": 1, "dtype": "float16", "parts": parts}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        write_store(store, arguments.items)
        command = [sys.executable, "-m", "crovca.cli.main", "train", str(store), "-o", f"{folder}/model"]
        command += ["--epochs", str(arguments.epochs), "--json"]
        started, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
    print(
        f"{arguments.items:,} items, {arguments.epochs} epochs: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB anonymous"
    )
    print("; ".join(summary["notes"]))
    if arguments.json:
        result = {"items": arguments.items, "width": WIDTH, "epochs": arguments.epochs, "seconds": seconds}
        result["peak_anonymous_gib"] = peak / 2**30
        arguments.json.write_text(json.dumps({**result, "notes": summary["notes"]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
