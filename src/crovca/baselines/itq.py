"""Iterative quantization: Gong's, and FAISS's.

Gong and Lazebnik, CVPR 2011; Gong et al., "Iterative quantization: a Procrustean approach to learning binary
codes", TPAMI 2013: min ||B - V R||_F over codes B and rotations R of the PCA-projected data V, alternating B =
sign(V R) and R = S Ŝ', from the SVD V'B = S O Ŝ', 50 times from a random rotation.

Both are given unit vectors, as in a pipeline for cosine, which helps them: without, they are hardly better than
a random rotation on embeddings whose lengths differ. FAISS (1.15) then centers, normalizes again, and starts
from seed 123, here 123 + ``seed``. Its iterations do not lower the loss from one to the next, and its codes are
worse than those of the published algorithm, which therefore stands here as well.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from crovca.baselines.base import BinaryBaseline, Float32, LinearBaseline, orthogonal, unit_rows
from crovca.baselines.pca import principal_components
from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError

__all__ = ["ITQ", "FaissITQ"]

_ITERATIONS = 50


class ITQ(LinearBaseline):
    """sign(R V'(x / |x| - mu)), R by alternation."""

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        super()._fit(unit_rows(values), classes)

    def _project(self, values: Float32) -> npt.NDArray[Any]:
        return super()._project(unit_rows(values))

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        mean, components = principal_components(values, self.bits)
        projected = ((values - mean) @ components).astype(np.float32)
        rotation = orthogonal(self.bits, random)
        for _ in range(_ITERATIONS):
            codes = np.where(projected @ rotation.astype(np.float32) > 0, np.float32(1), np.float32(-1))
            left, _, right = np.linalg.svd((projected.T @ codes).astype(np.float64))
            rotation = left @ right
        return mean, components @ rotation


class FaissITQ(BinaryBaseline):
    """``faiss.ITQTransform`` of x / |x|; logits scaled to a root mean square of 1."""

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        width = values.shape[1]
        if self.bits > min(width, len(values)):
            raise InvalidInputError(
                f"FAISS's ITQ gives at most as many bits as there are numbers and items: {self.bits} bits need at "
                f"least {self.bits} of both, got {len(values)} items of {width}"
            )
        self.transform_ = faiss.ITQTransform(width, self.bits, True)
        self.transform_.itq.seed += self.seed
        unit = unit_rows(values)
        self.transform_.train(unit)
        spread = float(np.sqrt(np.square(self.transform_.apply(unit), dtype=np.float64).mean()))
        self.scale_ = np.float32(1 / spread if spread > 0 else 1)

    def _project(self, values: Float32) -> npt.NDArray[Any]:
        return self.transform_.apply(unit_rows(values)) * self.scale_
