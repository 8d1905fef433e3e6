"""A map of a collection: what there is of it, one picture for each part, like beside like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crovca.data.clusters import k_means
from crovca.data.embeddings import evenly_spaced
from crovca.index.view import View

_SAMPLE = 8192  # items that are looked at
_ROUNDS = 24

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """A part of the collection, of items with like codes.

    Attributes:
        row, column: its place, from 0.
        id: the item that is most like the part's middle.
        items: about how many there are in it.
    """

    row: int
    column: int
    id: str | int
    items: int


def map_of(view: View, rows: int = 8, columns: int = 12) -> list[Tile]:
    """The map, row by row; of a collection with fewer different codes than tiles, as few columns as they need.

    k-means over a sample's codes makes the parts; ``_arranged`` lays them out.
    """
    live = view.live()
    if not len(live):
        return []
    picked = live[evenly_spaced(len(live), _SAMPLE)]
    values = np.asarray(2.0 * view.codes(picked).unpack() - 1.0, np.float32)
    count = min(rows * columns, len(np.unique(values, axis=0)))
    rows = min(rows, count)
    columns = count // rows
    middles = k_means(values, rows * columns)
    part, order = _nearest(values, middles)
    which = _arranged(middles, rows, columns)
    ids = view.ids(picked[order]).tolist()
    share = np.bincount(part, minlength=len(middles)) * len(live) / len(picked)
    return [
        Tile(at // columns, at % columns, ids[one], round(share[one])) for at, one in enumerate(which) if share[one]
    ]


def _arranged(middles: Float32, rows: int, columns: int) -> npt.NDArray[np.int64]:
    """Which of ``middles`` (rows * columns, d) stands on each place of the grid, row by row: like is beside like.

    Linear assignment sorting (Barthel, Hezel, Jung and Schall, "Improved evaluation and generation of grid layouts
    using distance preservation quality and linear assignment sorting", 2023): the grid is blurred, each middle goes to
    the place that is most like it then, and so on with less and less blur.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    centered = middles - middles.mean(axis=0)
    which = np.argsort(centered @ np.linalg.svd(centered, full_matrices=False)[2][0])  # by where they differ most
    for blur in np.geomspace(max(rows, columns) / 3, 0.4, _ROUNDS):
        grid = gaussian_filter(middles[which].reshape(rows, columns, -1), (blur, blur, 0), mode="nearest")
        which = linear_sum_assignment(cdist(grid.reshape(rows * columns, -1), middles, "sqeuclidean"))[1]
    return np.asarray(which, np.int64)


def _nearest(values: Float32, middles: Float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each value the nearest middle; of each middle the nearest value."""
    near = values @ middles.T - (middles**2).sum(axis=1) / 2  # all values are as long
    return near.argmax(axis=1), near.argmax(axis=0)
