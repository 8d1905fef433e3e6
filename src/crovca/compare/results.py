"""What a comparison measured: cells, rows over seeds, and the file that keeps them.

A cell is one method at one length with one seed. Cells are plain dicts that go to JSON and come back, so that a
run does only what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

import crovca
from crovca.compare.methods import METHODS, Method
from crovca.errors import FileFormatError
from crovca.evaluation.situations import COLUMNS, Column, column_value
from crovca.files import read_json
from crovca.metrics import METRICS, REPORTED, of_codes

OWN_SCORE = "own"
BEST, LEVEL = "*", "~"
"""Marks: the best, and what the spread of seeds does not tell from it."""
FORMAT = 4
"""Of the kept results."""

Cell = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One method at one length over its seeds.

    Attributes:
        method: the method.
        bits: length of the code; 8 times the bytes an item takes where it is not a code.
        cells: what was measured with each seed.
        failed: why seeds are missing, or None.
        missing: how many seeds failed.
    """

    method: Method
    bits: int
    cells: tuple[Cell, ...]
    failed: str | None
    missing: int = 0

    @property
    def size(self) -> str:
        """ "16 bits", or the bytes where the size is the method's own."""
        if self.method.size == "asked":
            return f"{self.bits} bits"
        return f"{self.measured('bytes') or 0:,.0f} bytes"

    @property
    def main_score(self) -> str:
        """The score with a float query: that of reports, or the method's own."""
        return REPORTED if self.method.binary else OWN_SCORE

    def value(self, score: str, name: str) -> tuple[float, float] | None:
        """Mean and sample standard deviation over seeds of "map" and its like, or of a neighbor recall ("10@100")."""
        return _mean_and_spread([_look_up(cell["scores"].get(score), name) for cell in self.cells])

    def five(self, name: str, *, labeled: bool) -> tuple[float, float] | None:
        """Mean and sample standard deviation over seeds of one of the ``COLUMNS`` of the five measures."""
        found = [column_value(cell.get("measures", {}), name, labeled=labeled) for cell in self.cells]
        return _mean_and_spread(found)

    def measured(self, name: str) -> float | None:
        """Mean over seeds of "bytes", "fit_seconds" or "encode_rate"."""
        return float(np.mean([cell[name] for cell in self.cells])) if self.cells else None


