"""Nearest neighbors of every item among the others, by centered cosine: the second view where there are no images.

Up to ``EXACT_ITEMS`` items the search is exact, block by block. Above, the items are put into k-means
cells and each is compared, exactly, with all members of its cell and of the cells nearest to it; the share of
true neighbors that this finds is measured on a sample. Embeddings are read from their memory map block by
block, and no (n, n) matrix is ever built.

Of the nearest items those that share the most neighbors with an item are more often of its kind than the very nearest
(Jarvis and Patrick, "Clustering using a similarity measure based on shared near neighbors", 1973).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.clusters import k_means
from crovca.data.embeddings import Rows, mean_embedding
from crovca.errors import InvalidInputError
from crovca.hashing.inputs import unit_length

CONSIDERED = 2
"""Shared neighbors are chosen among so many times as many nearest ones."""
EXACT_ITEMS = 100_000
PROBED_CELLS = 8
RECALL_SAMPLE = 256
_BLOCK = 4096
_POINTS_A_CELL = 64
_COMPARED = 1 << 24  # pairs of row numbers compared at once

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Neighborhood:
    """The nearest neighbors of every item.

    Attributes:
        rows: int64 (n, k), nearest first, or those that share most. A degenerate item stands in its own row only,
            k times.
        recall: share of the true nearest that were found: 1 where the search was exact, else measured.
        cells: number of k-means cells, or None where the search was exact.
    """

    rows: npt.NDArray[np.int64]
    recall: float
    cells: int | None


def find_neighbors(
    values: Rows,
    count: int,
    *,
    degenerate: npt.NDArray[np.int64] | None = None,
    device: torch.device | None = None,
    seed: int = 0,
    exact_items: int = EXACT_ITEMS,
    advance: Advance = lambda share: None,
) -> Neighborhood:
    """Find the ``count`` nearest other items of every item by cosine after subtracting the mean.

    Args:
        values: (n, d), or (n, v, d), of which each item's mean over its views is used.
        count: k; fewer where there are not so many other items.
        degenerate: rows that are never anyone's neighbor (zero and constant rows).
        device: where to compute.
        seed: of the k-means and of the sample on which recall is measured.
        exact_items: largest n that is searched exhaustively.
        advance: called with the share of the work that is done.
    """
    usable = np.ones(len(values), np.bool_)
    if degenerate is not None:
        usable[degenerate] = False
    if usable.sum() < 2:
        raise InvalidInputError(
            f"neighbors need at least 2 items that are not zero or constant, got {usable.sum()} of {len(values)}"
        )
    candidates = np.flatnonzero(usable)
    count = min(count, len(candidates) - 1)
    reader = _Reader(values, mean_embedding(values), device or torch.device("cpu"))
    rows = np.repeat(np.arange(len(values))[:, None], count, axis=1)
    if len(candidates) <= exact_items:
        for start in range(0, len(candidates), _BLOCK):
            asked = candidates[start : start + _BLOCK]
            rows[asked] = _nearest(reader, asked, candidates, count)
            advance((start + len(asked)) / len(candidates))
        return Neighborhood(rows, 1.0, None)
    return _search_cells(reader, candidates, rows, count, seed, advance)


def find_shared_neighbors(values: Rows, count: int, **arguments: Any) -> Neighborhood:
    """Of the 2 ``count`` nearest items of every item the ``count`` with which it shares the most neighbors.

    Takes and raises what ``find_neighbors`` does.
    """
    nearest = find_neighbors(values, CONSIDERED * count, **arguments)
    return replace(nearest, rows=most_shared(nearest.rows, count))


def most_shared(nearest: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Of the K nearest items of every item the ``count`` that have the most of their K nearest in common with it.

    An item counts among its own nearest. Of two that share as many, the nearer goes first.

    Args:
        nearest: (n, K) rows, nearest first.
        count: how many are kept; all, where K is less.

    Returns:
        (n, min(count, K)) rows.
    """
    whole = np.concatenate([np.arange(len(nearest))[:, None], nearest], axis=1)  # (n, K + 1)
    chosen = np.empty((len(nearest), min(count, nearest.shape[1])), np.int64)
    block = max(1, _COMPARED // (nearest.shape[1] * whole.shape[1] ** 2))
    for start in range(0, len(nearest), block):
        part = slice(start, start + block)
        theirs = whole[nearest[part]]  # (m, K, K + 1)
        shared = (theirs[..., None] == whole[part, None, None, :]).any(axis=3).sum(axis=2)  # (m, K)
        order = np.argsort(-shared, axis=1, kind="stable")[:, : chosen.shape[1]]
        chosen[part] = np.take_along_axis(nearest[part], order, axis=1)
    return chosen


@dataclass(frozen=True)
class _Reader:
    """Reads rows as centered unit vectors on the device."""

    values: Rows
    center: npt.NDArray[np.float32]
    device: torch.device

    def __call__(self, rows: npt.NDArray[np.int64]) -> Tensor:
        part = torch.from_numpy(np.ascontiguousarray(self.values[rows])).to(self.device).float()
        if part.ndim == 3:
            part = part.mean(dim=1)
        return unit_length(part - torch.from_numpy(self.center).to(self.device))


def _nearest(
    read: _Reader, asked: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Exact nearest ``count`` of ``candidates`` (ascending row numbers) for each of ``asked``, itself left out."""
    queries = read(asked)
    best = torch.full((len(asked), 0), 0.0, device=read.device)
    best_rows = torch.zeros((len(asked), 0), dtype=torch.int64, device=read.device)
    for start in range(0, len(candidates), _BLOCK):
        block = candidates[start : start + _BLOCK]
        scores = queries @ read(block).T
        place = np.searchsorted(block, asked)
        own = np.flatnonzero((place < len(block)) & (block[np.minimum(place, len(block) - 1)] == asked))
        scores[torch.from_numpy(own), torch.from_numpy(place[own])] = -torch.inf
        top = scores.topk(min(count, len(block)), dim=1)
        block_rows = torch.from_numpy(block).to(read.device)
        best = torch.cat([best, top.values], dim=1)
        best_rows = torch.cat([best_rows, block_rows[top.indices]], dim=1)
        if best.shape[1] > count:
            kept = best.topk(count, dim=1)
            best, best_rows = kept.values, best_rows.gather(1, kept.indices)
    order = best.argsort(dim=1, descending=True, stable=True)
    return best_rows.gather(1, order).cpu().numpy()


def _search_cells(
    read: _Reader,
    candidates: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    count: int,
    seed: int,
    advance: Advance,
) -> Neighborhood:
    random = np.random.default_rng(seed)
    centroids = _cell_centroids(read, candidates, random)
    cells = len(centroids)
    cell_of = np.empty(len(candidates), np.int64)
    for start in range(0, len(candidates), _BLOCK):
        asked = candidates[start : start + _BLOCK]
        cell_of[start : start + len(asked)] = (read(asked) @ centroids.T).argmax(dim=1).cpu().numpy()
        advance(0.3 * (start + len(asked)) / len(candidates))
    by_cell = np.argsort(cell_of, kind="stable")
    starts = np.searchsorted(cell_of[by_cell], np.arange(cells + 1))
    members = [candidates[by_cell[starts[cell] : starts[cell + 1]]] for cell in range(cells)]
    similar = (centroids @ centroids.T).argsort(dim=1, descending=True).cpu().numpy()
    for cell, mine in enumerate(members):
        if not len(mine):
            continue
        probes = PROBED_CELLS
        searched = np.concatenate([members[near] for near in similar[cell][:probes]])
        while len(searched) <= count:  # tiny cells: look further until there are enough
            probes *= 2
            searched = np.concatenate([members[near] for near in similar[cell][:probes]])
        searched.sort()
        for start in range(0, len(mine), _BLOCK):
            asked = mine[start : start + _BLOCK]
            rows[asked] = _nearest(read, asked, searched, count)
        advance(0.3 + 0.65 * (cell + 1) / cells)
    sample = np.sort(random.choice(candidates, min(RECALL_SAMPLE, len(candidates)), replace=False))
    true = _nearest(read, sample, candidates, count)
    found = [len(set(a) & set(b)) for a, b in zip(true.tolist(), rows[sample].tolist(), strict=True)]
    advance(1.0)
    return Neighborhood(rows, float(np.mean(found)) / count, cells)


def _cell_centroids(read: _Reader, candidates: npt.NDArray[np.int64], random: np.random.Generator) -> Tensor:
    """Unit centroids (cells, d) of a sample; about 2 sqrt(n) cells."""
    cells = int(2 * np.sqrt(len(candidates)))
    sample = np.sort(random.choice(candidates, min(_POINTS_A_CELL * cells, len(candidates)), replace=False))
    points = torch.cat([read(sample[start : start + _BLOCK]).cpu() for start in range(0, len(sample), _BLOCK)])
    found = k_means(points.numpy(), cells, seed=int(random.integers(2**31)), spherical=True)
    return torch.from_numpy(found).to(read.device)
