import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from crovca.ids import tie_order
from crovca.index.scoring import (
    BitScorer,
    CosineScorer,
    asymmetric_hamming_distance,
    bce_distance,
    cosine_distance,
    hamming_distance,
    rank,
    symmetric_bce_distance,
    top_k,
)
from crovca.metrics import METRICS


def naive(metric, z, y, z_item):
    """One distance as it is written in the paper, bit by bit, in Python floats."""

    def bce(bits, logits):
        return -sum(
            math.log(1 / (1 + math.exp(-v))) if bit else math.log(1 - 1 / (1 + math.exp(-v)))
            for bit, v in zip(bits, logits, strict=True)
        )

    z, z_item = z.astype(float), z_item.astype(float)
    if metric == "hamming":
        return sum((v > 0) != bit for v, bit in zip(z, y, strict=True))
    if metric == "asymmetric_hamming":
        return sum(abs(1 / (1 + math.exp(-v)) - bit) for v, bit in zip(z, y, strict=True))
    if metric == "bce":
        return bce(y, z)
    return bce(y, z) + bce(z > 0, z_item)


def sample(queries, items, bits, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(items, bits)).astype(np.float32)
    return random.normal(size=(queries, bits)).astype(np.float32), Codes.from_logits(logits), logits


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [1, 7, 16, 61])
def test_scores_equal_naive_reference(metric, bits):
    queries, codes, logits = sample(4, 9, bits)
    found = BitScorer.of(metric, queries, codes, logits).distances(slice(None))
    expected = [
        [naive(metric, z, y, z_item) for y, z_item in zip(codes.unpack(), logits, strict=True)] for z in queries
    ]
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_named_functions_are_these_scores():
    queries, codes, logits = sample(3, 5, 12)
    query_codes = Codes.from_logits(queries)
    assert np.array_equal(hamming_distance(query_codes, codes), query_codes.hamming(codes))
    assert np.array_equal(
        hamming_distance(query_codes, codes), BitScorer.of("hamming", queries, codes).distances(slice(None))
    )
    for function, metric in ((asymmetric_hamming_distance, "asymmetric_hamming"), (bce_distance, "bce")):
        expected = BitScorer.of(metric, queries, codes).distances(slice(None))
        assert np.array_equal(function(queries, codes), expected)
    assert symmetric_bce_distance(queries, codes, logits).shape == (3, 5)


def test_hand_values():
    codes = Codes.from_bits([[1, 0], [0, 1]])
    query = np.array([[math.log(3.0), 0.0]])  # probabilities 0.75 and 0.5
    assert asymmetric_hamming_distance(query, codes)[0].tolist() == pytest.approx([0.25 + 0.5, 0.75 + 0.5])
    assert bce_distance(query, codes)[0].tolist() == pytest.approx(
        [-math.log(0.75) - math.log(0.5), -math.log(0.25) - math.log(0.5)]
    )


def ordered_sum(weights, offset, bits):
    """The definition: float64 sum over set bits in order, taken from the offset, rounded to float32."""
    total = 0.0
    for weight, bit in zip(weights.tolist(), bits.tolist(), strict=True):
        total += weight * bit
    return np.float32(offset - total) + np.float32(0)


@settings(max_examples=60)
@given(bits=st.integers(1, 200), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_a_distance_is_the_float64_sum_in_bit_order_rounded_to_float32(bits, seed, scale):
    queries, codes, _ = sample(3, 11, bits, seed)
    for metric in ("hamming", "asymmetric_hamming", "bce"):
        scorer = BitScorer.of(metric, queries * scale, codes)
        found = scorer.distances(slice(None))
        for query in range(3):
            expected = [ordered_sum(scorer.weights[query], scorer.offsets[query], row) for row in codes.unpack()]
            assert found[query].tolist() == [float(value) for value in expected]


def test_equal_codes_have_equal_distances_wherever_they_stand():
    queries, codes, _ = sample(5, 3, 100)
    many = codes[np.arange(20_000) % 3]
    found = BitScorer.of("bce", queries, many).distances(slice(None))
    assert all(np.array_equal(found[:, start::3], found[:, [start] * len(found[0, start::3])]) for start in range(3))


def test_cosine_distance():
    query, database = np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    assert cosine_distance(query, database).tolist() == [[0.0, 1.0, 2.0, 1.0]]
    centered = CosineScorer(query, database, np.array([1.0, 1.0], np.float32)).distances(slice(None))
    assert centered[0, 0] == pytest.approx(1 - 1 / math.sqrt(2))


def oracle(distances, ties, k):
    return np.stack([np.lexsort((ties, row))[:k] for row in distances])


@settings(max_examples=60)
@given(
    items=st.integers(1, 300),
    bits=st.integers(1, 12),  # few bits: many ties
    k=st.integers(1, 320),
    seed=st.integers(0, 10**6),
    metric=st.sampled_from(["hamming", "asymmetric_hamming", "bce"]),
    block_bytes=st.sampled_from([1, 10**5, 10**9]),
)
def test_top_k_equals_a_full_sort(items, bits, k, seed, metric, block_bytes):
    queries, codes, _ = sample(5, items, bits, seed)
    ties = tie_order(None, items, seed=seed)
    scorer = BitScorer.of(metric, queries, codes)
    parts = list(rank(scorer, k, ties=ties, block_bytes=block_bytes))
    assert [part.start for part, _ in parts] == sorted(part.start for part, _ in parts)
    rows = np.concatenate([found.rows for _, found in parts])
    distances = scorer.distances(slice(None))
    assert np.array_equal(rows, oracle(distances, ties, k))
    found = top_k(scorer, k, ties=ties)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.distances, np.take_along_axis(distances, rows, axis=1))
    for row, best, last, boundary in zip(distances, rows, found.distances[:, -1], found.boundary, strict=True):
        beyond = np.setdiff1d(np.flatnonzero(row == last), best)
        assert sorted(boundary.tolist()) == beyond.tolist()


