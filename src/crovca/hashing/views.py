"""What the views of an item are: stored views, itself, its neighbors, or another modality.

A source gives, for a batch of rows, its views [(B, d_1), ..., (B, d_v)] in float32. All chance comes from
the generator that is handed in, so a training step depends on the seed and its number alone. Sources of images and
texts are in ``hasher.image_views``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.embeddings import Rows
from crovca.errors import InvalidInputError

Int64 = npt.NDArray[np.int64]


class ViewSource(Protocol):
    """Gives views of items."""

    def __len__(self) -> int:
        """Number of items."""

    def views(self, rows: Int64, random: np.random.Generator) -> Sequence[Any]:
        """The views of these items, as the model takes them: float32 tensors (B, d), one a view."""


class Augment(Protocol):
    """Makes a batch (B, d) another one, with chance from a stream."""

    def __call__(self, batch: Tensor, random: np.random.Generator, /) -> Tensor:
        """The changed batch (B, d)."""


class FeatureDropout:
    """Set a random ``share`` of the numbers to ``center`` and move the others away from it, keeping the mean.

    The share is rounded to n/256: one random byte a number is ten times cheaper than a random float.

    Args:
        share: in [0, 1).
        center: (d,) or (), what a feature is that says nothing.
    """

    def __init__(self, share: float, center: Tensor) -> None:
        self._dropped, self._center = round(256 * share), center

    def __call__(self, batch: Tensor, random: np.random.Generator, /) -> Tensor:
        """The batch (B, d) with features dropped."""
        dropped = self._dropped
        if not dropped:
            return batch
        drawn = np.frombuffer(random.bytes(batch.numel()), np.uint8).reshape(batch.shape)
        kept = torch.from_numpy(drawn >= dropped)
        return torch.addcmul(self._center, batch - self._center, kept, value=256 / (256 - dropped))


class CoordinateNoise:
    """What dropping a ``share`` of d features does to coordinates: noise of sd |c| sqrt(p / (1 - p) / d).

    Args:
        share: p in [0, 1).
        width: d.
        coordinates: how many of the numbers are coordinates; what follows them, the gate, stays.
    """

    def __init__(self, share: float, width: int, coordinates: int) -> None:
        self._spread, self._coordinates = math.sqrt(share / (1 - share) / width), coordinates

    def __call__(self, batch: Tensor, random: np.random.Generator, /) -> Tensor:
        """The batch (B, d) with noise on its coordinates."""
        points, rest = batch[:, : self._coordinates], batch[:, self._coordinates :]
        noise = torch.from_numpy(random.standard_normal(points.shape, np.float32))
        return torch.cat([points + self._spread * points.norm(dim=1, keepdim=True) * noise, rest], dim=1)


class StoredViews:
    """Random different stored views of each item (paper, section 3.1: augmentations of one image).

    Args:
        values: (n, v, d).
        draw: how many of the v views make a step.
    """

    def __init__(self, values: Rows, draw: int = 2) -> None:
        if len(values.shape) != 3 or not 2 <= draw <= values.shape[1]:
            raise InvalidInputError(
                f"pairing views needs embeddings of shape (n, v, d) with v at least {max(draw, 2)}, got "
                f"{tuple(values.shape)}; use neighbors for embeddings alone (pairing='neighbors')"
            )
        self._values, self._draw = values, draw

    def __len__(self) -> int:
        return len(self._values)

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """``draw`` different views of each item, in random order."""
        items = _read(self._values, rows)
        chosen = random.random((len(rows), items.shape[1])).argsort(axis=1)[:, : self._draw]
        return [items[torch.arange(len(rows)), torch.from_numpy(column)] for column in chosen.T]


class Copies:
    """The item itself (a random stored view, if there are several), augmented."""

    def __init__(self, values: Rows, augment: Augment) -> None:
        self._values, self._augment = values, augment

    def __len__(self) -> int:
        return len(self._values)

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """One copy of each item."""
        return [self._augment(_one_view(self._values, rows, random), random)]


class NeighborViews:
    """The item, and a random one of its nearest neighbors, augmented.

    Args:
        values: (n, d) or (n, v, d).
        neighbors: (n, k) rows of the nearest items.
        augment: is done to the neighbor.
    """

    def __init__(self, values: Rows, neighbors: Int64, augment: Augment) -> None:
        self._values, self._neighbors, self._augment = values, neighbors, augment

    def __len__(self) -> int:
        return len(self._values)

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """Two views: the item and a neighbor."""
        chosen = random.integers(self._neighbors.shape[1], size=len(rows))
        near = self._neighbors[rows, chosen]
        item, other = _one_view(self._values, rows, random), _one_view(self._values, near, random)
        return [item, self._augment(other, random)]


class Modalities:
    """One view of each modality: paired rows, each modality (n, d_m) or (n, v_m, d_m) (paper, Figure 1, right).

    They are augmented, where there is an ``augments`` for each.
    """

    def __init__(self, modalities: Sequence[Rows], augments: Sequence[Augment] | None = None) -> None:
        if len({len(values) for values in modalities}) != 1:
            lengths = [len(values) for values in modalities]
            raise InvalidInputError(f"paired modalities need as many rows each, got {lengths}")
        self._modalities, self._augments = modalities, augments

    def __len__(self) -> int:
        return len(self._modalities[0])

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """A view of each modality, in order."""
        if self._augments is None:
            return [_one_view(values, rows, random) for values in self._modalities]
        parts = zip(self._modalities, self._augments, strict=True)
        return [augment(_one_view(values, rows, random), random) for values, augment in parts]


class Mixed:
    """Each item takes its pair of views at random from one of several sources of the same items with two views each."""

    def __init__(self, sources: Sequence[ViewSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources[0])

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """Two views."""
        drawn = [torch.stack(list(source.views(rows, random))) for source in self._sources]  # each (2, B, d)
        chosen = torch.from_numpy(random.integers(len(drawn), size=len(rows)))
        mixed = torch.stack(drawn)[chosen, :, torch.arange(len(rows))]  # (B, 2, d)
        return [mixed[:, 0], mixed[:, 1]]


def _read(values: Rows, rows: Int64) -> Tensor:
    part: npt.NDArray[Any] = np.ascontiguousarray(values[rows])
    return torch.from_numpy(part).float()


def _one_view(values: Rows, rows: Int64, random: np.random.Generator) -> Tensor:
    if len(values.shape) == 2:
        return _read(values, rows)
    items = _read(values, rows)
    return items[torch.arange(len(rows)), torch.from_numpy(random.integers(items.shape[1], size=len(rows)))]
