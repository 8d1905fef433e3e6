import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crovca.errors import InvalidInputError
from crovca.hashing.neighbors import find_neighbors, find_shared_neighbors, most_shared


def brute_force(values, count, left_out=()):
    centered = values - values.mean(axis=0)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    scores[:, list(left_out)] = -np.inf
    return np.argsort(-scores, axis=1)[:, :count], np.sort(-scores, axis=1)[:, :count]


@given(items=st.integers(2, 60), count=st.integers(1, 8), seed=st.integers(0, 100))
def test_equals_brute_force(items, count, seed):
    values = np.random.default_rng(seed).normal(size=(items, 6)).astype(np.float32)
    found = find_neighbors(values, count)
    count = min(count, items - 1)
    assert found.rows.shape == (items, count)
    assert found.recall == 1
    assert np.array_equal(found.rows, brute_force(values.astype(np.float64), count)[0])


def test_blocks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=(101, 5)).astype(np.float32)
    whole = find_neighbors(values, 4).rows
    monkeypatch.setattr("crovca.hashing.neighbors._BLOCK", 7)
    assert np.array_equal(find_neighbors(values, 4).rows, whole)


def test_degenerate_rows_are_nobodys_neighbors():
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) + 3
    values[[4, 9]] = 0
    rows = find_neighbors(values, 5, degenerate=np.array([4, 9])).rows
    others = np.delete(np.arange(20), [4, 9])
    assert not np.isin(rows[others], [4, 9]).any()
    assert (rows[[4, 9]] == [[4], [9]]).all()  # they stand alone


def test_too_few_usable_items_are_refused():
    with pytest.raises(InvalidInputError, match="at least 2 items that are not zero or constant, got 1 of 3"):
        find_neighbors(np.eye(3, dtype=np.float32), 1, degenerate=np.array([0, 1]))


def test_cells_find_most_neighbors_and_say_how_many():
    random = np.random.default_rng(0)
    centers = random.normal(size=(40, 16)) * 3
    values = (centers[random.integers(40, size=6000)] + random.normal(size=(6000, 16))).astype(np.float32)
    found = find_neighbors(values, 5, exact_items=1000, degenerate=np.array([17]))
    assert found.cells is not None
    assert 100 < found.cells < 200
    sample = np.delete(np.arange(6000), 17)
    true = brute_force(values.astype(np.float64), 5, left_out=[17])[0]
    share = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(true[sample], found.rows[sample], strict=True)])
    assert share > 0.9
    assert found.recall == pytest.approx(share, abs=0.05)
    assert not (found.rows[sample] == sample[:, None]).any()
    assert not (found.rows[sample] == 17).any()


def test_views_are_averaged():
    values = np.random.default_rng(0).normal(size=(30, 3, 4)).astype(np.float32)
    assert np.array_equal(find_neighbors(values, 3).rows, find_neighbors(values.mean(axis=1), 3).rows)


def test_same_seed_same_cells():
    values = np.random.default_rng(1).normal(size=(3000, 8)).astype(np.float32)
    one, two = (find_neighbors(values, 3, exact_items=100, seed=5).rows for _ in range(2))
    assert np.array_equal(one, two)


@given(items=st.integers(2, 40), nearest=st.integers(1, 6), count=st.integers(1, 6), seed=st.integers(0, 100))
def test_the_most_shared_are_those_of_plain_sets(items, nearest, count, seed):
    values = np.random.default_rng(seed).normal(size=(items, 4)).astype(np.float32)
    rows = find_neighbors(values, nearest).rows
    sets = [{item, *row} for item, row in enumerate(rows.tolist())]
    expected = [
        sorted(row, key=lambda near: (-len(sets[near] & sets[item]), row.index(near)))[:count]
        for item, row in enumerate(rows.tolist())
    ]
    assert most_shared(rows, count).tolist() == expected


def test_blocks_do_not_matter_to_what_is_shared(monkeypatch):
    values = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    whole = find_shared_neighbors(values, 3)
    assert np.array_equal(whole.rows, most_shared(find_neighbors(values, 6).rows, 3))
    monkeypatch.setattr("crovca.hashing.neighbors._COMPARED", 1)
    assert np.array_equal(find_shared_neighbors(values, 3).rows, whole.rows)


def test_shared_neighbors_are_more_often_of_a_kind():
    random = np.random.default_rng(0)
    kinds = random.integers(30, size=3000)
    values = (random.normal(size=(30, 24))[kinds] + random.normal(size=(3000, 24))).astype(np.float32)
    nearest, shared = find_neighbors(values, 5).rows, find_shared_neighbors(values, 5).rows
    of_a_kind = [(kinds[rows] == kinds[:, None]).mean() for rows in (nearest, shared)]
    assert of_a_kind[1] > of_a_kind[0] + 0.02


def test_a_degenerate_item_still_stands_alone():
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    values[4] = 0
    rows = find_shared_neighbors(values, 5, degenerate=np.array([4])).rows
    assert (rows[4] == 4).all()
    assert not np.isin(np.delete(rows, 4, axis=0), [4]).any()
