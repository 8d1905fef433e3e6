"""Our preprocessing gives the bytes that each family's own processor gives."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from crovca.encoders import preprocessing as module
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import FileFormatError, InvalidInputError

transformers = pytest.importorskip("transformers")

# (width, height): landscape, portrait, a pixel off, tiny, of extreme proportions, exactly right.
SIZES = [(300, 200), (201, 333), (257, 256), (7, 5), (1, 40), (500, 31), (224, 224), (401, 640), (97, 61)]
# Settings as the models on the hub have them; keys left out take the processor's defaults.
SETTINGS = {
    "DINOv2": ("Bit", {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, "resample": 3,
                       "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "CLIP, old style": ("CLIP", {"crop_size": 224, "size": 224, "do_center_crop": True, "resample": 3}),
    "CLIP 336": ("CLIP", {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}),
    "SigLIP 2": ("Siglip", {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.5, 0.5, 0.5]}),
    "ViT, old style": ("ViT", {"size": 224, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}),
    "ViT 384": ("ViT", {"size": {"height": 384, "width": 384}}),
    "DeiT, old style": ("DeiT", {"size": 256, "crop_size": 224, "resample": 3,
                                 "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    "MobileNetV2": ("MobileNetV2", {"size": {"shortest_edge": 256}}),
    "MobileNetV2, odd crop": ("MobileNetV2", {"size": {"shortest_edge": 57}, "crop_size": {"height": 33, "width": 50}}),
    "ConvNeXt": ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "ConvNeXt 384": ("ConvNext", {"size": {"shortest_edge": 384}, "resample": 3}),
    "crop larger than the image": ("CLIP", {"size": {"shortest_edge": 50}, "crop_size": {"height": 61, "width": 84}}),
    "no resize": ("Bit", {"do_resize": False, "crop_size": {"height": 60, "width": 60}}),
    "only resized": ("Siglip", {"do_rescale": False, "do_normalize": False}),
}  # fmt: skip


def photo(size, seed=0):
    """Smooth and noisy parts, as a photograph has."""
    width, height = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 120 * np.sin(x / 9)[..., None] * np.cos(y / 7)[..., None] + 128
    return Image.fromarray(np.clip(waves + random.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8))


def own_processor(name, values):
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    return kind.from_dict({"image_processor_type": f"{name}ImageProcessor", **values})


def read(tmp_path, values, processor=None):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    return Preprocessing.read(tmp_path, processor)


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_those_of_the_familys_own_processor(tmp_path, name):
    """The bytes are equal; the floats to 2e-6, an ulp or two."""
    processor, values = SETTINGS[name]
    ours = read(tmp_path, {"image_processor_type": f"{processor}ImageProcessor", **values})
    theirs = own_processor(processor, values)
    for size in SIZES:
        image = photo(size)
        bytes_ = theirs(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        cropped = ours.crop_image(image)
        assert cropped.shape == (*ours.size, 3)
        assert cropped.dtype == np.uint8
        np.testing.assert_array_equal(cropped, bytes_.transpose(1, 2, 0), err_msg=str(size))
        floats = theirs(image, return_tensors="np")["pixel_values"][0]
        normalized = ours.normalize(torch.from_numpy(cropped)[None])
        assert normalized.dtype == torch.float32
        np.testing.assert_allclose(normalized[0].numpy(), floats, rtol=1e-6, atol=2e-6)


@given(st.integers(1, 700), st.integers(1, 700))
def test_every_size_is_rounded_as_the_own_processor_does(width, height):
    values = {"size": {"shortest_edge": 16}, "crop_size": {"height": 13, "width": 14}, "resample": 0}
    ours = Preprocessing(16, (13, 14), 0, (0, 0, 0), (1, 1, 1))
    # Each pixel's color is its place, so that a shift by one shows.
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([x % 256, y % 256, (x // 256) * 16 + y // 256], axis=-1).astype(np.uint8))
    theirs = own_processor("Bit", values)
    expected = theirs(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    found = ours.crop_image(image)
    if max(width, height) < 50 * min(width, height):  # beyond that only the crop is resized
        np.testing.assert_array_equal(found, expected.transpose(1, 2, 0))
    assert found.shape == (13, 14, 3)


@pytest.mark.parametrize("size", SIZES)
def test_dinov3_within_one_level_of_its_formula(tmp_path, size):
    """DINOv3's processor needs torchvision: it scales to [0, 1], then resizes floats; we resize bytes."""
    ours = read(tmp_path, {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 224, "width": 224}, "resample": 2,
        "do_center_crop": None, "crop_size": None, "default_to_square": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    })  # fmt: skip
    image = photo(size)
    floats = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(floats, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = ours.normalize(torch.from_numpy(ours.crop_image(image))[None])
    levels = ((found * std + mean) - resized).abs() * 255
    assert levels.max() <= 1.01
    assert levels.mean() <= 0.31
    torch.testing.assert_close(found, (resized - mean) / std, rtol=0, atol=1.02 / 255 / 0.224)


@pytest.mark.parametrize("size", [(300, 200), (257, 224), (259, 224), (224, 261), (100, 37), (77, 99)])
@pytest.mark.parametrize("crop", [32, 33, 40])
def test_half_even_is_the_offset_of_torchvision(size, crop):
    """``int(round((height - crop) / 2))``, and where the image is smaller it lies half of what lacks from the top."""
    ours = Preprocessing(36, (crop, crop), 3, (0, 0, 0), (1, 1, 1), crop_rounding="half_even")
    image = photo(size)
    width, height = image.size
    resized = (36, int(36 * height / width)) if width <= height else (int(36 * width / height), 36)
    array = np.array(image.resize(resized, Image.Resampling.BICUBIC))
    below = [max(crop - side, 0) for side in array.shape[:2]]
    array = np.pad(array, [(n // 2, n - n // 2) for n in below] + [(0, 0)])
    top, left = (int(round((side - crop) / 2.0)) for side in array.shape[:2])  # noqa: RUF046
    np.testing.assert_array_equal(ours.crop_image(image), array[top : top + crop, left : left + crop])


def test_nearest_rounds_the_longer_side_to_nearest():
    """The recipe of the measured embeddings; 300 x 199 becomes 385.9 x 256."""
    image = photo((300, 199))
    found = Preprocessing(256, (224, 224), 3, (0.5,) * 3, (0.5,) * 3, resize_rounding="nearest").crop_image(image)
    array = np.array(image.resize((386, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found, array[16:240, 81:305])
    down = Preprocessing(256, (224, 224), 3, (0.5,) * 3, (0.5,) * 3).crop_image(image)
    array = np.array(image.resize((385, 256), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(down, array[16:240, 80:304])


def test_the_rounding_can_be_said_in_the_file(tmp_path):
    values = {"image_processor_type": "BitImageProcessor", "crovca": {"crop_rounding": "half_even"}}
    assert read(tmp_path, values).crop_rounding == "half_even"
    assert read(tmp_path, {"image_processor_type": "BitImageProcessor"}).crop_rounding == "down"


@pytest.mark.parametrize("size", [(30, 3000), (3000, 30), (17, 1200)])
def test_an_extreme_image_is_resized_where_the_crop_is(size, monkeypatch):
    ours = Preprocessing(32, (28, 28), 3, (0, 0, 0), (1, 1, 1))
    part = ours.crop_image(photo(size)).astype(int)
    monkeypatch.setattr(module, "_LONGEST", 10**9)
    whole = ours.crop_image(photo(size)).astype(int)
    difference = np.abs(part - whole)  # Pillow takes the two directions in another order
    assert difference.max() <= 16
    assert (difference <= 1).mean() > 0.97


def test_an_extreme_image_needs_no_memory():
    """Resized whole it would have 16 gigapixels."""
    ours = Preprocessing(256, (224, 224), 3, (0, 0, 0), (1, 1, 1))
    assert ours.crop_image(Image.new("RGB", (1, 250_000), "red")).min(axis=(0, 1)).tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1601, 1200), (1100, 2001), (4000, 3000)])
def test_a_jpeg_may_be_decoded_smaller(size):
    ours = Preprocessing(256, (224, 224), 3, (0, 0, 0), (1, 1, 1))
    file = io.BytesIO()
    smooth = photo((100, 100)).resize(size, Image.Resampling.BICUBIC)
    smooth.save(file, "JPEG", quality=92)
    whole, reduced = Image.open(file), Image.open(file)
    request = ours.smallest_decode(size)
    reduced.draft("RGB", request)
    assert reduced.width < size[0]
    assert min(reduced.size) >= 512
    difference = np.abs(ours.crop_image(whole).astype(int) - ours.crop_image(reduced, size).astype(int))
    assert difference.mean() < 2


def test_what_is_small_is_decoded_whole():
    ours = Preprocessing(256, (224, 224), 3, (0, 0, 0), (1, 1, 1))
    assert ours.smallest_decode((300, 200)) is None
    assert ours.smallest_decode((2000, 1000)) is None  # half of it has less than twice 256
    assert ours.smallest_decode((2048, 1024)) == (1024, 512)
    assert replace(ours, resize=None).smallest_decode((9000, 9000)) is None
    assert replace(ours, resize=(224, 224), crop=None).smallest_decode((1000, 900)) == (448, 448)


def test_it_survives_json():
    ours = Preprocessing(256, (224, 200), 3, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), crop_rounding="half_even")
    assert Preprocessing.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    squash = replace(ours, resize=(224, 200), crop=None)
    assert Preprocessing.from_dict(json.loads(json.dumps(squash.to_dict()))) == squash
    with pytest.raises(FileFormatError, match="unknown key 'sharpen' in a preprocessing"):
        Preprocessing.from_dict({**ours.to_dict(), "sharpen": 1})
    with pytest.raises(FileFormatError, match=r"incomplete preprocessing: .*'mean'"):
        Preprocessing.from_dict({key: value for key, value in ours.to_dict().items() if key != "mean"})


def test_processor_config_of_a_pair_of_towers(tmp_path):
    content = {"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 9, "width": 8}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    assert Preprocessing.read(tmp_path).size == (9, 8)


def test_the_family_says_what_an_unnamed_processor_is(tmp_path):
    assert read(tmp_path, {"size": 99}, "ViT").resize == (99, 99)
    assert read(tmp_path, {"size": 240}, "CLIP").resize == 240


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "is 'Siglip2ImageProcessor', expected"),
        ({}, "image_processor_type is None, expected one of"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "images of different sizes"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "there is no crop_size"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, r"got \['longest_edge'\]"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 0, "width": 9}}, "from 1 to 16,384 pixels"),
        ({"image_processor_type": "ViTImageProcessor", "size": "large"}, "a setting of the wrong type"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 17}, "resample must be one of"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [1, 0, 1]}, "must be above 0"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [1, 0]}, "must have 3 numbers"),
        ({"image_processor_type": "ViTImageProcessor", "crovca": {"crop_rounding": "up"}}, "crop_rounding must be"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}, "'shortest_edge'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_followed(tmp_path, values, message):
    with pytest.raises(FileFormatError, match=message) as error:
        read(tmp_path, values)
    assert str(tmp_path / "preprocessor_config.json") in str(error.value)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileFormatError, match=r"has no preprocessor_config.json, which says .* copy it from"):
        Preprocessing.read(tmp_path)


def test_wrong_input_is_refused():
    ours = Preprocessing(32, (28, 28), 3, (0, 0, 0), (1, 1, 1))
    with pytest.raises(InvalidInputError, match="expected an RGB image with pixels, got L"):
        ours.crop_image(Image.new("L", (40, 40)))
    with pytest.raises(InvalidInputError, match=r"got RGB of \(0, 4\)"):
        ours.crop_image(Image.new("RGB", (0, 4)))
    with pytest.raises(InvalidInputError, match=r"expected uint8 pixels \(B, H, W, 3\), got float32 \(1, 3, 4, 4\)"):
        ours.normalize(torch.zeros(1, 3, 4, 4))
