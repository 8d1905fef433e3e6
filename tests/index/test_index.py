"""HashIndex against a model that is a plain dictionary and the oracle."""

import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crovca import Codes, HashIndex
from crovca import ids as ids_module
from crovca.errors import FileFormatError, InvalidInputError, OutputExistsError, StorageError
from crovca.ids import tie_order
from crovca.index import index as index_module
from crovca.index import metadata
from crovca.index import segment as segment_module
from crovca.index import view as view_module
from crovca.index.engines import choice, pruned
from crovca.index.scoring import BitScorer, top_k
from crovca.index.shards import ShardedIndex

METRICS = ["hamming", "asymmetric_hamming", "bce"]


def random_codes(rng, count, bits, distinct=None):
    pool = rng.random((distinct or max(count, 1), bits)) < 0.5
    return Codes.from_bits(pool[rng.integers(0, len(pool), count)])


def oracle(ids, codes, logits, k, metric):
    """The k nearest of all items, by the scorer and the tie rule alone."""
    ids = np.asarray(ids)
    found = top_k(BitScorer.of(metric, logits, codes), k, ties=tie_order(ids, len(ids)))
    return ids[found.rows], found.distances


def assert_found(found, expected):
    np.testing.assert_array_equal(found.ids, expected[0])
    np.testing.assert_array_equal(found.distances, expected[1])


@pytest.fixture
def index(tmp_path):
    with HashIndex.create(tmp_path / "index", bits=20) as made:
        yield made


class Model(RuleBasedStateMachine):
    """Any order of writes and reads gives what a dictionary gives."""

    @initialize(bits=st.sampled_from([3, 8, 20, 64, 70]), strings=st.booleans())
    def start(self, bits, strings):
        self.folder = tempfile.mkdtemp()
        self.bits, self.strings = bits, strings
        self.rng = np.random.default_rng(bits)
        self.index = HashIndex.create(f"{self.folder}/index", bits)
        self.items = {}  # id -> (bits, year)

    def ids(self, numbers):
        return [f"größe/{n}.jpg" for n in numbers] if self.strings else [n - 5 for n in numbers]

    def batch(self, numbers):
        codes = random_codes(self.rng, len(numbers), self.bits, 12)
        years = self.rng.integers(1900, 1910, len(numbers))
        return self.ids(numbers), codes, years

    def put(self, ids, codes, years):
        for one, bits, year in zip(ids, codes.unpack(), years, strict=True):
            self.items[one] = (bits, int(year))

    @rule(numbers=st.sets(st.integers(0, 60), min_size=1))
    def add(self, numbers):
        ids, codes, years = self.batch(sorted(numbers))
        if any(one in self.items for one in ids):
            with pytest.raises(InvalidInputError, match="in the index already"):
                self.index.add(ids, codes, {"year": years})
        else:
            self.index.add(ids, codes, {"year": years})
            self.put(ids, codes, years)

    @rule(numbers=st.sets(st.integers(0, 60), min_size=1))
    def upsert(self, numbers):
        ids, codes, years = self.batch(sorted(numbers))
        replaced = self.index.upsert(ids, codes, {"year": years})
        assert replaced == sum(one in self.items for one in ids)
        self.put(ids, codes, years)

    @rule(numbers=st.lists(st.integers(0, 60)))
    def delete(self, numbers):
        ids = self.ids(numbers)
        gone = {one for one in ids if one in self.items}
        assert self.index.delete(ids) == len(gone)
        for one in gone:
            del self.items[one]

    @rule()
    def compact(self):
        self.index.compact()
        assert len(self.index.view().segments) <= 1

    @rule()
    def reopen(self):
        self.index.close()
        self.index = HashIndex.open(f"{self.folder}/index", writable=True)

    @precondition(lambda self: self.items)
    @rule(
        k=st.integers(1, 70),
        metric=st.sampled_from(METRICS),
        year=st.sampled_from([None, 1901, 1908]),
        cut=st.booleans(),
        engine=st.sampled_from(["auto", "exact", "accelerator"]),
    )
    def search(self, k, metric, year, cut, engine):
        bits = max(1, self.bits // 2) if cut else self.bits
        chosen = {one: item for one, item in self.items.items() if year is None or item[1] < year}
        where = None if year is None else f"year < {year}"
        logits = self.rng.normal(size=(3, self.bits))
        found = self.index.search(logits, k, metric=metric, where=where, bits=bits, engine=engine)
        if not chosen:
            assert found.ids.shape == (3, 0)
            return
        codes = Codes.from_bits(np.array([item[0] for item in chosen.values()])).prefix(bits)
        assert_found(found, oracle(list(chosen), codes, logits[:, :bits], k, metric))

    @precondition(lambda self: self.items)
    @rule()
    def get(self):
        ids = list(self.items)[::-1]
        batch = self.index.get(ids)
        np.testing.assert_array_equal(batch.codes.unpack(), [self.items[one][0] for one in ids])
        assert batch.metadata["year"].to_pylist() == [self.items[one][1] for one in ids]

    @invariant()
    def sizes_agree(self):
        if hasattr(self, "items"):
            assert len(self.index) == len(self.items)
            seen = [one for batch in self.index.batches(7) for one in batch.ids.tolist()]
            assert sorted(seen) == sorted(self.items)

    def teardown(self):
        if hasattr(self, "index"):
            assert self.index.verify() == []
            self.index.close()


Model.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None, derandomize=True)
TestModel = Model.TestCase


