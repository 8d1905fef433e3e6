"""CIBHash: contrastive learning of stochastic codes with an information bottleneck.

Qiu et al., "Unsupervised hashing with contrastive information bottleneck", IJCAI 2021 (arXiv 2105.06138):
contrast (NT-Xent on codes of two views, gradient straight through the sign of sigma(z) - 1/2) and bottleneck
(the Kullback-Leibler divergence of the two views' Bernoulli distributions, each in turn the target).
Temperature 0.3, beta = 1e-3, as in the authors' code.

Two views: the authors augment images; here there are embeddings, and the second view is one of an item's 5
nearest neighbors with feature dropout, as for our unsupervised codes. Authors' training: Linear, ReLU, Linear
on VGG fc7 features, Adam 1e-3.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.head import (
    LabeledBatch,
    LearnedBaseline,
    Setup,
    cosines_of_pairs,
    sign_straight_through,
)


class CIBHash(LearnedBaseline):
    """Signs of logits trained by ``CIBHashLoss``."""

    views: ClassVar[Literal["one", "neighbors"]] = "neighbors"

    def objective(self, setup: Setup) -> nn.Module:
        """Nothing to learn beside the network."""
        return CIBHashLoss()


class CIBHashLoss(nn.Module):
    """Contrast between codes, divergence between the views' probabilities."""

    def __init__(self, temperature: float = 0.3, divergence: float = 1e-3) -> None:
        super().__init__()
        self.temperature, self.divergence = temperature, divergence

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        one, other = batch.logits
        codes = sign_straight_through(torch.sigmoid(torch.cat([one, other])) - 0.5)
        items = len(one)
        similarity = cosines_of_pairs(codes) / self.temperature
        itself = torch.eye(2 * items, dtype=torch.bool, device=codes.device)
        partner = torch.arange(2 * items, device=codes.device).roll(items)
        contrast = F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)
        divergence = (
            _bernoulli_divergence(one, other.detach()) + _bernoulli_divergence(other, one.detach())
        ) / 2
        return contrast + self.divergence * divergence


def _bernoulli_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(Bern(sigma(logits)) || Bern(sigma(others))), summed over bits, averaged over items."""
    probability = torch.sigmoid(logits)
    ones = F.logsigmoid(logits) - F.logsigmoid(others)
    zeros = F.logsigmoid(-logits) - F.logsigmoid(-others)
    return (probability * ones + (1 - probability) * zeros).sum(dim=1).mean()
