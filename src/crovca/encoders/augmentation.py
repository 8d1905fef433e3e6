"""Image views: the paper's augmentation, on batches of uint8 images on any device.

The recipe and its order are the reference implementation's (``RECIPE``), with Pillow's meaning of each step:

1. a crop of 0.4 to 1 of the area, of aspect 3/4 to 4/3, resized to the encoder's size (bilinear, antialiased);
2. a flip from left to right, with probability 0.5;
3. with 0.8, in random order: brightness, contrast and saturation times 0.6 to 1.4, hue turned by up to 0.2 of the
   circle either way;
4. gray, with 0.2;
5. Gaussian blur, with 0.1, sigma of 0.1 to 2 pixels (cut at 8 pixels, 4 sigma);
6. solarisation, with 0.1: values from 128 on are inverted.

Differences: steps 2 to 6 are computed in float and rounded to whole numbers once, at the end, where Pillow rounds
after each; and the blur is a true Gaussian, where Pillow's is one of repeated box filters.

Every random number is a function of (seed, key of the item, view, purpose) alone, so a view does not depend on the
batch, the shard or the process that it is made in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from crovca.errors import needed
from crovca.ids import splitmix64

_ATTEMPTS = 10  # to fit a crop, as in the reference; then the largest one in the middle
_BLUR_RADIUS = 8


@dataclass(frozen=True)
class Recipe:
    """Numbers of the augmentation; each ``*_p`` is a probability."""

    area: tuple[float, float] = (0.4, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.2
    gray_p: float = 0.2
    blur_p: float = 0.1
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise_p: float = 0.1


RECIPE = Recipe()


@dataclass(frozen=True)
class Draws:
    """Random choices for one view of n items.

    Attributes:
        boxes: int64 (n, 4) top, left, height, width of the crops.
        flip, jitter, gray, blur, solarise: bool (n,).
        order: int64 (n, 4), the order of brightness 0, contrast 1, saturation 2, hue 3.
        factors: float32 (n, 4), their strengths; hue in turns of the circle.
        sigma: float32 (n,).
    """

    boxes: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]
    jitter: npt.NDArray[np.bool_]
    gray: npt.NDArray[np.bool_]
    blur: npt.NDArray[np.bool_]
    solarise: npt.NDArray[np.bool_]
    order: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float32]
    sigma: npt.NDArray[np.float32]


def side_for_views(size: tuple[int, int]) -> int:
    """The shorter side at which an image should be kept so that no usual crop of it has to be enlarged much."""
    return 2 * max(size)


def augment(
    images: Tensor | Sequence[Tensor],
    size: tuple[int, int],
    *,
    keys: npt.NDArray[Any],
    view: int,
    seed: int,
    recipe: Recipe = RECIPE,
) -> Tensor:
    """One random view of each image.

    Args:
        images: uint8 (B, H, W, 3), or B of (H, W, 3) of any sizes, on one device.
        size: (height, width) of the result.
        keys: (B,) 64-bit whole numbers that name the items, such as ``id_hashes`` of their ids.
        view: number of the view.
        seed: another one gives other views.
        recipe: probabilities and ranges.

    Returns:
        uint8 (B, height, width, 3) on the same device.
    """
    shapes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    draws = draw(shapes, keys=keys, view=view, seed=seed, recipe=recipe)
    crops = [_crop(image, box, size) for image, box in zip(images, draws.boxes.tolist(), strict=True)]
    batch = torch.stack(crops).contiguous().float() / 255
    batch = _where(batch, draws.flip, lambda x, _: x.flip(-1))
    enhance = _kornia().enhance
    changes = (
        enhance.adjust_brightness_accumulative,
        _contrast,
        enhance.adjust_saturation_with_gray_subtraction,
        lambda x, turns: enhance.adjust_hue(x, turns * (2 * math.pi)).clamp(0, 1),
    )
    for step in range(4):
        for kind, change in enumerate(changes):
            chosen = draws.jitter & (draws.order[:, step] == kind)
            batch = _where(batch, chosen, change, draws.factors[:, kind])
    batch = _where(batch, draws.gray, lambda x, _: _gray(x).expand_as(x))
    batch = _where(batch, draws.blur, _blur, draws.sigma)
    batch = _where(batch, draws.solarise, lambda x, _: enhance.solarize(x, 128 / 255))
    return (batch * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def draw(
    shapes: npt.NDArray[np.int64], *, keys: npt.NDArray[Any], view: int, seed: int, recipe: Recipe = RECIPE
) -> Draws:
    """Draw the random choices for images of shapes (n, 2) = (height, width); see ``augment``."""
    numbers = _uniform(keys, view, seed, 4 * _ATTEMPTS + 16)
    crop, rest = numbers[:, : 4 * _ATTEMPTS].reshape(-1, _ATTEMPTS, 4), numbers[:, 4 * _ATTEMPTS :]
    strengths = np.array([recipe.brightness, recipe.contrast, recipe.saturation])
    factors = np.empty((len(shapes), 4))
    factors[:, :3] = 1 + strengths * (2 * rest[:, 5:8] - 1)
    factors[:, 3] = recipe.hue * (2 * rest[:, 8] - 1)
    return Draws(
        boxes=_boxes(shapes, crop, recipe),
        flip=rest[:, 0] < recipe.flip_p,
        jitter=rest[:, 1] < recipe.jitter_p,
        gray=rest[:, 2] < recipe.gray_p,
        blur=rest[:, 3] < recipe.blur_p,
        solarise=rest[:, 4] < recipe.solarise_p,
        order=np.argsort(rest[:, 10:14], axis=1, kind="stable"),
        factors=factors.astype(np.float32),
        sigma=(recipe.sigma[0] + (recipe.sigma[1] - recipe.sigma[0]) * rest[:, 9]).astype(np.float32),
    )


def _uniform(keys: npt.NDArray[Any], view: int, seed: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), (n, count), each from a stream named by seed, key and view."""
    state = splitmix64(np.full(len(keys), seed, np.int64).view(np.uint64))
    state = splitmix64(state ^ np.asarray(keys).astype(np.uint64))
    state = splitmix64(state ^ np.uint64(view))
    names = splitmix64(np.arange(count, dtype=np.uint64))
    whole = splitmix64(state[:, None] ^ names) >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def _boxes(shapes: npt.NDArray[np.int64], numbers: npt.NDArray[np.float64], recipe: Recipe) -> npt.NDArray[np.int64]:
    """Crops (n, 4): the first of some attempts that fits into the image, else the largest allowed one in its middle."""
    height, width = shapes[:, :1].astype(np.float64), shapes[:, 1:].astype(np.float64)
    low, high = recipe.aspect
    area = height * width * (recipe.area[0] + (recipe.area[1] - recipe.area[0]) * numbers[..., 0])
    aspect = np.exp(math.log(low) + (math.log(high) - math.log(low)) * numbers[..., 1])
    tall = np.rint(np.sqrt(area / aspect)).clip(1)
    wide = np.rint(np.sqrt(area * aspect)).clip(1)
    fits = np.asarray((tall <= height) & (wide <= width))
    top = np.floor(numbers[..., 2] * (height - tall + 1))
    left = np.floor(numbers[..., 3] * (width - wide + 1))
    first = fits.argmax(axis=1)
    rows = np.arange(len(shapes))
    chosen = np.stack([top, left, tall, wide], axis=-1)[rows, first]
    # none fits: the whole image, its longer side cut to the nearest allowed aspect
    h, w = height[:, 0], width[:, 0]
    tall_middle = np.where(w / h < low, np.rint(w / low), h)
    wide_middle = np.where(w / h > high, np.rint(h * high), w)
    middle = np.stack([(h - tall_middle) // 2, (w - wide_middle) // 2, tall_middle, wide_middle], axis=-1)
    return np.where(fits.any(axis=1, keepdims=True), chosen, middle).astype(np.int64)


def _crop(image: Tensor, box: list[int], size: tuple[int, int]) -> Tensor:
    """A part of a uint8 (H, W, 3) image, resized: uint8 (3, h, w)."""
    top, left, height, width = box
    part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    if image.device.type == "cpu":  # bytes, as in Pillow, by the processor's vector instructions
        return F.interpolate(part, size, mode="bilinear", antialias=True)[0]
    resized = F.interpolate(part.float(), size, mode="bilinear", antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _where(
    batch: Tensor, chosen: npt.NDArray[np.bool_], change: Any, strengths: npt.NDArray[np.float32] | None = None
) -> Tensor:
    """The batch with ``change`` done to the chosen images."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return batch
    where = torch.from_numpy(rows).to(batch.device)
    given = None if strengths is None else torch.from_numpy(strengths[rows]).to(batch.device)
    return batch.index_copy(0, where, change(batch[where], given).contiguous())


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    # Blended with the mean gray, a whole number as in Pillow: so no order of summation shows.
    mean = (_gray(images).mean(dim=(2, 3), keepdim=True, dtype=torch.float64) * 255).round().float() / 255
    strength = factors[:, None, None, None]
    return (images * strength + mean * (1 - strength)).clamp(0, 1)


def _gray(images: Tensor) -> Tensor:
    return _kornia().color.rgb_to_grayscale(images)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own sigma. Sums of shifted images: the order of addition is the same in every batch."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=images.device)
    weights = torch.exp(-((offsets / sigma[:, None]) ** 2) / 2)
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]
    for dim in (2, 3):
        length = images.shape[dim]
        pad = (0, 0, _BLUR_RADIUS, _BLUR_RADIUS) if dim == 2 else (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0)
        wide = F.pad(images, pad, mode="reflect" if length > _BLUR_RADIUS else "replicate")
        total = torch.zeros_like(images)
        for tap in range(len(offsets)):
            total += weights[:, tap] * wide.narrow(dim, tap, length)
        images = total
    return images


def _kornia() -> Any:
    return needed("kornia", "augment", "making views of images")
