"""A similarity-distillation head: what can be rebuilt of IPHASH and HARR on frozen embeddings.

IPHASH (Gong et al., "ViT2Hash: unsupervised information-preserving hashing", arXiv 2201.05541) trains its
second stage by the Kullback-Leibler divergence between the distributions of similarities of features and of
codes, with a quantization term; its first stage reconstructs masked patches and needs the vision transformer.
HARR (Ma et al., TOMM 2024) adds the decorrelation of bits in the manner of Barlow Twins; its similarity from
winner-take-all hashes is left out. There is no public code of either. So this head is neither: it is

    mean_i KL(softmax_j cos(x_i, x_j) / tau || softmax_j cos(z_i, z_j) / tau) + mean_i (1 - cos(z_i, sign z_i))
    + 0.005 sum_{k != l} corr(z_k, z_l)^2 / b,

with tau = 0.1 and j over the rest of the batch. tau and 0.005 (Barlow Twins' weight) are our choice, as neither
paper's settings can be transferred.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.head import LabeledBatch, LearnedBaseline, Setup, cosines_of_pairs
from crovca.baselines.sdc import quantization_gap


class SimilarityDistillation(LearnedBaseline):
    """Signs of logits trained by ``SimilarityDistillationLoss``."""

    def objective(self, setup: Setup) -> nn.Module:
        """Nothing to learn beside the network."""
        return SimilarityDistillationLoss()


class SimilarityDistillationLoss(nn.Module):
    """Divergence of similarity distributions, quantization, decorrelation."""

    def __init__(self, temperature: float = 0.1, decorrelation: float = 0.005) -> None:
        super().__init__()
        self.temperature, self.decorrelation = temperature, decorrelation

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        divergence = F.kl_div(
            self._log_shares(logits), self._log_shares(batch.inputs), reduction="batchmean", log_target=True
        )
        standard = (logits - logits.mean(dim=0)) / logits.std(dim=0, correction=0).clamp(min=1e-6)
        correlation = standard.T @ standard / len(standard)
        off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
        return divergence + quantization_gap(logits) + self.decorrelation * off_diagonal / logits.shape[1]

    def _log_shares(self, rows: Tensor) -> Tensor:
        others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        similarity = cosines_of_pairs(rows)[others].reshape(len(rows), len(rows) - 1)
        return F.log_softmax(similarity / self.temperature, dim=1)
