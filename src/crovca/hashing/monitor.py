"""Watching the bits while they are learned: balance, and bits that are dead, stuck or duplicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

STUCK_SHARE = 0.005
DUPLICATE_CORRELATION = 0.99
DEAD_DEVIATION = 1e-4


class Trouble(NamedTuple):
    """A kind of trouble, how many bits (or pairs of bits) it is of, and a sentence that says so."""

    kind: str
    extent: int
    text: str


def describe_bits(ones: Tensor, correlation: Tensor, deviation: Tensor) -> list[Trouble]:
    """Say in words which bits carry nothing, once for each kind of trouble; nothing if all is well.

    That is told by their shares of ones (b,), their correlation (b, b), and the deviation (b,) of their logits.
    """
    dead = deviation < DEAD_DEVIATION
    stuck = ~dead & ((ones < STUCK_SHARE) | (ones > 1 - STUCK_SHARE))
    said = []
    if dead.any():
        text = f"{_bits(dead)} dead: the logit is the same for every item"
        said.append(Trouble("dead", int(dead.sum()), text))
    if stuck.any():
        share = 100 * torch.maximum(ones, 1 - ones)[stuck].min()
        text = f"{_bits(stuck)} stuck: the same for at least {share:.1f} % of the items"
        said.append(Trouble("stuck", int(stuck.sum()), text))
    alive = ~(dead | stuck)
    same = torch.triu(correlation.abs() > DUPLICATE_CORRELATION, diagonal=1) & alive[:, None] & alive[None, :]
    pairs = same.nonzero()
    if len(pairs):
        first, second = pairs[0].tolist()
        more = f", and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
        text = f"bits {first} and {second} are duplicates: they nearly always agree, or always differ{more}"
        said.append(Trouble("duplicate", len(pairs), text))
    return said


class BitMonitor(nn.Module):
    """Gathers statistics of the bits of one network over an epoch. Its buffers are part of a run's state.

    Its name stands before what it says, where there are several networks.
    """

    items: Tensor
    joint: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, bits: int, name: str = "") -> None:
        super().__init__()
        self._name = name
        self._told: dict[str, int] = {}  # kind of trouble -> the most bits that it was told of
        self.register_buffer("items", torch.zeros(()))
        self.register_buffer("joint", torch.zeros(bits, bits))
        self.register_buffer("sums", torch.zeros(bits))
        self.register_buffer("squares", torch.zeros(bits))

    def reset(self) -> None:
        """Forget what was seen of this epoch."""
        for buffer in self.buffers():
            buffer.zero_()

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Add a batch of logits (B, b)."""
        logits = logits.float()
        bits = (logits > 0).float()
        self.items += len(bits)
        self.joint += bits.T @ bits
        self.sums += logits.sum(dim=0)
        self.squares += logits.square().sum(dim=0)

    def balance(self) -> tuple[float, float]:
        """Smallest and largest share of ones since the last reset."""
        ones = self.joint.diagonal() / self.items.clamp(min=1)
        return float(ones.min()), float(ones.max())

    def news(self) -> list[str]:
        """Troubles of this epoch that were not told before, or have at least doubled since."""
        items = self.items.clamp(min=1)
        ones = self.joint.diagonal() / items
        spread = (ones * (1 - ones)).sqrt()
        covariance = self.joint / items - ones[:, None] * ones[None, :]
        correlation = covariance / (spread[:, None] * spread[None, :]).clamp(min=1e-9)
        mean = self.sums / items
        deviation = (self.squares / items - mean.square()).clamp(min=0).sqrt()
        new = [
            trouble
            for trouble in describe_bits(ones, correlation, deviation)
            if trouble.extent >= 2 * self._told.get(trouble.kind, 0)
        ]
        self._told.update({trouble.kind: trouble.extent for trouble in new})
        return [self._name + trouble.text for trouble in new]


def _bits(mask: Tensor, most: int = 8) -> str:
    numbers: Sequence[int] = mask.nonzero().flatten().tolist()
    shown = ", ".join(str(number) for number in numbers[:most])
    rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"bit {shown} is" if len(numbers) == 1 else f"bits {shown}{rest} are"
