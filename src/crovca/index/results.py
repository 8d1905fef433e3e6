"""What an index or a server returns: neighbors, and stored items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes

__all__ = ["Neighbors", "RangeNeighbors", "StoredItems"]


@dataclass(frozen=True)
class Neighbors:
    """The k nearest items of each query, best first.

    Attributes:
        ids: (q, k) int64 or str; k is the number asked for, or of all items that match if there are fewer.
        distances: float32 (q, k), ascending (``index.scoring``); whole numbers for Hamming.
    """

    ids: npt.NDArray[Any]
    distances: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class RangeNeighbors:
    """Different numbers of items a query, as in FAISS: those of query i are ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        offsets: int64 (q + 1,).
        ids: (offsets[-1],) int64 or str, each query's best first.
        distances: float32 (offsets[-1],), of each query ascending.
    """

    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]
    distances: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]]:
        """(ids, distances) of one query after another."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[start:stop], self.distances[start:stop]


@dataclass(frozen=True)
class StoredItems:
    """Items as they are stored.

    Attributes:
        ids: (n,) int64 or str.
        codes: n codes.
        metadata: one row an item, without the id; None where there is none.
    """

    ids: npt.NDArray[Any]
    codes: Codes
    metadata: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.ids)