@pytest.mark.parametrize("metric", METRICS)
def test_large_index_with_ties_filters_deletions_and_segments_is_exact(tmp_path, metric):
    rng = np.random.default_rng(0)
    count, bits = 60_000, 64
    codes = random_codes(rng, count, bits, 15_000)
    ids, year = rng.permutation(count), rng.integers(0, 1000, count)
    with HashIndex.create(tmp_path / "index", bits) as index:
        for start, stop in ((0, 50_000), (50_000, 55_000), (55_000, 56_000), (56_000, count)):
            part = slice(start, stop)
            index.add(ids[part], codes[part], {"year": year[part]})
        dead = np.isin(ids, rng.choice(count, 3000, replace=False))
        assert index.delete(ids[dead]) == 3000
        assert len(index.view().segments) > 1
        logits = rng.normal(size=(3, bits)) * 3
        for keep, where in ((~dead, None), (~dead & (year < 10), "year < 10"), (~dead & (year >= 300), "year >= 300")):
            found = index.search(logits, 100, metric=metric, where=where)
            assert_found(found, oracle(ids[keep], codes[keep], logits, 100, metric))
        index.delete(ids[: count // 2])  # so many that engines are built anew
        keep = ~dead & (np.arange(count) >= count // 2)
        found = index.search(logits, 100, metric=metric, bits=33)
        assert_found(found, oracle(ids[keep], codes[keep].prefix(33), logits[:, :33], 100, metric))
        index.compact()
        again = index.search(logits, 100, metric=metric, bits=33)
        assert_found(again, (found.ids, found.distances))


@pytest.mark.parametrize("strings", [False, True])
def test_many_small_segments_are_searched_as_one(tmp_path, monkeypatch, strings):
    """Segments of one row, a few more and many, some rows deleted: one answer, one engine for all small ones."""
    monkeypatch.setattr(index_module, "_MERGE_ROWS", 0)
    rng = np.random.default_rng(0)
    count, bits = 9500, 20
    codes, years = random_codes(rng, count, bits, 500), rng.integers(0, 100, count)
    ids = np.array([f"no {n}" for n in range(count)]) if strings else rng.permutation(count)
    with HashIndex.create(tmp_path / "index", bits) as index:
        for part in np.split(np.arange(count), [*range(1, 30), 300, 9000]):
            index.add(ids[part], codes[part], {"year": years[part]})
        dead = np.isin(np.arange(count), [3, 7, 200, 5000])
        index.delete(ids[dead])
        assert len(index.view().segments) > 20
        logits = rng.normal(size=(3, bits))
        for keep, where in ((~dead, None), (~dead & (years < 2), "year < 2"), (~dead & (years >= 10), "year >= 10")):
            for k in (10, count):
                found = index.search(logits, k, where=where)
                assert_found(found, oracle(ids[keep], codes[keep], logits, k, "bce"))
        assert [one["rows"] for one in index.engines()[:2]] == [8700, 797]
        year_of = dict(zip(ids.tolist(), years.tolist(), strict=True))
        assert found.metadata()["year"].to_pylist() == [year_of[one] for one in found.ids.ravel().tolist()]


def test_a_million_ties(tmp_path):
    """Every item at the same distance: the tie rule alone decides."""
    ids = np.arange(1_000_000)
    with HashIndex.create(tmp_path / "index", 64) as index:
        index.add(ids, Codes(np.zeros((len(ids), 8), np.uint8), 64))
        order = np.empty(len(ids), np.int64)
        order[tie_order(ids, len(ids))] = ids
        found = index.search(np.ones((2, 64)), 1000)
        np.testing.assert_array_equal(found.ids, [order[:1000]] * 2)
        assert (found.distances == found.distances[0, 0]).all()


def test_ids_whose_hashes_are_equal_are_told_apart(tmp_path, monkeypatch):
    """With a hash of two values, everything that rests on hashes must still be right."""
    weak = lambda ids, seed=0: np.array([len(str(one)) % 2 for one in ids], np.uint64)  # noqa: E731
    for module in (ids_module, segment_module, view_module):
        monkeypatch.setattr(module, "id_hashes", weak)
    rng = np.random.default_rng(0)
    ids = [f"{n}" for n in range(40)]
    codes = random_codes(rng, 40, 8, 2)
    with HashIndex.create(tmp_path / "index", 8) as index:
        index.add(ids[:25], codes[:25])
        index.add(ids[25:], codes[25:])
        logits = rng.normal(size=(2, 8))
        assert_found(index.search(logits, 40), oracle(ids, codes, logits, 40, "bce"))
        assert index.get(["3", "31"]).ids.tolist() == ["3", "31"]
        assert index.delete(["3", "31", "99"]) == 2
        assert "3" not in index and "4" in index
        with pytest.raises(InvalidInputError, match="twice"):
            index.add(["x", "y", "x"], codes[:3])


def test_range_search(index):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 3000, 20, 200)
    ids = np.arange(3000)
    index.add(ids, codes, {"year": ids % 10})
    logits = rng.normal(size=(4, 20))
    for metric, radius in (("hamming", 5), ("hamming", -1), ("bce", 9.5), ("asymmetric_hamming", 1e9)):
        found = index.range_search(logits, radius, metric=metric, where="year = 3")
        keep = ids % 10 == 3
        all_ids, all_scores = oracle(ids[keep], codes[keep], logits, 300, metric)
        for number, (got, scores) in enumerate(found):
            inside = all_scores[number] <= radius
            np.testing.assert_array_equal(got, all_ids[number][inside])
            np.testing.assert_array_equal(scores, all_scores[number][inside])
    assert len(found) == 4


def test_neighbors_of_an_item_leave_it_out(index):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 500, 20, 30)
    index.add([f"n{i}" for i in range(500)], codes)
    found = index.neighbors_of("n7", 5)
    assert found.ids.shape == (1, 5)
    assert "n7" not in found.ids
    ids, scores = oracle([f"n{i}" for i in range(500)], codes, codes[7].unpack() - 0.5, 500, "hamming")
    others = ids[0] != "n7"
    np.testing.assert_array_equal(found.ids[0], ids[0][others][:5])
    np.testing.assert_array_equal(found.distances[0], scores[0][others][:5])
    assert index.neighbors_of(["n1", "n2"], 1000).ids.shape == (2, 499)
    with pytest.raises(InvalidInputError, match="1 of 1 ids are not in the index, for example 'nobody'"):
        index.neighbors_of("nobody")


def test_duplicates_by_id(index):
    codes = Codes.from_bits(np.eye(20, dtype=int)[[0, 0, 5, 5, 5]] | np.eye(20, dtype=int)[[0, 1, 5, 5, 5]])
    index.add(["a", "b", "c", "d", "e"], codes)
    assert {frozenset(group.tolist()) for group in index.duplicates(0).groups} == {frozenset("cde")}
    assert {frozenset(group.tolist()) for group in index.duplicates(1).groups} == {frozenset("cde"), frozenset("ab")}
    index.delete(["d", "e", "b"])
    assert index.duplicates(1).groups == []
    assert index.duplicates(1, bits=1).items == 2


def test_codes_are_queries_for_hamming_only(index):
    codes = random_codes(np.random.default_rng(0), 50, 20)
    index.add(np.arange(50), codes)
    assert (index.search(codes, 1, metric="hamming").distances == 0).all()
    with pytest.raises(InvalidInputError, match="'bce' takes the queries' logits"):
        index.search(codes, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.zeros((2, 19))}, r"shape \(q, 20\)"),
        ({"queries": np.zeros(20)}, r"shape \(q, 20\)"),
        ({"queries": np.full((1, 20), np.nan)}, "must be finite"),
        ({"queries": np.array([["a"] * 20])}, "must be logits"),
        ({"k": 0}, "k must be a whole number of at least 1"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"metric": "cosine"}, "is not known; expected one of hamming"),
        ({"metric": "symmetric_bce"}, "only codes are stored"),
        ({"bits": 21}, "between 1 and 20"),
        ({"engine": "hnsw"}, "unknown engine"),
        ({"where": "year ="}, "cannot use where"),
        ({"where": "color = 'red'"}, "the columns are id, year"),
        ({"where": "year + 1"}, "must be a condition"),
        ({"where": "year < 1; DROP TABLE items"}, "cannot use where"),
        ({"where": "year < 1) OR (1 = 1"}, "cannot use where"),
        ({"where": "EXISTS (SELECT * FROM read_csv('/etc/passwd'))"}, "cannot use where"),
        ({"where": 3}, "where must be a SQL condition as text"),
        ({"where": ""}, "cannot use where"),
    ],
)
def test_what_cannot_be_searched_is_said(index, arguments, message):
    index.add(np.arange(600), random_codes(np.random.default_rng(0), 600, 20), {"year": np.arange(600)})
    arguments = {"queries": np.zeros((1, 20)), **arguments}
    with pytest.raises((InvalidInputError, ValueError), match=message):
        index.search(**arguments)


