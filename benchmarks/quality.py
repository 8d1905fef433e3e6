"""Claims: how codes compare with every other method on the same embeddings, by five measures, with three seeds.

Studies, each a comparison of ``crovca compare`` (docs/reproducing.md): all methods; all learned methods in 5 epochs;
the lengths from 16 to 256 bits; and, where ids are paths in folders of classes, what is learned from the classes A to M
asked for N to Z, and the reverse. Trains on the database only. Cells that stand in OUT.json are not run again.

    python benchmarks/quality.py --database D.npz --query Q.npz [--seeds 3] [--out docs/results/NAME]

With ``--only "every method at 64 bits"``, for the picture, every method whatever ``--methods`` says.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from crovca import Embeddings, load_embeddings
from crovca.compare.methods import METHODS
from crovca.compare.report import frontier
from crovca.compare.results import Comparison, columns_of, conclusion, failures, marks, percent, shown
from crovca.compare.run import compare
from crovca.evaluation.report import class_names
from crovca.files import write_json
from crovca.metrics import METRICS, REPORTED, of_codes

LENGTHS = (16, 32, 64, 128)
METHOD_NAMES = [method.name for method in METHODS]
LEARNED = [method.name for method in METHODS if method.learned]
CARRIED = [
    method.name for method in METHODS if method.name not in {"bihalf", "greedyhash", "similarity_distillation", "opq"}
]
FRONTIER = 64  # bits of the picture
OURS = ["crovca_paper", "crovca_paper_supervised", "crovca", "crovca_supervised"]
ALL, FIVE, ABLATION, EVERY = "all methods", "5 epochs", "lengths", "every method at 64 bits"
TRANSFERS = ("A to M for N to Z", "N to Z for A to M")


@dataclass(frozen=True)
class Study:
    """Arguments of ``compare``; ``learned`` says which classes are learned for new and mixed, by their first letter."""

    lengths: tuple[int, ...] = LENGTHS
    methods: list[str] | None = None
    epochs: int | None = None
    learned: Callable[[str], bool] | None = None


def first_half(name: str) -> bool:
    return name[0].lower() <= "m"


def second_half(name: str) -> bool:
    return not first_half(name)


STUDIES = {
    ALL: Study(),
    FIVE: Study(methods=[*LEARNED, *OURS[:2]], epochs=5),
    EVERY: Study((FRONTIER,)),
    ABLATION: Study((*LENGTHS, 256), ["float_normalized", "float_centered", *OURS]),
    TRANSFERS[0]: Study((16, 64), CARRIED, learned=first_half),
    TRANSFERS[1]: Study((16, 64), CARRIED, learned=second_half),
}


def run(study: str, method: str, files: tuple[Path, Path], seeds: int, kept: dict[str, Any] | None) -> dict[str, Any]:
    """One method of a study, in a process of its own thread: the whole state, with the cells that were kept."""
    database, query = map(_load, files)
    asked = STUDIES[study]
    classes = None
    if asked.learned is not None:
        classes = [label for label, name in class_names(database).items() if asked.learned(name)]
    state = compare(
        database,
        query,
        lengths=asked.lengths,
        methods=[method],
        epochs=asked.epochs,
        seeds=seeds,
        learned_classes=classes,
        kept=kept,
    )
    return replace(state, methods=None, seeds=None).to_dict()


@cache
def _load(path: Path) -> Embeddings:
    return load_embeddings(path)


def run_study(
    study: str, files: tuple[Path, Path], seeds: int, jobs: int, kept: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The state after each method; ``jobs`` processes of one thread each work side by side, long methods first."""
    methods = [method for method in METHODS if method.name in (STUDIES[study].methods or METHOD_NAMES)]
    methods.sort(key=lambda method: (not method.learned, not method.supervised))
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that are started
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(run, study, method.name, files, seeds, kept.get(study)) for method in methods]
        cells = dict(kept.get(study, {}).get("cells", {}))
        for done in as_completed(tasks):
            state = done.result()
            cells |= state["cells"]
            yield {**state, "cells": cells}


# --- the page ---------------------------------------------------------------------------------------


