"""How near an item can be, from what a database server can compute: numbers of differing bits.

With query weights w (``crovca.metrics``), an item whose code differs from the query's own in a set of bits is at

    distance = least + sum of |w_j| over those bits,    least = offset - sum_{w_j > 0} w_j

* By its Hamming distance h alone: at least ``least`` and the h smallest |w_j|.
* By levels: replace each |w_j| by the next lower of a few levels. The bound is then a sum over nested masks M_t
  of step_t * bit_count(difference & M_t), which SQL can compute and sort by. With six levels it is so close to
  the distance that at 64 bits a thousand candidates prove the exact answer among a million (benchmarks/clusters.py);
  at 256 bits they prove nine of ten answers on real codes (benchmarks/servers.py), and few on random ones.

Distances are float32 numbers rounded from float64 sums. Bounds are rounded in the same way, after taking off
more than all sums can be wrong by, so they hold for the numbers that are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.index.scoring import BitScorer

_UNIT = 2.0**-53  # rounding unit of float64
_FINENESS = 2**20  # the largest weight in whole numbers: sums over 4,096 bits stay exact everywhere
_SPLITS = 128  # places at which sorted weights may be cut into levels

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """A bound that is a weighted sum of numbers of differing bits.

    Attributes:
        masks: some codes, each within the one before.
        steps: int64, what a differing bit of each costs.
        unit: what 1 of the sum is worth as a distance.
    """

    masks: Codes
    steps: npt.NDArray[np.int64]
    unit: float


@dataclass(frozen=True)
class Query:
    """One query, built by ``Query.of``.

    Attributes:
        logits: float32 (bits,).
        metric: the distance.
        code: the nearest that an item can have, one row: 1 where a weight is above 0.
        costs: float64 (bits,), what differing in each bit costs: |w_j|.
        least: the smallest distance that any item can have.
        slack: more than float64 sums of these can be wrong by.
    """

    logits: npt.NDArray[np.float32]
    metric: str
    code: Codes
    costs: Float64
    least: float
    slack: float

    @classmethod
    def of(cls, logits: npt.NDArray[np.float32], metric: str) -> Query:
        """Checked logits (bits,) and their distance."""
        scorer = BitScorer.of(metric, logits[None, :], Codes.from_logits(logits[None, :]))
        code = Codes.from_bits(scorer.weights > 0)
        weights, offset = scorer.weights[0].astype(np.float64), float(scorer.offsets[0])
        costs = np.abs(weights)
        slack = 4 * (len(costs) + 4) * _UNIT * (float(costs.sum()) + abs(offset))
        return cls(logits, metric, code, costs, offset - float(weights[weights > 0].sum()), slack)

    def bound_at(self, hamming: int) -> np.float32:
        """No item at this Hamming distance or further is nearer than this."""
        return np.float32(self._by_hamming()[hamming])

    def radius(self, distance: np.float32) -> int:
        """No item at a Hamming distance over this is within ``distance``; -1: none at all."""
        return int(np.searchsorted(self._by_hamming(), distance, side="right")) - 1

    def levels(self, count: int) -> Levels:
        """At most ``count`` levels that lose least in all, the lowest first."""
        order = np.argsort(self.costs, kind="stable")
        ascending = self.costs[order]
        starts = _cut(ascending, count)
        unit = float(ascending[-1]) / _FINENESS
        heights = np.floor(ascending[starts] / unit).astype(np.int64) if unit > 0 else np.zeros(1, np.int64)
        masks = np.zeros((len(heights), len(order)), np.bool_)
        for mask, start in zip(masks, starts[: len(heights)], strict=True):
            mask[order[start:]] = True
        return Levels(Codes.from_bits(masks), np.diff(heights, prepend=0), unit)

    def bound_of(self, levels: Levels, total: int) -> np.float32:
        """No item whose sum is this or more is nearer than this."""
        return np.float32(self.least + levels.unit * total - self.slack)

    def total(self, levels: Levels, distance: np.float32) -> int:
        """No item whose sum is over this is within ``distance``."""
        most = len(self.costs) * _FINENESS
        if levels.unit == 0 or not np.isfinite(distance):
            return most
        beyond = float(np.nextafter(distance, np.float32(np.inf)))  # what rounds to ``distance`` lies below
        # One more for the division, which rounds: a few items too many do no harm.
        return int(min(most, np.floor((beyond - self.least + 2 * self.slack) / levels.unit) + 1))

    def _by_hamming(self) -> npt.NDArray[np.float32]:
        """float32 (bits + 1,), ascending."""
        sums = np.concatenate([[0.0], np.cumsum(np.sort(self.costs))])
        bound: npt.NDArray[Any] = self.least + sums - self.slack
        return bound.astype(np.float32)


def _cut(ascending: Float64, count: int) -> npt.NDArray[np.int64]:
    """Where to cut sorted costs into at most ``count`` runs, so that the sum of what each loses against the
    first of its run is least: by dynamic programming over the ends of runs. Begins with 0."""
    ends = np.unique(np.linspace(0, len(ascending), min(len(ascending), _SPLITS) + 1).astype(np.int64))
    sums = np.concatenate([[0.0], np.cumsum(ascending)])[ends]
    first = ascending[np.minimum(ends, len(ascending) - 1)]
    loss = sums[None, :] - sums[:, None] - first[:, None] * (ends[None, :] - ends[:, None])
    loss[np.tril_indices(len(ends))] = np.inf  # a run has one member or more
    best, choices = loss[0], []
    for _ in range(min(count, len(ends) - 1) - 1):
        through = best[:, None] + loss
        choices.append(through.argmin(axis=0))
        best = through.min(axis=0)
    at, starts = len(ends) - 1, []
    for choice in reversed(choices):
        at = int(choice[at])
        starts.append(int(ends[at]))
    return np.unique([0, *starts])
