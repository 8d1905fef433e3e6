"""Central similarity quantization.

Yuan et al., "Central similarity quantization for efficient image and video retrieval", CVPR 2020 (arXiv
1908.00347): central similarity (binary cross-entropy of the relaxed bits to the class's hash center) and
quantization (in the form of the authors' code: the squared distance of |tanh z| from 1), weight lambda = 1e-4.
Centers: rows of a Hadamard matrix H and of -H where the length is a power of 2 and the classes are at most 2 b,
else random bits (both as in their generation of hash centers); of several classes the sign of the sum, ties at
random.

Authors' training: a fine-tuned ResNet, RMSprop 1e-5.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import Tensor, nn

from crovca.baselines.head import LabeledBatch, LearnedBaseline, Setup, class_weights


class CSQ(LearnedBaseline):
    """Signs of logits trained by ``CSQLoss``."""

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """Centers, one a class."""
        assert setup.classes is not None
        centers = hash_centers(setup.classes.count, setup.outputs, setup.random)
        ties = setup.random.integers(2, size=setup.outputs) * 2 - 1
        return CSQLoss(torch.from_numpy(centers).float(), torch.from_numpy(ties).float())


class CSQLoss(nn.Module):
    """Distance to hash centers (C, b) of -1 and 1; ``ties`` (b,) are the bits where an item's centers cancel out."""

    centers: Tensor
    ties: Tensor

    def __init__(self, centers: Tensor, ties: Tensor, quantization: float = 1e-4) -> None:
        super().__init__()
        self.register_buffer("centers", centers)
        self.register_buffer("ties", ties)
        self.quantization = quantization

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        sums = (class_weights(batch.labels, len(self.centers)) > 0).to(self.centers.dtype) @ self.centers
        target = torch.where(sums == 0, self.ties, sums.sign())
        relaxed = batch.logits[0].tanh()
        central = F.binary_cross_entropy_with_logits(2 * batch.logits[0], (target + 1) / 2)
        # (tanh z + 1) / 2 = sigmoid(2 z): the same cross-entropy, without logarithms of 0
        return central + self.quantization * (relaxed.abs() - 1).square().mean()


def hash_centers(classes: int, bits: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Hash centers (classes, bits) of -1 and 1."""
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        matrix = hadamard(bits)
        return np.concatenate([matrix, -matrix])[:classes].astype(np.int64)
    return random.integers(2, size=(classes, bits)) * 2 - 1
