"""Diversity: the coding rate of the logits, against collapse (paper, section 3.3, R = -L_div)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crovca.hashing.terms.batch import Batch, over_lengths


def diversity(batch: Batch) -> Tensor:
    """R of every view, averaged; larger is better. A prefix is normalized anew."""
    return over_lengths(batch, lambda length: coding_rate(batch.logits[..., :length], batch.epsilon).mean())


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
