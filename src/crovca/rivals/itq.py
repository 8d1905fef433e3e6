"""Iterative quantisation, FAISS's.

Gong and Lazebnik, CVPR 2011; Gong et al., "Iterative quantization: a Procrustean approach to learning binary codes",
TPAMI 2013, Eq. 4: min ||B - V R||_F over codes B and rotations R of the PCA-projected data V, alternating
B = sign(V R) and R = S Ŝ', from the SVD B'V = S O Ŝ'. FAISS runs 50 iterations from a random rotation (its seed is 123,
here 123 + ``seed``) and, unlike the paper, L2-normalises the centred embeddings first. Its input are unit vectors, as in a
FAISS pipeline for cosine, which helps it: without, it is no better than a random rotation on embeddings whose lengths differ.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError
from crovca.rivals.base import BinaryRival, Float32, unit_rows

__all__ = ["ITQ"]


class ITQ(BinaryRival):
    """``faiss.ITQTransform`` of x / |x|; logits scaled to a root mean square of 1."""

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        width = values.shape[1]
        if self.bits > min(width, len(values)):
            raise InvalidInputError(
                f"ITQ gives at most as many bits as there are numbers and items: {self.bits} bits need at least "
                f"{self.bits} of both, got {len(values)} items of {width}"
            )
        self.transform_ = faiss.ITQTransform(width, self.bits, True)
        self.transform_.itq.seed += self.seed
        unit = unit_rows(values)
        self.transform_.train(unit)
        spread = float(np.sqrt(np.square(self.transform_.apply(unit), dtype=np.float64).mean()))
        self.scale_ = np.float32(1 / spread if spread > 0 else 1)

    def _project(self, values: Float32) -> npt.NDArray[Any]:
        return self.transform_.apply(unit_rows(values)) * self.scale_
