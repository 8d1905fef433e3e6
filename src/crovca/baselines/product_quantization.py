"""Product quantization and its optimized rotation, FAISS's.

PQ: Jégou, Douze and Schmid, TPAMI 2011, the asymmetric distance (their Eq. 13). OPQ:
Ge, He, Ke and Sun, CVPR 2013, the non-parametric solution. One byte a sub-quantizer: 256 centroids each.
"""

from __future__ import annotations

from typing import Any

import faiss

from crovca.baselines.base import Float32
from crovca.baselines.quantizers import FaissQuantizer, check_training_points
from crovca.errors import InvalidInputError

__all__ = ["OPQ", "PQ"]


class PQ(FaissQuantizer):
    """``faiss.IndexPQ`` with ``bits / 8`` sub-quantizers on all numbers (fewer components where they do not divide)."""

    def _components(self, width: int, budget: int) -> int:
        if budget > width:
            raise InvalidInputError(
                f"{type(self).__name__} needs a number for every byte: {self.bits} bits take {budget}, got {width}"
            )
        return width // budget * budget

    def _index(self, prepared: Float32, budget: int) -> Any:
        check_training_points(prepared, type(self).__name__)
        index = faiss.IndexPQ(prepared.shape[1], budget, 8)
        _prepare_clustering(index.pq, self.seed)
        index.train(prepared)
        return index


class OPQ(PQ):
    """``faiss.OPQMatrix`` before PQ, on the leading components: 64, or 4 a byte where that is more.

    On all of 1,280 numbers each of the 50 iterations decomposes a matrix of that size.
    """

    def _components(self, width: int, budget: int) -> int:
        super()._components(width, budget)
        return max(1, min(width, max(64, 4 * budget)) // budget) * budget

    def _index(self, prepared: Float32, budget: int) -> Any:
        check_training_points(prepared, type(self).__name__)
        width = prepared.shape[1]
        rotation, quantizer = faiss.OPQMatrix(width, budget), faiss.IndexPQ(width, budget, 8)
        trained_with = faiss.ProductQuantizer(width, budget, 8)
        rotation.pq = trained_with
        _prepare_clustering(trained_with, self.seed)
        _prepare_clustering(quantizer.pq, self.seed)
        index = faiss.IndexPreTransform(rotation, quantizer)
        index.train(prepared)
        self._kept = (rotation, quantizer, trained_with)  # FAISS holds bare pointers to them
        return index


def _prepare_clustering(quantizer: Any, seed: int) -> None:
    quantizer.cp.seed += seed
    quantizer.cp.min_points_per_centroid = 1  # else FAISS warns on standard output below 39
