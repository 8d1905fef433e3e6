"""Images as users hand them over: paths, bytes, Pillow images, arrays, or a source; one at a time to RGB."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.embeddings import Embeddings
from crovca.encoders.augmentation import side_for_views
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import InvalidInputError
from crovca.sources.decode import Decoded, Smallest, UnreadableItem, decode
from crovca.sources.opening import open_images, open_texts
from crovca.sources.source import Source, read_file

Prepare = Callable[[Any], npt.NDArray[np.uint8]]
"""From an item of a source to uint8 (H, W, 3)."""

_TAKES = "paths, the bytes of image files, Pillow images, or uint8 arrays (H, W, 3)"


def as_images(images: Any) -> Source[Any]:
    """Images of any kind as a source.

    They are a source; the path of a folder, split file, ... (``sources.opening``); or a sequence of paths, the bytes of
    image files, Pillow images and uint8 arrays (H, W, 3).
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if path.is_file() and path.suffix.lower() in (".npz", ".npy", ".safetensors"):
            raise InvalidInputError(f"{path} holds embeddings; this model takes images, which it embeds itself")
        return open_images(path)
    shape = getattr(images, "shape", None)
    if isinstance(images, Embeddings) or (shape is not None and len(shape) in (2, 3)):
        got = "embeddings" if shape is None else f"an array of shape {tuple(shape)}"
        raise InvalidInputError(
            f"this model takes images ({_TAKES}, in a list) and embeds them itself; got {got}. Codes of embeddings are "
            "made by a model that was trained on embeddings"
        )
    if (not isinstance(images, Sequence) and shape is None) or isinstance(images, bytes):
        raise InvalidInputError(f"images must be a list of {_TAKES}; got {type(images).__name__}")
    items = list(images)
    for row, item in enumerate(items):
        if not _known(item):
            raise InvalidInputError(f"images must be {_TAKES}; item {row} is {_described(item)}")
    paths = [os.fspath(item) if isinstance(item, str | os.PathLike) else None for item in items]
    names = [path if path is not None else f"item {row}" for row, path in enumerate(paths)]

    def fetch(row: int) -> Any:
        item = items[row]
        return read_file(Path(item)) if isinstance(item, str | os.PathLike) else item

    return Source("list", np.arange(len(items)), fetch, _fingerprint(items), paths=names)


def as_texts(texts: Any) -> Source[str]:
    """Texts as a source: one, the path of one (``sources.opening``), or a sequence of strings."""
    if isinstance(texts, Source):
        return texts
    if isinstance(texts, str | os.PathLike):
        return open_texts(Path(texts))
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(f"texts must be a list of strings; got {texts!r:.80}")
    items = list(texts)
    digest = hashlib.sha256()
    for item in items:
        digest.update(item.encode("utf-8", "surrogatepass") + b"\0")
    return Source("list", np.arange(len(items)), items.__getitem__, digest.hexdigest())


def to_rgb(item: Any, smallest: Smallest | None = None) -> Decoded:
    """Decode an item of a source: bytes, a Pillow image, or uint8 (H, W, 3)."""
    if isinstance(item, bytes | bytearray | memoryview):
        return decode(bytes(item), smallest=smallest)
    from PIL import Image, ImageOps

    if isinstance(item, Image.Image):
        try:
            image = ImageOps.exif_transpose(item)
            if image.mode == "RGB":
                return Decoded(image, image.size)
            buffer = io.BytesIO()  # alpha, palettes and 16 bits are dealt with where files are decoded
            image.save(buffer, "TIFF" if image.mode in ("CMYK", "F", "I", "LAB", "YCbCr") else "PNG")
        except OSError as error:  # a file that was opened and not read yet
            raise UnreadableItem("damaged", str(error)) from error
        return decode(buffer.getvalue())
    values = item.numpy() if isinstance(item, Tensor) else np.asarray(item)
    image = Image.fromarray(np.ascontiguousarray(values))
    return Decoded(image, image.size)


def read_cropped(item: Any, preprocessing: Preprocessing) -> tuple[npt.NDArray[np.uint8], str | None]:
    """An item as the encoder takes it, uint8 (H, W, 3), resized and cropped; and the decoder's note, if any."""
    decoded = to_rgb(item, preprocessing.smallest_decode)
    return preprocessing.crop_image(decoded.image, decoded.size), decoded.note


def read_whole(item: Any, size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], str | None]:
    """An item of which random crops of ``size`` are to be made: whole, and no larger than those need.

    Gives what ``read_cropped`` does.
    """
    side = side_for_views(size)
    decoded = to_rgb(item, lambda whole: _shrunk(whole, side))
    resized = decoded.image.resize(_shrunk(decoded.image.size, side) or decoded.image.size, 2)  # 2: bilinear
    return np.array(resized), decoded.note


def plain(preprocessing: Preprocessing) -> Prepare:
    """``read_cropped`` without the notes."""
    return lambda item: read_cropped(item, preprocessing)[0]


def uncropped(size: tuple[int, int]) -> Prepare:
    """``read_whole`` without the notes."""
    return lambda item: read_whole(item, size)[0]


def name_of(source: Source[Any], row: int) -> str:
    """What messages call an item."""
    return str(source.ids[row]) if source.paths is None else source.paths[row]


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int] | None:
    """The size whose shorter side is ``side``; None where the image is no larger."""
    scale = side / min(size)
    return None if scale >= 1 else (max(side, round(size[0] * scale)), max(side, round(size[1] * scale)))


def _known(item: Any) -> bool:
    if isinstance(item, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    if isinstance(item, np.ndarray | Tensor):
        return item.ndim == 3 and item.shape[-1] == 3 and item.dtype in (np.uint8, torch.uint8) and min(item.shape) > 0
    return hasattr(item, "getbands") and hasattr(item, "convert")  # Pillow's, without importing it


def _described(item: Any) -> str:
    if isinstance(item, np.ndarray | Tensor):
        return f"an array of {str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    return f"a {type(item).__name__}"


def _fingerprint(items: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, str | os.PathLike):
            path = Path(item)
            digest.update(
                f"{path}\0{path.stat().st_size if path.exists() else -1}\0".encode("utf-8", "surrogateescape")
            )
        elif isinstance(item, bytes | bytearray | memoryview):
            digest.update(hashlib.sha256(item).digest())
        else:
            values = np.ascontiguousarray(item.numpy() if isinstance(item, Tensor) else np.asarray(item))
            digest.update(f"{values.shape}{values.dtype}".encode() + values.tobytes())
    return digest.hexdigest()
