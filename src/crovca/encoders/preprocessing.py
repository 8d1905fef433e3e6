"""From an image to the tensor that an encoder takes, as preprocessor_config.json says; Pillow and torch alone.

Two steps. ``Preprocessing.crop_image`` resizes and crops on the CPU and gives bytes; ``normalize`` makes floats of
a batch, on whatever device it is. One pixel more or less in the resized image costs up to 3 % of cosine, so the
rounding is that of the encoder's own processor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from crovca import files
from crovca.errors import FileFormatError, InvalidInputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

RESAMPLES: Mapping[int, str] = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
"""Pillow's numbers of its filters."""
ROUNDINGS = ("down", "nearest")
CROPS = ("down", "half_even")

_REDUCING_GAP = 2
"""A JPEG is decoded at no less than this many times the size that it is resized to."""
_LONGEST = 64
"""An image resized to more than this many times the crop's length is resized where the crop is alone."""

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# What the processors of transformers take for keys that preprocessor_config.json leaves out. ``square``: whether a
# size of one number is the size of both sides, or of the shorter one.
_BIT = {"size": 224, "square": False, "crop_size": 224, "resample": 3, "statistics": CLIP}
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "Bit": _BIT,
    "CLIP": _BIT,
    "ConvNext": {"size": 384, "square": False, "resample": 3, "statistics": _HALF},
    "DINOv3ViT": {"size": 224, "square": True, "resample": 2, "statistics": IMAGENET},
    "DeiT": {"size": 256, "square": True, "crop_size": 224, "resample": 3, "statistics": _HALF},
    "MobileNetV2": {"size": 256, "square": False, "crop_size": 224, "resample": 2, "statistics": _HALF},
    "Siglip": {"size": 224, "square": True, "resample": 3, "statistics": _HALF},
    "ViT": {"size": 224, "square": True, "resample": 2, "statistics": _HALF},
}
_OWN_KEY = "crovca"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes an encoder's input.

    Attributes:
        resize: length of the shorter side, or (height, width) whatever the proportions, or None.
        crop: (height, width) of the crop from the center; None where ``resize`` gives both.
        resample: Pillow's number of the filter (3 is bicubic, 2 bilinear).
        mean, std: of each channel, in units of ``rescale``.
        rescale: what bytes are multiplied by.
        resize_rounding: of the longer side: "down" as in transformers and torchvision, or "nearest".
        crop_rounding: of the crop's offset: "down" as in transformers, "half_even" as in torchvision.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    resize_rounding: Literal["down", "nearest"] = "down"
    crop_rounding: Literal["down", "half_even"] = "down"

    def __post_init__(self) -> None:
        if self.crop is None and not isinstance(self.resize, tuple):
            raise FileFormatError(
                "the preprocessing gives images of different sizes (no crop after resizing the shorter side); "
                "an encoder takes batches of one size: give crop_size and do_center_crop, or a size of two sides"
            )
        resized = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        sides = [side for side in (*(self.crop or ()), *resized) if side is not None]
        if not all(isinstance(side, int) and 1 <= side <= 2**14 for side in sides):
            raise FileFormatError(f"sizes of images must be from 1 to {2**14:,} pixels, got {sides}")
        for name, allowed in (
            ("resample", tuple(RESAMPLES)), ("resize_rounding", ROUNDINGS), ("crop_rounding", CROPS)
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise FileFormatError(f"{name} must be one of {list(allowed)}, got {getattr(self, name)!r}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise FileFormatError(f"image_mean and image_std must have 3 numbers, got {self.mean} and {self.std}")
        numbers = (*self.mean, *self.std, self.rescale)
        if not all(map(math.isfinite, numbers)) or not all(value > 0 for value in (*self.std, self.rescale)):
            raise FileFormatError(f"image_std and rescale_factor must be above 0, got {self.std}, {self.rescale}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what ``crop_image`` gives."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.resize, tuple)  # __post_init__ saw to it
        return self.resize

    def crop_image(self, image: Image, original_size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """Resize and crop an RGB image of any size; what a crop lacks is black.

        Args:
            image: in mode "RGB", upright.
            original_size: (width, height) before the decoder reduced it (``smallest_decode``): the proportions, and
                so the rounding, are those of the whole image.

        Returns:
            uint8 (H, W, 3), contiguous, (H, W) being ``size``.

        Raises:
            InvalidInputError: another mode, or no pixels.
        """
        if image.mode != "RGB" or min(image.size) < 1:
            raise InvalidInputError(
                f"expected an RGB image with pixels, got {image.mode} of {image.size}; use image.convert('RGB')"
            )
        width, height = self._resized(original_size or image.size)
        if self.crop is None:
            return np.array(image.resize((width, height), self.resample))
        left, top = self._offset(width, self.crop[1]), self._offset(height, self.crop[0])
        box = (left, top, left + self.crop[1], top + self.crop[0])
        if max(width, height) > _LONGEST * max(self.crop):
            return np.array(self._only_box(image, (width, height), box))
        if image.size != (width, height):
            image = image.resize((width, height), self.resample)
        return np.array(image.crop(box))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Bytes to the encoder's floats.

        Args:
            pixels: uint8 (B, H, W, 3), on any device.

        Returns:
            float32 (B, 3, H, W) on the same device, with channels last in memory.

        Raises:
            InvalidInputError: another shape or dtype.
        """
        import torch

        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            got = f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
            raise InvalidInputError(f"expected uint8 pixels (B, H, W, 3), got {got}")
        scale = torch.tensor([self.rescale / std for std in self.std], device=pixels.device)
        shift = torch.tensor([mean / std for mean, std in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return pixels.to(torch.float32).mul_(scale).sub_(shift).permute(0, 3, 1, 2)

    def smallest_decode(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """(width, height) to ask ``PIL.Image.Image.draft`` for, given an image's; None: decode it whole.

        A decoder that halves a JPEG's sides saves most of its time. It may go down to twice what the image is then
        resized to, which the filter hides.
        """
        width, height = (_REDUCING_GAP * side for side in self._resized(size))
        if self.resize is None or width * 2 > size[0] or height * 2 > size[1]:
            return None
        return width, height

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote; an unknown or missing key raises FileFormatError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise FileFormatError(f"unknown key {unknown[0]!r} in a preprocessing; expected some of {sorted(known)}")
        try:
            plain: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
            }
            return cls(**plain)
        except TypeError as error:
            raise FileFormatError(f"incomplete preprocessing: {error}") from error

    @classmethod
    def read(cls, folder: Path, processor: str | None = None) -> Self:
        """Read preprocessor_config.json (or the image part of processor_config.json) of a model's folder.

        Args:
            folder: where the model is.
            processor: whose defaults are taken where the file names no processor ("Bit", "CLIP", "ViT", ...).

        Raises:
            FileFormatError: no such file, a processor or a setting that is not known.
        """
        file = folder / "preprocessor_config.json"
        if file.exists():
            values = files.read_json(file, "preprocessing")
        elif (folder / "processor_config.json").exists():
            file = folder / "processor_config.json"
            values = files.read_json(file, "preprocessing").get("image_processor") or {}
        else:
            raise FileFormatError(
                f"{folder} has no preprocessor_config.json, which says how images are resized and normalized; "
                "copy it from the model's page, or from a model of the same kind"
            )
        try:
            return cls(**_settings(values, processor))
        except FileFormatError as error:
            raise FileFormatError(f"{file}: {error}") from None
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{file}: a setting of the wrong type ({error})") from error

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = size
        if self.resize is None:
            return size
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        longer = self.resize * max(size) / min(size)
        rounded = int(longer) if self.resize_rounding == "down" else round(longer)
        return (self.resize, rounded) if width <= height else (rounded, self.resize)

    def _offset(self, length: int, crop: int) -> int:
        spare = length - crop
        if self.crop_rounding == "down":
            return spare // 2
        return round(spare / 2) if spare >= 0 else -(-spare // 2)

    def _only_box(self, image: Image, resized: tuple[int, int], box: tuple[int, int, int, int]) -> Image:
        """A part of an image that would be huge if it were resized whole (of 10 x 100,000 pixels).

        Nearly all of its pixels are those of the whole image to one level; they are exact below ``_LONGEST``.
        """
        across, down = image.width / resized[0], image.height / resized[1]
        left, top = max(box[0], 0), max(box[1], 0)
        right, bottom = min(box[2], resized[0]), min(box[3], resized[1])
        part = (left * across, top * down, right * across, bottom * down)
        size = (right - left, bottom - top)
        inside = image.resize(size, self.resample, box=part)
        return inside.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top))


def _settings(values: Mapping[str, Any], processor: str | None) -> dict[str, Any]:
    """Fields of a Preprocessing from the keys of preprocessor_config.json, of any age."""
    named = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = processor
    if isinstance(
        named, str
    ):  # "ViTFeatureExtractor", "ViTImageProcessorFast" and "ViTImageProcessorPil" are all "ViT"
        name = re.sub(r"(ImageProcessor|FeatureExtractor)?(Fast)?(Pil)?$", "", named)
    if name is None or name not in _PROCESSORS:
        raise FileFormatError(
            f"image_processor_type is {named!r}, expected one of {sorted(_PROCESSORS)} with 'ImageProcessor' "
            "behind it; if the model's does no more than resize, crop and normalize, name that of them which "
            "does the same, and give all settings"
        )
    defaults = _PROCESSORS[name]
    known = {**defaults, **{key: value for key, value in values.items() if value is not None}}
    square = bool(known.get("default_to_square", defaults["square"]))
    resize = _size(known["size"], square) if known.get("do_resize", True) else None
    crop: tuple[int, int] | None = None
    if known.get("do_center_crop", "crop_size" in defaults):
        if "crop_size" not in known:
            raise FileFormatError("do_center_crop is true, but there is no crop_size")
        sides = _size(known["crop_size"], True)
        crop = (sides, sides) if isinstance(sides, int) else sides
    if name == "ConvNext" and resize is not None:
        resize, crop = _convnext(resize, known.get("crop_pct", 224 / 256), crop)
    mean, std = known["statistics"]
    if not known.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = _channels(known.get("image_mean", mean)), _channels(known.get("image_std", std))
    own = known.get(_OWN_KEY, {})
    return {
        "resize": resize,
        "crop": crop,
        "resample": int(known["resample"]),
        "mean": mean,
        "std": std,
        "rescale": float(known.get("rescale_factor", 1 / 255)) if known.get("do_rescale", True) else 1.0,
        **{key: own[key] for key in ("resize_rounding", "crop_rounding") if key in own},
    }


def _size(value: Any, square: bool) -> int | tuple[int, int]:
    """A size as transformers writes it: a number, two, or a dictionary."""
    if isinstance(value, Mapping):
        given = {key: side for key, side in value.items() if side is not None}
        if set(given) == {"height", "width"}:
            return int(given["height"]), int(given["width"])
        if set(given) == {"shortest_edge"}:
            return int(given["shortest_edge"])
        raise FileFormatError(
            f"a size must have 'height' and 'width', or 'shortest_edge', got {sorted(given)}, which gives images "
            "of different sizes"
        )
    if isinstance(value, list | tuple) and len(value) == 2:
        return int(value[0]), int(value[1])
    return (int(value), int(value)) if square else int(value)


def _convnext(
    size: int | tuple[int, int], share: float, crop: tuple[int, int] | None
) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """ConvNeXt below 384 resizes to more than it needs and crops; from 384 on it resizes both sides."""
    if isinstance(size, tuple):
        raise FileFormatError("ConvNextImageProcessor takes a size of 'shortest_edge'")
    return (int(size / share), (size, size)) if size < 384 else ((size, size), crop)


def _channels(value: Any) -> tuple[float, ...]:
    if isinstance(value, int | float):
        return (float(value),) * 3
    return tuple(float(number) for number in value)
