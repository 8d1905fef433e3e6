"""Claims: how codes compare with every other method on the same embeddings, at all lengths, with three seeds.

Five studies, each a comparison of ``crovca compare`` (docs/reproducing.md): all methods; all learned methods in 5
epochs; the lengths from 16 to 256 bits; and training on the classes A to M to search N to Z, and the other way round.
A class is the folder in an item's id. Trains on the database only. Cells that stand in OUT.json are not run again.

    python benchmarks/quality.py --database D.npz --query Q.npz [--seeds 3] [--out docs/results/NAME]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from crovca import Embeddings, load_embeddings
from crovca.compare.methods import METHODS
from crovca.compare.results import Comparison, Row, failures, percent
from crovca.compare.run import compare
from crovca.compare.verdict import RECALL, verdict
from crovca.data.embeddings import as_embeddings
from crovca.files import write_json
from crovca.metrics import of_codes

LENGTHS = (16, 32, 64, 128)
METHOD_NAMES = [method.name for method in METHODS]
LEARNED = [method.name for method in METHODS if method.learned]
CARRIED = [
    method.name
    for method in METHODS
    if method.name not in {"bihalf", "greedyhash", "similarity_distillation", "opq"}
]
OURS = ["crovca_paper", "crovca_paper_supervised", "crovca", "crovca_supervised"]
ALL, FIVE, ABLATION = "all methods", "5 epochs", "lengths"
ORTHOHASH = 88  # mAP in percent that an OrthoHash head reaches on the photographs, or it is not rebuilt well
TRANSFERS = ("A to M for N to Z", "N to Z for A to M")


@dataclass(frozen=True)
class Study:
    """Arguments of ``compare``, and which classes are learned from and searched."""

    lengths: tuple[int, ...] = LENGTHS
    methods: list[str] | None = None
    epochs: int | None = None
    halves: tuple[Callable[[str], bool], Callable[[str], bool]] | None = None


def first_half(name: str) -> bool:
    return name[0].lower() <= "m"


def second_half(name: str) -> bool:
    return not first_half(name)


STUDIES = {
    ALL: Study(),
    FIVE: Study(methods=[*LEARNED, *OURS[:2]], epochs=5),
    ABLATION: Study((*LENGTHS, 256), ["float_normalized", "float_centered", *OURS]),
    TRANSFERS[0]: Study((16, 64), CARRIED, halves=(first_half, second_half)),
    TRANSFERS[1]: Study((16, 64), CARRIED, halves=(second_half, first_half)),
}


def of_classes(items: Embeddings, wanted: Callable[[str], bool]) -> Embeddings:
    assert items.ids is not None and items.labels is not None
    chosen = np.array([wanted(name.split("/")[0]) for name in items.ids.tolist()])
    return as_embeddings(items.values[:][chosen], items.labels[chosen], items.ids[chosen])


def run(
    study: str, method: str, files: tuple[Path, Path], seeds: int, kept: dict[str, Any] | None
) -> dict[str, Any]:
    """One method of a study, in a process of its own thread: the whole state, with the cells that were kept."""
    database, query = map(_load, files)
    asked, train = STUDIES[study], None
    if asked.halves is not None:
        learned, searched = asked.halves
        train, database, query = (
            of_classes(database, learned),
            of_classes(database, searched),
            of_classes(query, searched),
        )
    state = compare(
        database,
        query,
        train=train,
        lengths=asked.lengths,
        methods=[method],
        epochs=asked.epochs,
        seeds=seeds,
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


class Results:
    """Rows by method and bits."""

    def __init__(self, state: Comparison) -> None:
        self.state = state
        self.rows = {(row.method.name, row.bits): row for row in state.rows()}
        self.choose_methods = list({row.method.name: row.method for row in state.rows()}.values())

    def table(self, score: str | None, name: str, lengths: Sequence[int]) -> Iterator[str]:
        """A line for each method; ``score`` None: the one with a float query."""
        yield "| | " + " | ".join(f"{bits} bits" for bits in lengths) + " |"
        yield "|---|" + "---|" * len(lengths)
        for method in self.choose_methods:
            cells = [self.cell(method.name, bits, score, name) for bits in lengths]
            if method.size != "asked":
                bits = next(bits for found, bits in self.rows if found == method.name)
                cells = [self.cell(method.name, bits, score, name), *[""] * (len(lengths) - 1)]
                size = self.rows[method.name, bits].measured("bytes") or 0
                yield f"| {method.title} ({size:,.0f} bytes) | {' | '.join(cells)} |"
            elif set(cells) != {"-"}:
                yield f"| {method.title} | {' | '.join(cells)} |"

    def cell(self, method: str, bits: int, score: str | None, name: str) -> str:
        row = self.rows.get((method, bits))
        if row is None:
            return "-"
        return percent(row, score or row.main_score, name) if row.cells else "failed"

    def map(self, method: str, bits: int) -> tuple[float, float]:
        """Mean and spread of mAP in percent."""
        row = self.rows.get((method, bits))
        found = None if row is None else row.value(row.main_score, "map")
        if row is None or found is None:
            raise KeyError(f"{self.title(method)}, {bits} bits")
        return 100 * found[0], 100 * found[1]

    def title(self, method: str) -> str:
        return next(known.title for known in METHODS if known.name == method)

    def best(self, bits: int, wanted: Callable[[Row], bool]) -> tuple[float, float, str]:
        """Mean, spread and title of the best method of a kind at a length."""
        found = [
            (*self.map(name, length), row.method.title)
            for (name, length), row in self.rows.items()
            if length == bits and row.failed is None and wanted(row)
        ]
        return max(found)

    def floats(self) -> tuple[float, str]:
        """The best float embedding."""
        found = [
            (self.map(*key)[0], row.method.title)
            for key, row in self.rows.items()
            if row.method.size == "float"
        ]
        return max(found)


def claims(found: dict[str, Results]) -> Iterator[str]:
    """The paper's claims and the project's, one by one, with what was found."""
    for claim in (_sixteen_bits, _five_epochs, _one_objective, _longer, _families, _ahead, _transfers):
        try:
            yield from list(claim(found))
        except KeyError as missing:
            yield f"{claim.__doc__} Not measured yet: {missing.args[0]}."


def _sixteen_bits(found: dict[str, Results]) -> Iterator[str]:
    """16 bits without labels beat the float embedding?"""
    main = found[ALL]
    best_float, title = main.floats()
    for name in ("crovca_paper", "crovca"):
        value, _ = main.map(name, 16)
        yield (
            f"16 bits without labels beat the float embedding? {_yes(value > best_float)}, with "
            f"{main.title(name)}: {value:.1f} against {best_float:.1f} ({title})."
        )


def _five_epochs(found: dict[str, Results]) -> Iterator[str]:
    """5 epochs suffice?"""
    main, five = found[ALL], found[FIVE]
    for name in ("crovca", "crovca_supervised", "orthohash"):
        lost = [main.map(name, bits)[0] - five.map(name, bits)[0] for bits in LENGTHS]
        yield (
            f"5 epochs suffice? {main.title(name)}: they cost {_listed(lost)} points against the default number of "
            "epochs."
        )


def _one_objective(found: dict[str, Results]) -> Iterator[str]:
    """One objective beats OrthoHash?"""
    main, five = found[ALL], found[FIVE]
    for epochs, results, name in (
        ("the default number of epochs", main, "crovca_supervised"),
        ("5 epochs", five, "crovca_supervised"),
        ("5 epochs", five, "crovca_paper_supervised"),
    ):
        lead = [results.map(name, bits)[0] - results.map("orthohash", bits)[0] for bits in LENGTHS]
        yield (
            f"One objective beats OrthoHash? With {epochs}, {results.title(name)}: "
            f"{_yes(min(lead) > 0, max(lead) > 0)}, by {_listed(lead)} points."
        )


def _longer(found: dict[str, Results]) -> Iterator[str]:
    """Longer codes are better?"""
    ablation = found[ABLATION]
    for name in ("crovca_paper", "crovca"):
        values = [ablation.map(name, bits)[0] for bits in (*LENGTHS, 256)]
        rising = values == sorted(values)
        yield (
            f"Longer codes are better (the shape of the paper's Table 4, 16 to 256 bits)? "
            f"{ablation.title(name)}: {'at every step' if rising else 'not at every step'}: {_listed(values)}."
        )


def _families(found: dict[str, Results]) -> Iterator[str]:
    """Rebuilt methods reach what their families should?"""
    main = found[ALL]
    families = [main.map(name, 16)[0] for name in ("lsh", "pca", "hashing_baseline", "itq")]
    yield (
        "Rebuilt methods reach what their families should? At 16 bits LSH, PCA, Hashing-Baseline and ITQ: "
        f"{_listed(families)}; OrthoHash at 16 to 128 bits: "
        f"{_listed([main.map('orthohash', bits)[0] for bits in LENGTHS])}, at least {ORTHOHASH} expected."
    )


def _ahead(found: dict[str, Results]) -> Iterator[str]:
    """Ahead of the baselines?"""
    main, five = found[ALL], found[FIVE]
    lead = [main.map("crovca", bits)[0] - main.map("itq", bits)[0] for bits in LENGTHS]
    yield f"At least 10 points over ITQ at 16 to 64 bits? {_yes(min(lead[:3]) >= 10)}: {_listed(lead)}."
    yield "Ahead of every baseline without labels? " + _against(
        main, "crovca", lambda row: row.method.baseline is not None and not row.method.supervised
    )
    for results, epochs in ((main, "the default number of"), (five, "5")):
        yield f"With labels as good as the best head, in {epochs} epochs? " + _against(
            results, "crovca_supervised", lambda row: row.method.baseline is not None and row.method.supervised
        )  # fmt: skip


def _transfers(found: dict[str, Results]) -> Iterator[str]:
    """Codes keep their meaning for classes that were not learned?"""
    for name in TRANSFERS:
        yield from _transfer(name, found[name])


def _unfinished(results: Results, study: Study, seeds: int) -> Iterator[str]:
    """What of a study has not been measured, or with fewer seeds."""
    for method in METHODS:
        if study.methods is not None and method.name not in study.methods:
            continue
        wanted = seeds if method.seeds is None else method.seeds
        sizes = (
            study.lengths
            if method.size == "asked"
            else [b for name, b in results.rows if name == method.name]
        )
        rows = [results.rows.get((method.name, bits)) for bits in sizes]
        done = [len(row.cells) + row.missing for row in rows if row is not None]
        if not done:
            yield f"{method.title}: not measured yet"
        elif min(done) < wanted or len(done) < len(sizes):
            yield f"{method.title}: {sum(done)} of {wanted * len(sizes)} cells so far"


def _transfer(name: str, results: Results) -> Iterator[str]:
    best_float, title = results.floats()
    for bits in (16, 64):
        known = {method: results.map(method, bits) for method in ("crovca", "crovca_supervised", "orthohash")}
        head, spread, best = results.best(bits, lambda row: row.method.supervised)
        plain, _, untaught = results.best(
            bits, lambda row: not row.method.supervised and row.method.size == "asked"
        )
        yield (
            f"Codes that keep meaning, learned from the classes {name}, {bits} bits: crovca "
            f"{known['crovca'][0]:.1f} without and {known['crovca_supervised'][0]:.1f} with labels, OrthoHash "
            f"{known['orthohash'][0]:.1f}; best with labels {best} ({head:.1f} ± {spread:.1f}), without {untaught} "
            f"({plain:.1f}), float {best_float:.1f} ({title})."
        )


def _against(results: Results, ours: str, wanted: Callable[[Row], bool]) -> str:
    parts, worst = [], []
    for bits in LENGTHS:
        value, spread = results.map(ours, bits)
        other, others, title = results.best(bits, wanted)
        level = abs(value - other) <= math.hypot(spread, others)
        worst.append("within the spread" if level else "yes" if value > other else "no")
        parts.append(
            f"{bits} bits: {worst[-1]}, {value:.1f} ± {spread:.1f} against {other:.1f} ± {others:.1f} ({title})"
        )
    return "; ".join(parts) + "."


def _yes(all_of_it: bool, some_of_it: bool = False) -> str:
    return "yes" if all_of_it else "in part" if some_of_it else "no"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def page(found: dict[str, Results], command: str, seconds: dict[str, float], seeds: int) -> str:
    main = found[ALL]
    state = main.state
    unfinished = [
        f"* {name}: {what}" for name in found for what in _unfinished(found[name], STUDIES[name], seeds)
    ]
    lines = [
        f"mAP@{state.k} in %, {state.queries:,} queries on {state.database:,} items; mean ± sample standard deviation "
        "over seeds (Hashing-Baseline: over 10 rotations; a method without chance is run once). Where a title says no "
        "more, every method learns from the database, and stores as many bits as the column says.",
        "",
        *(
            [
                "Not finished, and measured in parts beside other work (so no times); the command above does what is "
                "missing:",
                "",
                *unfinished,
                "",
            ]
            if unfinished
            else []
        ),
        "## What was found",
        "",
        *(f"* {claim}" for claim in claims(found)),
        "",
        "Which to choose, as `crovca compare` says it:",
        "",
        *(f"* {sentence}" for sentence in verdict(state)),
        "",
        "## All methods",
        "",
        "With a float query: asymmetric Hamming, or the method's own score.",
        "",
        *main.table(None, "map", LENGTHS),
    ]
    names = {"hamming": "symmetric Hamming", "bce": "BCE"}
    for score in of_codes():
        if score in names:
            lines += ["", f"The same codes by {names[score]}.", "", *main.table(score, "map", LENGTHS)]
    lines += [
        "",
        "mAP divided by min(k, relevant items), with a float query.",
        "",
        *main.table(None, "map_min_k_r", LENGTHS),
        "",
        "What is kept of the float ranking: its top 10 found in the top 100.",
        "",
        *main.table(None, RECALL, LENGTHS),
        "",
    ]
    if not unfinished:  # parts of a run may have been measured beside other work
        lines += [
            "Time to fit at 64 bits in seconds, and items encoded a second (ours: one model of all lengths).",
            "",
            "| | fit | items/s |",
            "|---|---|---|",
        ]
    for method in main.choose_methods:
        row = main.rows.get((method.name, 64))
        if row is not None and row.cells and not unfinished:
            fit, rate = row.measured("fit_seconds") or 0, row.measured("encode_rate") or 0
            lines.append(f"| {method.title} | {fit:.1f} | {rate:,.0f} |")
    lines += [
        "",
        *(f"* Failed: {sentence}" for sentence in failures(list(main.rows.values()))),
    ]
    lines += ["", "## All learned methods in 5 epochs", "", *found[FIVE].table(None, "map", LENGTHS)]
    lines += ["", "## Lengths", "", *found[ABLATION].table(None, "map", (*LENGTHS, 256))]
    for name in TRANSFERS:
        part = found[name].state
        lines += [
            "",
            f"## Learned from the classes {name}",
            "",
            f"{part.queries:,} queries on {part.database:,} items, learned from {part.trained:,} of other classes.",
            "",
            *found[name].table(None, "map", (16, 64)),
        ]
    took = ", ".join(f"{name}: {value / 60:.0f} min" for name, value in seconds.items())
    last = "" if unfinished else f"\nTime it took: {took}.\n"
    return f"# caltech100\n\nMade by\n\n```\n{command}\n```\n\n" + "\n".join(lines) + f"\n{last}"


def _chosen(only: str | None) -> list[str]:
    return list(STUDIES) if only is None else [name for name in only.split(",") if name != "page"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--query", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument(
        "--only", help="run these studies alone, with commas; 'page': none, write what there is"
    )
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    kept: dict[str, Any] = {"studies": {}, "seconds": {}}
    if arguments.out is not None and arguments.out.with_suffix(".json").exists():
        kept = json.loads(arguments.out.with_suffix(".json").read_text())
    files = (arguments.database, arguments.query)
    for name in _chosen(arguments.only):
        before, started = kept["seconds"].get(name, 0.0), time.perf_counter()
        if name == ABLATION and ALL in kept["studies"]:  # the same data and settings, one length more
            cells = kept["studies"][ALL]["cells"]
            own = {
                key: cell for key, cell in cells.items() if cell["method"] in (STUDIES[name].methods or ())
            }
            kept["studies"].setdefault(name, {**kept["studies"][ALL], "cells": own})
        for state in run_study(name, files, arguments.seeds, arguments.jobs, kept["studies"]):
            kept["studies"][name] = state
            kept["seconds"][name] = round(before + time.perf_counter() - started, 1)
            if arguments.out is not None:
                write_json(arguments.out.with_suffix(".json"), kept)
            print(f"{name}: {len(state['cells'])} cells, {kept['seconds'][name] / 60:.1f} min", flush=True)
    if set(kept["studies"]) != set(STUDIES):
        return
    found = {}
    for name, study in STUDIES.items():
        whole = Comparison.from_dict(kept["studies"][name])
        found[name] = Results(
            whole if study.methods is None else replace(whole, methods=tuple(study.methods))
        )
    out = "" if arguments.out is None else f" --out docs/results/{arguments.out.name}"
    command = (
        f"python benchmarks/quality.py --database D.npz --query Q.npz --seeds {arguments.seeds} "
        f"--jobs {arguments.jobs}{out}"
    )
    text = page(found, command, kept["seconds"], arguments.seeds)
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text)
    measured = [row for (name, _), row in found[ALL].rows.items() if name == "orthohash" and row.cells]
    if any(found[ALL].map("orthohash", row.bits)[0] < ORTHOHASH for row in measured):
        raise SystemExit(f"OrthoHash is below {ORTHOHASH}: see the page")


if __name__ == "__main__":
    main()
