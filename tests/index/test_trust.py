"""An index that threads and processes share, and one that comes from somebody else."""

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import sys
import threading
import time

import numpy as np
import pytest

from crovca import Codes, HashIndex, files
from crovca.errors import CrovcaError, FileFormatError, InvalidInputError, OutputExistsError, StorageError
from crovca.index import view as view_module
from crovca.index.memo import Memo, imported
from crovca.index.shards import ShardedIndex


def codes_of(count, seed=0):
    return Codes(np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8), 64)


@pytest.fixture
def path(tmp_path):
    with HashIndex.create(tmp_path / "index", 64) as index:
        index.add([f"p{number}" for number in range(900)], codes_of(900), {"n": np.arange(900)})
        index.delete(["p7"])
    return tmp_path / "index"


# --- one view a call --------------------------------------------------------------------------------


def test_what_was_begun_is_finished_on_what_there_was(path):
    with HashIndex.open(path, writable=True) as index:
        batches = index.batches(100)
        view, found = index.view(), index.search(codes_of(900)[3], 1, metric="hamming")
        index.upsert(["p3"], codes_of(1, 9), {"n": [-1]})
        index.delete([f"p{number}" for number in range(100, 900)])
        index.compact()
        assert sum(len(batch) for batch in batches) == 899 == len(view)
        assert found.to_list() == [[{"id": "p3", "distance": 0.0, "metadata": {"n": 3}}]]
        assert view.get(["p3", "p200"]).metadata["n"].to_pylist() == [3, 200]
        assert len(index) == 99 and index.get(["p3"]).metadata["n"].to_pylist() == [-1]
        assert len(list((path / "segments").iterdir())) > 1  # as something still reads them
        del view, found, batches
        index.delete(["p4"])
        assert len(list((path / "segments").iterdir())) == 1


def test_an_engine_of_a_newer_view_is_not_used_by_an_older_one(path):
    with HashIndex.open(path, writable=True) as index:
        old = index.view()
        index.delete([f"p{number}" for number in range(300)])  # so many that engines leave them out
        assert "p20" not in index.search(codes_of(900)[20], 900, metric="hamming").ids
        assert old.search(codes_of(900)[20], 1, metric="hamming").ids.tolist() == [["p20"]]


def test_results_as_rows(path):
    with HashIndex.open(path) as index:
        found = index.search(codes_of(900)[:2], 2, metric="hamming", where="n < 2")
        assert [[row["id"] for row in rows] for rows in found.to_list()] == [["p0", "p1"], ["p1", "p0"]]
        assert found.to_list()[1][0] == {"id": "p1", "distance": 0.0, "metadata": {"n": 1}}
        near = index.range_search(codes_of(900)[:2], 0, metric="hamming").to_list()
        assert near == [found.to_list()[0][:1], found.to_list()[1][:1]]
        assert index.neighbors_of("p0", 1, where="n < 2").to_list()[0][0]["metadata"] == {"n": 1}
        assert pickle.loads(pickle.dumps(found)).to_list()[0][0] == {"id": "p0", "distance": 0.0}
    assert found.to_list()[0][0]["metadata"] == {"n": 0}  # though the index is closed
    with ShardedIndex.open([path]) as shards:
        assert shards.search(codes_of(900)[:1], 1, metric="hamming").to_list()[0][0]["id"] == "p0"


def test_queries_of_another_width_are_refused(path):
    with HashIndex.open(path) as index:
        assert index.search(np.ones((1, 64)), 1, bits=16).ids.shape == (1, 1)
        assert index.search(np.ones((1, 16)), 1, bits=16).ids.shape == (1, 1)
        for width, bits in ((1280, None), (65, None), (16, None), (1280, 16), (32, 16)):
            with pytest.raises(InvalidInputError, match=r"If these are embeddings, give hasher\.logits"):
                index.search(np.ones((1, width)), 1, bits=bits)
        with pytest.raises(InvalidInputError, match=r"codes\.prefix\(64\)"):
            index.search(Codes(np.zeros((1, 16), np.uint8), 128), 1, metric="hamming")


