"""Embeddings that an index keeps beside its codes: two bytes a number (float16), or one (int8), and a scale a row.

A row is ``values * scale``. The scale of float16 is a power of two: what was float16 stays as it was, and nothing
overflows. That of int8 is the row's largest number / 127. Cosine does not see scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import Rows, unit_rows
from crovca.errors import InvalidInputError
from crovca.index.scoring import Float32, Int64

Keep = Literal["none", "float16", "int8"]
NO_ORIGINALS = (
    "the index keeps no embeddings; build it with keep='int8' (--keep int8), or give it those of its items with "
    "'crovca index refit INDEX --keep int8 --embeddings FILE'"
)
KEPT: dict[str, type[np.generic]] = {"float16": np.float16, "int8": np.int8}

_BLOCK = 4096


class Loss(NamedTuple):
    """The cosine between embeddings and what was kept of them: of how many, their mean, the worst."""

    items: int = 0
    mean: float = 1.0
    worst: float = 1.0

    def plus(self, found: Float32) -> Loss:
        """With the cosines (m,) of more items."""
        if not len(found):
            return self
        return self.joined(Loss(len(found), float(found.mean(dtype=np.float64)), float(found.min())))

    def joined(self, other: Loss) -> Loss:
        """Of both."""
        total = self.items + other.items
        if not total:
            return self
        mean = (self.items * self.mean + other.items * other.mean) / total
        return Loss(total, mean, min(self.worst, other.worst))

    def sentence(self, keep: str) -> str:
        """For people."""
        return f"embeddings are kept as {keep}: cosine with the floats {self.mean:.5f}, at worst {self.worst:.5f}"


@dataclass(frozen=True)
class Originals:
    """Kept embeddings (n, d), some rows of some arrays, read when they are asked for: ``Rows`` of float32.

    Attributes:
        arrays: (m_i, d) each, int8 or float16; memory-mapped where they are a segment's.
        scales: float32 (n,).
        order: int64 (n,), row numbers, counted through the arrays.
    """

    arrays: tuple[npt.NDArray[Any], ...]
    scales: Float32
    order: Int64

    @classmethod
    def of(cls, embeddings: Rows, keep: Keep, loss: Loss) -> tuple[Self, Loss]:
        """What is kept of embeddings (n, d), and the loss with theirs added.

        Raises:
            InvalidInputError: numbers that are not finite.
        """
        values = np.empty(embeddings.shape, KEPT[keep])
        scales = np.empty(len(values), np.float32)
        for start in range(0, len(values), _BLOCK):
            part = slice(start, start + _BLOCK)
            rows = np.asarray(embeddings[part], np.float32)
            largest = np.abs(rows).max(axis=1, initial=0)
            if not np.isfinite(largest).all():
                row = start + int(np.flatnonzero(~np.isfinite(largest))[0])
                raise InvalidInputError(f"the embeddings hold NaN or infinity in row {row}; remove or repair it")
            largest[largest < 1e-30] = 1
            scales[part] = largest / 127 if keep == "int8" else np.exp2(np.ceil(np.log2(largest)))
            scaled = rows / scales[part, None]
            values[part] = np.rint(scaled) if keep == "int8" else scaled
            loss = loss.plus(np.einsum("nd,nd->n", unit_rows(rows), unit_rows(values[part])))
        return cls((values,), scales, np.arange(len(values))), loss

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d)."""
        return len(self.order), self.arrays[0].shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what reading gives."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: Any) -> Float32:
        return self.kept(rows).astype(np.float32) * self.scales[rows][:, None]

    def kept(self, rows: Any) -> npt.NDArray[Any]:
        """Some rows as they are kept, without their scales: (m, d)."""
        wanted = self.order[rows]
        if len(self.arrays) == 1:
            return self.arrays[0][wanted]
        starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        owner = np.searchsorted(starts, wanted, side="right") - 1
        result = np.empty((len(wanted), self.shape[1]), self.arrays[0].dtype)
        for number in np.unique(owner):
            own = owner == number
            result[own] = self.arrays[number][wanted[own] - starts[number]]
        return result

    def take(self, rows: Any) -> Originals:
        """Some rows, not read yet."""
        return Originals(self.arrays, self.scales[rows], self.order[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Originals]) -> Originals:
        """Join, in order; nothing is read."""
        starts = np.cumsum([0, *(sum(map(len, part.arrays)) for part in parts)])
        return cls(
            tuple(array for part in parts for array in part.arrays),
            np.concatenate([part.scales for part in parts]),
            np.concatenate([start + part.order for start, part in zip(starts, parts, strict=False)]),
        )


def cosines(kept: npt.NDArray[Any], unit: Float32) -> Float32:
    """Cosines (m,) of kept rows (m, d) with a vector (d,) of length 1; of a row the same, whatever stands beside it."""
    rows = kept.astype(np.float32)
    return np.einsum("nd,d->n", rows, unit) / np.maximum(np.sqrt(np.einsum("nd,nd->n", rows, rows)), np.float32(1e-30))


def check_embeddings(embeddings: npt.ArrayLike | None, rescore: float | None) -> Float32:
    """A query's embeddings (q, d), and the number of candidates: InvalidInputError where they cannot be used."""
    if rescore is not None and (
        isinstance(rescore, bool) or not isinstance(rescore, int | float) or not 1 <= rescore <= 1e6
    ):
        raise InvalidInputError(
            f"rescore must be a number of at least 1, how many times k embeddings are compared; got {rescore!r}"
        )
    if embeddings is None:
        raise InvalidInputError("rescoring compares embeddings: give those of the queries (embeddings=)")
    values = np.asarray(embeddings)
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InvalidInputError(f"embeddings must be finite numbers of shape (q, d), got {values.dtype} {values.shape}")
    return values.astype(np.float32)


@dataclass(frozen=True)
class Picked:
    """Some rows of a file's embeddings (n, d), not read yet: ``Rows``."""

    values: Rows
    rows: Int64

    @property
    def shape(self) -> tuple[int, ...]:
        """As of ``Rows``."""
        return (len(self.rows), *self.values.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of ``Rows``."""
        return self.values.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        return np.asarray(self.values[self.rows[rows]])
