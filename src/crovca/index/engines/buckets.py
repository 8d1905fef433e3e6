"""Short codes: score the codes, not the items, so that cost does not grow with the collection.

A code of b bits is cut into two halves. The inner products of each half's 2^(b/2) patterns are sorted; the m
best whole codes are then among the pairs of ranks (i, j) with (i + 1)(j + 1) <= m, because a pair is never
better than the (i + 1)(j + 1) pairs of ranks up to its own. These few are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.index.engines.base import CandidateEngine, Candidates, Groups
from crovca.index.scoring import Float32, Float64, Int64


class BucketEngine(CandidateEngine):
    """See the module. For codes of up to 24 bits, of which a good part is in use."""

    name: ClassVar[str] = "buckets"

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes, Groups.of(codes))
        self._bits = codes.bits
        self._halves = (codes.bits - codes.bits // 2, codes.bits // 2)
        self._entry_of = np.full(1 << codes.bits, -1, np.int32)
        self._entry_of[_numbers(self.entries)] = np.arange(len(self.entries), dtype=np.int32)

    @property
    def nbytes(self) -> int:
        """The table of all codes, and the groups."""
        assert self.groups is not None
        return self._entry_of.nbytes + self.groups.nbytes

    def first_count(self, k: int, *, whole: bool) -> int:
        """How many codes hold k rows, if rows were spread evenly over all codes."""
        return 16 + 2 * (k << self._bits) // self.rows

    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """See ``CandidateEngine``."""
        wide = weights.astype(np.float64)
        upper = wide[:, : self._halves[0]] @ _patterns(self._halves[0]).T
        lower = wide[:, self._halves[0] :] @ _patterns(self._halves[1]).T
        # Powers of two, so that few staircases serve all.
        first, second, edges = _staircase(1 << (count - 1).bit_length(), upper.shape[1], lower.shape[1])
        for best_upper, best_lower, high, low in zip(
            np.argsort(-upper, axis=1), np.argsort(-lower, axis=1), upper, lower, strict=True
        ):
            high, low = high[best_upper], low[best_lower]
            # What lies beyond the staircase is no better than the best pair on its edge.
            beyond = float(np.max(high[edges[0]] + low[edges[1]], initial=-np.inf))
            beyond += 1e-9 * (1 + abs(high[0]) + abs(low[0]))
            near = high[first] + low[second] >= beyond
            codes = (best_upper[first[near]] << self._halves[1]) | best_lower[second[near]]
            entries = self._entry_of[codes]
            yield Candidates(entries[entries >= 0].astype(np.int64), beyond if len(edges[0]) else -np.inf)


def _numbers(codes: Codes) -> Int64:
    """Each code as a number, its first bit the most significant."""
    number = np.zeros(len(codes), np.int64)
    for byte in codes.packed.T:
        number = (number << 8) | byte
    return number >> (codes.bytes_per_item * 8 - codes.bits)


@cache
def _patterns(bits: int) -> Float64:
    """All patterns of some bits, float64 (2^bits, bits), the first bit the most significant."""
    numbers = np.arange(1 << bits)[:, None]
    return ((numbers >> np.arange(bits)[::-1]) & 1).astype(np.float64)


@lru_cache(maxsize=16)
def _staircase(
    count: int, height: int, width: int
) -> tuple[Int64, Int64, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of ranks (i, j) with (i + 1)(j + 1) <= count, and the first pair left out in each row i.

    A row without any pair needs none either: its first pair is no better than the row above's.
    """
    rows = np.arange(min(count, height))
    lengths = np.minimum(count // (rows + 1), width)
    first = np.repeat(rows, lengths)
    second = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    edge_rows, edge_columns = rows[lengths < width], lengths[lengths < width]
    if len(rows) < height:
        edge_rows, edge_columns = np.append(edge_rows, len(rows)), np.append(edge_columns, 0)
    return first, second, (edge_rows, edge_columns)