@dataclass
class Comparison:
    """What was measured so far.

    Attributes:
        fingerprint: of the data and of how it is measured.
        k: cut-off rank of mAP@k.
        queries, database: how many items.
        labeled: whether labels say what is relevant.
        trained: how many items the methods learned from, where they were others than the database; else None.
        epochs: passes over the data of every learned method, or None: each as many as it takes by default.
        hold_out: share of the classes that was not learned for new and mixed, or None: only seen was measured.
        chance_map: mAP@k of a random order, or None.
        lengths: asked for, ascending.
        cells: by "method/bits/seed"; there may be more than was asked for, from earlier runs.
        methods, seeds: names, and how many seeds, that were asked for last; None: all that there are.
    """

    fingerprint: str
    k: int
    queries: int
    database: int
    labeled: bool
    chance_map: float | None
    lengths: tuple[int, ...]
    trained: int | None = None
    epochs: int | None = None
    hold_out: float | None = None
    cells: dict[str, Cell] = field(default_factory=dict)
    methods: tuple[str, ...] | None = None
    seeds: int | None = None

    def rows(self) -> list[Row]:
        """A row for each method and length that was asked for, in the order of ``METHODS``."""
        found = []
        for method in METHODS:
            if self.methods is not None and method.name not in self.methods:
                continue
            seeds = self.seeds if method.seeds is None else method.seeds
            mine = [
                cell
                for cell in self.cells.values()
                if cell["method"] == method.name and (seeds is None or cell["seed"] < seeds)
            ]
            sizes = sorted({int(cell["bits"]) for cell in mine})
            for bits in sizes:
                if method.size == "asked" and bits not in self.lengths:
                    continue
                cells = [cell for cell in mine if cell["bits"] == bits]
                good = tuple(cell for cell in cells if "failed" not in cell)
                reasons = [cell["failed"] for cell in cells if "failed" in cell]
                found.append(Row(method, bits, good, reasons[0] if reasons else None, len(reasons)))
        return found

    def described(self) -> str:
        """What was compared on what, in words."""
        parts = [f"{self.queries:,} queries on {self.database:,} items"]
        if self.trained is not None:
            parts.append(f"learned from {self.trained:,} others")
        if self.epochs is not None:
            parts.append(f"{self.epochs} epochs")
        if self.hold_out is not None:
            what = "classes" if self.labeled else "k-means cells"
            parts.append(f"new and mixed learned without {100 * self.hold_out:.0f} % of the {what}")
        if self.chance_map is not None:
            parts.append(f"a random order scores {100 * self.chance_map:.1f}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        kept = {name: value for name, value in vars(self).items() if name not in ("methods", "seeds")}
        return {"format": FORMAT, "version": crovca.__version__, **kept, "lengths": list(self.lengths)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` gave."""
        names = [entry.name for entry in fields(cls) if entry.name in values]
        return cls(**{**{name: values[name] for name in names}, "lengths": tuple(values["lengths"])})


def columns_of(state: Comparison) -> list[Column]:
    """The columns of the five measures that were measured."""
    return [column for column in COLUMNS if state.hold_out is not None or column.name not in ("new", "mixed")]


def marks(rows: Sequence[Row], column: Column, *, labeled: bool) -> dict[tuple[str, int], str]:
    """``BEST``, or ``LEVEL`` where the spread of seeds does not tell a row from the best, by method and bits.

    Methods compete at one length with those that learn alike, with labels or without. A method of which a seed failed
    takes no part, nor do those whose size is not asked for, the floats among them.
    """
    kinds: dict[tuple[int, bool], list[tuple[float, float, Row]]] = {}
    for row in rows:
        value = row.five(column.name, labeled=labeled)
        if value is not None and row.failed is None and row.method.size == "asked":
            mean = value[0] if column.more_is_better else -value[0]
            kinds.setdefault((row.bits, row.method.supervised), []).append((mean, value[1], row))
    found = {}
    for competitors in kinds.values():
        best = max(competitors, key=lambda one: one[0])
        for mean, spread, row in competitors:
            if mean == best[0]:
                found[row.method.name, row.bits] = BEST
            elif best[0] - mean <= math.hypot(spread, best[1]):
                found[row.method.name, row.bits] = LEVEL
    return found


def conclusion(state: Comparison) -> str:
    """Who is best at what, at the greatest length, in one sentence."""
    rows = [row for row in state.rows() if row.failed is None and row.cells]
    lengths = [row.bits for row in rows if row.method.size == "asked"]
    if not lengths:
        return "No method with a length of its own was measured."
    parts = []
    for supervised in (False, True):
        of_kind = [row for row in rows if row.bits == max(lengths) and row.method.supervised == supervised]
        names = []
        for column in [column for column in columns_of(state) if column.name in ("seen", "new", "mixed", "order")]:
            found = marks(of_kind, column, labeled=state.labeled)
            best = [row for row in of_kind if found.get((row.method.name, row.bits)) == BEST]
            value = best[0].five(column.name, labeled=state.labeled) if best else None
            if value is not None and (state.labeled or column.name != "seen"):
                names.append(f"{column.title} {best[0].method.title} ({100 * value[0]:.1f})")
        if names:
            parts.append(f"{'with' if supervised else 'without'} labels to learn from {', '.join(names)}")
    return f"Best at {max(lengths)} bits, in %: {'; '.join(parts)}."


def shown(value: tuple[float, float] | None, seeds: int, mark: str = "") -> str:
    """A mean and its spread in %, with its mark; one seed has no spread, "-" is nothing."""
    if value is None:
        return "-"
    text = f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}" if seeds > 1 else f"{100 * value[0]:.1f}"
    return f"{text} {mark}".rstrip()


def score_titles() -> list[str]:
    """Of the columns of ``score_cells``."""
    return [f"{METRICS[name].title}{' or own' * (name == REPORTED)}" for name in of_codes()]


def score_cells(row: Row, name: str) -> list[str]:
    """``percent`` by every score of codes; a method with a score of its own has that one alone."""
    return [
        percent(row, score if row.method.binary else OWN_SCORE, name) if row.method.binary or score == REPORTED else ""
        for score in of_codes()
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """What could not be measured and why, a sentence for each method and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.failed is not None:
            seeds = f" ({row.missing} of {row.missing + len(row.cells)} seeds)" if row.cells else ""
            found.setdefault((row.method.title, row.failed), []).append(f"{row.bits}{seeds}")
        for reason in {cell["held_out_failed"] for cell in row.cells if "held_out_failed" in cell}:
            found.setdefault((f"{row.method.title} (new, mixed)", reason), []).append(str(row.bits))
    return [f"{title}, {', '.join(sizes)} bits: {reason}" for (title, reason), sizes in found.items()]


def percent(row: Row, score: str, name: str) -> str:
    """Mean and spread of what ``Row.value`` gives, in %; one seed has no spread, "-" is nothing."""
    text = shown(row.value(score, name), len(row.cells))
    return f"{text} ({len(row.cells)} of {len(row.cells) + row.missing} seeds)" if row.missing else text


def read_kept(path: Path) -> dict[str, Any]:
    """What an earlier comparison wrote."""
    advice = "give another output, or --force to replace it"
    try:
        kept = read_json(path, "results of an earlier comparison")
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {advice}") from error
    if kept.get("format") != FORMAT or not isinstance(kept.get("cells"), dict):
        raise FileFormatError(f"{path} is not what this version of 'crovca compare' writes; {advice}")
    return kept


def _mean_and_spread(found: Sequence[float | None]) -> tuple[float, float] | None:
    numbers = [number for number in found if number is not None]
    if not numbers:
        return None
    return float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0


def _look_up(score: Mapping[str, Any] | None, name: str) -> float | None:
    if score is None:
        return None
    return score["float_neighbour_recall"].get(name) if "@" in name else score.get(name)
