"""Decoding: every kind of image comes out as it looks, everything else with its reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crovca.sources import decode as images
from crovca.sources.decode import REASONS, UnreadableItem, decode
from tests.pictures import as_bytes, broken_files, flipped, good_files, picture, png_of_size

PHOTO = picture()
BROKEN = broken_files()
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")


def pixels(data, **options):
    decoded = decode(data, **options)
    assert decoded.image.mode == "RGB"
    return np.asarray(decoded.image).astype(int)


def far(one, other):
    return np.abs(one - np.asarray(other).astype(int)).mean()


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_decoded_has_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(UnreadableItem) as found:
        decode(data)
    assert found.value.reason == reason, found.value
    assert "0x" not in found.value.detail  # no address: the same bytes, the same text
    assert "\n" not in str(found.value)


def test_there_are_fifty_kinds():
    assert len(BROKEN) >= 50


@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "QOI", "JPEG2000"]), st.data())
def test_damaged_bytes_give_an_image_or_a_reason(kind, data):
    whole = as_bytes(PHOTO, kind)
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start, len(whole)))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (whole[:cut], flipped(whole, start, min(end - start, 200)), whole[start:end]):
        try:
            assert decode(damaged).image.mode == "RGB"
        except UnreadableItem as error:
            assert error.reason in REASONS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = PHOTO if orientation == 1 else PHOTO.transpose(
        {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    )  # fmt: skip
    # ``turned`` is how the camera stored it: shown upright, it is PHOTO
    found = pixels(as_bytes(turned, kind, exif=exif))
    assert found.shape == (40, 60, 3)
    assert far(found, PHOTO) < 4


def test_damaged_exif_leaves_the_image_as_it_is():
    data = as_bytes(PHOTO, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\xff")
    assert far(pixels(data), PHOTO) < 4


def test_inks():
    inks = PHOTO.convert("CMYK")
    assert far(pixels(as_bytes(inks, "TIFF")), PHOTO) < 1
    adobe = as_bytes(inks)
    assert b"Adobe" in adobe
    assert far(pixels(adobe), PHOTO) < 6
    # without the marker inks are plain: Pillow would read them inverted
    plain = as_bytes(_inverted(inks))
    place = plain.index(b"\xff\xee")
    length = int.from_bytes(plain[place + 2 : place + 4], "big")
    assert far(pixels(plain[:place] + plain[place + 2 + length :]), PHOTO) < 6


def _inverted(image):
    return Image.merge("CMYK", [band.point(lambda value: 255 - value) for band in image.split()])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_gray_of_16_bits_is_scaled(kind):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = pixels(as_bytes(Image.fromarray(ramp), kind))
    assert np.array_equal(found[..., 0], np.rint(ramp / 257).astype(int))


def test_a_dark_image_of_16_bits_stays_dark():
    found = pixels(as_bytes(Image.fromarray(np.full((9, 9), 2570, np.uint16)), "PNG"))
    assert set(found.ravel()) == {10}


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-3, 9, 64, dtype=np.float32),
        np.arange(64, dtype=np.int32) * 10**6,
        np.linspace(0, 1, 64, dtype=np.float32),
    ],
)
def test_other_gray_is_stretched(values):
    found = pixels(as_bytes(Image.fromarray(values.reshape(8, 8)), "TIFF"))
    assert (found.min(), found.max()) == (0, 255)


def test_what_is_clear_becomes_white():
    clear = PHOTO.convert("RGBA")
    clear.putalpha(Image.new("L", PHOTO.size, 0))
    assert set(pixels(as_bytes(clear, "PNG")).ravel()) == {255}
    clear.putalpha(Image.new("L", PHOTO.size, 128))
    expected = np.asarray(PHOTO) * (128 / 255) + 255 * (127 / 255)
    assert far(pixels(as_bytes(clear, "PNG")), expected) < 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert set(pixels(as_bytes(palette, "GIF", transparency=1)).ravel()) == {255}
    assert pixels(as_bytes(palette, "GIF"))[0, 0].tolist() == [40, 50, 60]
    gray = Image.new("LA", (4, 4), (0, 0))
    assert set(pixels(as_bytes(gray, "PNG")).ravel()) == {255}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken_and_said(kind):
    moving = as_bytes(PHOTO, kind, save_all=True, append_images=[picture(9)])
    found = decode(moving)
    assert found.note == "animated: first frame"
    assert far(np.asarray(found.image).astype(int), PHOTO) < 8
    assert decode(as_bytes(PHOTO, kind)).note is None


def test_a_jpeg_is_reduced_while_it_is_decoded():
    large = picture(size=(1600, 1200))
    found = decode(as_bytes(large), smallest=lambda size: (size[0] // 5, size[1] // 5))
    assert found.image.size == (400, 300)  # a quarter: an eighth would be less than was asked for
    assert found.size == (1600, 1200)
    assert far(np.asarray(found.image).astype(int), large.resize((400, 300))) < 3
    assert decode(as_bytes(large), smallest=lambda size: None).image.size == (1600, 1200)
    assert decode(as_bytes(large, "PNG"), smallest=lambda size: (1, 1)).image.size == (1600, 1200)


def test_reduction_is_asked_for_the_upright_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    asked = []
    found = decode(
        as_bytes(picture(size=(800, 400)), exif=exif), smallest=lambda size: asked.append(size) or (100, 200)
    )
    assert asked == [(400, 800)]
    assert found.image.size == (100, 200)
    assert found.size == (400, 800)


def test_the_limit_of_pixels(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 40)
    assert decode(as_bytes(PHOTO)).size == (60, 40)
    with pytest.raises(UnreadableItem, match=r"too large: 60 x 41 pixels, the limit is 2,400"):
        decode(as_bytes(picture(size=(60, 41))))


def test_a_large_camera_passes_the_limit():
    with pytest.raises(UnreadableItem, match=r"truncated|damaged"):  # its size is accepted; it holds too little
        decode(png_of_size(11_648, 8_736))


def test_good_ones_are_good():
    for name, data in good_files().items():
        assert decode(data).image.size in ((60, 40), (40, 60)), name


def chunk(kind, content, *, checksum=None):
    crc = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


BALLAST = {
    "a large text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20))),
    "many texts": chunk(b"tEXt", b"Comment\0" + b"x" * 900_000) * 80,
    "a large color profile": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(8 << 20))),
    "a wrong checksum": chunk(b"pHYs", bytes(9), checksum=1),
    "a wrong checksum of EXIF": chunk(b"eXIf", b"MM\0*", checksum=1),
}


@pytest.mark.parametrize("name", BALLAST)
def test_parts_of_a_png_that_no_pixel_depends_on(name):
    data = as_bytes(PHOTO, "PNG")
    np.testing.assert_array_equal(pixels(data[:33] + BALLAST[name] + data[33:]), pixels(data))


def test_a_wrong_checksum_of_pixels_is_damage():
    data = bytearray(as_bytes(PHOTO, "PNG"))
    data[29] ^= 1  # the checksum of IHDR
    with pytest.raises(UnreadableItem):
        decode(bytes(data))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_tiff_of_whole_numbers_up_to_255_is_one_of_8_bits(mode):
    gray = np.arange(40 * 40, dtype=np.uint8).reshape(40, 40) % 200
    image = Image.fromarray(gray.astype(np.float32 if mode == "F" else np.int32))
    assert image.mode == mode
    np.testing.assert_array_equal(pixels(as_bytes(image, "TIFF"))[..., 0], gray)
    wide = Image.fromarray(gray.astype(np.float32) * 257)
    np.testing.assert_array_equal(pixels(as_bytes(wide, "TIFF"))[..., 0], gray)


def test_heic_is_read_with_its_package_and_named_without(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(PHOTO.convert("RGB")).save(buffer, quality=95)
    data = buffer.getvalue()
    assert far(pixels(data), PHOTO.convert("RGB")) < 4
    with pytest.raises(UnreadableItem):
        decode(data[:200])
    monkeypatch.setattr(images, "readable_formats", lambda: images.FORMATS)
    with pytest.raises(UnreadableItem, match=r"HEIC, which takes .* pip install 'crovca\[heic\]'"):
        decode(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    monkeypatch.undo()
