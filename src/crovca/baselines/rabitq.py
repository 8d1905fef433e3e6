"""RaBitQ, FAISS's.

Gao and Long, SIGMOD 2024: an unbiased estimate of the distance from the sign bits of the randomly
rotated residual to a centroid and two floats an item. A code has d'/8 + 8 bytes, so there is one only from 9
bytes on; d' = 8 (bytes - 8) principal components. The query is not quantized (``qb = 0``).
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32
from crovca.baselines.quantizers import FaissQuantizer
from crovca.errors import InvalidInputError

__all__ = ["RaBitQ"]

_FACTORS = 8  # bytes: two floats an item


class RaBitQ(FaissQuantizer):
    """``faiss.IndexRaBitQ`` on randomly rotated principal components."""

    def _components(self, width: int, budget: int) -> int:
        if budget <= _FACTORS:
            raise InvalidInputError(
                f"RaBitQ keeps {_FACTORS} bytes of corrections an item beside the bits, so that it takes at least "
                f"{8 * _FACTORS + 8} bits, and is meant for 128 or more; {self.bits} were asked for"
            )
        return min(width, 8 * (budget - _FACTORS))

    def _index(self, prepared: Float32, budget: int) -> Any:
        width = prepared.shape[1]
        self._rotation = faiss.RandomRotationMatrix(width, width)
        self._rotation.init(1234 + self.seed)
        index = faiss.IndexRaBitQ(width, faiss.METRIC_L2)
        index.qb = 0
        index.train(self._rotation.apply(prepared))
        return index

    def _prepare(self, values: Float32) -> Float32:
        return np.asarray(self._rotation.apply(super()._prepare(values)), np.float32)

    def _store(self, values: Float32) -> Any:
        index = faiss.clone_index(self.index_)
        index.add(self._prepare(values))
        return index

    def _compare(self, values: Float32, stored: Any) -> npt.NDArray[Any]:
        distances, rows = stored.search(self._prepare(values), stored.ntotal)
        similarities = np.full((len(values), stored.ntotal), -np.inf, np.float32)
        np.put_along_axis(similarities, rows, -distances, axis=1)
        return similarities
