"""Where the teacher's bits come from: the other views, or class prototypes (paper, section 3.1 and 3.2).

A teacher takes the logits of all views (v, B, b) and gives targets of that shape, without gradient: zeros and
ones, or means of several teachers' bits.
"""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_MOVED_APART = 4096
"""Above so many classes prototypes are not moved apart: 16 bits have room for 2,048 codes four bits apart."""


_MOST_CHANGED = 3  # bits of a prototype


def bits_of(logits: Tensor) -> Tensor:
    """1{z > 0} as floats (paper, Eq. 4)."""
    return (logits.detach() > 0).float()


def other_views_bits(logits: Tensor) -> Tensor:
    """For each view the mean of the bits of all other views: (v, B, b) to (v, B, b), v >= 2."""
    bits = bits_of(logits)
    return (bits.sum(dim=0, keepdim=True) - bits) / (len(bits) - 1)


def batch_class_means(logits: Tensor, members: Tensor) -> Tensor:
    """Mean logits (C, b) of each class over its items in the batch and over all views, 0 where a class is absent.

    Of logits (v, B, b) and members (B, C), 1 where an item has a class.
    """
    sums = members.T @ logits.detach().float().mean(dim=0)
    return sums / members.sum(dim=0).clamp(min=1)[:, None]


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
    of none by its other views, or by its own bits where there is one view.

    Running prototypes settle: after ``settle_after`` batches those that are too near to one another are
    moved apart (``move_apart``), and from then on they stay as they are. A class that was not met by then
    goes on running.

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
    settled: Tensor
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
        self.register_buffer("settled", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Targets (v, B, b), the same for all views; prototypes that are not settled take in this batch first."""
        members = self.members(rows)
        self._update(logits, members)
        targets = self.bits_for(members).expand(len(logits), -1, -1)
        if self.classes.ndim == 1:
            return targets
        alone = other_views_bits(logits) if len(logits) > 1 else bits_of(logits)
        return torch.where(members.any(dim=1)[None, :, None], targets, alone)

    def members(self, rows: Tensor) -> Tensor:
        """Float (B, C): 1 where an item has a class."""
        labels = self.classes[rows]
        return (F.one_hot(labels, len(self.prototypes)) if labels.ndim == 1 else labels).float()

    def bits_for(self, members: Tensor) -> Tensor:
        """The bits (B, b) of the prototypes of these classes (B, C)."""
        return bits_of(members @ self.prototypes)

    def settle(self, prototypes: Tensor, known: Tensor) -> None:
        """Give these classes, bool (C,), these prototypes (C, b), moved apart, for good."""
        self.prototypes[known] = prototypes[known]
        if int(known.sum()) <= MOST_MOVED_APART:
            self.prototypes[known, : self.apart] = move_apart(self.prototypes[known, : self.apart])
        self.seen |= known
        self.settled |= known

    def _update(self, logits: Tensor, members: Tensor) -> None:
        present = members.any(dim=0)
        momentum = torch.where(self.seen, self.momentum, 0.0)[:, None]
        moved = momentum * self.prototypes + (1 - momentum) * batch_class_means(logits, members)
        self.prototypes = torch.where((present & ~self.settled)[:, None], moved, self.prototypes)
        self.seen = self.seen | present
        self.batches = self.batches + 1
        if self.settle_after is not None and int(self.batches) == self.settle_after:
            self.settle(self.prototypes, self.seen & ~self.settled)


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
        code = torch.where(logits > 0, 1.0, -1.0)
        candidates = code.repeat(len(patterns), 1)
        candidates[:, uncertain] *= patterns
        cost = (patterns < 0).float() @ logits[uncertain].abs()
        near = given[bits - given @ code < 2 * (distance + _MOST_CHANGED)]  # others stay far, whatever is changed
        if len(near):
            nearest = (bits - candidates @ near.T).amin(dim=1) / 2
            cost = cost + (distance - nearest).clamp(min=0) * (1 + logits.abs().sum())  # distance goes first
        chosen = candidates[cost.argmin()]
        given = torch.cat([given, chosen[None]])
        result[number] = chosen * logits.abs().clamp(min=1e-4)
    return result


def _flip_patterns(bits: int, most: int = _MOST_CHANGED) -> Tensor:
    """All ways to change at most ``most`` of ``bits`` signs: (p, bits) of 1 and -1, the one without change first."""
    places = [chosen for size in range(most + 1) for chosen in combinations(range(bits), size)]
    patterns = torch.ones(len(places), bits)
    for pattern, chosen in zip(patterns, places, strict=True):
        pattern[list(chosen)] = -1
    return patterns