@pytest.mark.starts
def test_no_search_waits_for_the_condition_of_another(path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    real = view_module.matching_rows

    def slow(found, where, **options):
        if "slow" in where:
            begun.set()
            go_on.wait(60)
        return real(found, where, **options)

    monkeypatch.setattr(view_module, "matching_rows", slow)
    with HashIndex.open(path, writable=True) as index:
        answer = []
        waiting = threading.Thread(target=lambda: answer.append(index.select("n = 5 OR id = 'slow'").tolist()))
        waiting.start()
        assert begun.wait(60)
        assert index.select("n = 6").tolist() == ["p6"]
        index.delete(["p5"])
        assert "p5" not in index and index.search(np.ones((1, 64)), 3, where="n < 100").ids.shape == (1, 3)
        go_on.set()
        waiting.join()
        assert answer == [["p5"]]


@pytest.mark.starts
def test_a_value_is_built_once_and_a_failure_is_not_remembered():
    memo, calls, go_on = Memo(2), [], threading.Event()

    def build():
        calls.append(1)
        go_on.wait(60)
        return len(calls)

    got = []
    threads = [threading.Thread(target=lambda: got.append(memo.get("a", build))) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert memo.get("b", lambda: "other") == "other"
    go_on.set()
    for thread in threads:
        thread.join()
    assert got == [1] * 5
    with pytest.raises(ZeroDivisionError):
        memo.get("c", lambda: 1 // 0)
    assert memo.get("c", lambda: 7) == 7
    assert [key for key, _ in memo.items()] == ["b", "c"] or [key for key, _ in memo.items()] == ["a", "c"]


# --- writers ----------------------------------------------------------------------------------------


@pytest.mark.starts
def test_threads_that_write_lose_nothing(path):
    with HashIndex.open(path, writable=True) as index:

        def work(name):
            for number in range(6):
                index.add([f"{name}-{number}"], codes_of(1))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with HashIndex.open(path) as index:
        assert index.contains([f"{name}-{number}" for name in "abc" for number in range(6)]).all()
        assert index.verify() == []


def test_of_two_who_create_the_second_fails(tmp_path, monkeypatch):
    real, others = files._move_to_new, []

    def late(temporary, path):
        if not others:
            others.append(None)
            others.append(HashIndex.create(tmp_path / "index", 64))
            others[1].add([1], codes_of(1))
        real(temporary, path)

    monkeypatch.setattr(files, "_move_to_new", late)
    with pytest.raises(OutputExistsError, match="exists already"):
        HashIndex.create(tmp_path / "index", 64)
    others[1].close()
    with HashIndex.open(tmp_path / "index") as index:
        assert 1 in index
    assert [one.name for one in tmp_path.iterdir()] == ["index"]


def test_a_segment_that_stands_is_never_replaced(path):
    """As a killed writer left one, or a manifest that was restored does not know of it."""
    left = path / "segments" / "00000002"
    left.mkdir()
    (left / "codes.npy").write_bytes(b"left")
    held = os.open(left / "codes.npy", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    try:
        with HashIndex.open(path, writable=True) as index:
            index.add(["new"], codes_of(1))
            assert (left / "codes.npy").read_bytes() == b"left"
    finally:
        os.close(held)
    with HashIndex.open(path, writable=True) as index:
        assert "new" in index and not left.exists()


@pytest.mark.parametrize("at", range(1, 10))
def test_an_fsync_that_fails_is_reported_as_what_it_is(path, monkeypatch, at):
    real, calls = os.fsync, []

    def fail(file):
        calls.append(file)
        if len(calls) == at:
            raise OSError(errno.EIO, "Input/output error")
        return real(file)

    with HashIndex.open(path, writable=True) as index:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as raised:
            index.add(["new"], codes_of(1))
        monkeypatch.setattr(os, "fsync", real)
        there = "new" in index
        assert there == str(raised.value).startswith(
            f"{path / 'manifest.json'} was written, but the disk did not confirm"
        )
        with HashIndex.open(path) as reader:
            assert ("new" in reader) == there
        index.add(["after"], codes_of(1))
        assert "after" in index and ("new" in index) == there and index.verify() == []


@pytest.mark.starts
def test_a_forked_child_reads_and_does_not_write(path):
    queries = np.random.default_rng(0).normal(size=(40, 64))
    with HashIndex.open(path, writable=True) as index:
        expected = index.search(queries, 5, engine="scan").ids.tolist()

        def child(out):
            try:
                index.add(["child"], codes_of(1))
            except StorageError as error:
                out.put(str(error))
            found = [index.search(queries, 5, engine=engine).ids.tolist() for engine in ("scan", "exact", "inverted")]
            out.put(found[:2] == [expected] * 2 and index.select("n = 5").tolist() == ["p5"] and not index.refresh())

        context = multiprocessing.get_context("fork")
        out = context.SimpleQueue()
        process = context.Process(target=child, args=(out,))
        process.start()
        process.join(500)
        assert process.exitcode == 0
        assert "was opened for writing by the process that this one was forked from" in out.get()
        assert out.get() is True
        index.add(["parent"], codes_of(1))
        with pytest.raises(StorageError, match="being written by"):
            HashIndex.open(path, writable=True)


@pytest.mark.starts
def test_a_fork_waits_for_an_import_that_runs(tmp_path, monkeypatch):
    (tmp_path / "slowly_imported.py").write_text("import time\ntime.sleep(0.5)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    importing = threading.Thread(target=imported, args=("slowly_imported",))
    importing.start()
    while "slowly_imported" not in sys.modules:
        time.sleep(0.01)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if hasattr(sys.modules["slowly_imported"], "whole") else 1)
    )
    child.start()
    child.join(500)
    importing.join()
    assert child.exitcode == 0


# --- an index of somebody else's ---------------------------------------------------------------------


def forge(path, change):
    """Change the manifest, and leave out the checksum that would tell."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    del manifest["sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_the_manifest_has_a_checksum(path):
    content = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(content.replace('"written": 1', '"written": 2'))
    with pytest.raises(FileFormatError, match="does not have the checksum"):
        HashIndex.open(path)
    forge(path, lambda manifest: None)  # of crovca 0.1.0, which wrote none
    HashIndex.open(path).close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["segments"][0].update(name="../../home"), "cannot be the name of a segment"),
        (lambda m: m["segments"][0].update(name="/etc"), "cannot be the name of a segment"),
        (lambda m: m["segments"][0]["files"][0].update(name="../lock"), "is no file of a segment"),
        (lambda m: m["segments"][0]["deletions"].update(name="codes.npy"), "has its deletions in"),
        (lambda m: m["segments"][0]["files"].pop(), "expected"),
        (lambda m: m["segments"][0]["files"][0].update(bytes=-1), "must be a whole number"),
        (lambda m: m["segments"][0]["files"][0].update(sha256="x"), "the checksum of"),
        (lambda m: m["segments"][0].update(rows=10**15), "must be a whole number"),
        (lambda m: m["segments"][0].update(rows=901), "expected"),
        (lambda m: m["segments"][0].update(deleted=2), "does not mark 2 rows"),
        (lambda m: m["segments"].append(m["segments"][0]), "listed twice"),
        (lambda m: m.update(written=0), "beyond 'written'"),
        (lambda m: m.update(bits="64"), "whole number"),
        (lambda m: m.update(bits=72), "expected"),
        (lambda m: m.update(id_type="int64"), "expected"),
        (lambda m: m.update(id_type=None), "expected"),
        (lambda m: m.update(generation=True), "whole number"),
        (lambda m: m.update(uuid="../x"), "uuid"),
        (lambda m: m.update(columns=[1]), "names and types"),
        (lambda m: m.update(encoder="x"), "not an object"),
        (lambda m: m.update(segments={"a": 1}), "damaged"),
    ],
)
def test_a_manifest_is_not_believed(path, change, message):
    forge(path, change)
    for writable in (False, True):
        with pytest.raises(FileFormatError, match=message):
            HashIndex.open(path, writable=writable)


def test_deep_and_huge_manifests_are_refused(path):
    (path / "manifest.json").write_text('{"kind": ' + "[" * 100_000)
    with pytest.raises(FileFormatError):
        HashIndex.open(path)
    with (path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileFormatError, match="bytes"):
        HashIndex.open(path)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(FileFormatError):
        HashIndex.open(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (899999, 8), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (900, 8), }",
        b"{'descr': '|u1', 'fortran_order': True, 'shape': (900, 8), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"(" * 50,
        b"__import__('os').abort()",
    ],
)
def test_a_header_that_is_not_an_arrays_is_refused(path, header):
    victim = path / "segments" / "00000001" / "codes.npy"
    content = victim.read_bytes()
    victim.write_bytes(content[:10] + header.ljust(117) + b"\n" + content[128:])
    with pytest.raises(FileFormatError, match=r"codes\.npy is damaged"):
        HashIndex.open(path)


def test_nothing_is_written_or_removed_through_a_link(path, tmp_path):
    home, key = tmp_path / "home", tmp_path / "key"
    (home / "00000009").mkdir(parents=True)
    (home / "00000009" / "thesis.txt").write_text("years")
    key.write_text("secret")
    for name, target in (("segments", home), ("lock", key)):
        (path / name).rename(path / f"{name}-aside") if (path / name).exists() else None
        (path / name).symlink_to(target)
        with pytest.raises(CrovcaError, match=r"link|missing"):
            HashIndex.open(path, writable=True)
        (path / name).unlink()
        (path / f"{name}-aside").rename(path / name)
    (path / "lock").unlink()
    (path / "lock").hardlink_to(key)
    with pytest.raises(StorageError, match="is a link"):
        HashIndex.open(path, writable=True)
    (path / "lock").unlink()
    (path / "segments" / "notes").symlink_to(home)
    (path / "segments" / "00000005").symlink_to(home)
    with HashIndex.open(path, writable=True) as index:
        index.delete(["p1"])
    assert (home / "00000009" / "thesis.txt").read_text() == "years" and key.read_text() == "secret"


def test_files_that_contradict_each_other_are_named(path):
    """Each has the checksum that the manifest says, but the codes are of other items."""
    with HashIndex.open(path, writable=True) as index:
        index.add([f"q{number}" for number in range(400)], codes_of(400, 1), {"n": np.arange(400)})
    first, second = (path / "segments" / name for name in sorted(one.name for one in (path / "segments").iterdir()))
    (second / "metadata.parquet").replace(first / "metadata.parquet")

    def exchange(manifest):
        files_of = [{file["name"]: file for file in entry["files"]} for entry in manifest["segments"]]
        files_of[0]["metadata.parquet"].update(files_of[1]["metadata.parquet"])
        manifest["segments"].pop()

    forge(path, exchange)
    with HashIndex.open(path) as index:
        assert index.verify() == ["segment 00000001: metadata.parquet is of other items"]


def test_one_long_id_does_not_make_the_others_long(path):
    import tracemalloc

    ids = [f"img{number:06d}" for number in range(20_000)]
    ids[5] = "x" * 4000
    tracemalloc.start()
    with HashIndex.open(path, writable=True) as index:
        index.add(ids, codes_of(len(ids)))
        assert sum(len(batch) for batch in index.batches()) == 899 + len(ids)
        assert index.get([ids[5], ids[6]]).ids.tolist() == ids[5:7]
    assert tracemalloc.get_traced_memory()[1] < 96 << 20  # 20,000 times 4,000 characters would be 320 MB
    tracemalloc.stop()
    assert sum(file.stat().st_size for file in path.rglob("id_bytes.npy")) < 1 << 20
