"""Pairs of near embeddings: all of them among few items, nearly all among many."""

import numpy as np
import pytest

from crovca.index import nearest
from crovca.index.nearest import nearest_pairs
from crovca.index.originals import Loss, Originals


def kept(values):
    return Originals.of(values.astype(np.float32), "int8", Loss())[0]


@pytest.fixture(scope="module")
def planted():
    """3,000 items of 60 kinds, and 200 that are one of them with a little noise."""
    rng = np.random.default_rng(0)
    items = rng.normal(size=(60, 160))[rng.integers(0, 60, 3000)] + 0.5 * rng.normal(size=(3000, 160))
    sources = rng.choice(3000, 200, replace=False)
    copies = items[sources] + 0.1 * rng.normal(size=(200, 160))
    return kept(np.concatenate([items, copies])), {(int(one), 3000 + at) for at, one in enumerate(sources)}


@pytest.mark.parametrize(("all_of", "least"), [(1 << 32, 1.0), (0, 0.97)])
def test_planted_pairs_are_found(planted, monkeypatch, all_of, least):
    items, pairs = planted
    monkeypatch.setattr(nearest, "_ALL", all_of)
    shares = []
    first, second = nearest_pairs(items, np.arange(len(items)), 3, shares.append)
    assert (first < second).all() and shares == [0.0]
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    assert found == sorted(set(found))
    assert len(pairs & set(found)) >= least * len(pairs)


def test_only_those_asked_for_have_pairs(planted):
    items, pairs = planted
    first, second = nearest_pairs(items, np.arange(3000, 3200), 1)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == pairs


def test_few_items_and_short_or_empty_embeddings():
    none = nearest_pairs(kept(np.ones((1, 4))), np.arange(1), 3)
    assert [len(side) for side in none] == [0, 0]
    assert [len(side) for side in nearest_pairs(kept(np.ones((5, 4))), np.arange(0), 3)] == [0, 0]
    first, second = nearest_pairs(kept(np.eye(3)), np.arange(3), 50)
    assert list(zip(first, second, strict=True)) == [(0, 1), (0, 2), (1, 2)]
    first, second = nearest_pairs(kept(np.zeros((4, 8))), np.arange(4), 3)
    assert len(first) == 6
