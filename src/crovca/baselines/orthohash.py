"""OrthoHash: one loss that pulls codes to fixed, nearly orthogonal class codes.

Hoe et al., "One loss for all: deep hashing with a single cosine similarity based learning objective", NeurIPS
2021 (arXiv 2109.14449), section 3.2: cross-entropy of s (cos(z, c_j) - m [j = y]), c_j random codes of -1 and 1;
for several labels, by label smoothing, the target is shared equally by an item's classes. s = 8, m = 0.2.

Authors' training: Linear and BatchNorm on a fine-tuned network, Adam 1e-4, weight decay 5e-4, batches of 256,
100 epochs, learning rate x 0.1 at 80 %.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.head import LabeledBatch, LearnedBaseline, Setup, class_weights


class OrthoHash(LearnedBaseline):
    """Signs of logits trained by ``OrthoHashLoss``."""

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """Random codes, one a class."""
        assert setup.classes is not None
        signs = setup.random.integers(2, size=(setup.classes.count, setup.outputs)) * 2 - 1
        return OrthoHashLoss(torch.from_numpy(signs).float())


class OrthoHashLoss(nn.Module):
    """Cross-entropy to class codes (C, b) with scale and margin."""

    codes: Tensor

    def __init__(self, codes: Tensor, scale: float = 8.0, margin: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("codes", F.normalize(codes, dim=1))
        self.scale, self.margin = scale, margin

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        target = class_weights(batch.labels, len(self.codes))
        cosines = F.normalize(batch.logits[0], dim=1) @ self.codes.T
        return F.cross_entropy(self.scale * (cosines - self.margin * (target > 0)), target)
