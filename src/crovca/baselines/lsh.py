"""Locality-sensitive hashing: signs of random projections.

Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002, section 3: h_r(x) = [r . x >=
0] with r Gaussian; two items agree in a bit with probability 1 - angle / pi. Here the planes go through the
mean embedding instead of the origin, as angles are measured there (``FloatCentered``): foundation models'
embeddings lie on one side of the origin, where most bits would be the same for all items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, LinearBaseline

__all__ = ["LSH"]


class LSH(LinearBaseline):
    """sign((x - mu) W), W Gaussian (d, bits)."""

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean, random.normal(size=(values.shape[1], self.bits))
