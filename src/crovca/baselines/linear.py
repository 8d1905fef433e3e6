"""Codes from one projection and a threshold, in closed form or nearly: what a learned code has to beat.

Each class names the paper and the formula it stands for.
"""

from __future__ import annotations

from typing import Any, ClassVar

import faiss
import numpy as np
import numpy.typing as npt

from crovca.baselines.base import BinaryBaseline, Float32, LinearBaseline, Size, orthogonal
from crovca.data.embeddings import unit_rows
from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError

_ITERATIONS = 50


class CenteredSign(LinearBaseline):
    """sign(x - mu) of the first ``bits`` numbers: the "binary quantization" of vector databases.

    A code shorter than d takes the first numbers, as truncated embeddings do.
    """

    seeds: ClassVar[int | None] = 1

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        return values.mean(axis=0, dtype=np.float64).astype(np.float32), np.eye(values.shape[1], self.bits)


class CenteredSignOfAll(CenteredSign):
    """sign(x - mu) of every number: ``bits`` must be d."""

    size: ClassVar[Size] = "width"


class LSH(LinearBaseline):
    """Locality-sensitive hashing: sign((x - mu) W), W Gaussian (d, bits).

    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002, section 3: h_r(x) = [r . x >= 0]
    with r Gaussian; two items agree in a bit with probability 1 - angle / pi. Here the planes go through the mean
    embedding instead of the origin, as angles are measured there (``FloatCentered``): foundation models' embeddings lie
    on one side of the origin, where most bits would be the same for all items.
    """

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean, random.normal(size=(values.shape[1], self.bits))


class PCA(LinearBaseline):
    """PCA hashing: sign(V'(x - mu)), V the first ``bits`` eigenvectors of the covariance.

    The baseline "PCA" of Gong et al., "Iterative quantization", TPAMI 2013, section 2.1: they maximize the variance of
    the relaxed bits.
    """

    seeds: ClassVar[int | None] = 1

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        return principal_components(values, self.bits)


class HashingBaseline(LinearBaseline):
    """sign(R V'(x - mu)), R a random orthogonal (bits, bits) matrix, nothing normalized.

    Moummad et al., "Hashing-Baseline: rethinking hashing in the age of pretrained models", arXiv 2509.14427, section 3;
    reported as the mean over 10 rotations, which are the seeds 0 to 9 here. Their PCA is randomized
    (``torch.pca_lowrank(q=bits, niter=2)``), ours is exact.
    """

    seeds: ClassVar[int | None] = 10

    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        self._fits_into(values.shape[1])
        mean, components = principal_components(values, self.bits)
        return mean, components @ orthogonal(self.bits, random)


class ITQ(LinearBaseline):
    """Iterative quantization: sign(R V'(x / |x| - mu)), R by alternation.

    Gong and Lazebnik, CVPR 2011; Gong et al., "Iterative quantization: a Procrustean approach to learning binary
    codes", TPAMI 2013: min ||B - V R||_F over codes B and rotations R of the PCA-projected data V, alternating
    B = sign(V R) and R = S Ŝ', from the SVD V'B = S O Ŝ', 50 times from a random rotation. Given unit vectors, as in a
    pipeline for cosine: without, it is hardly better than a random rotation on embeddings whose lengths differ.
    """

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
    """``faiss.ITQTransform`` of x / |x|; logits scaled to a root mean square of 1.

    FAISS (1.15) centers, normalizes again, and starts from seed 123, here 123 + ``seed``. Its iterations do not lower
    the loss from one to the next, and its codes are worse than those of the published algorithm (``ITQ``).
    """

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


class SpectralHashing(BinaryBaseline):
    """sign sin(pi/2 + omega (v - a)), v principal components, omega the ``bits`` lowest frequencies k pi / (b - a).

    Weiss, Torralba and Fergus, NIPS 2008. On data uniform in a box along the principal components the eigenfunctions of
    the graph Laplacian are Phi_k(x) = sin(pi/2 + k pi / (b - a) x) with eigenvalue 1 - exp(-eps^2/2 |k pi / (b - a)|^2)
    (their Eq. 7 and 8, x measured from a). The ``bits`` smallest over all components and k = 1, 2, ... are thresholded
    at 0. The order does not depend on eps.
    """

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
