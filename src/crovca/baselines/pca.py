"""PCA hashing: signs of the leading principal components, sign(V'(x - mu)).

The baseline "PCA" of Gong et al., "Iterative quantization", TPAMI 2013, section 2.1: the leading eigenvectors
of the covariance maximize the variance of the relaxed bits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, LinearBaseline

__all__ = ["PCA", "principal_components"]


class PCA(LinearBaseline):
    """sign(V'(x - mu)), V the first ``bits`` eigenvectors of the covariance."""

    seeds: ClassVar[int | None] = 1

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        return principal_components(values, self.bits)


def principal_components(values: Float32, count: int) -> tuple[Float32, npt.NDArray[np.float64]]:
    """The mean (d,) and the leading ``count`` eigenvectors (d, count) of the covariance, largest first.

    An eigenvector's largest number is made positive, so that the answer does not hang on the linear algebra library.
    """
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    centered = values - mean
    covariance = np.asarray(centered.T @ centered, np.float64) / len(values)
    _, vectors = np.linalg.eigh(covariance)
    leading = vectors[:, ::-1][:, :count]
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None, :], axis=0)
    return mean, leading * np.where(largest < 0, -1.0, 1.0)
