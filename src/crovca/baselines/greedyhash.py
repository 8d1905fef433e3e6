"""GreedyHash: the sign in the forward pass, its gradient passed straight through.

Su et al., "Greedy hash: towards fast optimization for accurate hash coding in CNN", NeurIPS 2018, (forward
sign, backward identity) and the penalty alpha | |z| - 1 |^3 (in the form of the authors' code: the mean of ||z|
- 1|^3). Supervised: cross-entropy of a linear classifier on the code ; an item of several classes shares its
target equally, which is our extension. Unsupervised: squared difference of the cosines of two items' codes and
of their embeddings, on random pairs. alpha = 0.1.

Authors' training: supervised, fine-tuned AlexNet, SGD 1e-3, x 0.1 every 30 epochs; unsupervised, VGG fc7
features, SGD 1e-4, 60 epochs (300 at 16 bits).
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.head import (
    LabeledBatch,
    LearnedBaseline,
    Setup,
    class_weights,
    cosines_of_halves,
    sign_straight_through,
)

_ALPHA = 0.1


class GreedyHash(LearnedBaseline):
    """The unsupervised form."""

    def objective(self, setup: Setup) -> nn.Module:
        """Nothing to learn beside the network."""
        return GreedyHashLoss()


class GreedyHashSupervised(LearnedBaseline):
    """The supervised form."""

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """A linear classifier on codes."""
        assert setup.classes is not None
        return GreedyHashSupervisedLoss(setup.outputs, setup.classes.count)


class GreedyHashLoss(nn.Module):
    """Cosines of codes to cosines of embeddings."""

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        codes = cosines_of_halves(sign_straight_through(logits))
        return F.mse_loss(codes, cosines_of_halves(batch.inputs)) + _ALPHA * _penalty(logits)


class GreedyHashSupervisedLoss(nn.Module):
    """Cross-entropy of a classifier on codes."""

    def __init__(self, bits: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(bits, classes)

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        logits = batch.logits[0]
        scores = self.classifier(sign_straight_through(logits))
        target = class_weights(batch.labels, self.classifier.out_features)
        return F.cross_entropy(scores, target) + _ALPHA * _penalty(logits)


def _penalty(logits: Tensor) -> Tensor:
    return (logits.abs() - 1).abs().pow(3).mean()
