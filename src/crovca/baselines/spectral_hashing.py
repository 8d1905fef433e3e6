"""Spectral hashing.

Weiss, Torralba and Fergus, NIPS 2008. On data uniform in a box along the principal components the
eigenfunctions of the graph Laplacian are Phi_k(x) = sin(pi/2 + k pi / (b - a) x) with eigenvalue 1 -
exp(-eps^2/2 |k pi / (b - a)|^2) (their Eq. 7 and 8, x measured from a). The ``bits`` smallest over all
components and k = 1, 2, ... are thresholded at 0. The order does not depend on eps.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crovca.baselines.base import BinaryBaseline, Float32
from crovca.baselines.pca import principal_components
from crovca.data.labels import ClassMembership

__all__ = ["SpectralHashing"]


class SpectralHashing(BinaryBaseline):
    """sign sin(pi/2 + omega (v - a)), v principal components, omega the ``bits`` lowest frequencies k pi / (b - a)."""

    seeds: ClassVar[int | None] = 1

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        self.center_, components = principal_components(values, min(self.bits, values.shape[1]))
        projected = (values - self.center_) @ components
        self.start_ = projected.min(axis=0)
        extent = np.maximum(projected.max(axis=0) - self.start_, np.finfo(np.float64).tiny)
        modes = np.arange(1, self.bits + 1)
        frequency = np.pi * modes[None, :] / extent[:, None]  # (components, modes)
        chosen = np.argsort(frequency, axis=None, kind="stable")[: self.bits]
        self.component_, mode = np.unravel_index(chosen, frequency.shape)
        self.frequency_ = frequency[self.component_, mode]
        self.components_ = components

    def _project(self, values: Float32) -> npt.NDArray[Any]:
        offset = (values - self.center_) @ self.components_ - self.start_
        return np.sin(np.pi / 2 + self.frequency_ * offset[:, self.component_])
