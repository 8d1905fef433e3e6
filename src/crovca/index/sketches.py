"""Sketches of kept embeddings: a bit a number, which tells what of many candidates is worth reading.

RaBitQ of one bit (Gao and Long, SIGMOD 2024, https://arxiv.org/abs/2405.12497): an embedding o of length 1 is turned
as if at random, and the signs s_j of its numbers are kept. With a query q of length 1, turned alike,

    cos(o, q) is about  sum_j s_j q_j / sum_j |o_j|

which is off by about 0.75 sqrt((1 - cos²) / d), and not to one side. A sketch is uint64 (words + 1,): the signs, 1
where they are positive, and 1 / sum_j |o_j| as float32. The query's numbers are rounded to whole multiples of a step,
so estimates are the same on every machine, whatever stands beside a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, reduce
from typing import Self

import numpy as np
import numpy.typing as npt

from crovca.ids import id_hashes
from crovca.index.scoring import Float32, Int64

Sketches = npt.NDArray[np.uint64]

_WORD = 64
_BLOCK = 256  # rows at a time: what a cache holds
_PLANES = 6  # bits of a query's number


def words_of(width: int) -> int:
    """The words of a sketch of ``width`` numbers."""
    return -(-width // _WORD) + 1


def sketches_of(rows: npt.NDArray[np.generic]) -> Sketches:
    """The sketches (n, words) of embeddings (n, d) of any length; those of length 0 are at right angles to all."""
    parts = []
    for start in range(0, len(rows), _BLOCK):
        turned = _turned(rows[start : start + _BLOCK].astype(np.float32))
        totals = np.abs(turned).sum(axis=1)
        lengths = np.sqrt(np.einsum("nd,nd->n", turned, turned))
        factors = np.divide(lengths, totals, out=np.zeros_like(totals), where=totals > 0)
        parts.append(np.hstack([_packed(turned > 0), factors.view(np.uint32)[:, None].astype(np.uint64)]))
    return np.concatenate(parts)


@dataclass(frozen=True)
class SketchQuery:
    """A query's numbers, rounded, as bit planes.

    Attributes:
        planes: uint64 (words, planes, 1); their weights: float32 (words * planes,), 1, 2, 4, ... and the last negative.
        total: the sum of the rounded numbers.
    """

    planes: Sketches
    weights: Float32
    total: np.float32

    @classmethod
    def of(cls, unit: Float32) -> Self:
        """Of an embedding (d,) of length 1."""
        turned = _turned(unit[None])[0]
        most = 2 ** (_PLANES - 1) - 1
        rounded = np.rint(turned * (most / max(np.abs(turned).max(), np.float32(1e-30)))).astype(np.int64)
        planes = _packed((rounded >> np.arange(_PLANES)[:, None]) & 1 == 1)
        weights = 2.0 ** np.arange(_PLANES)
        weights[-1] *= -1
        tiled = np.tile(weights, planes.shape[1]).astype(np.float32)
        return cls(np.ascontiguousarray(planes.T)[:, :, None], tiled, np.float32(rounded.sum()))

    def distances(self, sketches: Sketches) -> Float32:
        """Of sketches (m, words), the estimated cosine, negative and in a unit of its own: float32 (m,)."""
        signs = np.ascontiguousarray(sketches[:, :-1].T)
        ones = np.bitwise_count(signs[:, None] & self.planes).reshape(len(self.weights), -1)
        inner = self.weights @ ones.astype(np.float32)  # whole numbers, exact in any order
        factors = sketches[:, -1].astype(np.uint32).view(np.float32)
        return (self.total - 2 * inner) * factors


def _packed(bits: npt.NDArray[np.bool_]) -> Sketches:
    """(n, d) as words (n, d / 64)."""
    return np.packbits(bits, axis=1).view("<u8")


def _turned(rows: Float32) -> Float32:
    """Rows (n, d) in other axes, (n, d up to a multiple of 64): some numbers change their sign and each 64 are mixed by
    a Hadamard matrix, twice, the second time in another order."""
    mixing, order, signs = _turns(-(-rows.shape[1] // _WORD) * _WORD)
    turned = np.zeros((len(rows), len(order)), np.float32)
    np.multiply(rows, signs[0, : rows.shape[1]], out=turned[:, : rows.shape[1]])
    turned = (turned.reshape(-1, _WORD) @ mixing).reshape(turned.shape)
    turned = turned.take(order, axis=1)  # faster than by indexing
    turned *= signs[1]
    return (turned.reshape(-1, _WORD) @ mixing).reshape(turned.shape)


@cache
def _turns(width: int) -> tuple[Float32, Int64, Float32]:
    """A Hadamard matrix (64, 64), an order (width,) and signs (2, width): of hashes, which no version of NumPy
    changes."""
    mixing = reduce(np.kron, [np.array([[1, 1], [1, -1]])] * 6) / 8
    hashes = id_hashes(np.arange(2 * width)).reshape(2, width)
    signs = np.where(hashes & np.uint64(1), 1, -1)
    return mixing.astype(np.float32), np.argsort(hashes[0]), signs.astype(np.float32)