@pytest.mark.parametrize(
    ("ids", "count", "metadata", "message"),
    [
        (["a", "b"], 3, None, "2 ids for 3 codes"),
        (["a", "a"], 2, None, "'a' occurs twice"),
        ([1.5, 2.5], 2, None, "64-bit whole numbers|got"),
        (["a", 1], 2, None, "got a mixture"),
        ([1, "a"], 2, None, "got a mixture"),
        (["a", None], 2, None, "got None"),
        (["a", "a\0"], 2, None, "not end in a zero"),
        (["a", "x" * 5000], 2, None, "4,096 characters at most"),
        (np.array(["a", "x" * 5000]), 2, None, "4,096 characters at most"),
        (["a", "\ud800"], 2, None, "UTF-8"),
        (np.array([[1, 2]]), 1, None, "one dimension"),
        ([True, False], 2, None, "64-bit whole numbers|got"),
        ([2**63, 1], 2, None, "64-bit whole numbers|got"),
        ([b"a", b"b"], 2, None, "64-bit whole numbers|got"),
        (["a", "b"], 2, {"year": [1]}, "1 rows of metadata for 2 items"),
        (["a", "b"], 2, {"id": [1, 2]}, "cannot be named 'id'"),
        (["a", "b"], 2, {"Year": [1, 2], "year": [1, 2]}, "does not tell case apart"),
        (["a", "b"], 2, {"year": [1, "x"]}, "cannot be stored|metadata must be"),
        (["a", "b"], 2, [1, 2], "metadata must be"),
    ],
)
def test_what_cannot_be_added_is_said_and_adds_nothing(index, ids, count, metadata, message):
    codes = random_codes(np.random.default_rng(0), count, 20)
    with pytest.raises(InvalidInputError, match=message):
        index.add(ids, codes, metadata)
    assert len(index) == 0 and index.generation == 0


