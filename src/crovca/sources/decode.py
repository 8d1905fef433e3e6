"""Decoding: from the bytes of a file to an RGB image, or the reason why there is none.

``decode`` never stops a job: whatever the bytes are, it returns an image or raises ``UnreadableItem``, whose
reason is one of ``REASONS``. What is handled, and how:

==================  ==========================================================================================
EXIF orientation    the image is turned upright; an orientation that cannot be read counts as upright
CMYK, YCCK          converted without color profiles; in JPEG inks are inverted where Adobe's marker says so
alpha, palettes     laid on a white background
16-bit gray         scaled to 8 bits (divided by 257, rounded), never clipped
32-bit, float gray  whole numbers up to 255 as 8-bit gray, up to 65,535 as 16-bit gray; others are stretched from the
                    smallest to the largest value
PNG                 texts, color profiles and other parts that no pixel depends on are passed over, however large or
                    damaged they are, as viewers do
HEIC                read where the extra ``crovca[heic]`` is installed
animations, pages   the first frame, with a note
large JPEG          decoded at the smallest of 1/1, 1/2, 1/4, 1/8 that is no smaller than what ``smallest`` asks for
==================  ==========================================================================================

Only formats that Pillow (and pillow-heif) decode by themselves are tried: none of them starts another program.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.errors import FileFormatError, needed, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 120_000_000
"""Images of more pixels are refused as decompression bombs (a camera of 102 megapixels passes)."""
MAX_ASPECT = 250
"""Images longer than this many times their width are refused: made wide enough for an encoder they would be huge."""
MAX_BYTES = 1 << 30
"""Files of more bytes are refused unread."""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")
_READ = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"),
)
# Not read, but not passed over either: their reason is listed.
_LISTED = (".heic", ".heif", ".jxl", ".svg", ".psd")
IMAGE_SUFFIXES = frozenset((*_READ, *_LISTED))
"""How files that are taken for images end."""

REASONS = {
    "empty": "no bytes at all, or a text without a character",
    "truncated": "the file ends too early",
    "damaged": "an image format, but its content contradicts it",
    "not an image": "the bytes are of no image format",
    "unsupported": "an image format, or a variant of one, that is not decoded",
    "too large": f"more than {MAX_PIXELS:,} pixels (decompression bomb) or {MAX_BYTES:,} bytes",
    "too narrow": f"more than {MAX_ASPECT} times longer than wide",
    "missing": "the file, or the image of a record, is not there",
    "not a file": "a pipe, a device or a folder where an image should be",
    "unreadable": "the operating system refused to read it",
    "not text": "the bytes are not UTF-8",
    "bad name": "a name that is not UTF-8 cannot be an id",
    "duplicate": "an earlier item has the same id",
    "no memory": "not enough memory to decode it",
    "not finite": "the encoder gave NaN or infinity",
}
"""Every reason for which an item is left out, and what it means."""

Smallest = Callable[[tuple[int, int]], tuple[int, int] | None]
"""From the (width, height) of an upright image to the least that it may be reduced to while decoding; None: not."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_ORIENTATION = 0x0112

# How files begin that look like images to their users: what they are, and whether they are images.
_OTHERS = (
    (rb"\s*(<!--.*?-->\s*)*<!doctype html|\s*<html", "an HTML page", False),
    (rb"\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg.*?>\s*)?<svg", "SVG", True),
    (rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "HEIC", True),
    (rb"....ftyp", "a video", False),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL", True),
    (rb"8BPS", "Photoshop", True),
    (rb"%PDF", "PDF", False),
    (rb"%!PS", "PostScript", False),
    (rb"PK\x03\x04", "a ZIP archive", False),
    (rb"\x1f\x8b", "gzip", False),
)
_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF....WEBP|....ftypavi[fs]|\0\0\0\x0cjP|P[1-7]\s|qoif",
    re.DOTALL,
)


_PNG = b"\x89PNG\r\n\x1a\n"
# Beside the critical chunks (their names begin with a capital) these change what is shown, or what is said of it.
_PNG_CHUNKS = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}


class UnreadableItem(FileFormatError):
    """An item that cannot be embedded.

    Attributes:
        reason: one of ``REASONS``.
        detail: what exactly was found; the same for the same bytes.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        image: mode RGB, upright.
        size: its (width, height) before decoding reduced it.
        note: what should be known about how it was made, or None.
    """

    image: Image
    size: tuple[int, int]
    note: str | None = None


