"""One contract for all engines: the oracle's answer, whatever the codes, ties and rows that are left out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import ConfigError
from crovca.index.engines import choice
from crovca.index.engines.base import Groups, exhaustive
from crovca.index.engines.choice import ENGINES, build_engine, choose_engine
from crovca.index.engines.pruned import PrunedEngine, pays
from crovca.index.engines.scan import ScanEngine, nibble_weights, quantization_error
from crovca.index.scoring import BitScorer

METRICS = ["hamming", "asymmetric_hamming", "bce"]
EXACT = [name for name in ENGINES if name != "inverted"]


def random_codes(rng, count, bits, distinct=None):
    pool = rng.random((distinct or count, bits)) < rng.random(bits)
    return Codes.from_bits(pool[rng.integers(0, len(pool), count)])


def assert_same(found, truth):
    for one, other in zip(found, truth, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.distances, other.distances)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=40)
@given(data=st.data())
def test_every_exact_engine_gives_the_oracles_answer(name, metric, data):
    low, high = ENGINES[name][2]
    bits = data.draw(st.integers(low, min(high, 70)) | st.sampled_from([b for b in (96, 256, 511) if b <= high] or [8]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count = data.draw(st.integers(1, 3000))
    codes = random_codes(rng, count, bits, data.draw(st.sampled_from([1, 3, 50, None])))
    logits = rng.normal(size=(3, bits)) * data.draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
    scorer = BitScorer.of(metric, logits, codes)
    k = data.draw(st.integers(1, 40) | st.just(count + 5))
    allowed = data.draw(st.sampled_from([None, 0.0, 0.02, 0.5]))
    mask = None if allowed is None else rng.random(count) < allowed
    assert_same(build_engine(name, codes).nearest(scorer, k, mask), exhaustive(scorer, k, mask))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bits", [12, 32, 64, 100])
def test_large_sets_with_many_ties(bits, metric):
    """Large enough for the fast passes to be the ones that answer, and for thousands of equal codes."""
    rng = np.random.default_rng(bits)
    codes = random_codes(rng, 60_000, bits, 900)
    scorer = BitScorer.of(metric, rng.normal(size=(4, bits)), codes)
    mask = rng.random(len(codes)) < 0.3
    for name in ("scan", "pruned", "accelerator", *(["buckets"] if bits <= 24 else [])):
        engine = build_engine(name, codes)
        assert_same(engine.nearest(scorer, 100), exhaustive(scorer, 100))
        assert_same(engine.nearest(scorer, 100, mask), exhaustive(scorer, 100, mask))


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_pieces_are_left_out_the_answer_is_the_oracles(metric, data):
    """Small pieces, few of which are read: similar codes, ties, masks, a batch of unlike queries."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bits = data.draw(st.sampled_from([8, 20, 64, 65, 128]))
    count, piece = data.draw(st.integers(1000, 6000)), data.draw(st.sampled_from([1, 5, 40, 300]))
    centers = rng.random((data.draw(st.sampled_from([3, 100])), bits)) < 0.5
    kind = rng.integers(0, len(centers), count)
    codes = Codes.from_bits(centers[kind] ^ (rng.random((count, bits)) < data.draw(st.sampled_from([0.01, 0.1]))))
    logits = (centers[:4] - 0.5 + rng.normal(size=(len(centers[:4]), bits)) * 0.3) * data.draw(
        st.sampled_from([1e-3, 4.0])
    )
    scorer = BitScorer.of(metric, np.vstack([logits, rng.normal(size=(1, bits))]), codes)
    mask = data.draw(st.sampled_from([None, 0.1, 0.9]))
    allowed = None if mask is None else rng.random(count) < mask
    k = data.draw(st.sampled_from([1, 10, 200]))
    engine = PrunedEngine(codes, piece)
    assert_same(engine.nearest(scorer, k, allowed), exhaustive(scorer, k, allowed))


def test_pruning_pays_for_codes_that_are_alike(monkeypatch):
    """A query reads a small share of such codes, and of random ones all."""
    monkeypatch.setattr(choice, "_MANY", 100_000)
    rng = np.random.default_rng(0)
    centers = rng.random((2000, 64)) < 0.5
    alike = centers[rng.integers(0, 2000, 600_000)] ^ (rng.random((600_000, 64)) < 0.03)
    codes, chance = Codes.from_bits(alike), Codes(rng.integers(0, 256, (600_000, 8), dtype=np.uint8), 64)
    assert pays(codes, "bce") and choose_engine(codes) == "pruned"
    assert not pays(chance, "bce") and choose_engine(chance) == "scan"
    assert choose_engine(codes, items=100_000_000) == "scan"  # it would take too much memory
    engine = PrunedEngine(codes)
    assert engine.read == 0
    scorer = BitScorer.of("bce", (2.0 * codes[:5].unpack() - 1) * 2, codes)
    assert_same(engine.nearest(scorer, 10), exhaustive(scorer, 10))
    assert 0 < engine.read < 0.3


@pytest.mark.parametrize("bits", [1, 2, 7, 9, 513, 1000, 4095, 4096])
def test_every_length_has_an_engine(bits):
    rng = np.random.default_rng(bits)
    codes = random_codes(rng, 700, bits)
    scorer = BitScorer.of("bce", rng.normal(size=(2, bits)), codes)
    assert_same(build_engine(choose_engine(codes), codes).nearest(scorer, 20), exhaustive(scorer, 20))


