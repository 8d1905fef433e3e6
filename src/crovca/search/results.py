"""What a search returns, whatever engine or server answered it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Neighbors", "RangeNeighbors"]


@dataclass(frozen=True)
class Neighbors:
    """The k nearest items of each query, best first.

    Attributes:
        ids: (q, k) int64 or str; k is the number asked for, or of all items that match if there are fewer.
        scores: float32 (q, k), distances, ascending (``search.scoring``); whole numbers for Hamming.
    """

    ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class RangeNeighbors:
    """Different numbers of items a query, as in FAISS: those of query i are ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        offsets: int64 (q + 1,).
        ids: (offsets[-1],) int64 or str, each query's best first.
        scores: float32 (offsets[-1],), distances.
    """

    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]]:
        """(ids, scores) of one query after another."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[start:stop], self.scores[start:stop]
