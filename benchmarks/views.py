"""Claim: neighbors of plain embeddings are better pairs than image views, which reach the paper's way of training.

Frozen probing, the small HashCoder, one length at a time, 5 epochs, seeds 0 to 2. VIEWS is a store of six augmented
views of each image of the database (`crovca embed IMAGES --encoder ... --views 6 -o VIEWS`), D.npz and Q.npz are
plain embeddings of database and queries with labels.

    python benchmarks/views.py --views VIEWS --database D.npz --query Q.npz [--seeds 3] [--out docs/results/views]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from crovca import Embeddings, Encoded, Hasher, evaluate, load_embeddings

BITS = (16, 32, 64)
K, EPOCHS = 1000, 5
# What is taught by what; and whether with the paper's hyperparameters (`--preset small`) or the defaults.
METHODS: dict[str, tuple[Any, bool]] = {
    "image views, the paper's settings": ("views", True),
    "image views": ("views", False),
    "neighbors": ("neighbors", False),
    "image views and neighbors": (("views", "neighbors"), False),
}


def train(pairing: Any, preset: bool, data: Embeddings, bits: int, seed: int) -> Hasher:
    if preset:
        return Hasher.from_preset("small", bits=bits, pairing=pairing, seed=seed).fit(data)
    return Hasher(bits=bits, nested=False, pairing=pairing, epochs=EPOCHS, seed=seed).fit(data)


def quality(hasher: Hasher, database: Embeddings, queries: Embeddings) -> float:
    items, asked = (
        Encoded(hasher.encode(part), part.ids, part.labels, hasher.logits(part)) for part in (database, queries)
    )
    found = evaluate(asked, items, k=K, metrics_=["asymmetric_hamming"]).to_dict()
    return 100 * float(found["lengths"][0]["map"]["asymmetric_hamming"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("views", "database", "query"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    arguments = parser.parse_args()
    views, database, queries = map(load_embeddings, (arguments.views, arguments.database, arguments.query))
    rows: list[dict[str, Any]] = []
    for name, (pairing, preset) in METHODS.items():
        data = database if pairing == "neighbors" else views
        for bits in BITS:
            started = time.perf_counter()
            found = [
                quality(train(pairing, preset, data, bits, seed), database, queries) for seed in range(arguments.seeds)
            ]
            seconds = (time.perf_counter() - started) / arguments.seeds
            rows.append({"method": name, "bits": bits, "map": found, "seconds": seconds})
            print(f"{name:36} {bits:3} bits: {np.mean(found):.1f} +- {np.std(found):.1f} ({seconds:.1f} s)", flush=True)
    if arguments.out:
        command = f"python benchmarks/views.py --views VIEWS --database D.npz --query Q.npz --out {arguments.out}"
        result = {"command": command, "k": K, "epochs": EPOCHS, "seeds": arguments.seeds, "rows": rows}
        arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        lines = [
            "# Image views\n",
            f"Made by `{command}`: mAP@{K} in %, asymmetric Hamming, {EPOCHS} epochs, small HashCoder, frozen encoder, "
            f"one length at a time; mean and spread of {arguments.seeds} seeds. Six augmented views of each image.\n",
            "| taught by | " + " | ".join(f"{bits} bits" for bits in BITS) + " |",
            "|---" * (len(BITS) + 1) + "|",
        ]
        for name in METHODS:
            cells = [f"{np.mean(row['map']):.1f} ± {np.std(row['map']):.1f}" for row in rows if row["method"] == name]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
