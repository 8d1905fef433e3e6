"""SDC: similarities of codes follow a set distribution in the order of the embeddings' similarities.

Ng et al., "Unsupervised hashing with similarity distribution calibration", BMVC 2023 (arXiv 2302.07669): the
cosines of random pairs of embeddings are sorted; the codes' cosines, in that order, are drawn (L1) to the
quantiles (2 i - 1) / (2 n) of a Beta(a, a) distribution stretched to [-1, 1], negative ones raised to 0
("ortho"); plus the mean of 1 - cos(z, sign z). a = 5, weights 1.

Authors' training: a linear layer on frozen features; settings per data set.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import beta
from torch import Tensor, nn

from crovca.baselines.head import LabeledBatch, LearnedBaseline, Setup, cosines_of_halves


class SDC(LearnedBaseline):
    """Signs of logits trained by ``SDCLoss``."""

    def objective(self, setup: Setup) -> nn.Module:
        """Nothing to learn beside the network."""
        return SDCLoss()


class SDCLoss(nn.Module):
    """Sorted cosines to Beta quantiles."""

    def __init__(self, shape: float = 5.0) -> None:
        super().__init__()
        self.shape = shape
        self._quantiles: dict[int, Tensor] = {}

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        found = cosines_of_halves(logits)[cosines_of_halves(batch.inputs).argsort(stable=True)]
        return F.l1_loss(found, self._targets(len(found)).to(found.device)) + quantization_gap(logits)

    def _targets(self, pairs: int) -> Tensor:
        if pairs not in self._quantiles:
            shares = (2 * np.arange(1, pairs + 1) - 1) / (2 * pairs)
            stretched = 2 * beta.ppf(shares, self.shape, self.shape) - 1
            self._quantiles[pairs] = torch.from_numpy(np.maximum(stretched, 0)).float()
        return self._quantiles[pairs]


def quantization_gap(logits: Tensor) -> Tensor:
    """Mean of 1 - cos(z, sign z)."""
    return (1 - F.cosine_similarity(logits, logits.sign())).mean()
