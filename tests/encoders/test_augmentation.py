"""Views: each is a function of seed, item and view alone, and follows the recipe."""

import numpy as np
import pytest
import torch

from crovca.encoders import augmentation
from crovca.encoders.augmentation import RECIPE, Recipe, augment, draw
from tests.needs import needs
from tests.pictures import picture

needs("kornia")
SIZE = (32, 24)
KEYS = np.random.default_rng(0).integers(-(2**63), 2**63, 24)
IMAGES = [torch.from_numpy(np.array(picture(number, size=(30 + 5 * number, 90 - 2 * number)))) for number in range(24)]
PLAIN = Recipe(
    area=(1.0, 1.0), aspect=(1.0, 1.0), flip_p=0, jitter_p=0, gray_p=0, blur_p=0, solarise_p=0,
)  # fmt: skip


def views(rows, view=0, seed=0, recipe=RECIPE):
    return augment([IMAGES[row] for row in rows], SIZE, keys=KEYS[rows], view=view, seed=seed, recipe=recipe)


def one(image, **changes):
    """A single image, of which one step alone is done."""
    return augment(image[None], tuple(image.shape[:2]), keys=np.array([1]), view=0, seed=0,
                   recipe=Recipe(**{**PLAIN.__dict__, **changes}))[0]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_a_view_does_not_depend_on_its_batch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = views(np.arange(24))
        assert whole.shape == (24, *SIZE, 3)
        assert whole.dtype == torch.uint8
        order = np.random.default_rng(1).permutation(24)
        assert torch.equal(views(order), whole[order])
        for row in range(24):
            assert torch.equal(views(np.array([row]))[0], whole[row])
    finally:
        torch.set_num_threads(before)


def test_seeds_views_and_items_differ():
    rows = np.arange(24)
    first = views(rows)
    assert torch.equal(first, views(rows))
    for other in (views(rows, view=1), views(rows, seed=1)):
        assert (first != other).flatten(1).any(dim=1).all()
    same = torch.stack([IMAGES[20]] * 24)
    assert len(torch.unique(augment(same, SIZE, keys=KEYS, view=0, seed=0), dim=0)) == 24


def test_the_recipe_in_numbers():
    n = 20_000
    shapes = np.tile([[400, 400]], (n, 1))
    drawn = draw(shapes, keys=np.arange(n), view=0, seed=3)
    for name in ("flip", "jitter", "gray", "blur", "solarise"):
        assert getattr(drawn, name).mean() == pytest.approx(getattr(RECIPE, f"{name}_p"), abs=0.015), name
    assert np.corrcoef(drawn.flip, drawn.gray)[0, 1] == pytest.approx(0, abs=0.03)
    area = drawn.boxes[:, 2] * drawn.boxes[:, 3] / 400**2
    aspect = drawn.boxes[:, 3] / drawn.boxes[:, 2]
    assert 0.395 < area.min() < 0.42
    assert 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.345
    assert np.median(np.log(aspect)) == pytest.approx(0, abs=0.05)
    low, high = drawn.factors.min(axis=0), drawn.factors.max(axis=0)
    assert np.allclose(low, [0.6, 0.6, 0.6, -0.2], atol=0.001)
    assert np.allclose(high, [1.4, 1.4, 1.4, 0.2], atol=0.001)
    assert (drawn.sigma.min(), drawn.sigma.max()) == (pytest.approx(0.1, abs=0.01), pytest.approx(2, abs=0.01))
    codes, counts = np.unique(drawn.order @ [64, 16, 4, 1], return_counts=True)
    assert len(codes) == 24  # every order of the four, about as often
    assert counts.min() > 0.8 * n / 24


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 2000), (224, 224), (3, 2)])
def test_crops_lie_inside(shape):
    boxes = draw(np.tile([shape], (2000, 1)), keys=np.arange(2000), view=0, seed=0).boxes
    assert (boxes >= [0, 0, 1, 1]).all()
    assert (boxes[:, 0] + boxes[:, 2] <= shape[0]).all()
    assert (boxes[:, 1] + boxes[:, 3] <= shape[1]).all()


def test_nothing_done_is_nothing_changed():
    square = torch.from_numpy(np.array(picture(3, size=(40, 40))))
    assert torch.equal(one(square), square)


def test_the_crop_is_pillows():
    from PIL import Image

    image = picture(4, size=(120, 100))
    keys = np.array([9])
    box = draw(np.array([[100, 120]]), keys=keys, view=0, seed=0).boxes[0]
    recipe = Recipe(**{**RECIPE.__dict__, "flip_p": 0, "jitter_p": 0, "gray_p": 0, "blur_p": 0, "solarise_p": 0})
    found = augment([torch.from_numpy(np.array(image))], (32, 32), keys=keys, view=0, seed=0, recipe=recipe)[0]
    top, left, height, width = box
    expected = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(found.numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_each_step_is_pillows():
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    image = picture(5, size=(48, 48))
    pixels = torch.from_numpy(np.array(image))

    def far(found, expected):
        return np.abs(found.numpy().astype(int) - np.asarray(expected).astype(int)).max()

    assert far(one(pixels, flip_p=1), ImageOps.mirror(image)) == 0
    assert far(one(pixels, gray_p=1), image.convert("L").convert("RGB")) <= 1
    assert far(one(pixels, solarise_p=1), ImageOps.solarize(image, 128)) == 0
    blurred = one(pixels, blur_p=1, sigma=(1.5, 1.5))
    assert far(blurred, image.filter(ImageFilter.GaussianBlur(1.5))) <= 4
    factors = draw(np.array([[48, 48]]), keys=np.array([1]), view=0, seed=0).factors[0]
    nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    for kind, enhance in enumerate((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)):
        name = ("brightness", "contrast", "saturation")[kind]
        found = one(pixels, jitter_p=1, **{**nothing, name: 0.4})
        assert far(found, enhance(image).enhance(float(factors[kind]))) <= 1, name
    turned = np.array(image.convert("HSV"))
    turned[..., 0] += np.array(round(factors[3] * 255)).astype(np.uint8)
    expected = Image.fromarray(turned, "HSV").convert("RGB")
    assert (
        np.abs(one(pixels, jitter_p=1, **{**nothing, "hue": 0.2}).numpy().astype(int) - np.asarray(expected)).mean() < 3
    )


def test_without_kornia(monkeypatch):
    import sys

    from crovca.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(
        MissingDependencyError, match=r"making views of images needs the package 'kornia'.*crovca\[augment\]"
    ):
        views(np.arange(24))
    assert augmentation.side_for_views((224, 200)) == 448
