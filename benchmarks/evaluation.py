"""Claim: 193,734 database items and 2,100 queries at k = 5,000 (NUS-WIDE's size) evaluate in under a minute and 4 GiB.

One score at one length, from codes on disk, every metric and the tie-aware ones included. Random codes of
a clustered kind, 21 classes, several of them an item.

    python benchmarks/evaluation.py [--bits 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from crovca import Codes, Encoded, evaluate

DATABASE, QUERIES, CLASSES, K = 193_734, 2_100, 21, 5_000


def items(count: int, bits: int, centers: np.ndarray, random: np.random.Generator) -> Encoded:
    labels = random.random((count, CLASSES)) < 2.9 / CLASSES
    noise = random.normal(size=(count, bits)).astype(np.float32)
    logits = (labels @ centers / 2 + noise).astype(np.float32)
    return Encoded(Codes.from_logits(logits), np.arange(count), labels, logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    centers = random.normal(size=(CLASSES, arguments.bits)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        database, query = Path(folder, "database.npz"), Path(folder, "query.npz")
        made = items(DATABASE, arguments.bits, centers, random)
        Encoded(made.codes, labels=made.labels).save(database)
        made = items(QUERIES, arguments.bits, centers, random)
        Encoded(made.codes, labels=made.labels, logits=made.logits).save(query)
        del made
        seconds = {}
        for metric in ("hamming", "asymmetric_hamming", "bce"):
            started = time.perf_counter()
            evaluate(Encoded.load(query), Encoded.load(database), k=K, metrics_=[metric])
            seconds[metric] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for metric, taken in seconds.items():
        print(f"{metric:20} {taken:6.1f} s")
    print(f"peak memory of the whole run {peak:.2f} GiB")
    if arguments.json:
        result = {"database": DATABASE, "queries": QUERIES, "k": K, "bits": arguments.bits}
        arguments.json.write_text(json.dumps({**result, "seconds": seconds, "peak_gib": peak}, indent=2) + "\n")


if __name__ == "__main__":
    main()