def five_table(state: Comparison, bits: int | None) -> Iterator[str]:
    """The five measures of every method at a length, or of those with sizes of their own."""
    rows = [row for row in state.rows() if (row.bits if row.method.size == "asked" else None) == bits]
    columns = columns_of(state)
    marked = {column.name: marks(rows, column, labeled=state.labeled) for column in columns}
    yield "| | bytes | " + " | ".join(column.title for column in columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for row in rows:
        values = [
            shown(
                row.five(column.name, labeled=state.labeled),
                len(row.cells),
                marked[column.name].get((row.method.name, row.bits), ""),
            ).replace("*", "\\*")
            for column in columns
        ]
        size = f"{row.measured('bytes') or 0:,.0f}" if row.cells else "failed"
        yield f"| {row.method.title} | {size} | {' | '.join(values)} |"


def score_table(state: Comparison, score: str | None, name: str, lengths: Sequence[int]) -> Iterator[str]:
    """mAP and the like by a score (None: the one with a float query), a column for each length."""
    rows = {(row.method.name, row.bits): row for row in state.rows() if row.method.size == "asked"}
    yield "| | " + " | ".join(f"{bits} bits" for bits in lengths) + " |"
    yield "|---|" + "---|" * len(lengths)
    for method in METHODS:
        found = [rows.get((method.name, bits)) for bits in lengths]
        cells = ["-" if row is None else percent(row, score or row.main_score, name) for row in found]
        if set(cells) != {"-"}:
            yield f"| {method.title} | {' | '.join(cells)} |"


def time_table(state: Comparison) -> Iterator[str]:
    yield "| | fit, s | items/s |"
    yield "|---|---|---|"
    for row in state.rows():
        if row.cells and (row.bits == 64 or row.method.size != "asked"):
            fit, rate = row.measured("fit_seconds") or 0, row.measured("encode_rate") or 0
            yield f"| {row.method.title} | {fit:.1f} | {rate:,.0f} |"


def page(
    name: str, found: dict[str, Comparison], command: str, seconds: dict[str, float], pictures: Collection[str]
) -> str:
    main = found[ALL]
    lines = [
        f"# {name}\n\nMade by\n\n```\n{command}\n```\n",
        f"{main.described()}. mAP@{main.k} in %, asymmetric Hamming distance or the method's own score; mean ± sample "
        "standard deviation over seeds (Hashing-Baseline: over 10 rotations; a method without chance is run once). "
        "\\*: best of its length; ~: not told from it by the spread of seeds; of methods that learn with labels, and "
        "of those that learn without.\n",
        *(f"* {column.title}: {column.meaning}" for column in columns_of(main)),
    ]
    for study, state in found.items():
        lines += [f"\n## {study}", "", conclusion(state)]
        if study == (EVERY if EVERY in found else ALL) and f"{name}_frontier.png" in pictures:
            lines += ["", f"![seen against mixed and order at {FRONTIER} bits, ours in red]({name}_frontier.png)"]
        for bits in [*STUDIES[study].lengths, None]:
            lines += ["", "Sizes of their own:" if bits is None else f"{bits} bits:", "", *five_table(state, bits)]
        lines += ["", *(f"* Failed: {sentence}" for sentence in failures(state.rows()))]
    lines += ["\n## The same codes by other scores (seen)"]
    for score in of_codes():
        if score != REPORTED:
            lines += ["", f"By {METRICS[score].title}:", "", *score_table(main, score, "map", LENGTHS)]
    lines += ["", "mAP divided by min(k, relevant items):", "", *score_table(main, None, "map_min_k_r", LENGTHS)]
    lines += ["\n## Times at 64 bits (ours: one model of all lengths)", "", *time_table(main)]
    took = ", ".join(f"{study}: {value / 60:.0f} min" for study, value in seconds.items())
    return "\n".join(lines) + f"\n\nTime it took, in parallel: {took}.\n"


def measured(study: str, state: dict[str, Any]) -> Comparison:
    """What was measured of a study's methods."""
    there = {cell["method"] for cell in state["cells"].values()}
    names = tuple(name for name in STUDIES[study].methods or METHOD_NAMES if name in there)
    return replace(Comparison.from_dict(state), methods=names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--query", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only", help="these studies alone, with commas; 'page': none, write what there is")
    parser.add_argument("--methods", help="these methods alone, with commas")
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    if arguments.methods is not None:
        wanted = arguments.methods.split(",")
        for name, study in STUDIES.items():
            if name == EVERY:
                continue
            STUDIES[name] = replace(study, methods=[m for m in study.methods or METHOD_NAMES if m in wanted])
    kept: dict[str, Any] = {"studies": {}, "seconds": {}}
    if arguments.out is not None and arguments.out.with_suffix(".json").exists():
        kept = json.loads(arguments.out.with_suffix(".json").read_text())
    files = (arguments.database, arguments.query)
    named = len({first_half(name) for name in class_names(_load(files[0])).values()}) == 2  # both halves occur
    studies = [name for name, study in STUDIES.items() if study.methods != [] and (named or study.learned is None)]
    chosen = (
        [name for name in studies if name != EVERY]
        if arguments.only is None
        else [name for name in arguments.only.split(",") if name != "page"]
    )
    for name in chosen:
        before, started = kept["seconds"].get(name, 0.0), time.perf_counter()
        if name in (ABLATION, EVERY) and ALL in kept["studies"]:  # the same data and settings, other lengths
            cells = kept["studies"][ALL]["cells"]
            wanted = STUDIES[name].methods or METHOD_NAMES
            own = {key: cell for key, cell in cells.items() if cell["method"] in wanted}
            kept["studies"].setdefault(name, {**kept["studies"][ALL], "cells": own})
        for state in run_study(name, files, arguments.seeds, arguments.jobs, kept["studies"]):
            kept["studies"][name] = state
            kept["seconds"][name] = round(before + time.perf_counter() - started, 1)
            if arguments.out is not None:
                write_json(arguments.out.with_suffix(".json"), kept)
            print(f"{name}: {len(state['cells'])} cells, {kept['seconds'][name] / 60:.1f} min", flush=True)
    if ALL not in kept["studies"]:
        return
    found = {name: measured(name, kept["studies"][name]) for name in studies if name in kept["studies"]}
    title = "quality" if arguments.out is None else arguments.out.name
    out = "" if arguments.out is None else f" --out docs/results/{title}"
    only = "" if arguments.methods is None else f" --methods {arguments.methods}"
    command = (
        f"python benchmarks/quality.py --database D.npz --query Q.npz --seeds {arguments.seeds} "
        f"--jobs {arguments.jobs}{only}{out}"
    )
    shown_in = found.get(EVERY, found[ALL])
    rows = [row for row in shown_in.rows() if row.cells and row.method.size == "asked" and row.bits == FRONTIER]
    picture = frontier(shown_in, rows)
    pictures = {} if picture is None else {f"{title}_frontier.png": picture}
    text = page(title, found, command, kept["seconds"], pictures)
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text)
        for name, content in pictures.items():
            arguments.out.with_name(name).write_bytes(content)


if __name__ == "__main__":
    main()
