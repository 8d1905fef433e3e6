"""Central similarity quantisation.

Yuan et al., "Central similarity quantization for efficient image and video retrieval", CVPR 2020 (arXiv
1908.00347): central similarity (binary cross-entropy of the relaxed bits to the class's hash centre) and
quantisation (in the form of the authors' code: the squared distance of |tanh z| from 1), weight lambda = 1e-4.
Centres: rows of a Hadamard matrix H and of -H where the length is a power of 2 and the classes are at most 2 b,
else random bits (both as in their generation of hash centres); of several classes the sign of the sum, ties at
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

from crovca.rivals.head import Batch, LearnedRival, Setup, class_weights

__all__ = ["CSQ", "CSQLoss", "hash_centres"]


class CSQ(LearnedRival):
    """Signs of logits trained by ``CSQLoss``."""

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """Centres, one a class."""
        assert setup.classes is not None
        centres = hash_centres(setup.classes.count, setup.outputs, setup.random)
        ties = setup.random.integers(2, size=setup.outputs) * 2 - 1
        return CSQLoss(torch.from_numpy(centres).float(), torch.from_numpy(ties).float())


class CSQLoss(nn.Module):
    """Distance to hash centres (C, b) of -1 and 1; ``ties`` (b,) are the bits where an item's centres cancel out."""

    centres: Tensor
    ties: Tensor

    def __init__(self, centres: Tensor, ties: Tensor, quantisation: float = 1e-4) -> None:
        super().__init__()
        self.register_buffer("centres", centres)
        self.register_buffer("ties", ties)
        self.quantisation = quantisation

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        sums = (class_weights(batch.labels, len(self.centres)) > 0).to(self.centres.dtype) @ self.centres
        target = torch.where(sums == 0, self.ties, sums.sign())
        relaxed = batch.logits[0].tanh()
        central = F.binary_cross_entropy_with_logits(2 * batch.logits[0], (target + 1) / 2)
        # (tanh z + 1) / 2 = sigmoid(2 z): the same cross-entropy, without logarithms of 0
        return central + self.quantisation * (relaxed.abs() - 1).square().mean()


def hash_centres(classes: int, bits: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Hash centres (classes, bits) of -1 and 1."""
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        matrix = hadamard(bits)
        return np.concatenate([matrix, -matrix])[:classes].astype(np.int64)
    return random.integers(2, size=(classes, bits)) * 2 - 1
