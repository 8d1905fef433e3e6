"""Centered sign: each number of an embedding against its mean, the "binary quantization" of vector databases.

At its natural length, one bit a number, the code has d bits (``CenteredSign`` with ``bits = d``). A shorter code takes
the first numbers, as truncated embeddings do.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, LinearBaseline, Size

__all__ = ["CenteredSign", "CenteredSignOfAll"]


class CenteredSign(LinearBaseline):
    """sign(x - mu) of the first ``bits`` numbers of an embedding."""

    seeds: ClassVar[int | None] = 1

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        return values.mean(axis=0, dtype=np.float64).astype(np.float32), np.eye(values.shape[1], self.bits)


class CenteredSignOfAll(CenteredSign):
    """sign(x - mu) of every number: ``bits`` must be d."""

    size: ClassVar[Size] = "width"
