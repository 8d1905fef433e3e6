"""Growth: what is added costs the same whatever is there, and merging takes memory for some rows, not for all."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca import Codes, HashIndex
from crovca.errors import FileFormatError
from crovca.ids import id_hashes
from crovca.index import index as index_module
from crovca.index import segment as segment_module
from crovca.index.idfilter import IdFilter
from crovca.index.segment import Segment

BITS, WIDTH = 64, 6


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of 100 rows are as large as a write makes them; 40 rows are merged at a time."""
    monkeypatch.setattr(index_module, "_MERGE_ROWS", 100)
    monkeypatch.setattr(segment_module, "_MERGED", 40)


def codes_of(count, seed=0):
    return Codes(np.random.default_rng(seed).integers(0, 256, (count, BITS // 8), dtype=np.uint8), BITS)


def filled(path, segments, *, strings=False, keep="none", rows=100):
    """An index of segments, every second of which has a column that the others lack."""
    index = HashIndex.create(path, BITS, keep=keep)
    for number in range(segments):
        ids = np.arange(number * rows, (number + 1) * rows)
        metadata = {"n": ids} if number % 2 else {"n": ids, "text": [f"text {one}" for one in ids]}
        floats = np.random.default_rng(number).normal(size=(rows, WIDTH))
        index.add([f"é {one}" for one in ids] if strings else ids, codes_of(rows, number), metadata, floats)
    return index


def contents(index):
    view = index.view()
    found = {}
    for batch in view.batches(64):
        rows = view.find_all(batch.ids)
        facts = [(one["n"], one.get("text")) for one in batch.metadata.to_pylist()]
        kept = view.originals()[rows].tolist() if index.keep != "none" else [None] * len(rows)
        for values in zip(batch.ids.tolist(), batch.codes.packed.tolist(), facts, kept, strict=True):
            found[values[0]] = values[1:]
    return found


@pytest.mark.parametrize("keep", ["none", "int8"])
@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("bytes_held", [1, 1 << 28])
def test_merging_changes_nothing_but_the_segments(tmp_path, monkeypatch, strings, keep, bytes_held):
    monkeypatch.setattr(index_module, "_MERGE_BYTES", bytes_held)
    with filled(tmp_path / "index", 10, strings=strings, keep=keep) as index:
        ids = [f"é {one}" for one in range(1000)] if strings else np.arange(1000)
        index.delete(ids[0:1000:7])
        index.delete(ids[300:400])  # a segment of which nothing is left
        before, logits = contents(index), np.random.default_rng(0).normal(size=(3, BITS))
        answer = index.search(logits, 50)
        for step in (index.merge, index.compact):
            assert step()
            assert contents(index) == before and index.verify() == []
            again = index.search(logits, 50)
            assert (again.ids == answer.ids).all() and (again.distances == answer.distances).all()
        assert [segment["deleted"] for segment in index.stats()["segments"]] == [0]
        assert not index.merge() and index.compact() == 0


def test_segments_of_like_size_are_merged_as_far_as_a_step_may_go(tmp_path):
    with filled(tmp_path / "index", 23) as index:
        sizes = lambda: [len(segment) for segment in index.view().segments]  # noqa: E731
        assert not index.merge(rows=150)
        assert index.merge(rows=500) and sizes() == [500, *[100] * 18]
        while index.merge():
            pass
        assert sizes() == [800, 800, 500, *[100] * 2]
        index.add([-1], codes_of(1))
        assert sizes() == [800, 800, 500, 100, 100, 1]
        index.compact()
        assert sizes() == [2301]


def test_a_merge_holds_some_rows_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_module, "_MERGED", 1000)
    monkeypatch.setattr(segment_module, "ROW_GROUP", 1000)
    held, peaks, write = [], [], segment_module.write_segment

    def watched(folder, parts, schema):
        def each():
            for part in parts:
                held.append(pa.total_allocated_bytes())
                yield part

        tracemalloc.reset_peak()
        entry = write(folder, each(), schema)
        peaks.append(tracemalloc.get_traced_memory()[1])
        return entry

    rows, text = 20_000, "x" * 200
    with HashIndex.create(tmp_path / "index", 4096, keep="int8") as index:  # 512 bytes a code, 600 an embedding
        for number in range(3):
            packed = np.random.default_rng(number).integers(0, 256, (rows, 512), dtype=np.uint8)
            texts = [f"{text} {one}" for one in range(rows)]
            floats = np.ones((rows, 600), np.float16)
            index.add(np.arange(rows) + number * rows, Codes(packed, 4096), {"text": texts}, floats)
        del packed, texts, floats
        monkeypatch.setattr(index_module, "write_segment", watched)
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        index.compact()
        tracemalloc.stop()
        assert max(peaks) < 8 << 20  # of 66 MB
        assert max(held) - before < 4 << 20  # of 12 MB
        assert len(held) > 20 and index.verify() == []


def test_ids_that_are_damaged_are_not_merged(tmp_path, monkeypatch):
    """An index from elsewhere may have checksums of what is wrong: that ends in an error, not in foreign memory."""
    with filled(tmp_path / "index", 2, strings=True) as index:
        monkeypatch.setattr(Segment, "problems", lambda _: [])
        for segment in index.view().segments:
            offsets = np.array(segment._offsets)
            offsets[5] = offsets[90]
            segment._offsets = offsets
        with pytest.raises(FileFormatError, match="ids are damaged"):
            index.compact()
        assert len(index.view().segments) == 2


def test_new_ids_are_not_looked_for_in_every_segment(tmp_path, monkeypatch):
    rows, looked = 500, []
    find = Segment.find
    monkeypatch.setattr(Segment, "find", lambda self, ids, hashes: looked.append(len(ids)) or find(self, ids, hashes))
    with filled(tmp_path / "index", 12, rows=rows) as index:
        looked.clear()
        index.add(np.arange(10**6, 10**6 + rows), codes_of(rows))
        assert sum(looked) < 0.05 * 12 * rows
        assert index.stats()["memory_bytes"] > 8 * rows
        assert index.upsert(np.arange(7 * rows - 10, 7 * rows + 10), codes_of(20)) == 20
        index.delete(np.arange(5))
        index.add(np.arange(5), codes_of(5))
        assert len(index) == 13 * rows
    with HashIndex.open(tmp_path / "index", writable=True) as index:
        assert index.upsert(np.arange(13 * rows), codes_of(13 * rows)) == 12 * rows


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 30_000), max_size=4))
def test_the_filter_forgets_no_id(seed, sizes):
    rng, known = np.random.default_rng(seed), IdFilter()
    parts = [np.sort(id_hashes(rng.integers(-(2**62), 2**62, size))) for size in sizes]
    for part in parts:
        known.add(part)
    assert all(known.may_have(part).all() for part in parts)
    assert known.count == sum(sizes)


def test_the_filter_is_seldom_wrong_however_it_grew():
    rng, known = np.random.default_rng(0), IdFilter()
    for size in (3_000_000, 2_000_000, 3_500_000):
        known.add(np.sort(id_hashes(rng.integers(0, 2**62, size))))
    others = id_hashes(rng.integers(-(2**62), 0, 200_000))
    assert known.may_have(others).mean() < 0.02
    assert known.nbytes < 6 * known.count
