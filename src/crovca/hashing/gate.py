"""The gate by density: the network says what it has learned, and keeps still where it has learned nothing.

It is open where an item is as near to what was learned as held-out items of it are, and closed elsewhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.data.clusters import k_means

_COMPONENTS = 64  # the strongest tell new from old as well as all, at a quarter of the cost
_MOST_CENTROIDS, _ITEMS_EACH, _POINTS_EACH = 1024, 4, 32
_CELLS = 20  # coarse, a kind each


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


def fit_gate(points: Tensor, *, quantile: float = 0.1, softness: float = 0.75, seed: int = 0) -> Gate:
    """Centroids of about 4 points (n, k) each, and a threshold between what was learned and what was not.

    A fifth of the points is held out while centroids are found. The threshold is the ``quantile`` of their cosines to
    the nearest, or, if that is more, the median of what these would be if nothing of a point's own coarse cell had been
    learned: where kinds look alike, the gate must be stricter. The width is ``softness`` times the cosines' deviation.
    """
    points = F.normalize(points[:, :_COMPONENTS], dim=1)
    count = max(1, min(_MOST_CENTROIDS, len(points) // _ITEMS_EACH))
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    fifth = max(1, len(points) // 5)
    held, kept = points[order[:fifth]], points[order[fifth:]]
    centroids = _centroids(kept, min(count, len(kept)), seed=seed)
    cosines = held @ centroids.T
    near = cosines.amax(dim=1)
    threshold = near.quantile(quantile)
    cells = min(_CELLS, len(kept) // 8)
    if cells > 1:
        coarse = _centroids(kept, cells, seed=seed)
        same = (held @ coarse.T).argmax(dim=1)[:, None] == (centroids @ coarse.T).argmax(dim=1)
        threshold = torch.maximum(threshold, cosines.masked_fill(same, -1.0).amax(dim=1).median())
    width = softness * near.std(correction=0).clamp(min=1e-3)
    return Gate(_centroids(points, count, seed=seed), threshold, width)


def _centroids(points: Tensor, count: int, *, seed: int) -> Tensor:
    """Unit centroids (count, k) of unit points (n, k)."""
    return torch.from_numpy(k_means(points.numpy(), count, seed=seed, spherical=True, most_points=_POINTS_EACH))
