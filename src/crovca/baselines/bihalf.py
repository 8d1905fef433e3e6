"""Bi-half: every bit is 1 for exactly half of a batch.

Li and van Gemert, "Deep unsupervised image hashing by maximizing bit entropy", AAAI 2021 (arXiv 2012.12334).
Forward: in each bit the upper half of the batch becomes 1 and the rest -1, the code nearest to the logits U in
optimal transport. Backward: the code's gradient plus gamma (U - B) / numel. Loss: squared difference of the
cosines of two items' codes and of their embeddings, on random pairs. gamma = 6.

Authors' training: a linear layer on VGG fc7 features, SGD 1e-4, momentum 0.9, weight decay 5e-4, batches of 32,
300 epochs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.head import LabeledBatch, LearnedBaseline, Setup, cosines_of_halves

_GAMMA = 6.0


class BiHalf(LearnedBaseline):
    """Signs of logits trained by ``BiHalfLoss``."""

    def objective(self, setup: Setup) -> nn.Module:
        """Nothing to learn beside the network."""
        return BiHalfLoss()


class BiHalfLoss(nn.Module):
    """Cosines of half-and-half codes to cosines of embeddings."""

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        codes = cosines_of_halves(bihalf_codes(batch.logits[0]))
        return F.mse_loss(codes, cosines_of_halves(batch.inputs))


def bihalf_codes(logits: Tensor) -> Tensor:
    """Codes (B, b) of -1 and 1, half of each column 1."""
    return _HalfAndHalf.apply(logits)  # type: ignore[no-untyped-call]


class _HalfAndHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        places = logits.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        codes = torch.where(places < len(logits) // 2, 1.0, -1.0)
        ctx.save_for_backward(logits, codes)
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        logits, codes = ctx.saved_tensors
        return gradients[0] + _GAMMA * (logits - codes) / codes.numel()