def test_codes_and_ids_must_be_of_the_indexs_kind(index):
    codes = random_codes(np.random.default_rng(0), 2, 20)
    index.add(["a", "b"], codes)
    with pytest.raises(InvalidInputError, match="20 bits, got 21 bits"):
        index.add(["c"], random_codes(np.random.default_rng(0), 1, 21))
    with pytest.raises(InvalidInputError, match="20 bits, got ndarray"):
        index.add(["c"], codes.packed)
    with pytest.raises(InvalidInputError, match="ids of this index are strings"):
        index.add([1, 2], codes)
    with pytest.raises(InvalidInputError, match="ids of this index are strings"):
        index.get([1])
    assert index.delete(["nobody"]) == 0


def test_metadata_grows_columns_and_keeps_types(index):
    codes = random_codes(np.random.default_rng(0), 2, 20)
    index.add([1, 2], codes, {"year": np.array([1900, 1901], np.int32)})
    index.add([3, 4], codes, pa.table({"filename": ["a.jpg", None], "year": pa.array([1902, None], pa.int64())}))
    index.add([5, 6], codes)
    everything = {
        one: row for batch in index.batches() for one, row in zip(batch.ids.tolist(), _rows(batch), strict=True)
    }
    assert everything[1]["year"] == 1900 and everything[1].get("filename") is None
    assert everything[3] == {"year": 1902, "filename": "a.jpg"}
    assert index.search(np.zeros((1, 20)), 9, where="filename = 'a.jpg'").ids.tolist() == [[3]]
    assert sorted(index.search(np.zeros((1, 20)), 9, where="year IS NULL").ids[0].tolist()) == [4, 5, 6]
    assert index.search(np.zeros((1, 20)), 9, where="id = 2").ids.tolist() == [[2]]
    with pytest.raises(InvalidInputError, match="'year' is int32 so far, and string here"):
        index.add([7, 8], codes, {"year": ["old", "new"]})
    with pytest.raises(InvalidInputError, match="'Year' differs in case alone"):
        index.add([7, 8], codes, {"Year": [1, 2]})


