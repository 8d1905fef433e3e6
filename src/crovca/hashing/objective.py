"""The objective: binary cross-entropy between views plus a coding rate against collapse.

Paper, section 3.3: L_hash = L_align + lambda L_div. The displayed formulas of the paper sum the
cross-entropy over bits and have no eps in the coding rate; taken literally the second term would vanish
beside the first. What is written here is the reference implementation's form, on whose scale the
paper's lambda = 0.1 makes sense: the cross-entropy is a mean over bits, and the coding rate has an eps and a
balancing factor. See docs/architecture.md.

Shapes: v views, B items in the batch, b bits. All of it is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Loss", "alignment_per_bit", "coding_rate", "hash_loss"]


class Loss(NamedTuple):
    """The objective and its two terms, averaged over the code lengths."""

    total: Tensor
    alignment: Tensor
    diversity: Tensor


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


def coding_rate(logits: Tensor, epsilon: float = 0.05) -> Tensor:
    """R = 1/2 logdet(I + b/(B eps) V'V) (b + B)/(b B), paper section 3.3, V = L2-normalized logits.

    It is large when the normalized logits fill all directions, and near 0 when they have collapsed to one.

    Args:
        logits: (..., B, b).
        epsilon: the squared precision up to which vectors are coded.

    Returns:
        (...), one rate for each batch.
    """
    items, bits = logits.shape[-2:]
    vectors = F.normalize(logits.float(), dim=-1)
    # logdet(I + a V'V) = logdet(I + a VV'): take the smaller matrix.
    gram = vectors.mT @ vectors if bits <= items else vectors @ vectors.mT
    identity = torch.eye(gram.shape[-1], device=gram.device)
    # cholesky_ex: NaN in gives NaN out, for the loop to report; and no synchronization on a GPU.
    factor = torch.linalg.cholesky_ex(identity + gram * (bits / (items * epsilon))).L
    half_logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return half_logdet * (bits + items) / (bits * items)


def hash_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    lengths: Sequence[int],
    diversity_weight: float = 0.1,
    epsilon: float = 0.05,
) -> Loss:
    """L_hash = L_align + lambda L_div, L_div = -R (paper, section 3.3), averaged over nested code lengths.

    Each length is a prefix of the code and counts as a code of its own: its coding rate is that of the
    re-normalized prefix. ``lengths=(b,)`` is the paper's objective.

    Args:
        logits: (v, B, b).
        targets: (v, B, b) in [0, 1].
        lengths: prefixes to train, each at most b.
        diversity_weight: lambda.
        epsilon: of the coding rate.
    """
    logits = logits.float()
    per_bit = alignment_per_bit(logits, targets)
    alignment = torch.stack([per_bit[:length].mean() for length in lengths]).mean()
    rates = torch.stack([coding_rate(logits[..., :length], epsilon).mean() for length in lengths])
    diversity = -rates.mean()
    return Loss(alignment + diversity_weight * diversity, alignment, diversity)
