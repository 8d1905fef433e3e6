"""Views of images and texts for training, made anew at every step: sources of views for ``hashing.train``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.embedding.pool import ImagePool
from crovca.encoders.augmentation import RECIPE, Recipe, augment
from crovca.encoders.preprocessing import Preprocessing
from crovca.ids import id_hashes

Int64 = npt.NDArray[np.int64]


class ImageViews:
    """Augmented views of each image (paper, section 3.1), made on the device of the model.

    Args:
        pool: the images; of ``items.uncropped`` with a recipe, of ``items.plain`` without.
        rows: (n,) rows of the pool's source that are trained on.
        preprocessing: of the encoder.
        device: where views are made.
        draw: views of an item in a step.
        recipe: the augmentation; None: the image as it is.
    """

    def __init__(
        self,
        pool: ImagePool,
        rows: Int64,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        draw: int = 2,
        recipe: Recipe | None = RECIPE,
    ) -> None:
        self._pool, self._rows, self._preprocessing, self._device = pool, rows, preprocessing, device
        self._draw, self._recipe = draw, recipe
        self._keys = id_hashes(pool.source.ids, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def views(self, rows: Int64, random: np.random.Generator) -> list[Tensor]:
        """``draw`` views of each item, float32 (B, 3, H, W); those of an item depend on no other item of the batch."""
        seed = int(random.integers(2**62))
        chosen = self._rows[rows]
        images = self._pool.images(chosen, self._device)
        if self._recipe is None:
            pixels = self._preprocessing.normalize(torch.stack(images))
            return [pixels] * self._draw
        views = []
        for view in range(self._draw):
            pixels = augment(
                images, self._preprocessing.size, keys=self._keys[chosen], view=view, seed=seed, recipe=self._recipe
            )
            views.append(self._preprocessing.normalize(pixels))
        return views


class ImagesAndTexts:
    """One view of each image (``draw`` 1), and one of its texts, which is drawn (paper, Figure 1, right)."""

    def __init__(self, images: ImageViews, texts: Sequence[Sequence[str]]) -> None:
        self._images, self._texts = images, texts
        self._counts = np.array([len(several) for several in texts])

    def __len__(self) -> int:
        return len(self._images)

    def views(self, rows: Int64, random: np.random.Generator) -> list[Any]:
        """The images' view and a list of texts."""
        (pixels,) = self._images.views(rows, random)
        # A number for every item there is: so a process that has a part of the batch draws what one process would.
        drawn = random.random(len(self))[rows]
        return [
            pixels,
            [self._texts[row][int(place * self._counts[row])] for row, place in zip(rows, drawn, strict=True)],
        ]
