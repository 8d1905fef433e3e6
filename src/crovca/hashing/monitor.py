"""Watching the bits while they are learned: balance, and bits that are dead, stuck or duplicated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BitMonitor", "describe_bits"]

STUCK_SHARE = 0.005
DUPLICATE_CORRELATION = 0.99
DEAD_DEVIATION = 1e-4


def describe_bits(ones: Tensor, correlation: Tensor, deviation: Tensor) -> list[str]:
    """Say in words which bits carry nothing.

    Args:
        ones: (b,) share of ones.
        correlation: (b, b) of the bits.
        deviation: (b,) standard deviation of the logits.

    Returns:
        One sentence for each kind of trouble; none if all is well.
    """
    dead = deviation < DEAD_DEVIATION
    stuck = ~dead & ((ones < STUCK_SHARE) | (ones > 1 - STUCK_SHARE))
    said = []
    if dead.any():
        said.append(f"{_bits(dead)} dead: the logit is the same for every item")
    if stuck.any():
        share = 100 * torch.maximum(ones, 1 - ones)[stuck].min()
        said.append(f"{_bits(stuck)} stuck: the same for at least {share:.1f} % of the items")
    alive = ~(dead | stuck)
    same = torch.triu(correlation.abs() > DUPLICATE_CORRELATION, diagonal=1) & alive[:, None] & alive[None, :]
    pairs = same.nonzero()
    if len(pairs):
        first, second = pairs[0].tolist()
        more = f", and {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
        said.append(
            f"bits {first} and {second} are duplicates: they nearly always agree, or always differ{more}"
        )
    return said


class BitMonitor:
    """Gathers statistics of the bits over an epoch.

    Args:
        bits: length of the code.
        device: where the logits are.
    """

    def __init__(self, bits: int, device: torch.device) -> None:
        self._bits, self._device = bits, device
        self._said: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Forget what was seen of this epoch."""
        self._items = 0
        self._joint = torch.zeros(self._bits, self._bits, device=self._device)
        self._sum = torch.zeros(self._bits, device=self._device)
        self._squares = torch.zeros(self._bits, device=self._device)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Add a batch of logits (B, b)."""
        logits = logits.float()
        bits = (logits > 0).float()
        self._items += len(bits)
        self._joint += bits.T @ bits
        self._sum += logits.sum(dim=0)
        self._squares += logits.square().sum(dim=0)

    def balance(self) -> tuple[float, float]:
        """Smallest and largest share of ones since the last reset."""
        ones = self._joint.diagonal() / max(self._items, 1)
        return float(ones.min()), float(ones.max())

    def news(self) -> list[str]:
        """Troubles of this epoch that were not told before."""
        items = max(self._items, 1)
        ones = self._joint.diagonal() / items
        spread = (ones * (1 - ones)).sqrt()
        covariance = self._joint / items - ones[:, None] * ones[None, :]
        correlation = covariance / (spread[:, None] * spread[None, :]).clamp(min=1e-9)
        mean = self._sum / items
        deviation = (self._squares / items - mean.square()).clamp(min=0).sqrt()
        told = [text for text in describe_bits(ones, correlation, deviation) if text not in self._said]
        self._said.update(told)
        return told


def _bits(mask: Tensor, most: int = 8) -> str:
    numbers: Sequence[int] = mask.nonzero().flatten().tolist()
    shown = ", ".join(str(number) for number in numbers[:most])
    rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"bit {shown} is" if len(numbers) == 1 else f"bits {shown}{rest} are"
