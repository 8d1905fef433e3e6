"""What an index or a server returns: neighbors, and stored items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes
from crovca.data.columns import rows_of

Row = dict[str, Any]


@dataclass(frozen=True)
class _Results:
    """Ids and distances of the same shape, best first, and what an index knows of these items.

    Args:
        read_metadata: reads the metadata of all results, one row each, from the state that was searched; None where
            nothing is known.
        metric: what the distances are: a score of ``crovca.metrics``, or "cosine" where they are 1 - cosine of kept
            embeddings (rescored).
    """

    ids: npt.NDArray[Any]
    distances: npt.NDArray[np.float32]
    read_metadata: Callable[[], pa.Table | None] | None = field(default=None, repr=False, compare=False, kw_only=True)
    metric: str = field(default="", kw_only=True)

    def metadata(self) -> pa.Table | None:
        """The metadata of all results, one row each, query after query; None where there is none.

        It is that of the items as they were found, whatever was written since. Results hold the index's files for
        it; pickled ones do not have it.

        Raises:
            FileFormatError: the index's folder was removed, or is damaged.
        """
        return None if self.read_metadata is None else self.read_metadata()

    def _rows(self) -> list[Row]:
        table = self.metadata()
        rows: list[Row] = [
            {"id": one, "distance": distance}
            for one, distance in zip(self.ids.ravel().tolist(), self.distances.ravel().tolist(), strict=True)
        ]
        if table is not None:
            for row, values in zip(rows, rows_of(table), strict=True):
                row["metadata"] = values
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "read_metadata": None}


@dataclass(frozen=True)
class Neighbors(_Results):
    """The k nearest items of each query, best first.

    Attributes:
        ids: (q, k) int64 or str; k is the number asked for, or of all items that match if there are fewer.
        distances: float32 (q, k), ascending (``index.scoring``); whole numbers for Hamming.
    """

    def __len__(self) -> int:
        return len(self.ids)

    def to_list(self) -> list[list[Row]]:
        """The results of each query as rows: ``{"id": ..., "distance": ..., "metadata": {column: value}}``, the last
        where the index has metadata."""
        rows, width = self._rows(), self.ids.shape[1]
        return [rows[query * width : (query + 1) * width] for query in range(len(self))]


@dataclass(frozen=True)
class RangeNeighbors(_Results):
    """Different numbers of items a query, as in FAISS: those of query i are ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids: (offsets[-1],) int64 or str, each query's best first.
        distances: float32 (offsets[-1],), of each query ascending.
        offsets: int64 (q + 1,).
    """

    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]]:
        """(ids, distances) of one query after another."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.ids[start:stop], self.distances[start:stop]

    def to_list(self) -> list[list[Row]]:
        """As ``Neighbors.to_list``."""
        rows = self._rows()
        return [rows[start:stop] for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)]


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