def test_equal_codes_are_scanned_once():
    rng = np.random.default_rng(0)
    engine = ScanEngine(random_codes(rng, 20_000, 64, 500))
    assert len(engine.entries) <= 500
    assert len(ScanEngine(random_codes(rng, 20_000, 64)).entries) == 20_000


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), bits=st.integers(8, 512), scale=st.sampled_from([1e-4, 1.0, 50.0]))
def test_the_bound_on_faiss_rounding_holds(seed, bits, scale):
    """What FAISS says of a code is never further below the truth than the bound: the proof rests on this."""
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, 400, bits)
    weights = (rng.standard_t(1, size=(2, bits)) * scale).clip(-1e6, 1e6).astype(np.float32)
    ordered = nibble_weights(weights)
    engine = ScanEngine(codes)
    scores, entries = engine._index.search(ordered, len(engine.entries))
    for query in range(2):
        found = entries[query] >= 0  # FAISS leaves out codes of the lowest score
        truth = engine.entries[entries[query][found]].unpack() @ weights[query].astype(np.float64)
        assert (np.abs(truth - scores[query][found]) <= quantization_error(ordered)[query]).all()


@pytest.mark.parametrize("name", ["scan", "pruned", "buckets", "accelerator"])
def test_candidates_keep_their_promise(name):
    """No entry that was not proposed scores above ``beyond``."""
    rng = np.random.default_rng(1)
    codes = random_codes(rng, 5000, 16)
    engine = build_engine(name, codes)
    weights = rng.normal(size=(5, 16)).astype(np.float32)
    scores = engine.entries.unpack() @ weights.T.astype(np.float64)
    for query, candidates in enumerate(engine.best(weights, 20)):
        assert len(np.unique(candidates.entries)) == len(candidates.entries)
        others = np.delete(scores[:, query], candidates.entries)
        assert (others <= candidates.beyond + 1e-9).all()


def test_the_inverted_engine_tells_its_recall():
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 20_000, 64)
    engine = build_engine("inverted", codes)
    assert not engine.exact
    assert 0.5 < engine.recall <= 1
    scorer = BitScorer.of("bce", rng.normal(size=(20, 64)), codes)
    found, truth = engine.nearest(scorer, 10), list(exhaustive(scorer, 10))
    hits = [np.isin(one.rows, other.rows).mean() for one, other in zip(found, truth, strict=True)]
    assert np.mean(hits) > 0.5
    for query, one in enumerate(found):  # what is found has its exact distance
        np.testing.assert_array_equal(one.distances, scorer.distances_to(query, one.rows))


def test_the_inverted_engine_looks_further_where_too_few_are_found():
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 3000, 16)
    scorer = BitScorer.of("hamming", rng.normal(size=(2, 16)), codes)
    assert_same(build_engine("inverted", codes).nearest(scorer, 3000), exhaustive(scorer, 3000))


@given(seed=st.integers(0, 2**32), bits=st.integers(1, 200))
def test_groups_hold_every_row_once_in_order(seed, bits):
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, 300, bits, 20)
    groups = Groups.of(codes)
    assert sorted(groups.rows.tolist()) == list(range(300))
    assert len(np.unique(groups.codes.packed, axis=0)) == len(groups.codes)
    for number, (start, stop) in enumerate(zip(groups.starts[:-1], groups.starts[1:], strict=True)):
        rows = groups.rows[start:stop]
        assert (np.diff(rows.astype(np.int64)) > 0).all()
        assert (codes.packed[rows] == groups.codes.packed[number]).all()


def test_distances_to_a_few_items_are_those_to_all():
    rng = np.random.default_rng(0)
    for bits in (1, 7, 64, 513):
        codes = random_codes(rng, 500, bits)
        for metric in METRICS:
            scorer = BitScorer.of(metric, rng.normal(size=(3, bits)) * 10, codes)
            rows = rng.permutation(500)[:50]
            for query in range(3):
                expected = scorer.distances(slice(query, query + 1))[0, rows]
                np.testing.assert_array_equal(scorer.distances_to(query, rows), expected)


def test_the_choice_follows_length_and_size():
    def chosen(bits, rows):
        return choose_engine(Codes(np.zeros((rows, -(-bits // 8)), np.uint8), bits))

    assert chosen(64, 100) == "exact"
    assert chosen(64, 10**5) == "scan"
    assert chosen(16, 10**6) == "buckets"
    assert chosen(24, 10**6) == "scan"  # 16 million possible codes for a million items
    assert chosen(24, 10**7) == "buckets"
    assert chosen(3, 10**4) == "buckets"
    assert chosen(1024, 10**4) == "exact"


def test_an_engine_that_cannot_take_the_codes_says_so():
    codes = random_codes(np.random.default_rng(0), 10, 600)
    with pytest.raises(ConfigError, match="'scan' takes codes of 8 to 512 bits, these have 600"):
        build_engine("scan", codes)
    with pytest.raises(ConfigError, match="unknown engine 'hnsw'"):
        build_engine("hnsw", codes)
