"""What a comparison measured: cells, rows over seeds, and the file that keeps them.

A cell is one method at one length with one seed. Cells are plain dicts that go to JSON and come back, so that a
run does only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

import crovca
from crovca.compare.methods import METHODS, Method
from crovca.errors import FileFormatError
from crovca.files import read_json
from crovca.metrics import METRICS, REPORTED, of_codes

__all__ = [
    "FORMAT",
    "OWN_SCORE",
    "Cell",
    "Comparison",
    "Row",
    "failures",
    "percent",
    "read_kept",
    "score_cells",
    "score_titles",
]

OWN_SCORE = "own"
FORMAT = 3
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
        found = [_look_up(cell["scores"].get(score), name) for cell in self.cells]
        numbers = [number for number in found if number is not None]
        if not numbers:
            return None
        return float(np.mean(numbers)), float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0

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
        if self.chance_map is not None:
            parts.append(f"a random order scores {100 * self.chance_map:.1f}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "version": crovca.__version__,
            "fingerprint": self.fingerprint,
            "k": self.k,
            "queries": self.queries,
            "database": self.database,
            "labeled": self.labeled,
            "trained": self.trained,
            "epochs": self.epochs,
            "chance_map": self.chance_map,
            "lengths": list(self.lengths),
            "cells": self.cells,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` gave."""
        names = [entry.name for entry in fields(cls) if entry.name in values]
        return cls(**{**{name: values[name] for name in names}, "lengths": tuple(values["lengths"])})


def score_titles() -> list[str]:
    """Of the columns of ``score_cells``."""
    return [f"{METRICS[name].title}{' or own' * (name == REPORTED)}" for name in of_codes()]


def score_cells(row: Row, name: str) -> list[str]:
    """``percent`` by every score of codes; a method with a score of its own has that one alone."""
    return [
        percent(row, score if row.method.binary else OWN_SCORE, name)
        if row.method.binary or score == REPORTED
        else ""
        for score in of_codes()
    ]


def failures(rows: Sequence[Row]) -> list[str]:
    """What could not be measured and why, a sentence for each method and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.failed is not None:
            seeds = f" ({row.missing} of {row.missing + len(row.cells)} seeds)" if row.cells else ""
            found.setdefault((row.method.title, row.failed), []).append(f"{row.bits}{seeds}")
    return [f"{title}, {', '.join(sizes)} bits: {reason}" for (title, reason), sizes in found.items()]


def percent(row: Row, score: str, name: str) -> str:
    """Mean and spread of what ``Row.value`` gives, in %; one seed has no spread, "-" is nothing."""
    found = row.value(score, name)
    if found is None:
        return "-"
    mean, spread = found
    shown = f"{100 * mean:.1f} ± {100 * spread:.1f}" if len(row.cells) > 1 else f"{100 * mean:.1f}"
    return f"{shown} ({len(row.cells)} of {len(row.cells) + row.missing} seeds)" if row.missing else shown


def read_kept(path: Path) -> dict[str, Any]:
    """What an earlier comparison wrote.

    Raises:
        FileFormatError: it is not that.
    """
    advice = "give another output, or --force to replace it"
    try:
        kept = read_json(path, "results of an earlier comparison")
    except FileFormatError as error:
        raise FileFormatError(f"{error}; {advice}") from error
    if kept.get("format") != FORMAT or not isinstance(kept.get("cells"), dict):
        raise FileFormatError(f"{path} is not what this version of 'crovca compare' writes; {advice}")
    return kept


def _look_up(score: Mapping[str, Any] | None, name: str) -> float | None:
    if score is None:
        return None
    return score["float_neighbour_recall"].get(name) if "@" in name else score.get(name)
