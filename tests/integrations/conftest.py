"""Texts in an index that holds its model, and an embedding of texts that needs no model."""

import hashlib

import numpy as np
import pytest

from crovca import Hasher, HashIndex
from crovca.integrations.service import Service
from tests.service.soak import served

TEXTS = [f"{thing} in {place}" for thing in ("a dog", "a ship", "snow", "a map") for place in ["Bern", "Rome", "Oslo"]]


def embedded(text):
    """A bag of words, each of them a random direction: float32 (32,)."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) for word in text.split()]
    return np.sum([np.random.default_rng(seed).normal(size=32) for seed in seeds], axis=0).astype(np.float32)


@pytest.fixture(scope="session")
def texts_folder(tmp_path_factory):
    values = np.stack([embedded(text) for text in TEXTS])
    hasher = Hasher(bits=64, epochs=2, device="cpu").fit(np.tile(values, (4, 1)))
    path = tmp_path_factory.mktemp("texts") / "index"
    with HashIndex.create(path, 64, model=hasher.fingerprint, keep="int8") as made:
        years = np.arange(1900, 1900 + len(TEXTS))
        made.add(np.arange(len(TEXTS)), hasher.encode(values), {"caption": TEXTS, "year": years}, values)
        hasher.save(made.model_folder)
    return path


@pytest.fixture(scope="session")
def service(texts_folder):
    """``crovca serve`` as a process."""
    pytest.importorskip("uvicorn")
    with served(texts_folder) as (address, _):
        yield Service(address, "index")


@pytest.fixture(params=["index", pytest.param("service", marks=[pytest.mark.slow, pytest.mark.starts])])
def texts_index(request, texts_folder):
    """The texts, asked here and over HTTP."""
    return HashIndex.open(texts_folder) if request.param == "index" else request.getfixturevalue("service")