def _rows(batch):
    return [{} for _ in batch.ids] if batch.metadata is None else batch.metadata.to_pylist()


def test_an_empty_index_answers(index):
    assert index.search(np.zeros((2, 20)), 5).ids.shape == (2, 0)
    assert index.search(np.zeros((0, 20)), 5).ids.shape == (0, 0)
    assert len(index.range_search(np.zeros((2, 20)), 5)) == 2
    assert index.duplicates(2).groups == []
    assert list(index.batches()) == []
    index.add([], Codes(np.empty((0, 3), np.uint8), 20))
    assert index.compact() == 0 and index.verify() == [] and len(index) == 0


def test_readers_see_a_generation_until_they_refresh(tmp_path):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 4000, 64)
    ids = np.arange(4000)
    with HashIndex.create(tmp_path / "index", 64) as writer:
        writer.add(ids[:2000], codes[:2000], {"n": ids[:2000]})
        reader = HashIndex.open(tmp_path / "index")
        logits = rng.normal(size=(1, 64))
        before = reader.search(logits, 2000).ids
        writer.add(ids[2000:], codes[2000:], {"n": ids[2000:]})
        writer.delete(ids[:1000])
        writer.compact()
        writer.compact()
        assert len(reader) == 2000
        np.testing.assert_array_equal(reader.search(logits, 2000).ids, before)
        # The files that the reader uses are still there, its metadata included, though nothing lists them.
        assert reader.search(logits, 5, where="n < 10").ids.shape == (1, 5)
        assert reader.refresh() and not reader.refresh()
        assert_found(reader.search(logits, 50), oracle(ids[1000:], codes[1000:], logits, 50, "bce"))
        with pytest.raises(StorageError, match="open for reading only"):
            reader.add([1], codes[:1])
        reader.close()
        writer.delete([3999])
        assert len(list((tmp_path / "index" / "segments").iterdir())) == 1


def test_small_writes_do_not_pile_up_segments(index):
    codes = random_codes(np.random.default_rng(0), 200, 20)
    for number in range(200):
        index.add([number], codes[number])
    assert len(index.view().segments) <= 9
    assert len(index) == 200


def test_one_writer_at_a_time(tmp_path):
    with HashIndex.create(tmp_path / "index", 8):
        with pytest.raises(StorageError, match=f"being written by process {os.getpid()}"):
            HashIndex.open(tmp_path / "index", writable=True)
        HashIndex.open(tmp_path / "index").close()
    HashIndex.open(tmp_path / "index", writable=True).close()


def test_create_replaces_nothing(tmp_path):
    HashIndex.create(tmp_path / "index", 8).close()
    with pytest.raises(OutputExistsError, match="exists already"):
        HashIndex.create(tmp_path / "index", 8)
    with pytest.raises(InvalidInputError, match="between 1 and 4,096"):
        HashIndex.create(tmp_path / "other", 0)
    assert not (tmp_path / "other").exists()


