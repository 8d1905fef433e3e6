"""The float embedding itself: what codes are measured against. Exact, 4 bytes a number, nothing learned but a mean."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, ScoreBaseline, Size, unit_rows
from crovca.data.labels import ClassMembership

Preparation = Literal["raw", "normalized", "centered"]


class FloatRaw(ScoreBaseline):
    """Inner product of the embeddings as they are."""

    seeds: ClassVar[int | None] = 1
    size: ClassVar[Size] = "float"
    preparation: ClassVar[Preparation] = "raw"

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        self.mean_ = values.mean(axis=0, dtype=np.float64).astype(np.float32)

    @property
    def bytes_per_item(self) -> int:
        """4 d."""
        return 4 * self.n_features_in_

    def _store(self, values: Float32) -> Float32:
        if self.preparation == "raw":
            return values
        return unit_rows(values - self.mean_ if self.preparation == "centered" else values)

    def _compare(self, values: Float32, stored: Float32) -> npt.NDArray[Any]:
        return self._store(values) @ stored.T


class FloatNormalized(FloatRaw):
    """Cosine."""

    preparation: ClassVar[Preparation] = "normalized"


class FloatCentered(FloatRaw):
    """Cosine after subtracting the mean embedding of the database."""

    preparation: ClassVar[Preparation] = "centered"
