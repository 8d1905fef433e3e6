"""What is said to be proven is exact: against servers in memory that choose the worst among ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from crovca.index.scoring import BitScorer, hamming_distance
from crovca.servers.base import ServerCandidates, default_overfetch, search_by_rescoring
from crovca.servers.bounds import Query
from tests.servers_contract.samples import queries_for, sample, truth

METRICS = ["bce", "asymmetric_hamming", "hamming"]


class MemoryEngine:
    """ServerCandidates by Hamming distance, or by levels; among those at the last one it returns a random few."""

    most_results = 10**9

    def __init__(self, ids, codes, seed, levels=0):
        self.bits = codes.bits
        self.ids, self.codes, self.levels = ids, codes, levels
        self.random = np.random.default_rng(seed)
        self.widened = []

    def sums(self, query):
        if not self.levels:
            return hamming_distance(query.code, self.codes)[0].astype(np.int64)
        levels = query.levels(self.levels)
        differences = query.code.packed ^ self.codes.packed
        counts = [np.bitwise_count(differences & mask).sum(1, dtype=np.int64) for mask in levels.masks.packed]
        return levels.steps @ np.array(counts)

    def nearest(self, queries, count, where):
        found = []
        for query in queries:
            sums = self.sums(query)
            order = np.lexsort((self.random.random(len(sums)), sums))[:count]
            bound = np.float32(np.inf)
            if len(order) == count:
                last = int(sums[order[-1]])
                bound = query.bound_of(query.levels(self.levels), last) if self.levels else query.bound_at(last)
            found.append(ServerCandidates(self.ids[order], self.codes[order], bound))
        return found

    def within(self, query, distance, where):
        most = query.total(query.levels(self.levels), distance) if self.levels else query.radius(distance)
        rows = np.flatnonzero(self.sums(query) <= most)
        self.widened.append(len(rows))
        for part in np.array_split(self.random.permutation(rows), 3):
            yield self.ids[part], self.codes[part]


@pytest.mark.slow
@settings(max_examples=300)
@given(
    count=st.integers(1, 200),
    bits=st.integers(1, 70),
    k=st.integers(1, 30),
    more=st.integers(0, 60),
    scale=st.sampled_from([1e-30, 0.01, 1.0, 50.0, 1e6]),
    metric=st.sampled_from(METRICS),
    levels=st.sampled_from([0, 1, 2, 6, 100]),
    seed=st.integers(0, 10**6),
)
def test_proven_answers_are_exact_and_exact_ones_are_proven(count, bits, k, more, scale, metric, levels, seed):
    ids, codes, _ = sample(count, bits, seed)
    logits = queries_for(codes, 4, seed, scale)
    expected_ids, expected = truth(logits, k, metric, ids, codes)
    engine = MemoryEngine(ids, codes, seed, levels)
    found = search_by_rescoring(engine, logits, k, metric, None, k + more, False)
    assert found.ids.shape == found.distances.shape == expected_ids.shape
    assert np.array_equal(found.ids[found.proven], expected_ids[found.proven])
    assert np.array_equal(found.distances[found.proven], expected[found.proven])
    assert (found.distances >= expected).all()
    assert not engine.widened

    exact = search_by_rescoring(engine, logits, k, metric, None, k + more, True)
    assert exact.proven.all()
    assert np.array_equal(exact.ids, expected_ids)
    assert np.array_equal(exact.distances, expected)
    assert len(engine.widened) == (~found.proven).sum()


def test_a_proof_is_found_where_there_is_one():
    """One item is the query's own code, the others are far: ten candidates prove it."""
    random = np.random.default_rng(0)
    codes = Codes.from_bits(np.vstack([np.ones((1, 32)), random.random((500, 32)) < 0.4]))
    engine = MemoryEngine(np.arange(501), codes, 0)
    found = search_by_rescoring(engine, np.ones((1, 32)), 1, "bce", None, 10, False)
    assert found.proven.tolist() == [True]
    assert found.ids.tolist() == [[0]]
    assert found.candidates.tolist() == [10]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["bce", "asymmetric_hamming"])
