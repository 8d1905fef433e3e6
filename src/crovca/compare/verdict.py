"""What a comparison means in words: which method to choose for which purpose, ours or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crovca.compare.methods import METHODS
from crovca.compare.results import Comparison, Row

__all__ = ["RECALL", "verdict"]

RECALL = "10@100"
_AS_GOOD_AS_CHANCE = 0.01

Value = Callable[[Row], tuple[float, float] | None]
Found = tuple[float, float, Row]
"""Mean, spread, and whose."""


@dataclass(frozen=True)
class _Purpose:
    text: str
    admits: Callable[[Row], bool]
    value: Value
    chance: float | None = None


def verdict(state: Comparison) -> list[str]:
    """Plain sentences, one for each purpose that the measurements can speak to.

    A method of which a seed failed wins nothing.
    """
    rows = [row for row in state.rows() if row.failed is None]
    purposes = [*(_by_labels(state, rows) if state.labeled else []), _by_neighbors()]
    sentences = [sentence for purpose in purposes if (sentence := _sentence(purpose, rows, state.lengths))]
    if state.labeled:
        sentences += _floats(rows)
    else:
        sentences.append(
            "Without labels on both sides this is all that can be told: how much of the float ranking a method keeps, "
            "not whether it finds what belongs together; methods that learn from labels were not run."
        )
    return sentences + _limits(state, rows)


def _by_labels(state: Comparison, rows: Sequence[Row]) -> list[_Purpose]:
    def by_map(row: Row) -> tuple[float, float] | None:
        return row.value(row.main_score, "map")

    purposes = [
        _Purpose(
            "To find items of the same class without labels to learn from (mAP)",
            lambda row: row.method.size == "asked" and not row.method.supervised,
            by_map,
            state.chance_map,
        ),
        _Purpose(
            "The same with codes that a Hamming index can hold (mAP)",
            lambda row: row.method.size == "asked" and not row.method.supervised and row.method.binary,
            by_map,
            state.chance_map,
        ),
    ]
    if any(row.method.supervised for row in rows):
        with_labels = _Purpose(
            "To find items of the same class with labels to learn from (mAP; it says nothing of classes that were not "
            "among the labels)",
            lambda row: row.method.size == "asked",
            by_map,
            state.chance_map,
        )
        purposes.insert(0, with_labels)
    return purposes


def _by_neighbors() -> _Purpose:
    return _Purpose(
        "To keep the float ranking (its top 10 within the codes' top 100)",
        lambda row: row.method.size == "asked",
        lambda row: row.value(row.main_score, RECALL),
    )


def _sentence(purpose: _Purpose, rows: Sequence[Row], lengths: Sequence[int]) -> str:
    parts = []
    for bits in lengths:
        found = [
            (*value, row)
            for row in rows
            if row.bits == bits and purpose.admits(row) and (value := purpose.value(row)) is not None
        ]
        if found:
            parts.append(f"{bits} bits: {_winner(found, purpose.chance)}")
    return f"{purpose.text}: " + "; ".join(parts) + "." if parts else ""


def _winner(found: Sequence[Found], chance: float | None) -> str:
    """The best, who cannot be told apart from it, and how far ours is behind where it is not among them."""
    ranked = sorted(found, key=lambda one: -one[0])
    best, _, winner = first = ranked[0]
    if chance is not None and best <= chance + _AS_GOOD_AS_CHANCE:
        return f"none, as nothing is better than a random order ({100 * chance:.1f})"
    level = [row for one in ranked[1:] if _level(first, one) for row in one[2:]]
    text = f"{winner.method.title} ({100 * best:.1f})"
    if level:
        text += f", not to be told apart by the spread of seeds from {_and(level)}"
    if winner.method.baseline is None or any(row.method.baseline is None for row in level):
        return text
    ours = [(value, row) for value, _, row in ranked if row.method.baseline is None]
    if ours:
        value, row = ours[0]
        text += f", {100 * (best - value):.1f} points above {row.method.title}"
    return text


def _level(one: Found, other: Found) -> bool:
    """Whether two means differ by no more than the spread of their difference."""
    return abs(one[0] - other[0]) <= math.hypot(one[1], other[1])


def _and(rows: Sequence[Row]) -> str:
    return " and from ".join(row.method.title for row in rows)


def _floats(rows: Sequence[Row]) -> list[str]:
    """Whether the embedding itself is better than the best code that was learned without labels."""
    known = [(*value, row) for row in rows if (value := row.value(row.main_score, "map")) is not None]
    floats = [one for one in known if one[2].method.size == "float"]
    codes = [one for one in known if one[2].method.size == "asked" and not one[2].method.supervised]
    if not floats or not codes:
        return []
    best, code = max(floats, key=lambda one: one[0]), max(codes, key=lambda one: one[0])
    size = f"{best[2].measured('bytes') or 0:,.0f} bytes an item"
    embedding = f"the float embedding ({best[2].method.title}, {size}: {100 * best[0]:.1f})"
    coded = f"the best code without labels ({code[2].method.title}, {code[2].bits} bits: {100 * code[0]:.1f})"
    if _level(best, code):
        return [f"By mAP {embedding} and {coded} are not to be told apart."]
    if best[0] > code[0]:
        return [f"Where its size can be paid for, {embedding} is better than {coded}."]
    return [f"By mAP {coded} is better than {embedding}, which is worth its size for the exact ranking."]


def _limits(state: Comparison, rows: Sequence[Row]) -> list[str]:
    """What should be known before somebody believes the sentences."""
    compared = {row.method.name for row in rows}
    able = [method for method in METHODS if state.labeled or not method.supervised]
    limits = []
    if len(compared) < len(able) - 1:  # one that fails on these data is no choice of the user's
        limits.append(f"Compared were {len(compared)} of {len(METHODS)} methods.")
    if state.seeds == 1:
        limits.append("One seed shows no spread: a point more or less may be chance.")
    limits.append(
        f"The spread is that of seeds; that of other queries than these {state.queries:,} is not in it."
    )
    return limits
