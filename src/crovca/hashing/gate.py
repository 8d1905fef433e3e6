"""The gate by density: the network says what it has learned, and keeps still where it has learned nothing.

It is open where an item is as near to what was learned as held-out items of it are, and closed elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Gate", "fit_gate"]

_COMPONENTS = 64  # the strongest tell new from old as well as all, at a quarter of the cost
_MOST_CENTROIDS, _ITEMS_EACH, _POINTS_EACH = 1024, 4, 32
_QUANTILE, _SOFTNESS = 0.1, 0.25
_ITERATIONS = 10


class Gate(nn.Module):
    """Coordinates (n, k) to (n, 1) in (0, 1): sigmoid((cosine to the nearest centroid - threshold) / width).

    Args:
        centroids: (c, j) unit vectors in the first j coordinates.
        threshold: (), the cosine at which the gate is half open.
        width: (), how softly it opens.
    """

    centroids: Tensor
    threshold: Tensor
    width: Tensor

    def __init__(self, centroids: Tensor, threshold: Tensor, width: Tensor) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids)
        self.register_buffer("threshold", threshold)
        self.register_buffer("width", width)

    def forward(self, coordinates: Tensor) -> Tensor:
        """(n, k) to (n, 1)."""
        return torch.sigmoid((self.nearest(coordinates) - self.threshold) / self.width)

    def nearest(self, coordinates: Tensor) -> Tensor:
        """The cosine to the nearest centroid: (n, k) to (n, 1)."""
        unit = F.normalize(coordinates[:, : self.centroids.shape[1]], dim=1)
        return F.linear(unit, self.centroids).amax(dim=1, keepdim=True)


def fit_gate(points: Tensor, *, seed: int = 0) -> Gate:
    """Centroids of points (n, k), about 4 items each; the threshold is what 90 % of held-out items reach."""
    points = F.normalize(points[:, :_COMPONENTS], dim=1)
    count = max(1, min(_MOST_CENTROIDS, len(points) // _ITEMS_EACH))
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(points) // 5)
    kept = points[order[held:]]
    near = (points[order[:held]] @ _centroids(kept, min(count, len(kept)), seed=seed).T).amax(dim=1)
    width = _SOFTNESS * near.std(correction=0).clamp(min=1e-3)
    return Gate(_centroids(points, count, seed=seed), near.quantile(_QUANTILE), width)


def _centroids(points: Tensor, count: int, *, seed: int) -> Tensor:
    """Unit centroids (count, k) of unit points (n, k): spherical k-means."""
    generator = torch.Generator().manual_seed(seed)
    points = points[torch.randperm(len(points), generator=generator)[: _POINTS_EACH * count]]
    centroids = points[:count].clone()
    for _ in range(_ITERATIONS):
        nearest = (points @ centroids.T).argmax(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        taken = torch.bincount(nearest, minlength=count) > 0
        centroids = torch.where(taken[:, None], F.normalize(sums, dim=1), centroids)
    return centroids
