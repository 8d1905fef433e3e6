import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from crovca.index import duplicates
from crovca.index.duplicates import close_pairs, find_duplicates


def clustered(rng, count, bits, noise):
    centers = rng.random((max(1, count // 8), bits)) < 0.5
    return Codes.from_bits(centers[rng.integers(0, len(centers), count)] ^ (rng.random((count, bits)) < noise))


def all_pairs(codes, radius):
    """In order; one that was found twice would be there twice."""
    parts = [np.stack(part, 1) for part in close_pairs(codes, radius)]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *parts])
    return pairs[np.lexsort(pairs.T[::-1])]


@settings(max_examples=80)
@given(data=st.data())
def test_close_pairs_are_all_of_them(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = data.draw(st.integers(1, 140))
    codes = clustered(rng, data.draw(st.integers(1, 400)), bits, data.draw(st.sampled_from([0.0, 0.02, 0.3])))
    distinct = Codes(np.unique(codes.packed, axis=0), bits)
    radius = data.draw(st.integers(0, min(bits, 12)))
    pairs = all_pairs(distinct, radius)
    expected = np.argwhere(np.triu(distinct.hamming(distinct) <= radius, 1))
    np.testing.assert_array_equal(pairs, expected)


def test_chunks_and_brute_force_agree_on_a_larger_set():
    """20,000 codes: far too many to compare all pairs quickly, so the chunks are what is tested."""
    rng = np.random.default_rng(0)
    codes = Codes(np.unique(clustered(rng, 20_000, 64, 0.03).packed, axis=0), 64)
    pairs = all_pairs(codes, 3)
    blocks = [
        np.argwhere(codes[start : start + 500].hamming(codes) <= 3) + np.array([start, 0])
        for start in range(0, len(codes), 500)
    ]
    expected = np.concatenate(blocks)
    expected = expected[expected[:, 0] < expected[:, 1]]
    assert len(expected) > 1000
    np.testing.assert_array_equal(pairs, expected)


@given(seed=st.integers(0, 2**32), radius=st.integers(0, 5))
def test_groups_are_the_connected_components(seed, radius):
    rng = np.random.default_rng(seed)
    codes = clustered(rng, 60, 24, 0.05)
    found = find_duplicates(codes, radius, lambda rows: rows)
    near = codes.hamming(codes) <= radius
    reach = near
    for _ in range(6):  # 2^6 steps
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    expected = {tuple(np.flatnonzero(row)) for row in reach if row.sum() > 1}
    assert {tuple(np.sort(group)) for group in found.groups} == expected
    sizes = [len(group) for group in found.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert found.items == sum(sizes)
    for group, distances in zip(found.groups, found.distances, strict=True):
        np.testing.assert_array_equal(distances, codes[group[:1]].hamming(codes[group])[0])


def test_pairs_that_come_in_parts_make_the_same_groups(monkeypatch):
    codes = clustered(np.random.default_rng(0), 3000, 64, 0.02)
    whole = find_duplicates(codes, 3, lambda rows: rows)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    parts = find_duplicates(codes, 3, lambda rows: rows)
    assert whole.links == parts.links > 1000
    assert [group.tolist() for group in parts.groups] == [group.tolist() for group in whole.groups]


def test_many_equal_codes_are_no_work():
    codes = Codes(np.zeros((200_000, 8), np.uint8), 64)
    found = find_duplicates(codes, 3, lambda rows: rows)
    assert [len(group) for group in found.groups] == [200_000]
    assert found.links == 0


@pytest.mark.parametrize("radius", [-1, 65, 1.5, True, "2"])
def test_radius_is_checked(radius):
    with pytest.raises(InvalidInputError, match="whole number of bits from 0 to 64"):
        find_duplicates(Codes(np.zeros((3, 8), np.uint8), 64), radius, lambda rows: rows)


def test_nothing_has_no_duplicates():
    assert find_duplicates(Codes(np.zeros((0, 8), np.uint8), 64), 3, lambda rows: rows).groups == []
