"""A small encoder of images, one of images and texts, and a folder of pictures. Nobody writes into them."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.encoders import tiny
from tests.needs import needs

needs("transformers", "peft")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(**tiny.SIDE, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("encoders") / "dinov2"
    return tiny.save(transformers.Dinov2WithRegistersModel(config), folder, "Bit")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    folder = tiny.save(tiny.models()["CLIP"][0], tmp_path_factory.mktemp("encoders") / "clip", "CLIP")
    tiny.clip_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """24 pictures: stripes that lie ("flat") and that stand ("tall"), of many colors."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("flat", "tall"):
        (root / name).mkdir()
        for number in range(12):
            stripes = np.repeat(random.integers(0, 256, (10, 1, 3)), 12, axis=1).repeat(4, axis=0)
            values = stripes if name == "flat" else stripes.transpose(1, 0, 2)
            image = Image.fromarray(values.astype(np.uint8)).resize((44, 40))
            image.save(root / name / f"{number:02}.png")
    return root