def test_levels_prove_what_hamming_distance_cannot(metric):
    random = np.random.default_rng(0)
    codes, ids = Codes.from_bits(random.random((20_000, 64)) < 0.5), np.arange(20_000)
    logits = random.normal(size=(20, 64)).astype(np.float32)
    proven, widened = {}, {}
    for levels in (0, 2, 4, 6):
        engine = MemoryEngine(ids, codes, 0, levels)
        proven[levels] = search_by_rescoring(engine, logits, 10, metric, None, 200, False).proven.mean()
        search_by_rescoring(engine, logits, 10, metric, None, 10, True)
        widened[levels] = np.median(engine.widened)
    assert proven[0] == 0  # measured: none of random codes
    assert proven[6] == 1
    assert proven[2] <= proven[4] <= proven[6]
    assert widened[6] < widened[4] < widened[2] < widened[0]
    assert widened[6] < 200


@pytest.mark.slow
@settings(max_examples=200)
@given(
    bits=st.integers(1, 300),
    count=st.integers(1, 12),
    scale=st.sampled_from([1e-40, 1e-3, 1.0, 1e5]),
    equal=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_levels_bound_every_distance(bits, count, scale, equal, seed):
    """Whatever the weights: equal ones, zeros and denormal numbers too."""
    random = np.random.default_rng(seed)
    logits = (random.normal(size=bits) * scale * (random.random(bits) < 0.8)).astype(np.float32)
    if equal:
        logits = np.sign(logits) * np.float32(scale)
    codes = Codes.from_bits(random.random((50, bits)) < random.random((50, 1)))
    for metric in METRICS:
        query = Query.of(logits, metric)
        distances = BitScorer.of(metric, logits[None], codes).distances(slice(None))[0]
        levels = query.levels(count)
        assert 1 <= len(levels.steps) <= count
        assert (levels.steps >= 0).all()
        engine = MemoryEngine(np.arange(50), codes, 0, count)
        for total, distance in zip(engine.sums(query).tolist(), distances, strict=True):
            assert query.bound_of(levels, total) <= distance
            assert total <= query.total(levels, distance)
        for hamming, distance in zip(hamming_distance(query.code, codes)[0], distances, strict=True):
            assert query.bound_at(int(hamming)) <= distance
            assert hamming <= query.radius(distance)


def test_an_engine_that_knows_nothing_proves_nothing():
    ids, codes, _ = sample(50, 16)

    class Approximate(MemoryEngine):
        def nearest(self, queries, count, where):
            nothing = np.float32(-np.inf)
            return [ServerCandidates(part.ids, part.codes, nothing) for part in super().nearest(queries, count, where)]

    engine = Approximate(ids, codes, 0)
    assert not search_by_rescoring(engine, np.ones((2, 16)), 3, "bce", None, 20, False).proven.any()
    exact = search_by_rescoring(engine, np.ones((2, 16)), 3, "bce", None, 20, True)
    assert exact.proven.all()
    assert np.array_equal(exact.ids, truth(np.ones((2, 16), np.float32), 3, "bce", ids, codes)[0])


def test_codes_may_be_queries_for_hamming():
    ids, codes, _ = sample(50, 13)
    engine = MemoryEngine(ids, codes, 0)
    found = search_by_rescoring(engine, codes[:5], 3, "hamming", None, 50, False)
    assert np.array_equal(found.distances[:, 0], np.zeros(5))
    with pytest.raises(InvalidInputError, match="codes as queries have no 'bce' distance"):
        search_by_rescoring(engine, codes[:5], 3, "bce", None, 50, False)


def test_misuse_is_refused():
    ids, codes, _ = sample(5, 8)
    engine = MemoryEngine(ids, codes, 0)

    def search(logits, k=1, metric="bce", overfetch=None):
        return search_by_rescoring(engine, logits, k, metric, None, overfetch, False)

    with pytest.raises(InvalidInputError, match=r"\(q, 8\) for codes of 8 bits, got \(1, 7\)"):
        search(np.ones((1, 7)))
    with pytest.raises(InvalidInputError, match="finite"):
        search(np.full((1, 8), np.nan))
    with pytest.raises(InvalidInputError, match="there are no queries"):
        search(np.ones((0, 8)))
    with pytest.raises(InvalidInputError, match="k must be a whole number of at least 1, got 0"):
        search(np.ones((1, 8)), k=0)
    with pytest.raises(InvalidInputError, match="k must be a whole number of at least 1, got 'a'"):
        search(np.ones((1, 8)), k="a")
    with pytest.raises(InvalidInputError, match="overfetch must be at least k = 3, got 2"):
        search(np.ones((1, 8)), k=3, overfetch=2)
    with pytest.raises(InvalidInputError, match="only codes are stored"):
        search(np.ones((1, 8)), metric="symmetric_bce")


def test_default_overfetch():
    assert [default_overfetch(k) for k in (1, 50, 100)] == [1000, 1000, 2000]
