"""Where the teacher's bits come from: the other views, or class prototypes (paper, section 3.1 and 3.2).

A teacher takes the logits of all views (v, B, b) and gives targets of that shape, without gradient: zeros and
ones, or means of several teachers' bits.
"""

from __future__ import annotations

from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "ClassPrototypes",
    "CrossView",
    "Teacher",
    "batch_class_means",
    "bits_of",
    "move_apart",
    "other_views_bits",
]


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

    Running prototypes settle: after ``settle_after`` batches those that are too near to one another are
    moved apart (``move_apart``), and from then on they stay as they are.

    Args:
        classes: (n,) the class of each item, or bool (n, C) its classes.
        count: number of classes C.
        bits: length of the code.
        momentum: m in [0, 1).
        settle_after: number of batches, or None: never.
        apart: length of the prefix in which the settled prototypes differ, the shortest code that is trained.
    """

    prototypes: Tensor
    seen: Tensor
    batches: Tensor
    classes: Tensor

    def __init__(
        self,
        classes: Tensor,
        count: int,
        bits: int,
        *,
        momentum: float = 0.9,
        settle_after: int | None = None,
        apart: int | None = None,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.settle_after = settle_after
        self.apart = apart or bits
        self.register_buffer("classes", classes, persistent=False)
        self.register_buffer("prototypes", torch.zeros(count, bits))
        self.register_buffer("seen", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Targets (v, B, b), the same for all views; until they settle, the prototypes take in this batch first."""
        labels = self.classes[rows]
        if labels.ndim == 1:
            items, classes = torch.arange(len(labels), device=labels.device), labels
        else:
            items, classes = labels.nonzero(as_tuple=True)
        if self.settle_after is None or int(self.batches) < self.settle_after:
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
        self.batches = self.batches + 1
        if int(self.batches) == self.settle_after:
            self.prototypes[:, : self.apart] = move_apart(self.prototypes[:, : self.apart])


def move_apart(prototypes: Tensor, distance: int = 4) -> Tensor:
    """Change signs of prototypes until their bits differ in at least ``distance`` places, as far as that is possible.

    Running means of many classes in few bits come to share codes or nearly so, and what is taught the same
    bits cannot be told apart. The classes are gone through from the surest to the least sure; each gets
    the code with the least sum of |logit| over changed bits among those that keep the distance to the codes
    given before, or come nearest to keeping it. At most 3 of the 16 least certain bits are changed.

    Args:
        prototypes: (C, b) logits.
        distance: wanted Hamming distance; at most b / 4, since short codes have no room for more.

    Returns:
        (C, b): the magnitudes of ``prototypes`` with new signs.
    """
    bits = prototypes.shape[1]
    distance = max(1, min(distance, bits // 4))
    patterns = _flip_patterns(min(bits, 16)).to(prototypes.device)  # (p, <= 16), -1 where a bit is changed
    given = torch.zeros(0, bits, device=prototypes.device)
    result = prototypes.clone()
    for number in prototypes.abs().mean(dim=1).argsort(descending=True, stable=True).tolist():
        logits = prototypes[number]
        uncertain = logits.abs().argsort(stable=True)[: patterns.shape[1]]
        candidates = torch.where(logits > 0, 1.0, -1.0).repeat(len(patterns), 1)
        candidates[:, uncertain] *= patterns
        cost = (patterns < 0).float() @ logits[uncertain].abs()
        if len(given):
            nearest = (bits - candidates @ given.T).amin(dim=1) / 2
            cost = cost + (distance - nearest).clamp(min=0) * (1 + logits.abs().sum())  # distance goes first
        chosen = candidates[cost.argmin()]
        given = torch.cat([given, chosen[None]])
        result[number] = chosen * logits.abs().clamp(min=1e-4)
    return result


def _flip_patterns(bits: int, most: int = 3) -> Tensor:
    """All ways to change at most ``most`` of ``bits`` signs: (p, bits) of 1 and -1, the one without change first."""
    places = [chosen for size in range(most + 1) for chosen in combinations(range(bits), size)]
    patterns = torch.ones(len(places), bits)
    for pattern, chosen in zip(patterns, places, strict=True):
        pattern[list(chosen)] = -1
    return patterns
