"""Alignment: every view's bits are predicted from the other (paper, section 3.3, L_align)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crovca.hashing.terms.batch import Batch, over_lengths


def alignment(batch: Batch) -> Tensor:
    """L_align in nats a bit."""
    per_bit = alignment_per_bit(batch.logits, batch.targets)
    return over_lengths(batch, lambda length: per_bit[:length].mean())


def alignment_per_bit(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE(y, sigmoid(z)), paper section 3.3 (L_align), of each bit: (b,), averaged over views and items.

    ``targets`` are probabilities of a teacher's bits: the cross-entropy is linear in them, so their mean over
    several teachers gives the mean of the cross-entropies. For two views, each the other's teacher,
    this is the paper's 1/2 [BCE(y1, p2) + BCE(y2, p1)].

    Args:
        logits: (v, B, b) of the students.
        targets: (v, B, b) in [0, 1], without gradient.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return loss.mean(dim=(0, 1))