@given(seed=st.integers(0, 1000), ids=st.sampled_from(["int", "str"]))
def test_the_answer_does_not_depend_on_how_items_are_stored(seed, ids):
    queries, codes, _ = sample(4, 60, 4, seed)
    names = np.arange(60) if ids == "int" else np.array([f"photos/{number}.jpg" for number in range(60)])
    order = np.random.default_rng(seed).permutation(60)
    straight = top_k(BitScorer.of("hamming", queries, codes), 20, ties=tie_order(names, 60))
    shuffled = top_k(BitScorer.of("hamming", queries, codes[order]), 20, ties=tie_order(names[order], 60))
    assert np.array_equal(names[straight.rows], names[order][shuffled.rows])


def test_left_out_items_come_last_at_infinity():
    queries, codes, _ = sample(2, 5, 8)
    found = top_k(BitScorer.of("bce", queries, codes), 5, left_out=np.array([3, -1]))
    assert found.rows[0, -1] == 3
    assert found.distances[0, -1] == np.inf
    assert np.isfinite(found.distances[1]).all()


def test_tie_order_is_a_fixed_permutation():
    # Pinned: another order would silently change published results.
    assert tie_order(None, 8).tolist() == tie_order(np.arange(8), 8).tolist()
    assert tie_order(np.array(["a", "b", "c", "ü/longer than eight bytes"]), 4).tolist() == TIES_OF_STRINGS
    assert tie_order(None, 8).tolist() == TIES_OF_NUMBERS
    assert tie_order(None, 1000).tolist() != tie_order(None, 1000, seed=1).tolist()


TIES_OF_STRINGS = [0, 2, 3, 1]
TIES_OF_NUMBERS = [6, 1, 7, 4, 3, 5, 0, 2]


def test_strings_hash_by_their_bytes_not_by_their_storage():
    short = np.array(["a", "b", "c"])
    assert np.array_equal(tie_order(short, 3), tie_order(short.astype("U50"), 3))
    assert np.array_equal(tie_order(short, 3), tie_order(short.astype(object), 3))


def test_misuse_is_refused():
    queries, codes, logits = sample(2, 3, 8)
    with pytest.raises(InvalidInputError, match="the metric 'dot' is not known"):
        BitScorer.of("dot", queries, codes)
    with pytest.raises(InvalidInputError, match=r"\(q, 8\) for codes of 8 bits, got \(2, 7\)"):
        BitScorer.of("bce", queries[:, :7], codes)
    with pytest.raises(InvalidInputError, match="finite"):
        BitScorer.of("bce", queries * np.nan, codes)
    with pytest.raises(InvalidInputError, match="needs the logits of the database"):
        BitScorer.of("symmetric_bce", queries, codes)
    with pytest.raises(InvalidInputError, match=r"database logits must have shape \(3, 8\)"):
        BitScorer.of("symmetric_bce", queries, codes, logits[:2])
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        top_k(BitScorer.of("bce", queries, codes), 0)
    with pytest.raises(InvalidInputError, match="database is empty"):
        top_k(BitScorer.of("bce", queries, codes[:0]), 1)
    with pytest.raises(InvalidInputError, match="expected 3 ids"):
        tie_order(np.arange(2), 3)
