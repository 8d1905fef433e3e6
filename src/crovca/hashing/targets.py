"""Where the teacher's bits come from: the other views, or class prototypes (paper, section 3.1 and 3.2).

A teacher takes the logits of all views (v, B, b) and gives targets of that shape, without gradient: zeros and
ones, or means of several teachers' bits.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["ClassPrototypes", "CrossView", "Teacher", "batch_class_means", "bits_of", "other_views_bits"]


def bits_of(logits: Tensor) -> Tensor:
    """1{z > 0} as floats (paper, Eq. 4)."""
    return (logits.detach() > 0).float()


def other_views_bits(logits: Tensor) -> Tensor:
    """For each view the mean of the bits of all other views: (v, B, b) to (v, B, b), v >= 2."""
    bits = bits_of(logits)
    return (bits.sum(dim=0, keepdim=True) - bits) / (len(bits) - 1)


def batch_class_means(logits: Tensor, items: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean logits of each class over its items in the batch and over all views.

    Args:
        logits: (v, B, b).
        items: (m,) position in the batch of each membership.
        classes: (m,) class of each membership; an item of several classes has several memberships.
        count: number of classes C.

    Returns:
        means (C, b), 0 where a class is absent; and how many of the batch's items each class has (C,).
    """
    mean = logits.detach().float().mean(dim=0)
    members = torch.zeros(count, device=mean.device).index_add_(
        0, classes, torch.ones(len(classes), device=mean.device)
    )
    sums = torch.zeros(count, mean.shape[1], device=mean.device).index_add_(0, classes, mean[items])
    return sums / members.clamp(min=1)[:, None], members


class Teacher(Protocol):
    """Gives the students their targets. A stateful teacher is an ``nn.Module`` as well."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Targets (v, B, b) for logits (v, B, b) of the items ``rows`` (B,)."""


class CrossView(nn.Module):
    """Every view is taught by the bits of the others (paper, section 3.2, training dynamics)."""

    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """See ``other_views_bits``."""
        return other_views_bits(logits)


class ClassPrototypes(nn.Module):
    """All views of an item are taught by the bits of its class's prototype (paper, section 3.1, supervised).

    A prototype is the mean of a class's logits over the batch, carried from batch to batch as a running mean:
    p <- m p + (1 - m) batch mean, for the classes that occur. With momentum m = 0 it is the batch mean
    alone, as in the paper. An item of several classes is taught by the mean of their prototypes; an item
    of none by its other views.

    Args:
        classes: (n,) the class of each item, or bool (n, C) its classes.
        count: number of classes C.
        bits: length of the code.
        momentum: m in [0, 1).
    """

    prototypes: Tensor
    seen: Tensor
    classes: Tensor

    def __init__(self, classes: Tensor, count: int, bits: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("prototypes", torch.zeros(count, bits))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Targets (v, B, b), the same for all views; the prototypes take in this batch first."""
        labels = self.classes[rows]
        if labels.ndim == 1:
            items, classes = torch.arange(len(labels), device=labels.device), labels
        else:
            items, classes = labels.nonzero(as_tuple=True)
        self._update(logits, items, classes)
        sums = torch.zeros_like(logits[0], dtype=torch.float32).index_add_(0, items, self.prototypes[classes])
        targets = bits_of(sums).expand(len(logits), -1, -1)
        if labels.ndim == 2 and len(logits) > 1:
            targets = torch.where(labels.any(dim=1)[None, :, None], targets, other_views_bits(logits))
        return targets

    def _update(self, logits: Tensor, items: Tensor, classes: Tensor) -> None:
        means, members = batch_class_means(logits, items, classes, len(self.prototypes))
        present = members > 0
        momentum = torch.where(self.seen, self.momentum, 0.0)[:, None]
        moved = momentum * self.prototypes + (1 - momentum) * means
        self.prototypes = torch.where(present[:, None], moved, self.prototypes)
        self.seen = self.seen | present
