"""What is left of an index when a writer is killed, a disk is full, or a file is damaged."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crovca import Codes, HashIndex
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.index.manifest import Manifest


def codes_of(count, seed=0):
    return Codes(np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8), 64)


@pytest.fixture
def path(tmp_path):
    """An index of three segments, the second with a deletion."""
    with HashIndex.create(tmp_path / "index", 64) as index:
        for start, count in ((0, 4000), (4000, 1500), (5500, 500)):
            ids = [f"photo {n}" for n in range(start, start + count)]
            index.add(ids, codes_of(count, start), {"n": np.arange(count)})
        index.delete(["photo 4100"])
    return tmp_path / "index"


def killed_writers(folder, rounds):
    script = Path(__file__).with_name("killed_writer.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "index"), str(rounds), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return map(int, re.match(r"\d+ rounds, (\d+) killed, (\d+) undone", done.stdout).groups())


@pytest.mark.starts
def test_a_killed_writer_loses_nothing_acknowledged_and_leaves_nothing_half_done(tmp_path):
    killed, undone = killed_writers(tmp_path, 40)
    assert killed > 12 and undone > 5


@pytest.mark.torture
@pytest.mark.starts
def test_600_kills_during_add_merge_refit_and_compact_with_originals_lose_nothing(tmp_path):
    killed, undone = killed_writers(tmp_path, 700)
    assert killed > 600 and undone > 300


@pytest.mark.parametrize("file", ["codes.npy", "hashes.npy", "id_bytes.npy", "id_offsets.npy", "metadata.parquet"])
@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_a_damaged_segment_is_named_and_the_rest_opens(path, file, damage):
    victim = path / "segments" / "00000002" / file
    if damage == "removed":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match=rf"segment 00000002 is damaged: .*{file} .*skip_damaged=True"):
        HashIndex.open(path)
    with pytest.raises(FileFormatError, match="segment 00000002"):
        HashIndex.open(path, writable=True)
    HashIndex.open(path, skip_damaged=True).close()
    with HashIndex.open(path, skip_damaged=True) as rest:
        assert len(rest) == 4500
        assert rest.search(codes_of(1), 3, metric="hamming").ids[0, 0] in {f"photo {n}" for n in range(4000)}
        (line,) = rest.verify()
        assert "00000002" in line and file in line


def test_a_removed_segment_gets_one_clear_line(path):
    shutil.rmtree(path / "segments" / "00000001")
    with pytest.raises(FileFormatError, match=r"segment 00000001 is damaged: .* is missing"):
        HashIndex.open(path)


def test_a_damaged_index_is_not_written(path):
    with pytest.raises(InvalidInputError, match="cannot be written"):
        HashIndex.open(path, writable=True, skip_damaged=True)


@pytest.mark.parametrize("file", ["codes.npy", "hashes.npy", "metadata.parquet", "deleted-00000004.npy"])
def test_a_flipped_bit_is_found_by_verify(path, file):
    victim = path / "segments" / "00000002" / file
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with HashIndex.open(path) as index:
        assert index.verify() == [f"segment 00000002: {file} does not have the checksum that it was written with"]


def test_a_file_of_the_right_size_that_is_something_else_is_named(path):
    victim = path / "segments" / "00000001" / "codes.npy"
    victim.write_bytes(b"x" * victim.stat().st_size)
    with pytest.raises(FileFormatError, match=r"codes\.npy is damaged"):
        HashIndex.open(path)


def test_a_full_disk_changes_nothing(path):
    """Files that may not grow beyond a limit are as a full disk: the write fails in the middle."""
    before = json.loads((path / "manifest.json").read_text())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with HashIndex.open(path, writable=True) as index:
        try:
            for limit in (10, 5000, 100_000):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                with pytest.raises(StorageError, match="cannot write"):
                    index.add([f"new {n}" for n in range(20_000)], codes_of(20_000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
            with pytest.raises(StorageError, match="cannot write"):
                index.delete(["photo 1"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)
        assert json.loads((path / "manifest.json").read_text()) == before
        assert "photo 1" in index and len(index) == 5999 and index.verify() == []
        index.add(["new 1"], codes_of(1))  # and once there is room, it goes on
        assert len(index) == 6000
    with HashIndex.open(path) as index:
        assert len(index) == 6000 and "new 1" in index


def test_a_read_only_index_is_searched_and_not_written(path):
    for file in [path, *path.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    try:
        with HashIndex.open(path) as index:
            assert index.search(codes_of(1), 1, metric="hamming", where="n >= 0").ids.shape == (1, 1)
        probe = path / "probe"
        try:
            probe.touch()
        except PermissionError:
            with pytest.raises(StorageError, match="cannot write to the index"):
                HashIndex.open(path, writable=True)
        else:
            pytest.skip("this user may write everywhere")
    finally:
        for file in [path, *path.rglob("*")]:
            file.chmod(0o755 if file.is_dir() else 0o644)


@pytest.mark.starts
def test_reading_and_writing_at_once(tmp_path):
    """Readers that open and refresh as fast as they can, while a writer merges and compacts away their files."""
    path = tmp_path / "index"
    reader = (
        "import sys, numpy as np; from crovca import HashIndex\n"
        "index = HashIndex.open(sys.argv[1]); last = 0\n"
        "for _ in range(15):\n"
        "    index.refresh(); assert len(index) >= last; last = len(index)\n"
        "    found = index.search(np.ones((1, 64)), 10, where='n >= 0'); assert found.ids.shape == (1, min(10, last))\n"
        "    other = HashIndex.open(sys.argv[1], skip_damaged=True); assert len(other) >= last\n"
        "    assert other.damaged == [] and other.verify() == []; other.close()\n"
    )
    with HashIndex.create(path, 64) as index:
        index.add([0], codes_of(1), {"n": [0]})
        running = [
            subprocess.Popen(
                [sys.executable, "-c", reader, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        number = 1
        while any(process.poll() is None for process in running):
            index.add(np.arange(number, number + 50), codes_of(50, number), {"n": np.arange(50)})
            number += 50
            if number % 7 == 0:
                index.compact()
            time.sleep(0.001)
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error


def resident():
    """Bytes of this process in memory, pages of mapped files among them."""
    return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux tells them")
def test_opening_ten_million_codes_reads_none_of_them(tmp_path):
    path = tmp_path / "index"
    count = 10_000_000
    HashIndex.create(path, 64).close()
    # Written as ``write_segment`` would, but sparse: no time for ten million ids.
    folder = path / "segments" / "00000001"
    folder.mkdir()
    files = []
    for name, dtype, shape in (
        ("codes", np.uint8, (count, 8)),
        ("hashes", np.uint64, (count,)),
        ("ids", np.int64, (count,)),
    ):
        array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        array.flush()
        files.append({"name": f"{name}.npy", "bytes": (folder / f"{name}.npy").stat().st_size, "sha256": "0" * 64})
    manifest = json.loads((path / "manifest.json").read_text())
    (folder / "metadata.parquet").write_bytes(b"-")
    files.append({"name": "metadata.parquet", "bytes": 1, "sha256": "0" * 64})
    entry = {"name": "00000001", "rows": count, "files": files, "deleted": 0, "deletions": None}
    manifest.update(generation=1, written=1, id_type="int64", segments=[entry])
    del manifest["sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with HashIndex.open(path) as index:  # what is imported, and the like
        assert len(index) == count
    before = resident()
    with HashIndex.open(path) as index:
        assert len(index) == count
        assert resident() - before < 8 << 20  # of 240 MB
        index.view().segments[0].codes.packed.sum()
        assert resident() - before > 60 << 20  # so that it would be seen


def test_an_index_that_is_replaced_under_its_writer_is_not_written(tmp_path):
    """By another one at the same place, or because the process went elsewhere and came to another."""
    writer = HashIndex.create(tmp_path / "index", 64)
    writer.add([1], codes_of(1))
    (tmp_path / "index").rename(tmp_path / "old")
    with pytest.raises(StorageError, match="was moved or built anew while it was open for writing"):
        writer.add([2], codes_of(1))
    HashIndex.create(tmp_path / "index", 64).close()
    for write in (lambda: writer.add([2], codes_of(1)), lambda: writer.delete([1]), writer.compact):
        with pytest.raises(StorageError, match="nothing was written"):
            write()
    writer.close()
    with HashIndex.open(tmp_path / "index") as index:
        assert len(index) == 0 and index.verify() == []
    with HashIndex.open(tmp_path / "old") as index:
        assert len(index) == 1 and index.verify() == []


def test_a_relative_path_stays_what_it_was(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with HashIndex.create("index", 64) as index:
            index.add([name], codes_of(1))
    monkeypatch.chdir(tmp_path / "a")
    with HashIndex.open("index", writable=True) as index:
        monkeypatch.chdir(tmp_path / "b")
        index.add(["c"], codes_of(1, 1))
    with HashIndex.open(tmp_path / "a" / "index") as a, HashIndex.open(tmp_path / "b" / "index") as b:
        assert "c" in a and "c" not in b


def test_a_reader_of_an_index_that_was_built_anew_is_told(tmp_path):
    path = tmp_path / "index"
    with HashIndex.create(path, 64) as index:
        index.add(np.arange(10), codes_of(10))
    reader = HashIndex.open(path)
    shutil.rmtree(path)
    with HashIndex.create(path, 32) as index:
        index.add(np.arange(10), Codes(codes_of(10).packed[:, :4], 32))
    with pytest.raises(FileFormatError, match="was built anew; open it again"):
        reader.refresh()
    reader.close()


def test_a_closed_index_says_so(path):
    index = HashIndex.open(path, writable=True)
    index.close()
    for use in (lambda: index.search(codes_of(1), 1, metric="hamming"), lambda: index.delete(["photo 1"])):
        with pytest.raises(StorageError, match="is closed"):
            use()
    index.close()


def test_a_segment_that_is_removed_while_it_is_opened_is_missing(path, monkeypatch):
    """Between opening a file and locking it, a writer may have removed it."""
    from crovca.index import segment as module

    victim = path / "segments" / "00000002"
    entry = next(one for one in Manifest.load(path).segments if one.name == victim.name)
    lock = module.fcntl.flock
    monkeypatch.setattr(module.fcntl, "flock", lambda *_: (shutil.rmtree(victim, ignore_errors=True), lock(*_)))
    with pytest.raises(FileNotFoundError):
        module.Segment(victim, entry, 64, "string")


def test_damage_that_sizes_do_not_show_is_named_where_it_is_met(path):
    def flip(name, at):
        file = path / "segments" / "00000002" / name
        content = bytearray(file.read_bytes())
        content[at] ^= 0xFF
        file.write_bytes(content)

    with pq.ParquetFile(path / "segments" / "00000002" / "metadata.parquet") as metadata:
        column = metadata.schema_arrow.names.index("n")
        chunk = metadata.metadata.row_group(0).column(column)
    flip("metadata.parquet", chunk.dictionary_page_offset + chunk.total_compressed_size // 2)
    with HashIndex.open(path) as index, pytest.raises(FileFormatError, match=r"metadata\.parquet is damaged"):
        index.get(["photo 4200"])
    with (
        HashIndex.open(path, writable=True) as index,
        pytest.raises(FileFormatError, match="does not have the checksum"),
    ):
        index.compact()
    flip("id_bytes.npy", -3)
    with HashIndex.open(path) as index, pytest.raises(FileFormatError, match="an id is damaged"):
        index.search(codes_of(1), 6000, metric="hamming")


def test_leftovers_of_killed_writers_go(path):
    (path / ".manifest.json.0123abcd.tmp").write_text("{")
    HashIndex.open(path, writable=True).close()
    assert not list(path.glob(".*.tmp"))
