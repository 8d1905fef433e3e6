"""Where the defaults come from: what each departure from the paper's settings is worth, on a split of training data.

Takes 8 items of each class (30 of each digit) out of a labeled embedding file as queries; the rest is trained on and
searched. Three sets: the file itself, the same through a random projection to 64 numbers with noise (weak embeddings),
and scikit-learn's digits. The file's own query set is never touched.

    python benchmarks/ablation.py --data DATABASE.npz [--seeds 3] [--jobs 2] [--out docs/results/ablation]
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from crovca import Encoded, Hasher, evaluate, load_embeddings

LENGTHS = (16, 32, 64, 128)


UNSUPERVISED: dict[str, dict[str, Any]] = {
    "default": {},
    "random weights at the start, as in the paper": {"start": "random"},
    "5 epochs": {"epochs": 5},
    "5 epochs, random weights at the start": {"epochs": 5, "start": "random"},
    "weight decay 0.01, as in the paper": {"weight_decay": 0.01},
    "weight decay 10": {"weight_decay": 10.0},
    "inputs centered": {"center": True},
}
SUPERVISED: dict[str, dict[str, Any]] = {
    "default": {},
    "batch prototypes, as in the paper": {"prototypes": "batch"},
    "inputs not centered": {"center": False},
    "logits at a scale of 1, as in the paper": {"logit_scale": 1.0},
    "logits at a scale of 4": {"logit_scale": 4.0},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "diversity weight 0.1": {"diversity_weight": 0.1},
    "from the classes at the start": {"start": "classes"},
    "5 epochs": {"epochs": 5},
    "5 epochs, random weights at the start": {"epochs": 5, "start": "random"},
}

MODES = {"unsupervised": UNSUPERVISED, "supervised": SUPERVISED}

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def made(**settings: Any) -> Hasher:
    """The network without a base, which these settings are of."""
    return Hasher(**{"faithfulness": "kinds", **settings})


def split(values: Floats, labels: Labels, held_out: int) -> tuple[Floats, Labels, Floats, Labels]:
    """Database and queries: ``held_out`` random items of each class are the queries."""
    random = np.random.default_rng(0)
    queries = np.concatenate(
        [random.permutation(np.flatnonzero(labels == label))[:held_out] for label in np.unique(labels)]
    )
    rest = np.setdiff1d(np.arange(len(labels)), queries)
    return values[rest], labels[rest], values[queries], labels[queries]


def weakened(values: Floats) -> Floats:
    random = np.random.default_rng(7)
    projected = values @ random.normal(size=(values.shape[1], 64)).astype(np.float32) / np.sqrt(values.shape[1])
    noise = random.normal(size=projected.shape) * (0.3 * projected.std(axis=0).mean())
    return (projected + noise).astype(np.float32)


def measure(hasher: Hasher, parts: tuple[Floats, Labels, Floats, Labels], *, supervised: bool) -> list[float | None]:
    values, labels, query_values, query_labels = parts
    hasher.fit(values, labels if supervised else None)
    query = Encoded(hasher.encode(query_values), labels=query_labels, logits=hasher.logits(query_values))
    database = Encoded(hasher.encode(values), labels=labels)
    lengths = [length for length in LENGTHS if length <= hasher.bits]
    result = evaluate(query, database, lengths=lengths, metrics_=["asymmetric_hamming"])
    scores = [length.scores["asymmetric_hamming"] for length in result.lengths]
    return [None if score is None else score.map for score in scores]


@cache
def load_sets(data: Path) -> dict[str, tuple[Floats, Labels, Floats, Labels]]:
    loaded = load_embeddings(data)
    values = np.asarray(loaded.values[:], np.float32)
    assert loaded.labels is not None
    _, labels = np.unique(loaded.labels, return_inverse=True)
    pixels, digits = load_digits(return_X_y=True)
    return {
        data.stem: split(values, labels, 8),
        "weakened to 64 numbers": split(weakened(values), labels, 8),
        "digits": split(pixels.astype(np.float32), digits.astype(np.int64), 30),
    }


def run(data: Path, mode: str, name: str, variant: str, seeds: int) -> list[list[float | None]]:
    """One line of a table: mAP at each length for each seed."""
    warnings.simplefilter("ignore")
    settings = MODES[mode][variant]
    return [
        measure(made(seed=seed, **settings), load_sets(data)[name], supervised=mode == "supervised")
        for seed in range(seeds)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    names = list(load_sets(arguments.data))
    tasks = [(mode, name, variant) for mode in MODES for name in names for variant in MODES[mode]]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    lines: list[str] = []
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that are started
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run, arguments.data, *task, arguments.seeds) for task in tasks]
        for (mode, name, variant), future in zip(tasks, runs, strict=True):
            if variant == next(iter(MODES[mode])):
                lines += ["", f"**{mode}, {name}**", ""]
                lines.append("| | " + " | ".join(f"{bits} bits" for bits in LENGTHS) + " |")
                lines.append("|---|" + "---|" * len(LENGTHS))
            measured = future.result()
            found.setdefault(mode, {}).setdefault(name, {})[variant] = measured
            columns = list(zip(*measured, strict=True))
            cells = [f"{100 * np.mean(c):.1f} ± {100 * np.std(c):.1f}" for c in columns]
            lines.append(f"| {variant} | " + " | ".join(cells + [""] * (len(LENGTHS) - len(cells))) + " |")
            print(mode, name, lines[-1], flush=True)
    if arguments.out:
        arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(
            "# Where the defaults come from\n\nMade by\n\n```\npython benchmarks/ablation.py --data D.npz "
            f"--seeds {arguments.seeds} --jobs {arguments.jobs} --out docs/results/{arguments.out.name}\n```\n\n"
            f"mAP@1000 in %, asymmetric Hamming, mean ± spread of {arguments.seeds} seeds; queries are items taken "
            "out of the database file, never the query file. Each line changes one default.\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
