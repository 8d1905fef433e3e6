"""Whether two pictures have the same pixels: saved anew, smaller, brighter, marked, cut or turned a little.

Both are shrunk to at most 256 pixels and compared in gray first: the finer is laid over the coarser, and they are
compared in small blocks that have texture: as correlation, which brightness and contrast leave as it is; as the median
over the blocks, which a mark on some of them leaves as it is. The same is asked of what is small in them: two
motorcycles before a white wall differ there. Pictures of one shape are laid over each other as they are. Where that is
not enough, local features (SIFT) that agree on one place, size and angle (RANSAC) say how: that is OpenCV's work. Then
the colors that lie over each other are compared, cell by cell: a red and a blue dress may be the same in gray.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

SIDE = 256  # pixels of the longer side, at most
_QUALITY = 92  # of a kept picture
_CELL, _CELLS = 4, 5  # pixels of a side whose color is one; cells of a side whose colors are compared as one
_LUMA, _CHROMA = np.array([0.299, 0.587, 0.114], np.float32), np.array([0.564, 0.713], np.float32)
_CLIPPED = 16  # so near to black or white, brightness and contrast are not seen
_GAIN = 2.0  # how much stronger or weaker a color may be, as clipping and marks make it
_MOST_CELLS = 97  # percent of the cells, which must agree: a mark may cover the others
_PALE = 0.25  # so much less varied are the colors of a picture in gray, or in one tone
_BLOCK = 16
_TEXTURE = 25.0, 4.0  # variance of a block from which on it says something: of the picture, of what is small in it
_SMALL = 2.5  # pixels: what a Gaussian of this width takes away is small
_SAME_SHAPE = 0.06  # how far the logarithms of two aspect ratios may be apart
_BLOCKS, _WHOLE, _DETAIL, _OVERLAP = 0.8, 0.93, 0.87, 0.7  # of copies, at least
_LEAST = ((_BLOCKS, _WHOLE, _DETAIL, _OVERLAP),)
_LEAST_FIRM = (*_LEAST, (_BLOCKS, 0.97, 0.83, 0.75))  # or this, where so many features agree
_FIRM = 100
_COLOR = 15.0  # of copies, at most
_STRONG, _GRAY = 30.0, 25.0  # of strong colors, at least; how far from their brightness their gray may be
_TO_GRAY = np.array([[0.299, 0.587, 0.114], [0.2126, 0.7152, 0.0722], [1 / 3] * 3], np.float32)  # as programs do it
_SCENE = 20  # features that agree, from which on two pictures show the same scene
_FEATURES, _KEPT = 400, 4096  # of a picture, and pictures whose features are kept


class Agreement(NamedTuple):
    """How two pictures agree.

    Attributes:
        blocks: median correlation of blocks with texture, where one lies over the other; 0 where ``whole`` says enough.
        whole: correlation of all that lies over each other.
        detail: as ``blocks``, of what is small; 0 where ``blocks`` says enough.
        overlap: share of the second picture that the first one covers.
        features: how many agree on how to lay one over the other; 0 where that was not needed.
        color: how far the colors (Cb, Cr, of 255) of a cell differ; so far or less in 97 % of them.
        gray: one of the two has colors, the other is gray or in one tone.
    """

    blocks: float = 0.0
    whole: float = 0.0
    detail: float = 0.0
    overlap: float = 0.0
    features: int = 0
    color: float = 0.0
    gray: bool = False

    @property
    def copy(self) -> bool:
        """The same pixels, in color or in gray."""
        return self._shapes and (self.gray or self.color <= _COLOR)

    @property
    def recolored(self) -> bool:
        """The same pixels but for their colors."""
        return self._shapes and not self.copy

    @property
    def _shapes(self) -> bool:
        least = _LEAST_FIRM if self.features >= _FIRM else _LEAST
        return any(all(value >= bound for value, bound in zip(self, one, strict=False)) for one in least)

    @property
    def scene(self) -> bool:
        """The same scene, maybe taken again."""
        return self.copy or self.features >= _SCENE


class Picture(NamedTuple):
    """A small picture: gray (h, w), and the colors of its cells (h / 4, w / 4, 3)."""

    gray: Gray
    cells: Gray


def shrink(image: Any) -> bytes:
    """A picture (of Pillow) as a small JPEG, as it is kept."""
    from PIL import Image

    scale = min(1.0, SIDE / max(image.size))
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    kept = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(kept, "JPEG", quality=_QUALITY)
    return kept.getvalue()


def opened(kept: bytes) -> Picture:
    """What ``shrink`` made."""
    from PIL import Image

    with Image.open(io.BytesIO(kept), formats=["JPEG"]) as image:
        return Picture(np.asarray(image.convert("L")), np.asarray(image.convert("RGB").reduce(_CELL)))


def aligns() -> bool:
    """Whether OpenCV is installed, without which pictures that were cut or turned are not confirmed."""
    return find_spec("cv2") is not None


class Comparer:
    """Compares pictures by number; ``read`` gives the picture of one."""

    def __init__(self, read: Callable[[int], Picture]) -> None:
        self._read = lru_cache(_KEPT)(read)
        self._features = lru_cache(_KEPT)(self._find_features)
        self._cv2: Any = import_module("cv2") if aligns() else None  # here: threads must not import it side by side

    def compare(self, first: int, second: int) -> Agreement:
        """How two pictures agree."""
        if self._read(first).gray.size < self._read(second).gray.size:
            first, second = second, first
        (one, cells), (other, others) = self._read(first), self._read(second)
        straight = _resized(cells, others.shape), others, np.ones(others.shape[:2], np.bool_)
        best = Agreement()
        shapes = np.log(one.shape[0] * other.shape[1] / (one.shape[1] * other.shape[0]))
        if abs(shapes) < _SAME_SHAPE:
            best = _agreement(_resized(one, other.shape), other, np.ones(other.shape, np.bool_))
            best = _with_colors(best, *straight)
        if best.copy or self._cv2 is None:
            return best
        matrix, features = self._transform(first, second)
        if matrix is None:
            return best
        aligned = _agreement(*self._laid_over(one, other, matrix))._replace(features=features)
        if best > aligned:
            return _with_colors(best._replace(features=features), *straight)
        center = (_CELL - 1) / 2  # of a cell, in pixels
        matrix[:, 2] = (matrix[:, :2].sum(axis=1) * center + matrix[:, 2] - center) / _CELL
        return _with_colors(aligned, *self._laid_over(cells, others, matrix))

    def _laid_over(self, one: Gray, other: Gray, matrix: Any) -> tuple[Gray, Gray, npt.NDArray[np.bool_]]:
        """The first as it lies over the second, the second, and where it does."""
        small = _resized(one, tuple(round(side * min(1.0, _scale(matrix))) for side in one.shape[:2]))  # no aliases
        shrunk = matrix.copy()
        shrunk[:, :2] *= np.array(one.shape[1::-1]) / np.array(small.shape[1::-1])
        size = other.shape[1], other.shape[0]
        over = np.asarray(self._cv2.warpAffine(small, shrunk, size), np.uint8)
        ones = np.ones(small.shape[:2], np.uint8)
        covered = self._cv2.warpAffine(ones, shrunk, size, flags=self._cv2.INTER_NEAREST)
        return over, other, covered.astype(np.bool_)

    def _transform(self, first: int, second: int) -> tuple[Any, int]:
        """Place, size and angle (2, 3) that lay the first over the second, and how many features agree on them."""
        (places, found), (others, sought) = self._features(first), self._features(second)
        if min(len(places), len(others)) < 4:
            return None, 0
        near, distinct = _nearest(found, sought)
        if distinct.sum() < 6:
            return None, 0
        here, there = places[distinct], others[near[distinct]]
        matrix, agree = self._cv2.estimateAffinePartial2D(here, there, ransacReprojThreshold=3)
        if matrix is None or int(agree.sum()) < 6 or not 0.4 < _scale(matrix) < 2.5:
            return None, 0
        return matrix, int(agree.sum())

    def _find_features(self, number: int) -> tuple[npt.NDArray[np.float32], Any]:
        points, features = self._cv2.SIFT.create(nfeatures=_FEATURES, contrastThreshold=0.02).detectAndCompute(
            self._read(number).gray, None
        )
        whole = None if features is None else features.astype(np.uint8)  # they are whole numbers up to 255
        return np.array([point.pt for point in points], np.float32).reshape(-1, 2), whole


def _nearest(found: Gray, sought: Gray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of features (n, 128) the nearest of others (m, 128), and whether it is clearly nearer than the next (Lowe)."""
    ours, theirs = found.astype(np.float32), sought.astype(np.float32)
    squares = (theirs**2).sum(axis=1) - 2 * (ours @ theirs.T)  # of whole numbers up to 255: exact
    near = squares.argmin(axis=1)
    rows = np.arange(len(found))
    first = squares[rows, near]
    squares[rows, near] = np.inf
    own = (ours**2).sum(axis=1)
    return near, first + own < 0.8**2 * (squares.min(axis=1) + own)


