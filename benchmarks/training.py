"""Claim: training takes at most half of the time of a plain PyTorch loop of as many steps.

Both train 64 bits (one length) on the same embeddings for 20 epochs with neighbors as views, the search for
neighbors included, in turns within one run; the ratio of the medians is printed. Then the defaults (256 bits) on
2,000 of the items, and how many of float16 that model encodes in a second.

    python benchmarks/training.py [--data FILE] [--epochs 20] [--runs 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca import Hasher, load_embeddings


def plain_loop(X: Tensor, bits: int, epochs: int, batch: int = 256, weight_decay: float = 1e-2) -> nn.Module:
    """What one would write in an afternoon."""
    unit = F.normalize(X - X.mean(dim=0), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-1)
    neighbors = similarity.topk(5, dim=1).indices
    n, d = X.shape
    model = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, bits), nn.BatchNorm1d(bits))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
    steps = n // batch
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps, 1e-6)
    for _ in range(epochs):
        order = torch.randperm(n)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            near = neighbors[rows, torch.randint(5, (batch,))]
            one, two = model(X[rows]), model(F.dropout(X[near], 0.3))
            loss = F.binary_cross_entropy_with_logits(one, (two > 0).float())
            loss = (loss + F.binary_cross_entropy_with_logits(two, (one > 0).float())) / 2
            for logits in (one, two):
                v = F.normalize(logits, dim=1)
                rate = torch.logdet(torch.eye(bits) + bits / (batch * 0.05) * v.T @ v) / 2
                loss = loss - 0.05 * rate * (bits + batch) / (bits * batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="embedding file; without one, 7,242 x 1,280 random numbers")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.data:
        values = np.asarray(load_embeddings(arguments.data).values[:])
    else:
        values = np.random.default_rng(0).normal(size=(7242, 1280)).astype(np.float16)

    seconds: dict[str, list[float]] = {"crovca": [], "plain": []}
    for _ in range(arguments.runs):
        started = time.perf_counter()
        Hasher(bits=64, nested=False, epochs=arguments.epochs).fit(values)
        seconds["crovca"].append(time.perf_counter() - started)
        started = time.perf_counter()
        plain_loop(torch.from_numpy(values).float(), 64, arguments.epochs)
        seconds["plain"].append(time.perf_counter() - started)
    few = values[:2000]
    started = time.perf_counter()
    hasher = Hasher().fit(few)
    few_seconds = time.perf_counter() - started
    hasher.encode(few)
    many = np.concatenate([values] * (1 + 30_000 // len(values)))
    started = time.perf_counter()
    hasher.encode(many, 64)
    rate = len(many) / (time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "items": len(values),
        "width": values.shape[1],
        "epochs": arguments.epochs,
        "runs": arguments.runs,
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "ratio": medians["crovca"] / medians["plain"],
        "seconds_of_2000_items": few_seconds,
        "encoded_a_second": rate,
    }
    print(f"crovca {medians['crovca']:.1f} s, plain loop {medians['plain']:.1f} s, ratio {result['ratio']:.2f}")
    print(f"defaults on {len(few):,} items {few_seconds:.1f} s, {rate:,.0f} items encoded a second")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
