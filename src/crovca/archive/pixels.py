"""Whether two pictures have the same pixels: saved anew, smaller, brighter, marked, cut or turned a little.

Both are shrunk to gray pictures of at most 256 pixels, the finer is laid over the coarser, and they are compared in
small blocks that have texture: as correlation, which brightness and contrast leave as it is; as the median over the
blocks, which a mark on some of them leaves as it is. The same is asked of what is small in them: two motorcycles before
a white wall differ there. Pictures of one shape are laid over each other as they are. Where that is not enough, local
features (SIFT) that agree on one place, size and angle (RANSAC) say how: that is OpenCV's work.
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
_QUALITY = 92  # of a kept gray picture
_BLOCK = 16
_TEXTURE = 25.0, 4.0  # variance of a block from which on it says something: of the picture, of what is small in it
_SMALL = 2.5  # pixels: what a Gaussian of this width takes away is small
_SAME_SHAPE = 0.06  # how far the logarithms of two aspect ratios may be apart
_BLOCKS, _WHOLE, _DETAIL, _OVERLAP = 0.8, 0.93, 0.87, 0.7  # of copies, at least
_SCENE = 20  # features that agree, from which on two pictures show the same scene
_FEATURES, _KEPT = 400, 4096  # of a picture, and pictures whose features are kept


class Agreement(NamedTuple):
    """How two pictures agree.

    Attributes:
        blocks: median correlation of blocks with texture, where one lies over the other.
        whole: correlation of all that lies over each other.
        detail: as ``blocks``, of what is small.
        overlap: share of the second picture that the first one covers.
        features: how many agree on how to lay one over the other; 0 where that was not needed.
    """

    blocks: float = 0.0
    whole: float = 0.0
    detail: float = 0.0
    overlap: float = 0.0
    features: int = 0

    @property
    def copy(self) -> bool:
        """The same pixels."""
        least = _BLOCKS, _WHOLE, _DETAIL, _OVERLAP
        return all(value >= bound for value, bound in zip(self, least, strict=False))

    @property
    def scene(self) -> bool:
        """The same scene, maybe taken again."""
        return self.copy or self.features >= _SCENE


def shrink(image: Any) -> bytes:
    """A picture (of Pillow) as a small gray JPEG, as it is kept."""
    from PIL import Image

    scale = min(1.0, SIDE / max(image.size))
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    kept = io.BytesIO()
    image.convert("L").resize(size, Image.Resampling.LANCZOS).save(kept, "JPEG", quality=_QUALITY)
    return kept.getvalue()


def gray(kept: bytes) -> Gray:
    """What ``shrink`` made, as pixels uint8 (h, w)."""
    from PIL import Image

    with Image.open(io.BytesIO(kept), formats=["JPEG"]) as image:
        return np.asarray(image.convert("L"))


def aligns() -> bool:
    """Whether OpenCV is installed, without which pictures that were cut or turned are not confirmed."""
    return find_spec("cv2") is not None


class Comparer:
    """Compares pictures by number.

    Args:
        read: the gray picture of a number.
    """

    def __init__(self, read: Callable[[int], Gray]) -> None:
        self._read = lru_cache(_KEPT)(read)
        self._features = lru_cache(_KEPT)(self._find_features)
        self._cv2: Any = import_module("cv2") if aligns() else None  # here: threads must not import it side by side

    def compare(self, first: int, second: int) -> Agreement:
        """How two pictures agree."""
        if self._read(first).size < self._read(second).size:
            first, second = second, first
        one, other = self._read(first), self._read(second)
        best = Agreement()
        shapes = np.log(one.shape[0] * other.shape[1] / (one.shape[1] * other.shape[0]))
        if abs(shapes) < _SAME_SHAPE:
            best = _agreement(_resized(one, other.shape), other, np.ones(other.shape, np.bool_))
        if best.copy or self._cv2 is None:
            return best
        matrix, features = self._transform(first, second)
        if matrix is None:
            return best
        small = _resized(one, tuple(round(side * min(1.0, _scale(matrix))) for side in one.shape))  # without aliases
        matrix[:, :2] *= np.array(one.shape[::-1]) / np.array(small.shape[::-1])
        size = other.shape[1], other.shape[0]
        over = np.asarray(self._cv2.warpAffine(small, matrix, size), np.uint8)
        covered = self._cv2.warpAffine(np.ones(small.shape, np.uint8), matrix, size, flags=self._cv2.INTER_NEAREST)
        return max(best, _agreement(over, other, covered.astype(np.bool_)))._replace(features=features)

    def _transform(self, first: int, second: int) -> tuple[Any, int]:
        """Place, size and angle (2, 3) that lay the first over the second, and how many features agree on them."""
        (places, found), (others, sought) = self._features(first), self._features(second)
        if min(len(places), len(others)) < 4:
            return None, 0
        pairs = self._cv2.BFMatcher().knnMatch(found, sought, k=2)
        good = [near for near, *next_ in pairs if next_ and near.distance < 0.8 * next_[0].distance]  # Lowe's ratio
        if len(good) < 6:
            return None, 0
        here = places[[one.queryIdx for one in good]]
        there = others[[one.trainIdx for one in good]]
        matrix, agree = self._cv2.estimateAffinePartial2D(here, there, ransacReprojThreshold=3)
        if matrix is None or int(agree.sum()) < 6 or not 0.4 < _scale(matrix) < 2.5:
            return None, 0
        return matrix, int(agree.sum())

    def _find_features(self, number: int) -> tuple[npt.NDArray[np.float32], Any]:
        points, features = self._cv2.SIFT.create(nfeatures=_FEATURES, contrastThreshold=0.02).detectAndCompute(
            self._read(number), None
        )
        whole = None if features is None else features.astype(np.uint8)  # they are whole numbers up to 255
        return np.array([point.pt for point in points], np.float32).reshape(-1, 2), whole


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
    blocks, whole = _correlation(one, other, inside, _TEXTURE[0]), float(np.corrcoef(x, y)[0, 1])
    detail = 0.0
    if blocks >= _BLOCKS and whole >= _WHOLE:
        small, others = (image - gaussian_filter(image, _SMALL) for image in (one, other))
        detail = _correlation(small, others, inside, _TEXTURE[1])
    return Agreement(blocks, whole, detail, float(covered.mean()))


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