def decode(data: bytes, *, smallest: Smallest | None = None) -> Decoded:
    """Decode an image file to RGB.

    Args:
        data: the whole file.
        smallest: how far a JPEG may be reduced while it is decoded; None: not at all.

    Raises:
        UnreadableItem: there is no image in these bytes that could be decoded, and why.
        MissingDependencyError: Pillow is not installed.
    """
    pillow = _pillow()
    if not data:
        raise UnreadableItem("empty", "0 bytes")
    try:
        with pillow.open(io.BytesIO(_png_pixels(data)), formats=readable_formats()) as image:
            _check_size(image.size)
            size = image.size
            turn = _orientation(image) if image.format in ("JPEG", "MPO") else 1
            if smallest is not None and image.format in ("JPEG", "MPO"):
                _reduce(image, smallest, swapped=turn >= 5)
            image.load()
            if image.format not in ("JPEG", "MPO", "TIFF"):  # Pillow turns TIFF itself, while loading
                turn = _orientation(image)
            pages = image.format != "MPO" and _animated(image)
            upright = _to_rgb(image)
            if turn in _TURNS:
                upright = upright.transpose(getattr(pillow.Transpose, _TURNS[turn]))
            if upright is image:
                upright = image.copy()
    except UnreadableItem:
        raise
    except pillow.UnidentifiedImageError:
        raise _unidentified(data) from None
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise UnreadableItem("too large", f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except MemoryError:
        raise UnreadableItem("no memory", "not enough memory to decode it") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise _damaged(error, data) from error
    if (upright.width > upright.height) != (size[0] > size[1]):
        size = size[::-1]
    return Decoded(upright, size, "animated: first frame" if pages else None)


def _check_size(size: tuple[int, int]) -> None:
    short, long = min(size), max(size)
    if short < 1:
        raise UnreadableItem("damaged", f"{size[0]} x {size[1]} pixels")
    if size[0] * size[1] > MAX_PIXELS:
        raise UnreadableItem(
            "too large", f"{size[0]} x {size[1]} pixels, the limit is {MAX_PIXELS:,} in all (decompression bomb)"
        )
    if long > MAX_ASPECT * short:
        raise UnreadableItem("too narrow", f"{size[0]} x {size[1]} pixels")


def _reduce(image: Any, smallest: Smallest, *, swapped: bool) -> None:
    """Have a JPEG decoded at a fraction of its size, as far as ``smallest`` allows."""
    width, height = image.size
    wanted = smallest((height, width) if swapped else (width, height))
    if wanted is not None:
        image.draft(None, wanted[::-1] if swapped else wanted)


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _animated(image: Any) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame: the first is what is used
        return False


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I;16"):
        return _gray(np.asarray(image))
    if image.mode in ("I", "F"):
        # PNG and PPM of 16 bits come as "I" in some versions of Pillow; a TIFF of 32 bits has no depth of its own.
        narrow = image.mode == "F" or image.format == "TIFF"
        return _gray(np.asarray(image, np.float64), narrow=narrow)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = _pillow().new("RGBA", rgba.size, (255, 255, 255, 255))
        white.alpha_composite(rgba)
        return white.convert("RGB")
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        from PIL import ImageChops

        image = ImageChops.invert(image)  # Pillow takes every JPEG for Adobe's, whose inks are inverted
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(values: np.ndarray[Any, np.dtype[Any]], *, narrow: bool = False) -> Any:
    """Gray values of more than 8 bits as an RGB image; ``narrow``: whole numbers up to 255 are those of 8 bits."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableItem("damaged", "gray values that are NaN or infinite")
    whole = values.dtype.kind == "u" or bool((values == np.rint(values)).all())
    if whole and low >= 0 and 1 < high <= 65535:
        low, high = 0.0, 255.0 if narrow and high <= 255 else 65535.0
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) - low) * (255 / max(high - low, np.finfo(np.float64).tiny))
    gray = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return _pillow().fromarray(gray).convert("RGB")


def _png_pixels(data: bytes) -> bytes:
    """A PNG without the chunks that no pixel depends on: Pillow refuses the file for one that is large or damaged."""
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start + 12 <= len(data):
        kind, end = data[start + 4 : start + 8], start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            break
        if kind[:1].isupper() or (
            kind in _PNG_CHUNKS and zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        ):
            kept.append(data[start:end])
        start = end
    return b"".join((*kept, data[start:]))


def _unidentified(data: bytes) -> UnreadableItem:
    head = data[:1024]
    if _MAGIC.match(head):
        return UnreadableItem("damaged", "begins like an image, but its header cannot be read")
    for pattern, what, is_image in _OTHERS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            if what == "HEIC" and len(readable_formats()) > len(FORMATS):
                return UnreadableItem("damaged", "begins like HEIC, but its header cannot be read")
            if what == "HEIC":
                what = "HEIC, which takes the package pillow-heif: pip install 'crovca[heic]'"
            return UnreadableItem("unsupported" if is_image else "not an image", what)
    if not any(head):
        return UnreadableItem("not an image", "begins with zero bytes")
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head[:16])
    return UnreadableItem("not an image", f"begins with {shown!r}")


def _damaged(error: Exception, data: bytes) -> UnreadableItem:
    text = re.sub(r" object at 0x[0-9a-f]+", "", one_line(error, 200))  # the same bytes give the same text
    early = re.search(r"truncated|unexpected end|premature|end of (data|file|stream)|not enough", text, re.IGNORECASE)
    declared = int.from_bytes(data[4:8], "little") + 8
    if data[:4] == b"RIFF" and declared > len(data):  # WebP: Pillow does not say it
        return UnreadableItem("truncated", f"{len(data)} bytes of {declared}")
    if isinstance(error, EOFError) or early:
        return UnreadableItem("truncated", text)
    if isinstance(error, NotImplementedError) or "conversion from" in text or "unsupported" in text.lower():
        return UnreadableItem("unsupported", text)
    return UnreadableItem("damaged", text)


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here, with what is installed."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


@cache
def _pillow() -> Any:
    pillow = needed("PIL.Image", "images", "reading images", package="pillow")
    # What is wrong with an image becomes its reason. Pillow warns of large images below MAX_PIXELS, and refuses above.
    warnings.filterwarnings("ignore", category=pillow.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return pillow