def test_what_is_not_an_index_is_said(tmp_path):
    with pytest.raises(FileFormatError, match="is not an index: it has no manifest"):
        HashIndex.open(tmp_path)
    HashIndex.create(tmp_path / "index", 8).close()
    manifest = tmp_path / "index" / "manifest.json"
    content = json.loads(manifest.read_text())
    for change, message in (
        ({"format_version": 3}, "format version 3, this crovca reads 1 and 2; upgrade"),
        ({"kind": "model"}, "something else"),
        ({"color": "red"}, "is damaged"),
        ({"segments": [{"name": "x"}]}, "is damaged"),
    ):
        manifest.write_text(json.dumps({**content, **change}))
        with pytest.raises(FileFormatError, match=message):
            HashIndex.open(tmp_path / "index")
    manifest.write_text("{")
    with pytest.raises(FileFormatError, match="not valid JSON"):
        HashIndex.open(tmp_path / "index")


def test_shards_are_merged_exactly(tmp_path):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 3000, 20, 40)
    ids = [f"photo {n}" for n in range(3000)]
    owner = rng.integers(0, 3, 3000)
    for shard in range(3):
        with HashIndex.create(tmp_path / f"{shard}", 20) as index:
            (mine,) = np.nonzero(owner == shard)
            index.add([ids[row] for row in mine], codes[mine], {"n": mine})
    shards = ShardedIndex.open([tmp_path / "0", tmp_path / "1", tmp_path / "2"])
    logits = rng.normal(size=(4, 20))
    assert len(shards) == 3000
    for metric in METRICS:
        assert_found(shards.search(logits, 200, metric=metric), oracle(ids, codes, logits, 200, metric))
    keep = np.arange(3000) < 700
    expected = oracle(np.array(ids)[keep], codes[keep], logits, 50, "bce")
    assert_found(shards.search(logits, 50, where="n < 700"), expected)
    assert shards.get(["photo 17", "photo 3"]).metadata["n"].to_pylist() == [17, 3]
    HashIndex.create(tmp_path / "other", 21).close()
    with pytest.raises(InvalidInputError, match="20 and 21 bits"):
        ShardedIndex.open([tmp_path / "0", tmp_path / "other"])
    with pytest.raises(InvalidInputError, match="at least one"):
        ShardedIndex.open([])
    shards.close()


def test_stats_tell_engines_and_bytes(index):
    rng = np.random.default_rng(0)
    index.add(np.arange(5000), random_codes(rng, 5000, 20), {"year": np.arange(5000)})
    index.search(rng.normal(size=(1, 20)), 5)
    index.search(rng.normal(size=(1, 20)), 5, bits=8)
    stats = index.stats()
    assert [(engine["engine"], engine["bits"]) for engine in stats["engines"]] == [("scan", 20), ("buckets", 8)]
    assert stats["items"] == 5000 and stats["memory_bytes"] == sum(engine["bytes"] for engine in stats["engines"])
    assert stats["disk_bytes"]["codes"] >= 15000
    json.dumps(stats)


def test_memory_of_engines_is_bounded(index):
    rng = np.random.default_rng(0)
    index.add(np.arange(2000), random_codes(rng, 2000, 20), {"year": np.arange(2000)})
    for bits in range(1, 21):
        index.search(rng.normal(size=(1, 20)), 5, bits=bits)
        index.search(rng.normal(size=(1, 20)), 5, where=f"year < {bits}")
    assert len(index.engines()) <= 8  # of 4 lengths, and of 4 conditions


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8")).filter(lambda text: not text.endswith("\0")), unique=True))
@example(["\0a", "b\0c", "b"])
def test_any_string_is_an_id(ids):
    with tempfile.TemporaryDirectory() as folder, HashIndex.create(f"{folder}/index", 8) as index:
        index.add(ids, random_codes(np.random.default_rng(0), len(ids), 8))
        assert sorted(index.search(np.zeros((1, 8)), 1000).ids.ravel().tolist()) == sorted(ids)
        for one in ids:
            assert one in index


