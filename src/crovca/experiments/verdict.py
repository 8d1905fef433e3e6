"""What a comparison means in words: which method to choose for which purpose, ours or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crovca.experiments.compare import Comparison, Row

__all__ = ["verdict"]

RECALL = "10@100"

Value = Callable[[Row], tuple[float, float] | None]


@dataclass(frozen=True)
class _Purpose:
    text: str
    admits: Callable[[Row], bool]
    value: Value


def verdict(state: Comparison) -> list[str]:
    """Plain sentences, one for each purpose that the measurements can speak to."""
    rows = [row for row in state.rows() if row.failed is None]
    purposes = [*(_by_labels() if state.labelled else []), _by_neighbours()]
    sentences = [sentence for purpose in purposes if (sentence := _sentence(purpose, rows, state.lengths))]
    if state.labelled:
        sentences += _floats(rows, state)
    else:
        sentences.append(
            "Without labels on both sides this is all that can be told: how much of the float ranking a method keeps, "
            "not whether it finds what belongs together; methods that learn from labels were not run."
        )
    return sentences


def _by_labels() -> list[_Purpose]:
    def by_map(row: Row) -> tuple[float, float] | None:
        return row.value(row.main_score, "map")

    return [
        _Purpose(
            "To find items of the same class with labels to learn from (mAP; it says nothing of classes that were not "
            "among the labels)",
            lambda row: row.contender.size == "asked",
            by_map,
        ),
        _Purpose(
            "To find items of the same class without labels to learn from (mAP)",
            lambda row: row.contender.size == "asked" and not row.contender.supervised,
            by_map,
        ),
        _Purpose(
            "The same with codes that a Hamming index can hold (mAP)",
            lambda row: (
                row.contender.size == "asked" and not row.contender.supervised and row.contender.binary
            ),
            by_map,
        ),
    ]


def _by_neighbours() -> _Purpose:
    return _Purpose(
        "To keep the float ranking (its top 10 within the codes' top 100)",
        lambda row: row.contender.size == "asked",
        lambda row: row.value(row.main_score, RECALL),
    )


def _sentence(purpose: _Purpose, rows: Sequence[Row], lengths: Sequence[int]) -> str:
    parts = []
    for bits in lengths:
        found = [
            (value, row)
            for row in rows
            if row.bits == bits and purpose.admits(row) and (value := purpose.value(row)) is not None
        ]
        if found:
            parts.append(f"{bits} bits: {_winner(found)}")
    return f"{purpose.text}: " + "; ".join(parts) + "." if parts else ""


def _winner(found: Sequence[tuple[tuple[float, float], Row]]) -> str:
    """The best, who is as good within the spread, and how far ours is behind where it is not."""
    ranked = sorted(found, key=lambda pair: -pair[0][0])
    (best, spread), winner = ranked[0]
    level = [row for (value, other), row in ranked[1:] if best - value <= max(spread, other)]
    text = f"{winner.contender.title} ({100 * best:.1f})"
    if level:
        text += f", as good within the spread of seeds: {', '.join(row.contender.title for row in level)}"
    if winner.contender.rival is None or any(row.contender.rival is None for row in level):
        return text
    ours = [(value, row) for (value, _), row in ranked if row.contender.rival is None]
    if ours:
        value, row = ours[0]
        text += f", {100 * (best - value):.1f} points above {row.contender.title}"
    return text


def _floats(rows: Sequence[Row], state: Comparison) -> list[str]:
    """Whether the embedding itself is better than every code that learned without labels."""
    floats = [(row.value(row.main_score, "map"), row) for row in rows if row.contender.size == "float"]
    codes = [
        (row.value(row.main_score, "map"), row)
        for row in rows
        if row.contender.size == "asked" and not row.contender.supervised
    ]
    known = [(value[0], row) for value, row in floats if value is not None]
    learned = [(value[0], row) for value, row in codes if value is not None]
    if not known or not learned:
        return []
    (best, row), (code, coded) = max(known, key=lambda p: p[0]), max(learned, key=lambda p: p[0])
    size = f"{row.measured('bytes') or 0:,.0f}"
    if best > code:
        return [
            f"Where {size} bytes an item can be paid for, {row.contender.title} ({100 * best:.1f}) is better than "
            f"every code learned without labels ({coded.contender.title}, {coded.bits} bits: {100 * code:.1f})."
        ]
    return [
        f"The float embedding ({row.contender.title}, {size} bytes an item: {100 * best:.1f}) is worth its size for "
        f"the exact ranking only: {coded.contender.title} at {coded.bits} bits finds more items of the same class "
        f"({100 * code:.1f})."
    ]
