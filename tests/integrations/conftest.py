"""Texts in an index that holds its model, and an embedding of texts that needs no model."""

import hashlib

import numpy as np
import pytest

from crovca import Hasher, HashIndex

TEXTS = [f"{thing} in {place}" for thing in ("a dog", "a ship", "snow", "a map") for place in ["Bern", "Rome", "Oslo"]]


def embedded(text):
    """A bag of words, each of them a random direction: float32 (32,)."""
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) for word in text.split()]
    return np.sum([np.random.default_rng(seed).normal(size=32) for seed in seeds], axis=0).astype(np.float32)


@pytest.fixture(scope="module")
def texts_index(tmp_path_factory):
    values = np.stack([embedded(text) for text in TEXTS])
    hasher = Hasher(bits=64, epochs=2, device="cpu").fit(np.tile(values, (4, 1)))
    path = tmp_path_factory.mktemp("texts") / "index"
    with HashIndex.create(path, 64, model=hasher.fingerprint, keep="int8") as made:
        years = np.arange(1900, 1900 + len(TEXTS))
        made.add(np.arange(len(TEXTS)), hasher.encode(values), {"caption": TEXTS, "year": years}, values)
        hasher.save(made.model_folder)
    return HashIndex.open(path)
