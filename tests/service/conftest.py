"""Handwritten digits as pictures, their codes in an index with metadata, and the service over it."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from crovca import Codes, HashIndex
from crovca.service.collection import Collection

BITS = 32


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """(folder of the index, folder of the pictures, logits, digits)."""
    folder = tmp_path_factory.mktemp("served")
    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = pixels[:400], digits[:400]
    centered = pixels - pixels.mean(axis=0)
    logits = (centered @ np.linalg.svd(centered, full_matrices=False)[2][:BITS].T).astype(np.float32)
    ids = np.array([f"{digit}/{number}.png" for number, digit in enumerate(digits)])
    for id, values in zip(ids, pixels, strict=True):
        file = folder / "pictures" / id
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((16 * values.reshape(8, 8)).clip(0, 255).astype(np.uint8)).resize((64, 64)).save(file)
    with HashIndex.create(folder / "index", bits=BITS, keep="int8") as index:
        odd = [float("nan") if number % 7 == 0 else number / 3 for number in range(400)]
        index.add(ids, Codes.from_logits(logits), {"digit": digits.astype(str), "odd": odd}, embeddings=centered)
    return folder / "index", folder / "pictures", logits, digits, ids


@pytest.fixture
def collection(made, tmp_path):
    index, pictures, *_ = made
    opened = Collection(index, name="digits", root=pictures, thumbnails=tmp_path / "thumbnails")
    yield opened
    opened.close()
