"""Claims: mAP@1000 of one 256-bit model's prefixes, unsupervised, supervised and supervised in 5 epochs; three seeds.

Runs the commands a user would run (`crovca train`, `crovca evaluate`) on an embedding file with labels and a query
file, and an OrthoHash head (Hoe et al., 2021) on the same inputs for comparison. Trains on the database only.
Rows that stand in OUT.json already are not run again.

    python benchmarks/quality.py --database D.npz --query Q.npz [--seeds 3] [--out docs/results/NAME]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from crovca import Codes, Embeddings, Encoded, evaluate, load_embeddings
from crovca.config import TrainingConfig
from crovca.hashing.hashcoder import HashCoder, input_statistics
from crovca.hashing.pairing import Copies
from crovca.hashing.training import learning_rate

LENGTHS = (16, 32, 64, 128)
CROVCA = [sys.executable, "-m", "crovca.cli.main"]
RUNS = {
    "unsupervised": ["--unsupervised"],
    "supervised": [],
    "supervised, 5 epochs": ["--epochs", "5"],
    "unsupervised, --preset small, 64 bits": ["--unsupervised", "--preset", "small", "--bits", "64"],
    "supervised, --preset small, 64 bits": ["--preset", "small", "--bits", "64"],
}


def commands(database: Path, query: Path, flags: list[str], seed: int) -> dict[str, Any]:
    """Train and evaluate with the command line; what the two print as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        train = [*CROVCA, "train", str(database), *flags, "--seed", str(seed), "-o", model, "--json"]
        trained = json.loads(subprocess.run(train, check=True, stdout=subprocess.PIPE).stdout)
        measure = [*CROVCA, "evaluate", model, "--database", str(database), "--query", str(query), "--json"]
        measured = json.loads(subprocess.run(measure, check=True, stdout=subprocess.PIPE).stdout)
    return {**measured, "training": trained}


def orthohash(database: Embeddings, bits: int, seed: int, epochs: int, rate: float) -> Callable[..., Any]:
    """An OrthoHash head: CE(8 (cos(z, c) - 0.2 onehot)) to random codes c, on our network, inputs and dropout."""
    assert database.labels is not None
    classes, index = np.unique(database.labels, return_inverse=True)
    config = TrainingConfig(lengths=(bits,), epochs=epochs, learning_rate=rate, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = input_statistics(database.values, centre=True)
    coder = HashCoder(database.width, bits, inputs=inputs, generator=generator)
    codes = F.normalize(torch.rand(len(classes), bits, generator=generator).round() * 2 - 1, dim=1)
    source = Copies(database.values, centre=inputs.centre)
    optimizer = torch.optim.AdamW(coder.parameters(), weight_decay=0.01, fused=True)
    random, steps = np.random.default_rng(seed), config.steps(len(database))
    labels = torch.from_numpy(index)
    order = np.empty(0, np.int64)
    for step in range(steps):
        if len(order) < config.batch_size:
            order = random.permutation(len(database))
        rows, order = order[: config.batch_size], order[config.batch_size :]
        logits = coder(source.views(rows, random)[0])
        margin = 0.2 * F.one_hot(labels[rows], len(classes))
        loss = F.cross_entropy(8 * (F.normalize(logits, dim=1) @ codes.T - margin), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        optimizer.step()
    return coder.eval()


def measure_orthohash(database: Embeddings, query: Embeddings, **settings: Any) -> float:
    coder = orthohash(database, **settings)

    def encoded(items: Embeddings) -> Encoded:
        with torch.no_grad():
            logits = coder(torch.from_numpy(np.asarray(items.values[:], np.float32))).numpy()
        return Encoded(Codes.from_logits(logits), items.ids, items.labels, logits)

    scored = evaluate(encoded(query), encoded(database), scorings=["asymmetric_hamming"]).lengths[0]
    ranked = scored.scores["asymmetric_hamming"]
    assert ranked is not None
    assert ranked.map is not None
    return ranked.map


def _exists(out: Path | None) -> bool:
    return out is not None and out.with_suffix(".json").exists()


def cell(values: list[float] | npt.NDArray[np.float64]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--query", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)

    kept = json.loads(arguments.out.with_suffix(".json").read_text()) if _exists(arguments.out) else {}
    found = {name: runs for name, runs in kept.get("runs", {}).items() if name in RUNS}
    for name, flags in RUNS.items():
        if name in found:
            continue
        found[name] = [commands(arguments.database, arguments.query, flags, seed) for seed in seeds]
        print(
            name, [length["map"]["asymmetric_hamming"] for length in found[name][-1]["lengths"]], flush=True
        )
    database, query = load_embeddings(arguments.database), load_embeddings(arguments.query)
    rivals: dict[str, dict[int, list[float]]] = {
        name: {int(bits): values for bits, values in cells.items()}
        for name, cells in kept.get("rivals", {}).items()
    }
    for epochs, rate in ((50, 1e-3), (50, 3e-3), (5, 3e-3)):
        name = f"OrthoHash head, {epochs} epochs, learning rate {rate:g}"
        if name in rivals:
            continue
        rivals[name] = {
            bits: [
                measure_orthohash(database, query, bits=bits, seed=seed, epochs=epochs, rate=rate)
                for seed in seeds
            ]
            for bits in LENGTHS
        }
        print(name, {bits: np.mean(values) for bits, values in rivals[name].items()}, flush=True)

    first = found["unsupervised"][0]
    lines = [
        f"mAP@{first['k']} in %, {first['queries']:,} queries on {first['database']:,} items, asymmetric Hamming, "
        f"mean ± spread of {arguments.seeds} seeds.",
        "",
        "| | bytes | " + " | ".join(f"{bits} bits" for bits in LENGTHS) + " | training, s |",
        "|---|---|" + "---|" * (len(LENGTHS) + 1),
    ]
    width = 4 * database.width
    for name, score in first["float"].items():
        lines.append(f"| float, {name.replace('_', ' ')} | {width:,} | {100 * score:.1f} | | | | |")
    for name in RUNS:
        runs = found[name]
        cells = []
        for bits in LENGTHS:
            values = [
                length["map"]["asymmetric_hamming"]
                for run in runs
                for length in run["lengths"]
                if length["bits"] == bits
            ]
            cells.append(cell(values) if values else "")
        seconds = np.median([run["training"]["seconds"] for run in runs])
        lines.append(
            f"| {name} | {'8' if 'preset' in name else '2 to 16'} | {' | '.join(cells)} | {seconds:.0f} |"
        )
    for name, by_bits in rivals.items():
        lines.append(f"| {name} | 2 to 16 | {' | '.join(cell(by_bits[bits]) for bits in LENGTHS)} | |")
    lines += [
        "",
        "What the codes keep of the float ranking: its top 10 found in the codes' top 100, in %.",
        "",
        "| | " + " | ".join(f"{bits} bits" for bits in LENGTHS) + " |",
        "|---|" + "---|" * len(LENGTHS),
    ]
    for name in ("unsupervised", "supervised"):
        kept = [
            [run["lengths"][place]["float_neighbour_recall"]["10@100"] for run in found[name]]
            for place in range(len(LENGTHS))
        ]
        lines.append(f"| {name} | {' | '.join(map(cell, kept))} |")
    table = "\n".join(lines)
    print(table)
    if arguments.out:
        content = {"runs": found, "rivals": rivals}
        arguments.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(
            f"# {arguments.out.name}\n\nMade by\n\n```\npython benchmarks/quality.py --database D.npz --query Q.npz "
            f"--seeds {arguments.seeds} --out docs/results/{arguments.out.name}\n```\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