@pytest.mark.starts
def test_search_does_not_import_torch(tmp_path):
    with HashIndex.create(tmp_path / "index", 64) as index:
        index.add(np.arange(2000), random_codes(np.random.default_rng(0), 2000, 64))
    code = (
        "import sys, numpy as np, crovca; index = crovca.HashIndex.open(sys.argv[1]); "
        "index.search(np.ones((1, 64)), 5, where='id < 9'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=False).returncode == 0


def test_a_condition_below_a_folder_that_looks_like_a_pattern_is_refused(tmp_path):
    (tmp_path / "a*b").mkdir()
    with HashIndex.create(tmp_path / "a*b" / "index", 20) as index:
        index.add([1], random_codes(np.random.default_rng(0), 1, 20))
        with pytest.raises(StorageError, match=r"folder with \*, \? or \[ in its name"):
            index.select("id = 1")


@pytest.mark.parametrize("name", ["id=7", "year=1900", "it's", "größe"])
def test_the_folders_name_has_no_say_in_what_is_selected(tmp_path, name):
    (tmp_path / name).mkdir()
    with HashIndex.create(tmp_path / name / "index", 20) as index:
        index.add(np.arange(30), random_codes(np.random.default_rng(0), 30, 20), {"year": np.arange(30)})
    with HashIndex.open(tmp_path / name / "index", writable=True) as index:
        assert index.search(np.zeros((1, 20)), 30, where="id = 7").ids.tolist() == [[7]]
        assert sorted(index.select("year < 5").tolist()) == list(range(5))
        assert index.delete(index.select("id = 7")) == 1
        assert len(index) == 29


def metadata_types():
    import datetime
    import decimal

    second = datetime.datetime(2020, 1, 1, 10, 0, 1)
    return {
        "timestamp in seconds": pa.array([second, None], pa.timestamp("s")),
        "with a zone": pa.array([second, None], pa.timestamp("s", "UTC")),
        "time in seconds": pa.array([second.time(), None], pa.time32("s")),
        "date": pa.array([second.date(), None]),
        "category": pa.array(["a", "b"]).dictionary_encode(),
        "string view": pa.array(["a", None], pa.string_view()),
        "list": pa.array([[1, 2], None]),
        "list of moments": pa.array([[second], []], pa.list_(pa.timestamp("s"))),
        "large list": pa.array([["a"], []], pa.large_list(pa.string())),
        "struct": pa.array([{"x": 1, "y": "a"}, None]),
        "decimal": pa.array([decimal.Decimal("1.25"), None]),
        "bytes": pa.array([b"a", None]),
        "boolean": pa.array([True, None]),
        "uint64": pa.array([2**64 - 1, None], pa.uint64()),
        "float16": pa.array(np.array([1.5, 2.5], np.float16)),
    }


@pytest.mark.parametrize("name", metadata_types())
def test_metadata_of_every_type_survives_merging(index, name):
    column = metadata_types()[name]
    codes = random_codes(np.random.default_rng(0), 2, 20)
    for start in (0, 2, 4):
        index.add([start, start + 1], codes, {"x": column})
    index.compact()
    index.add([6, 7], codes)
    found = index.get(np.arange(8)).metadata["x"].to_pylist()
    assert found == [*column.to_pylist() * 3, None, None]


def test_a_column_without_values_has_no_type_yet(index):
    codes = random_codes(np.random.default_rng(0), 2, 20)
    index.add([0, 1], codes, {"x": [None, None], "y": [[], []], "z": [1, 2]})
    index.add([2, 3], codes, {"x": [5, 6], "y": [["a"], []], "z": [None, None]})
    index.add([4, 5], codes, {"y": [[], []], "z": pa.array([7, 8], pa.int32())})
    table = index.get(np.arange(6)).metadata
    assert table["x"].to_pylist() == [None, None, 5, 6, None, None]
    assert table["z"].to_pylist() == [1, 2, None, None, 7, 8]
    assert table["y"].to_pylist()[2] == ["a"]
    with pytest.raises(InvalidInputError, match="metadata column 'w'"):
        index.add([8, 9], codes, {"w": pa.array([pa.MonthDayNano([1, 2, 3])] * 2)})


def test_neighbors_where_nothing_matches(index):
    index.add(np.arange(30), random_codes(np.random.default_rng(0), 30, 20), {"n": np.arange(30)})
    assert index.neighbors_of(3, 5, where="n > 100").ids.shape == (1, 0)
    assert index.neighbors_of([], 5).ids.shape[0] == 0
    assert sorted(index.neighbors_of(3, 5, where="n IN (3, 4, 5)").ids[0].tolist()) == [4, 5]
    with pytest.raises(InvalidInputError, match="k must be"):
        index.neighbors_of(3, 0)


def test_shards_see_what_is_written_to_them(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (HashIndex.create(tmp_path / name, 20) for name in "ab")
    a.add([1, 2], random_codes(rng, 2, 20), {"x": [1, 2]})
    b.add([3, 4], random_codes(rng, 2, 20), {"x": [1, 2]})
    shards = ShardedIndex([a, b])
    assert shards.search(np.zeros((1, 20)), 9, where="x = 1").ids.shape == (1, 2)
    b.add([5, 6], random_codes(rng, 2, 20), {"x": [1, 1]})
    a.delete([1])
    assert sorted(shards.search(np.zeros((1, 20)), 9, where="x = 1").ids[0].tolist()) == [3, 5, 6]
    with pytest.raises(InvalidInputError, match="given twice"):
        ShardedIndex([a, a])
    shards.close()


def test_groups_of_duplicates_do_not_depend_on_segments(tmp_path):
    codes = Codes(np.zeros((40, 3), np.uint8), 20)
    found = []
    for name, parts in (("one", [slice(0, 40)]), ("two", [slice(0, 30), slice(30, 40)])):
        with HashIndex.create(tmp_path / name, 20) as index:
            for part in parts:
                index.add(np.arange(40)[part], codes[part])
            found.append(index.duplicates(0).groups[0].tolist())
    assert found[0] == found[1]


@pytest.mark.starts
def test_several_threads_search_one_index(index):
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(0)
    codes = random_codes(rng, 4000, 20)
    index.add(np.arange(4000), codes, {"n": np.arange(4000)})
    logits = rng.normal(size=(1, 20))
    expected = {n: oracle(np.arange(n), codes[:n], logits, 5, "bce") for n in range(500, 4000, 250)}

    def ask(n):
        assert_found(index.search(logits, 5, where=f"n < {n}"), expected[n])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, list(expected) * 8))


