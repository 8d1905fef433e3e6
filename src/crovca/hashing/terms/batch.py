"""What a term of the objective sees of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A step's students and teachers.

    Attributes:
        logits: float32 (v, B, b): v views, B items, b bits.
        targets: float32 (v, B, b) in [0, 1], without gradient.
        lengths: code lengths that are trained, each a prefix of the b bits.
        epsilon: the squared precision up to which the coding rate codes vectors.
        points: (B, k) coordinates of the items, where the network has a closed-form base.
    """

    logits: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    epsilon: float = 0.05
    points: Tensor | None = None


def over_lengths(batch: Batch, value: Callable[[int], Tensor]) -> Tensor:
    """The mean of a term over the code lengths: each prefix counts as a code of its own."""
    return torch.stack([value(length) for length in batch.lengths]).mean()
