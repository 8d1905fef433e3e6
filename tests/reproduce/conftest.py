"""A small encoder of images, and a data folder with a small copy of every benchmark of images. Read only."""

import pytest
import torch

from tests.encoders import tiny
from tests.reproduce import copies


@pytest.fixture(scope="session")
def dino(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(**tiny.SIDE, image_size=28, patch_size=14)
    folder = tmp_path_factory.mktemp("encoders") / "dinov2"
    return tiny.save(transformers.Dinov2WithRegistersModel(config), folder, "Bit")


@pytest.fixture(scope="session")
def other_dino(dino, tmp_path_factory):
    """The same model with other weights."""
    return copies.with_other_weights(dino, tmp_path_factory.mktemp("encoders") / "other")


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory):
    """(data, protocols)"""
    data = tmp_path_factory.mktemp("data")
    return data, copies.write(data)
