"""k-means, in one place (FAISS's)."""

from __future__ import annotations

import faiss
import numpy as np
import numpy.typing as npt

from crovca.errors import InvalidInputError

_BLOCK = 4096


def k_means(
    values: npt.NDArray[np.float32], count: int, *, seed: int = 0, spherical: bool = False, most_points: int = 256
) -> npt.NDArray[np.float32]:
    """Centroids float32 (count, d) of ``values`` (n, d), the same for the same seed on one machine.

    ``spherical``: centroids are unit vectors, and the nearest is that of the largest inner product. Where a centroid
    has more than ``most_points``, as many are drawn at random.
    """
    if not 1 <= count <= len(values):
        raise InvalidInputError(f"k-means finds 1 to {len(values)} centroids of {len(values)} items, got {count}")
    found = faiss.Kmeans(
        values.shape[1],
        count,
        niter=10,
        seed=seed % 2**31 + 1,
        spherical=spherical,
        min_points_per_centroid=1,
        max_points_per_centroid=most_points,
    )
    found.train(np.ascontiguousarray(values, np.float32))
    return np.asarray(found.centroids, np.float32).reshape(count, -1)


def nearest_centroid(values: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Of each of ``values`` (n, d) the number (n,) of the centroid (c, d) with the largest inner product."""
    parts = range(0, len(values), _BLOCK)
    return np.concatenate([(values[i : i + _BLOCK] @ centroids.T).argmax(axis=1) for i in parts])
