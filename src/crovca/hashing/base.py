"""The closed-form base beside the network: what the code of an item is before anything was learned about its kind.

Bits between two code lengths are a rotation (ITQ: Gong et al., "Iterative quantization", TPAMI 2013) of the principal
components between them, so that every prefix is an ITQ code of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_READ = 16384
_ITERATIONS = 30
_RIDGE = 0.1


class Base(nn.Module):
    """Coordinates (n, k) to (n, bits), all of one variance on what it was fitted on; it does not learn.

    Args:
        weights: (bits, k).
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(n, k) to (n, bits)."""
        return F.linear(coordinates, self.weights)


class FittedBase(NamedTuple):
    """A base, and how much each bit counts.

    Attributes:
        base: the projection.
        scales: (bits,) of the logits, the first 1: bits of weak components say less, or longer codes would be worse.
    """

    base: Base
    scales: Tensor


def fit_base(
    points: Tensor, lengths: Sequence[int], *, weight: float = 1.0, power: float = 1.0, seed: int = 0
) -> FittedBase:
    """ITQ by blocks of components between the code lengths.

    Where a block ends beyond the components, the last of them are mixed again; what is still missing are random
    directions.

    Args:
        points: (n, k) coordinates, strongest first; at most 16,384 evenly spaced ones are read.
        lengths: code lengths, ascending.
        weight: deviation of every bit.
        power: of a block's deviation in its bits' scales: about 1 for the query's logit, and 1 for how sure the stored
            sign is.
        seed: of the rotations.
    """
    if len(points) > _MOST_READ:
        points = points[torch.linspace(0, len(points) - 1, _MOST_READ).long()]
    deviations, components = points.std(dim=0, correction=0).clamp(min=1e-6), points.shape[1]
    rows, scales, start = [], [], 0
    for end in lengths:
        block = slice(start, end) if end <= components else slice(max(0, components - (end - start)), components)
        rotation = _rotation(points[:, block], seed=seed + start)
        spread = deviations[block].square().mean().sqrt()
        part = torch.zeros(len(rotation), components)
        part[:, block] = rotation.T / spread
        missing = end - start - len(part)
        if missing > 0:
            generator = torch.Generator().manual_seed(seed + end)
            extra = torch.randn(missing, components, generator=generator)
            part = torch.cat([part, extra / (extra * deviations).norm(dim=1, keepdim=True)])
        rows.append(part[: end - start])
        scales += [spread] * (end - start)
        start = end
    spreads = torch.stack(scales)
    return FittedBase(Base(weight * torch.cat(rows)), (spreads / spreads[0]) ** power)


def fit_common_base(
    pairs: Sequence[Tensor], lengths: Sequence[int], *, weight: float = 1.0, power: float = 1.0, seed: int = 0
) -> list[FittedBase]:
    """A base for each of two modalities whose codes agree: ``fit_base`` of what the two have in common.

    That is their canonical variates (Hotelling, "Relations between two sets of variates", 1936), each as long as its
    correlation. Variances are raised by a tenth of their mean, or a few thousand pairs would correlate by chance.

    Args:
        pairs: coordinates (n, k) and (n, l), whose rows belong together.
        lengths, weight, power, seed: of ``fit_base``.
    """
    first, second = (points - points.mean(dim=0) for points in pairs)
    left, right = _whitening(first), _whitening(second)
    u, correlation, v = torch.linalg.svd(left @ (first.T @ second / len(first)) @ right, full_matrices=False)
    maps = [(left @ u) * correlation, (right @ v.T) * correlation]
    common = torch.cat([first @ maps[0], second @ maps[1]])
    base, scales = fit_base(common, lengths, weight=weight, power=power, seed=seed)
    return [FittedBase(Base(base.weights @ part.T), scales) for part in maps]


def _whitening(points: Tensor) -> Tensor:
    """(k, k), symmetric: the inverse square root of the ridged covariance of centered points (n, k)."""
    covariance = points.T @ points / len(points)
    spread, vectors = torch.linalg.eigh(covariance)
    return (vectors * (spread + _RIDGE * spread.mean()).rsqrt()) @ vectors.T


def _rotation(points: Tensor, *, seed: int) -> Tensor:
    """The rotation (k, k) that brings points (n, k) near to signs."""
    size = points.shape[1]
    rotation = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]
    for _ in range(_ITERATIONS):
        left, _, right = torch.linalg.svd(points.T @ (points @ rotation).sign())
        rotation = left @ right
    return rotation
