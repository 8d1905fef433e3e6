"""What ``tuning`` chose for an index and measured: the manifest keeps it, searches use it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from crovca.errors import InvalidInputError


class Point(NamedTuple):
    """One way to search, and its recall at k of the floats' own order.

    Attributes:
        bits: of a code that are compared.
        oversampling: embeddings read by k; None: by bits alone, without rescoring.
        recall: mean over the queries; error: its standard error; low: what it is at least of other queries
            (``tuning``).
    """

    bits: int
    oversampling: float | None
    recall: float
    error: float
    low: float


@dataclass(frozen=True)
class Tuned:
    """The fewest bits, and for these the smallest oversampling, that reach a recall; or what came nearest.

    Attributes:
        target: recall at ``k`` that was asked for.
        chosen: the way to search; ``reached``: whether its lower bound is at least the target.
        queries: items of the index that were asked with.
        items: that the index had; generation: of the index then.
        bytes: read for an item by the scan, and kept for it in all; milliseconds: of one query.
        advice: what would reach the target, where nothing does.
        curve: everything that was measured, by bits and oversampling.
    """

    target: float
    k: int
    chosen: Point
    reached: bool
    queries: int
    items: int
    generation: int
    bytes_scanned: int
    bytes_kept: int
    milliseconds: float
    advice: str
    curve: tuple[Point, ...]

    @property
    def bits(self) -> int:
        """See ``Point``."""
        return self.chosen.bits

    @property
    def oversampling(self) -> float | None:
        """See ``Point``."""
        return self.chosen.oversampling

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "chosen": self.chosen._asdict(), "curve": [point._asdict() for point in self.curve]}

    def sentence(self) -> str:
        """What was chosen and measured, for people."""
        point = self.chosen
        how = "by bits alone" if point.oversampling is None else f"oversampling {point.oversampling:g}"
        said = (
            f"{point.bits} bits, {how}: recall@{self.k} {point.recall:.3f} ± {1.96 * point.error:.3f} of the floats "
            f"({self.queries} queries, at least {point.low:.3f}), {self.bytes_scanned} bytes an item scanned of "
            f"{self.bytes_kept} kept, {self.milliseconds:.2f} ms a query"
        )
        return said if self.reached else f"{self.target:g} is not reached: {said}. {self.advice}"


def settings_of(kept: dict[str, Any] | None) -> Tuned:
    """What a manifest keeps; nothing in it is believed.

    Raises:
        InvalidInputError: nothing was tuned yet, or it is damaged.
    """
    if kept is None:
        raise InvalidInputError("the index was not tuned yet; 'crovca index tune' does that")
    try:
        chosen = Point(**kept["chosen"])
        tuned = Tuned(**{**kept, "chosen": chosen, "curve": tuple(Point(**point) for point in kept["curve"])})
        for point in (chosen, *tuned.curve):
            numbers = (point.bits, point.recall, point.error, point.low, point.oversampling or 1)
            if not all(type(one) in (int, float) and 0 <= one <= 1e6 for one in numbers):
                raise ValueError(f"{point} is no measurement")
        float(tuned.milliseconds), int(tuned.queries), float(tuned.target), str(tuned.advice)
    except (TypeError, KeyError, ValueError) as error:
        raise InvalidInputError(
            f"what the index keeps of its tuning is damaged ({error}); 'crovca index tune' makes it anew"
        ) from error
    return tuned