def test_queries_that_are_no_array_are_refused(index):
    import torch

    index.add([1], random_codes(np.random.default_rng(0), 1, 20))
    for queries in ([[1.0] * 20, [1.0] * 19], torch.zeros(1, 20, requires_grad=True), "abc", None):
        with pytest.raises(InvalidInputError, match="queries must be"):
            index.search(queries, 1)
    for radius in (None, float("nan"), 1e300, "2"):
        with pytest.raises(InvalidInputError, match="radius must be a finite number"):
            index.range_search(np.zeros((1, 20)), radius)
    assert "a" not in index and 1 in index


def test_metadata_of_found_items_are_decoded_once(tmp_path, monkeypatch):
    """A query asks for a few rows: decoding whole row groups for each answer took most of its time."""
    read = []
    original = metadata.RowReader._read_group
    monkeypatch.setattr(
        metadata.RowReader, "_read_group", lambda self, *asked: read.append(asked[0]) or original(self, *asked)
    )
    with HashIndex.create(tmp_path / "index", 16) as index:
        codes = Codes.from_bits(np.random.default_rng(0).integers(0, 2, (300, 16)))
        index.add(np.arange(300), codes, {"n": np.arange(300) * 2})
        for _ in range(3):
            for ids in ([7, 250], [0], [299, 5, 299]):
                assert index.get(ids).metadata.column("n").to_pylist() == [2 * id for id in ids]
        assert read == [0]
        index.add([300], codes[:1])  # a segment without the column
        assert index.get([300, 7]).metadata.column("n").to_pylist() == [None, 14]
    with HashIndex.create(tmp_path / "bare", 16) as index:
        index.add(np.arange(300), codes)
        assert index.get([3]).metadata is None
    assert len(read) <= 3


def test_each_metric_has_the_engine_that_pays_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "_MANY", 10_000)
    monkeypatch.setattr(pruned, "pays", lambda codes, metric: metric != "hamming")
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 20_000, 64)
    with HashIndex.create(tmp_path / "index", 64) as index:
        index.add(np.arange(20_000), codes)
        logits = rng.normal(size=(2, 64))
        for metric in METRICS:
            assert_found(index.search(logits, 9, metric=metric), oracle(np.arange(20_000), codes, logits, 9, metric))
        engines = {one["engine"]: one["metrics"] for one in index.stats()["engines"]}
        assert engines == {"pruned": ["asymmetric_hamming", "bce"], "scan": ["hamming"]}
        assert index.stats()["memory_bytes"] == sum(one["bytes"] for one in index.stats()["engines"])
    with HashIndex.open(tmp_path / "index") as index:
        index.prepare(metric="hamming")
        assert [one["engine"] for one in index.engines()] == ["scan"]
