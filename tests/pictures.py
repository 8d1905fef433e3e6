"""Images for tests, good and bad in every way that was thought of."""

import importlib.util
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image

HEIC = "damaged" if importlib.util.find_spec("pillow_heif") else "unsupported"


def picture(seed=0, size=(60, 40)):
    """A smooth random RGB image: survives JPEG nearly unchanged."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def as_bytes(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG that says it is of this size and holds next to nothing."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def flipped(data, start, count):
    changed = bytearray(data)
    for place in range(start, start + count):
        changed[place] ^= 0xFF
    return bytes(changed)


def broken_files():
    """Content of files that are no images, by name, and the reason that is expected of each: 54 of them."""
    photo = picture()
    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")
    whole = {kind: as_bytes(photo, kind) for kind in kinds}
    suffixes = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}
    files = {}
    for kind, data in whole.items():
        suffix = suffixes.get(kind, kind.lower())
        said = kind not in ("AVIF", "JPEG2000")  # whether its decoder tells an early end from other damage
        files[f"half.{suffix}"] = data[: len(data) // 2], "truncated" if said else "damaged"
        said = kind in ("PNG", "BMP", "WEBP", "PPM", "QOI")
        files[f"head.{suffix}"] = data[:20], "truncated" if said else "damaged"
    progressive = as_bytes(photo, "JPEG", progressive=True)
    for size in (1, 2, 3, 4, 100, 300):
        reason = "not an image" if size < 3 else "damaged" if size < 100 else "truncated"
        files[f"first-{size}.jpg"] = whole["JPEG"][:size], reason
    files |= {
        "empty.jpg": (b"", "empty"),
        "empty.png": (b"", "empty"),
        "zeros.jpg": (b"\0" * 5000, "not an image"),
        "ones.jpg": (b"\xff" * 5000, "not an image"),
        "noise.jpg": (np.random.default_rng(1).bytes(5000), "not an image"),
        "text.jpg": (b"this is no image\n", "not an image"),
        "error-page.jpg": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "not an image"),
        "page.png": (b"\n <html>", "not an image"),
        "json.jpg": (b'{"error": "not found"}', "not an image"),
        "vector.svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        "vector.png": (b"<svg/>", "unsupported"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", HEIC),
        "new.jxl": (b"\xff\x0a" + b"\0" * 50, "unsupported"),
        "layers.psd": (b"8BPS\0\1" + b"\0" * 50, "unsupported"),
        "film.jpg": (b"\0\0\0\x18ftypmp42" + b"\0" * 50, "not an image"),
        "paper.jpg": (b"%PDF-1.7\n", "not an image"),
        "plot.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "archive.jpg": (b"PK\3\4" + b"\0" * 50, "not an image"),
        "packed.jpg": (b"\x1f\x8b\x08" + b"\0" * 50, "not an image"),
        "bomb.png": (png_of_size(60_000, 60_000), "too large"),
        "large.png": (png_of_size(12_000, 10_001), "too large"),
        "flat.png": (png_of_size(9, 0), "damaged"),
        "thread.png": (as_bytes(Image.new("RGB", (300, 1)), "PNG"), "too narrow"),
        "flipped.png": (flipped(whole["PNG"], len(whole["PNG"]) // 2, 40), "damaged"),
        "cut-progressive.jpg": (progressive[: len(progressive) // 2], "truncated"),
        "nan.tif": (as_bytes(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), "damaged"),
    }  # fmt: skip
    return files


def good_files():
    """Images of unusual kinds, by name."""
    photo = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    gray16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    return {
        "plain.jpg": as_bytes(photo),
        "rotated.jpg": as_bytes(photo, exif=exif),
        "inks.jpg": as_bytes(photo.convert("CMYK")),
        "inks.tif": as_bytes(photo.convert("CMYK"), "TIFF"),
        "gray16.png": as_bytes(gray16, "PNG"),
        "palette.gif": as_bytes(photo.convert("P"), "GIF"),
        "moving.gif": as_bytes(photo, "GIF", save_all=True, append_images=[picture(1)]),
        "clear.png": as_bytes(photo.convert("RGBA"), "PNG"),
        "bits.png": as_bytes(photo.convert("1"), "PNG"),
    }


def write_all(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def make_special(folder):
    """Names in a folder that are no regular files, and the reason expected of each."""
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    return {"pipe.jpg": "not a file", "dangling.jpg": "missing", "device.jpg": "not a file"}