def _scale(matrix: Any) -> float:
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def _resized(image: Gray, shape: tuple[int, ...]) -> Gray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _agreement(first: Gray, second: Gray, covered: npt.NDArray[np.bool_]) -> Agreement:
    """Of two pictures (h, w) that lie over each other where ``covered``."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    inside = uniform_filter(covered.astype(np.float32), _BLOCK) > 1 - 1e-3
    one, other = first.astype(np.float32), second.astype(np.float32)
    x, y = one[inside], other[inside]
    if inside.sum() < 2 * _BLOCK**2 or x.std() < 1 or y.std() < 1:
        return Agreement()  # nothing to tell them by
    blocks = detail = 0.0
    whole = float(np.corrcoef(x, y)[0, 1])
    if whole >= _WHOLE:
        blocks = _correlation(one, other, inside, _TEXTURE[0])
    if blocks >= _BLOCKS:
        small, others = (image - gaussian_filter(image, _SMALL) for image in (one, other))
        detail = _correlation(small, others, inside, _TEXTURE[1])
    return Agreement(blocks, whole, detail, float(covered.mean()))


def _with_colors(agreement: Agreement, first: Gray, second: Gray, covered: npt.NDArray[np.bool_]) -> Agreement:
    """The same with what the colors say of cells (h, w, 3) that lie over each other, where the pixels are the same."""
    from scipy.ndimage import uniform_filter

    inside = uniform_filter(covered.astype(np.float32), _CELLS) > 1 - 1e-3
    if not (agreement.copy or agreement.recolored) or not inside.any():
        return agreement
    one, other = (uniform_filter(cells.astype(np.float32), (_CELLS, _CELLS, 0))[inside] for cells in (first, second))
    varied = [float(np.sqrt(_chroma(colors).var(axis=0).sum())) for colors in (one, other)]
    color = min(_difference(one, other), _difference(other, one))  # what was clipped does not come back
    pale = min(varied) < _PALE * max(varied) and color > _COLOR
    colored = (one, other) if varied[0] > varied[1] else (other, one)
    return agreement._replace(color=color, gray=pale and _in_gray(*colored))


def _in_gray(colored: Plane, pale: Plane) -> bool:
    """Whether the pale one (n, 3) is as bright as the colored one where that has strong colors: red is no black."""
    wanted = pale @ _LUMA
    strong = (np.linalg.norm(_chroma(colored), axis=1) > _STRONG) & (wanted < 255 - _CLIPPED)
    if strong.sum() < _CELLS**2:
        return True
    ways = (colored @ weights for weights in _TO_GRAY)
    return min(float(np.percentile(np.abs(_exposed(way, wanted) - wanted)[strong], 90)) for way in ways) <= _GRAY


def _difference(first: Plane, second: Plane) -> float:
    """How far colors (n, 3) are from those of the first, made as bright and as contrasting as the second."""
    made, wanted = _chroma(_exposed(first, second @ _LUMA, first @ _LUMA)), _chroma(second)
    strength, strengths = (np.linalg.norm(colors, axis=1, keepdims=True) + 1 for colors in (made, wanted))
    gain = np.sqrt((strengths / strength).clip(1 / _GAIN, _GAIN))
    return float(np.percentile(np.linalg.norm(wanted / gain - made * gain, axis=1), _MOST_CELLS))


def _exposed(values: Plane, lights: Plane, light: Plane | None = None) -> Plane:
    """Values (n, ...) made as bright and as contrasting as others, whose brightness is ``lights`` (n,).

    ``light`` (n,) is their own; None: they are it. What is near to black or white is not looked at.
    """
    light = values if light is None else light
    whole = (np.minimum(light, lights) > _CLIPPED) & (np.maximum(light, lights) < 255 - _CLIPPED)
    whole |= whole.sum() < _CELLS**2
    contrast = np.clip(lights[whole].std() / max(light[whole].std(), 1), 1 / 3, 3)
    return np.asarray(np.clip((values - light[whole].mean()) * contrast + lights[whole].mean(), 0, 255))


def _chroma(colors: Plane) -> Plane:
    """Cb and Cr (n, 2)."""
    return np.asarray((colors[:, [2, 0]] - (colors @ _LUMA)[:, None]) * _CHROMA)


def _correlation(first: Plane, second: Plane, inside: npt.NDArray[np.bool_], texture: float) -> float:
    """The median correlation of blocks with texture."""
    from scipy.ndimage import uniform_filter

    def mean(values: Plane) -> Plane:
        return np.asarray(uniform_filter(values, _BLOCK))

    own, others = mean(first), mean(second)
    spread = mean(first * first) - own * own, mean(second * second) - others * others
    textured = inside & (np.maximum(*spread) > texture)
    if textured.sum() < _BLOCK**2:
        return 0.0
    together = (mean(first * second) - own * others)[textured]
    return float(
        np.median(together / np.sqrt(np.prod([np.maximum(one[textured], texture / 25) for one in spread], axis=0)))
    )
