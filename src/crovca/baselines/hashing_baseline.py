"""Hashing-Baseline: PCA and a random rotation.

Moummad et al., "Hashing-Baseline: rethinking hashing in the age of pretrained models", arXiv 2509.14427,
section 3: sign(R V'(x - mu)), R a random orthogonal (bits, bits) matrix, nothing normalized; reported as the
mean over 10 rotations, which are the seeds 0 to 9 here. Their PCA is randomized (``torch.pca_lowrank(q=bits,
niter=2)``), ours is exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, LinearBaseline, orthogonal
from crovca.baselines.pca import principal_components

__all__ = ["HashingBaseline"]


class HashingBaseline(LinearBaseline):
    """sign(R V'(x - mu)), R drawn from ``seed``."""

    seeds: ClassVar[int | None] = 10

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        mean, components = principal_components(values, self.bits)
        return mean, components @ orthogonal(self.bits, random)
