"""What the FAISS quantizers share: centered unit vectors, as many principal components as fit, squared distance.

On unit vectors the squared Euclidean distance ranks as the cosine, so the quantizers approximate the ranking
that codes are measured against (``FloatCentered``). Queries stay floats; only the database is compressed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, ScoreBaseline, unit_rows
from crovca.baselines.pca import principal_components
from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError

__all__ = ["FaissQuantizer", "check_training_points"]

_CENTROIDS = 256
_CHUNK = 8192  # items decoded at a time


class FaissQuantizer(ScoreBaseline):
    """A FAISS index that can decode its codes."""

    index_: Any

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        budget = self._whole_bytes()
        self.mean_ = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        unit = unit_rows(values - self.mean_)
        count = self._components(values.shape[1], budget)
        # Without a reduction there is no rotation either: the plain method.
        self.center_ = np.zeros(values.shape[1], np.float32)
        self.components_: Float32 | None = None
        if count < values.shape[1]:
            self.center_, components = principal_components(unit, count)
            self.components_ = components.astype(np.float32)
        prepared = self._reduced(unit)
        self.index_ = self._index(prepared, budget)

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one of FAISS's codes."""
        return int(self.index_.sa_code_size())

    @abstractmethod
    def _components(self, width: int, budget: int) -> int:
        """How many principal components of ``width`` numbers the method takes for ``budget`` bytes."""

    @abstractmethod
    def _index(self, prepared: Float32, budget: int) -> Any:
        """A trained index over prepared vectors."""

    def _prepare(self, values: Float32) -> Float32:
        return self._reduced(unit_rows(values - self.mean_))

    def _reduced(self, unit: Float32) -> Float32:
        if self.components_ is None:
            return np.ascontiguousarray(unit)
        return np.ascontiguousarray((unit - self.center_) @ self.components_)

    def _store(self, values: Float32) -> npt.NDArray[np.uint8]:
        return np.asarray(self.index_.sa_encode(self._prepare(values)), np.uint8)

    def _compare(self, values: Float32, stored: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        queries = self._prepare(values)
        similarities = np.empty((len(values), len(stored)), np.float32)
        for start in range(0, len(stored), _CHUNK):
            part = slice(start, start + _CHUNK)
            decoded = self.index_.sa_decode(stored[part])
            # -|q - x|^2 without the query's own length, which is the same for all items
            similarities[:, part] = 2 * queries @ decoded.T - np.square(decoded).sum(axis=1)
        return similarities


def check_training_points(values: Float32, method: str) -> None:
    """Refuse fewer items than a codebook has centroids."""
    if len(values) < _CENTROIDS:
        raise InvalidInputError(
            f"{method} learns {_CENTROIDS} centroids for every byte and needs at least as many items, got {len(values)}"
        )
