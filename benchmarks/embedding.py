"""Claim: `crovca embed` has no less than 0.9 of the rate of the bare model, and gives the embeddings that are known.

In turns within one run: the bare model on tensors that are decoded already (one batch after the other with every core,
and, what is the most that this machine can give, as many batches at once as there are cores), and the command on the
files, decoding, writing and all but its start included. With --stored, the cosine between the command's embeddings and
those of .npz files with the same ids, in bfloat16 and float32.

    python benchmarks/embedding.py --images DIR --encoder DIR [--stored FILE ...] [--limit 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from crovca import load_embeddings
from crovca.embedding.pipeline import choose_batch_size
from crovca.encoders.encoder import Encoder
from crovca.sources.decode import decode
from crovca.sources.opening import open_images
from crovca.sources.source import Source

CORES = len(os.sched_getaffinity(0))


def decoded(source: Source[bytes], encoder: Encoder) -> torch.Tensor:
    """uint8 (n, H, W, 3)."""
    preprocessing = encoder.preprocessing

    def one(row: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        image = decode(source.read(row), smallest=preprocessing.smallest_decode)
        return preprocessing.crop_image(image.image, image.size)

    with ThreadPoolExecutor(CORES) as pool:
        return torch.from_numpy(np.stack(list(pool.map(one, range(len(source))))))


def bare_rate(encoder: Encoder, pixels: torch.Tensor, batch: int, lanes: int) -> float:
    """Images a second of the model alone: ``lanes`` batches at once, each with its share of the cores."""
    parts = [pixels[start : start + batch] for start in range(0, len(pixels), batch)]

    def one(part: torch.Tensor) -> None:
        encoder.embed(encoder.preprocessing.normalize(part.to(encoder.device))).cpu()

    threads = max(1, CORES // lanes)
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        list(pool.map(one, parts[: 2 * lanes]))  # warm
        started = time.perf_counter()
        list(pool.map(one, parts))
        return len(pixels) / (time.perf_counter() - started)


def embed(split: Path, root: Path, encoder: Path, store: Path, *options: str) -> dict[str, float]:
    command = [sys.executable, "-m", "crovca.cli.main", "embed", str(split), "--root", str(root), "--encoder"]
    command += [str(encoder), "-o", str(store), "--json", "--force", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def cosines(store: Path, stored: list[Path]) -> dict[str, float]:
    """Between a store's embeddings and those of the files, by id (the end of the store's)."""
    arrays = [np.load(file) for file in stored]
    known = {str(name): row for file in arrays for name, row in zip(file["ids"], file["embeddings"], strict=True)}
    found = load_embeddings(store)
    assert found.ids is not None
    pairs = []
    for name, row in zip(found.ids.tolist(), found.values[:], strict=True):
        short = name if name in known else name.split("/", 1)[-1]
        if short in known:
            one, other = row.astype(np.float64), known[short].astype(np.float64)
            pairs.append(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))
    return {"items": len(pairs), "median": statistics.median(pairs), "lowest": min(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder or a split file")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a model")
    parser.add_argument("--stored", type=Path, nargs="*", default=[], help="known embeddings (.npz with ids)")
    parser.add_argument("--limit", type=int, default=1000, help="images that are taken, evenly spread")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    whole = open_images(arguments.images)
    root = arguments.images if arguments.images.is_dir() else arguments.images.parent
    chosen = np.linspace(0, len(whole) - 1, min(arguments.limit, len(whole))).astype(int)
    encoder = Encoder.load(arguments.encoder)
    batch = choose_batch_size(encoder)
    rates: dict[str, list[float]] = {"embed": [], "bare": [], "bare, batches at once": []}
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        split, store = Path(folder, "list.txt"), Path(folder, "store")
        split.write_text("".join(f"{name}\n" for name in whole.ids[chosen]), encoding="utf-8")
        pixels = decoded(open_images(split, root=root), encoder)
        for _ in range(arguments.runs):
            rates["bare"].append(bare_rate(encoder, pixels, batch, 1))
            rates["embed"].append(embed(split, root, arguments.encoder, store)["items_per_second"])
            rates["bare, batches at once"].append(bare_rate(encoder, pixels, batch, CORES))
        for dtype in ("bfloat16", "float32") if arguments.stored else ():
            for rounding in ("nearest", "down"):
                options = ("--dtype", dtype, "--resize-rounding", rounding)
                embed(split, root, arguments.encoder, store, *options)
                found[f"{dtype}, longer side rounded {rounding}"] = cosines(store, arguments.stored)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "images": len(chosen),
        "cores": CORES,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "device": encoder.device.type,
        "batch_size": batch,
        "runs": arguments.runs,
        "images_per_second": medians,
        "ratio": medians["embed"] / medians["bare"],
        "ratio_to_batches_at_once": medians["embed"] / medians["bare, batches at once"],
        "cosine": found,
    }
    print(
        f"crovca embed {medians['embed']:.0f} images/s, "
        f"bare model {medians['bare']:.0f} (ratio {result['ratio']:.2f}), "
        f"bare with a batch a core {medians['bare, batches at once']:.0f} "
        f"(ratio {result['ratio_to_batches_at_once']:.2f})"
    )
    for name, values in found.items():
        print(f"cosine with the stored, {name}: median {values['median']:.4f}, lowest {values['lowest']:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
