"""Codes that a segment keeps in pieces: searched at once, exactly, and not believed where they are damaged."""

import json
import shutil

import numpy as np
import pytest

from crovca import Codes, HashIndex
from crovca.errors import FileFormatError
from crovca.files import sha256
from crovca.index import segment as segment_module
from crovca.index.engines import base, choice, pieces, pruned
from crovca.index.engines.base import few_distinct
from crovca.index.manifest import PIECES

ROWS = 200_000


@pytest.fixture(autouse=True, scope="module")
def few():
    """What is meant for millions, for fewer; they are laid out in several steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "_MANY", ROWS)
        patch.setattr(pruned, "_SAMPLE", ROWS // 2)
        patch.setattr(pieces, "_SORTED", ROWS // 6)
        yield


def alike(rng, count, bits=64):
    centers = rng.random((100, bits)) < 0.5
    return Codes.from_bits(centers[rng.integers(0, 100, count)] ^ (rng.random((count, bits), np.float32) < 0.05))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "index"
    with HashIndex.create(path, 64) as index:
        index.add(np.arange(ROWS), alike(np.random.default_rng(0), ROWS))
    return path


@pytest.fixture
def path(made, tmp_path):
    return shutil.copytree(made, tmp_path / "index")


def queries(path, count=5):
    with HashIndex.open(path) as index:
        codes = index.get(np.arange(count)).codes
    return (2.0 * codes.unpack() - 1) * np.abs(np.random.default_rng(1).normal(size=(count, 64)))


def engines(index):
    return {one["engine"] for one in index.engines()}


def same(found, truth):
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_array_equal(found.distances, truth.distances)


def test_a_large_segment_is_searched_from_its_files(path):
    asked = queries(path)
    with HashIndex.open(path) as index:
        found = index.search(asked, k=20)
        (engine,) = index.engines()
        assert engine["engine"] == "pruned" and engine["bytes"] < 20_000 and 0 < engine["read"] < 1
        assert index.stats()["disk_bytes"]["pieces"] > 16 * ROWS
        same(found, index.search(asked, k=20, engine="exact"))
        same(index.search(asked, k=20, bits=32), index.search(asked, k=20, bits=32, engine="exact"))
        assert index.verify() == []


def test_deletions_and_compacting(path):
    asked = queries(path)
    with HashIndex.open(path, writable=True) as index:
        for stop in (3000, ROWS // 2):  # few, and so many that another engine is built
            index.delete(np.arange(100, stop))
            same(index.search(asked, k=20), index.search(asked, k=20, engine="exact"))
        index.add(np.arange(100, ROWS // 2), alike(np.random.default_rng(2), ROWS // 2 - 100))
        index.compact()
        assert index.stats()["disk_bytes"]["pieces"] > 16 * ROWS and index.verify() == []
        same(index.search(asked, k=20), index.search(asked, k=20, engine="exact"))
        assert engines(index) >= {"pruned"}


def test_codes_that_gain_nothing_are_not_laid_out(tmp_path):
    rng = np.random.default_rng(0)
    chance = Codes(rng.integers(0, 256, (ROWS, 8), dtype=np.uint8), 64)
    for name, codes in {"chance": chance, "equal": alike(rng, 300)[rng.integers(0, 300, ROWS)]}.items():
        with HashIndex.create(tmp_path / name, 64) as index:
            index.add(np.arange(ROWS), codes)
            assert not index.stats()["disk_bytes"]["pieces"]


@pytest.mark.parametrize("bits", [8, 13, 64, 130])
def test_every_code_is_in_one_piece(bits):
    codes = alike(np.random.default_rng(bits), 7000, bits)
    parts = list(pieces.lay_out(codes, 200))
    sizes, bounds, content = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    kept = base.KeptPieces("", None, 0, sizes, bounds, content)
    assert pieces.are_of(codes, kept) and sizes.sum() == 7000
    assert bits < 16 or sizes.max() <= 200
    assert not pieces.are_of(codes[::-1], kept)


def changed(path, name, change):
    """A file with other content, of which the manifest has the checksum."""
    (file,) = path.glob(f"segments/*/{name}")
    values = np.load(file)
    change(values)
    np.save(file, values)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    (entry,) = (one for one in manifest["segments"][0]["files"] if one["name"] == name)
    entry["sha256"] = sha256(file)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["pieces.npy", "piece_bounds.npy"])
def test_pieces_of_other_codes_are_named_and_not_used(path, name, caplog):
    asked = queries(path)
    changed(path, name, lambda values: np.bitwise_xor(values[:1], 1, out=values[:1]))
    with HashIndex.open(path) as index:
        assert "pieces.npy is of other codes" in index.verify()[0]
        same(index.search(asked, k=20), index.search(asked, k=20, engine="exact"))
        assert "is not used" in caplog.text


def test_sizes_that_are_not_those_of_the_codes_are_refused(path):
    changed(path, "piece_sizes.npy", lambda sizes: np.add(sizes, 1, out=sizes))
    with pytest.raises(FileFormatError, match="the sizes of its pieces are not those of its codes"):
        HashIndex.open(path)


def test_rows_that_there_are_not_are_refused(path):
    asked = queries(path)

    def beyond(content):
        content[4096 * 16 :].view(np.int64)[:] = ROWS + 7  # whatever these are, codes or rows

    changed(path, "pieces.npy", beyond)
    with HashIndex.open(path) as index, pytest.raises(FileFormatError, match=r"pieces\.npy of a segment is damaged"):
        index.search(asked, k=20)


def test_another_index_in_the_place_of_one_that_is_open_is_not_read(path):
    asked = queries(path)
    with HashIndex.open(path) as index:
        path.rename(path.with_name("elsewhere"))
        with HashIndex.create(path, 64) as other:
            other.add(np.arange(ROWS), alike(np.random.default_rng(9), ROWS))
        same(index.search(asked, k=20), index.search(asked, k=20, engine="exact"))
        assert engines(index) >= {"pruned"}


def test_one_of_three_files_is_not_enough(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    files = manifest["segments"][0]["files"]
    manifest["segments"][0]["files"] = [one for one in files if one["name"] != "piece_sizes.npy"]
    assert len(files) - len(PIECES) == 4
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileFormatError, match="has the files"):
        HashIndex.open(path)


def test_what_is_written_meanwhile_fits_in_little_memory(tmp_path, monkeypatch):
    """Pieces are laid out some at a time, from the file that was just written."""
    seen = []
    lay_out = pieces.lay_out

    def watched(codes):
        for part in lay_out(codes):
            seen.append(int(part.sizes.sum()))
            yield part

    monkeypatch.setattr(pieces, "lay_out", watched)
    monkeypatch.setattr(segment_module, "worth_laying_out", lambda _: True)
    with HashIndex.create(tmp_path / "index", 64) as index:
        index.add(np.arange(ROWS), alike(np.random.default_rng(0), ROWS))
    assert sum(seen) == ROWS and max(seen) < ROWS / 3


def test_few_distinct_codes_are_recognized(monkeypatch):
    monkeypatch.setattr(base, "_SOME", 1000)
    rng = np.random.default_rng(0)
    codes = Codes(rng.integers(0, 256, (60_000, 8), dtype=np.uint8), 64)
    assert not few_distinct(codes)
    assert not few_distinct(codes[rng.permutation(np.r_[:60_000, :6000])])  # a tenth of them twice
    assert few_distinct(codes[rng.integers(0, 20_000, 60_000)])  # each three times
    assert few_distinct(codes[np.where(rng.random(60_000) < 0.6, 0, np.arange(60_000))])  # one of them mostly
