"""What is not as it should be: accepted with a notice, or refused in one clear line that leaves nothing behind."""

import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from crovca.cli.main import main
from crovca.codes import Codes
from crovca.data.embeddings import as_embeddings, load_embeddings
from crovca.data.encoded import Encoded
from crovca.data.store import save_store
from crovca.errors import ConfigError, CrovcaError, CrovcaWarning, FileFormatError, InvalidInputError, StorageError
from crovca.files import atomic_directory, atomic_file, load_arrays
from crovca.hasher import Hasher
from crovca.hashing.neighbors import find_neighbors
from tests.hasher.models import rewrite
from tests.started import ended

X = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
TEXTS = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
VIEWS = np.stack([X, X + 0.1], axis=1)
LABELS = np.arange(40) % 2
IDS = np.array([f"item {number}" for number in range(40)])
QUICK = ("--bits", "16", "--epochs", "1")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Trained models: ``model`` (8 wide), ``pair`` (images 8, texts 6 wide) and ``twins`` (both 8 wide)."""
    folder = tmp_path_factory.mktemp("models")
    Hasher(bits=16, epochs=1).fit(X).save(folder / "model")
    Hasher.for_pairs(bits=16, epochs=1).fit(X, texts=TEXTS).save(folder / "pair")
    Hasher.for_pairs(bits=16, epochs=1).fit(X, texts=X + 1).save(folder / "twins")
    return SimpleNamespace(model=folder / "model", pair=folder / "pair", twins=folder / "twins")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with ``x.npz`` (embeddings alone) and ``labeled.npz``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CROVCA_DEBUG", raising=False)
    np.savez("x.npz", embeddings=X)
    np.savez("labeled.npz", embeddings=X, labels=LABELS, ids=IDS)
    return tmp_path


def contents(folder):
    """Every file below a folder (hidden ones too) with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def check_refusal(ended, match):
    code, out, err = ended
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    notes = [line for line in lines if line.startswith("note: ")]
    assert len(errors) == 1, err
    assert len(errors) + len(notes) == len(lines), err
    assert re.search(match, errors[0]), errors[0]
    assert "internal error" not in errors[0]
    assert out == ""
    assert code == 2


@pytest.fixture
def run(folder, capsys):
    """Run a command: its exit code, standard output and standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def refuses(run, folder):
    """The command is refused in one line that matches, with exit code 2, and leaves the folder as it was."""

    def refuses(*arguments, match):
        before = contents(folder)
        check_refusal(run(*arguments), match)
        assert contents(folder) == before

    return refuses


@pytest.fixture
def accepts(run):
    """The command does its work; ``note`` stands in a line ``note: ...`` on standard error."""

    def accepts(*arguments, note=None):
        code, out, err = run(*arguments)
        assert code == 0, err
        assert out
        notes = [line for line in err.splitlines() if line.startswith("note: ")]
        assert note is None or any(re.search(note, line) for line in notes), err

    return accepts


# Accepted with a notice


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "float64", ">f4", "longdouble"])
def test_other_dtypes_are_converted(folder, accepts, models, dtype):
    values = X > 0 if dtype == "bool" else (10 * np.abs(X)).astype(dtype)
    np.savez("other.npz", embeddings=values)
    accepts("train", "other.npz", "-o", "m", *QUICK, note="converted to float32")
    accepts("encode", models.model, "other.npz", note="converted to float32")
    assert Codes.load("codes.npz") == Hasher.load(models.model).encode(values.astype(np.float32))
    with pytest.warns(CrovcaWarning, match="converted to float32"):
        as_embeddings(values)


def test_fewer_items_than_a_batch_make_a_smaller_batch(accepts):
    accepts("train", "x.npz", "-o", "m", *QUICK, note="batches of 40: there are fewer items than batch_size = 256")


def test_zero_and_constant_rows_are_kept_and_never_neighbors(folder, accepts):
    values = X.copy()
    values[3], values[7] = 0, 5
    np.savez("flat.npz", embeddings=values)
    note = r"2 of 40 rows are zero or constant \(rows 3, 7\); they are kept, but never used as neighbors"
    accepts("train", "flat.npz", "-o", "m", *QUICK, note=note)
    accepts("encode", "m", "flat.npz", note=note)
    assert len(Codes.load("codes.npz")) == 40
    with pytest.warns(CrovcaWarning, match=note):
        data = as_embeddings(values)
    assert data.degenerate.tolist() == [3, 7]
    rows = find_neighbors(data.values, 5, degenerate=data.degenerate).rows
    assert not np.isin(np.delete(rows, [3, 7], axis=0), [3, 7]).any()


def test_lengths_that_were_not_trained_are_noted(accepts, models):
    accepts("encode", models.model, "x.npz", "--bits", "12", note="12 bits is not a length")
    assert Codes.load("codes.npz").bits == 12


# Refused: the arrays


def with_rows(value, *rows):
    changed = X.astype(np.float64) if value == 1e300 else X.copy()
    changed[list(rows), 2] = value
    return changed


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"embeddings": with_rows(np.nan, 2, 5)}, r"NaN.* in 2 of 40 rows: rows 2, 5; remove"),
    "one NaN": ({"embeddings": with_rows(np.nan, 39)}, r"in 1 of 40 rows: row 39;"),
    "infinity": ({"embeddings": with_rows(-np.inf, 0)}, r"infinity.* in 1 of 40 rows: row 0;"),
    "beyond float32": ({"embeddings": with_rows(1e300, 4)}, r"beyond float32 in 1 of 40 rows: row 4;"),
    "many NaN": ({"embeddings": X * np.nan}, r"in 40 of 40 rows: rows 0, 1, 2, 3, 4, 5, 6, 7, …;"),
    "0-D": ({"embeddings": np.float32(1)}, r"must have shape \(n, d\), or \(n, v, d\).*got \(\)"),
    "1-D": ({"embeddings": X[0]}, r"must have shape \(n, d\), or \(n, v, d\).*got \(8,\)"),
    "4-D": ({"embeddings": X.reshape(5, 2, 4, 8)}, r"must have shape .*got \(5, 2, 4, 8\)"),
    "no items": ({"embeddings": X[:0]}, r"is empty: shape \(0, 8\)"),
    "no width": ({"embeddings": X[:, :0]}, r"is empty: shape \(40, 0\)"),
    "one item": ({"embeddings": X[:1]}, "at least 2 items, got 1"),
    "no usable items": ({"embeddings": np.ones_like(X)}, "all 40 embeddings are the same, so"),
    "complex": ({"embeddings": X.astype(complex)}, "must hold real numbers, got complex"),
    "texts": ({"embeddings": X.astype(str)}, "must hold real numbers, got <U"),
    "labels of another length": ({"embeddings": X, "labels": LABELS[:39]}, "39 labels for 40 items"),
    "labels of rank 3": ({"embeddings": X, "labels": X[..., None]}, r"labels must have shape \(n,\)"),
    "real labels": ({"embeddings": X, "labels": X[:, 0]}, "labels must be whole numbers or strings, got float32"),
    "not multi-hot": ({"embeddings": X, "labels": X}, "multi-hot labels must be 0 or 1"),
    "one class": ({"embeddings": X, "labels": 0 * LABELS}, "single class.*--unsupervised"),
    "no class": ({"embeddings": X, "labels": np.zeros((40, 3))}, "no class.*--unsupervised"),
    "ids twice": ({"embeddings": X, "ids": LABELS + 7}, "ids must be unique, but '7' stands in several rows"),
    "ids of another length": ({"embeddings": X, "ids": IDS[:5]}, r"expected 40 ids .*got shape \(5,\)"),
    "real ids": ({"embeddings": X, "ids": X[:, 0]}, "ids must be whole numbers or strings"),
    "no embeddings": ({"vectors": X}, r"no array 'embeddings'; expected \['embeddings'\], found \['vectors'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(folder, refuses, name):
    arrays, match = BAD_ARRAYS[name]
    np.savez("bad.npz", **arrays)
    refuses("train", "bad.npz", "-o", "m", *QUICK, match=match)


def test_bad_rows_are_refused_by_every_command(folder, refuses, models):
    np.savez("nan.npz", embeddings=with_rows(np.nan, 2))
    match = "nan.npz: .*row 2;"
    refuses("encode", models.model, "nan.npz", match=match)
    refuses("evaluate", models.model, "--database", "nan.npz", "--query", "x.npz", match=match)
    refuses("evaluate", models.model, "--database", "x.npz", "--query", "nan.npz", match=match)
    refuses("train", "--images", "x.npz", "--texts", "nan.npz", *QUICK, match=match)
    with pytest.raises(InvalidInputError, match="NaN or infinity in row 2"):
        Hasher.load(models.model).encode(with_rows(np.nan, 2))


def test_a_single_class_can_be_left_unused(folder, accepts):
    np.savez("one.npz", embeddings=X, labels=0 * LABELS)
    accepts("train", "one.npz", "-o", "m", "--unsupervised", *QUICK, note="labels in one.npz are not used")


def test_embeddings_of_another_width_are_refused(folder, refuses, models):
    np.savez("wide.npz", embeddings=np.tile(X, 2))
    match = r"wide.npz: the model takes embeddings of shape \(n, 8\), got \(40, 16\)"
    refuses("encode", models.model, "wide.npz", match=match)
    refuses("evaluate", models.model, "--database", "wide.npz", "--query", "x.npz", match=match)
    refuses("evaluate", models.model, "--database", "x.npz", "--query", "wide.npz", match=match)
    match = r"wide.npz: the model takes embeddings of shape \(n, 8\) \(images\) or \(n, 6\) \(texts\), got \(40, 16\)"
    refuses("encode", models.pair, "wide.npz", match=match)
    match = r"the model takes embeddings of shape \(n, 6\) \(texts\), got \(40, 8\)"
    refuses("encode", models.pair, "x.npz", "--modality", "texts", match=match)
    with pytest.raises(InvalidInputError, match=r"must have shape \(n, 8\)"):
        Hasher.load(models.model).encode(TEXTS)


def test_views_cannot_be_encoded(folder, refuses, models):
    np.savez("views.npz", embeddings=VIEWS)
    match = r"views.npz: .* \(n, 8\), got \(40, 2, 8\); give one view of each item"
    refuses("encode", models.model, "views.npz", match=match)
    refuses("evaluate", models.model, "--database", "views.npz", "--query", "x.npz", match=match)
    refuses("encode", models.pair, "views.npz", match="give one view of each item")


@pytest.mark.parametrize(
    ("ours", "theirs", "match"),
    [
        (LABELS, LABELS.astype(str), "query labels .* and database labels .* cannot be compared"),
        (np.eye(2)[LABELS], LABELS, "cannot be compared; use one kind in both files"),
        (np.eye(2)[LABELS], np.eye(3)[LABELS], "2 columns in the queries and 3 in the database"),
    ],
)
def test_labels_of_different_kinds_are_refused(folder, refuses, models, ours, theirs, match):
    np.savez("query.npz", embeddings=X, labels=ours)
    np.savez("database.npz", embeddings=X, labels=theirs)
    refuses("evaluate", models.model, "--database", "database.npz", "--query", "query.npz", match=match)


def test_unequal_numbers_of_images_and_texts_are_refused(folder, refuses):
    np.savez("texts.npz", embeddings=TEXTS[:39])
    refuses("train", "--images", "x.npz", "--texts", "texts.npz", *QUICK, match=r"as many rows each, got \[40, 39\]")


# Refused: the files


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)


def lists(values):
    return pa.array(list(values))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet", ".safetensors"])
def test_files_that_are_missing_empty_or_something_else_are_refused(folder, refuses, suffix):
    name = f"bad{suffix}"
    refuses("train", name, "-o", "m", *QUICK, match=f"bad{suffix} does not exist")
    Path(name).touch()
    refuses("train", name, "-o", "m", *QUICK, match=f"bad{suffix} is empty")
    Path(name).write_text("1.0,2.0,3.0\n" * 50)
    refuses("train", name, "-o", "m", *QUICK, match=f"bad{suffix} is not a readable {suffix} .*may be truncated")
    shutil.copy("x.npz" if suffix != ".npz" else sys.executable, name)
    refuses("train", name, "-o", "m", *QUICK, match=f"bad{suffix} is not a readable {suffix}")


def test_missing_files_are_refused_by_every_command(refuses, models):
    refuses("encode", models.model, "no.npz", match="no.npz does not exist")
    refuses("encode", "no-model", "x.npz", match="model no-model does not exist; expected a folder")
    refuses("encode", "x.npz", "x.npz", match="model x.npz is a file; expected a folder")
    refuses("evaluate", models.model, "--database", "no.npz", "--query", "x.npz", match="no.npz does not exist")
    refuses("train", "--images", "x.npz", "--texts", "no.npz", match="no.npz does not exist")
    refuses("train", f"{'long' * 100}.npz", "-o", "m", match="cannot read or write .*: File name too long")


@pytest.mark.parametrize("name", ["x.csv", "x", "x.npz.gz"])
def test_unknown_suffixes_are_refused(folder, refuses, name):
    shutil.copy("x.npz", name)
    refuses("train", name, "-o", "m", *QUICK, match="unknown kind of embedding file; expected one of .npz, .npy")


def test_a_tampered_npz_is_refused(folder, refuses):
    content = bytearray(Path("x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    Path("bad.npz").write_bytes(content)
    refuses("train", "bad.npz", "-o", "m", *QUICK, match="bad.npz is not a readable .npz .*Bad CRC-32")


def test_a_tampered_shape_in_an_npz_is_refused(folder, refuses):
    content = Path("x.npz").read_bytes()
    assert content.count(b"(40, 8)") == 1
    Path("bad.npz").write_bytes(content.replace(b"(40, 8)", b"(30, 8)"))
    refuses("train", "bad.npz", "-o", "m", *QUICK, match="bad.npz is not a readable .npz")


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("key", ["embeddings", "labels", "ids"])
def test_object_arrays_in_npz_are_never_unpickled(folder, refuses, key):
    arrays: dict[str, Any] = {"embeddings": X, key: np.array([Bomb()] * 40)}
    np.savez("bad.npz", **arrays)
    match = f"bad.npz: '{key}' is an object array, which is never unpickled"
    refuses("train", "bad.npz", "-o", "m", *QUICK, match=match)
    with pytest.raises(FileFormatError, match="never unpickled"):
        load_arrays(Path("bad.npz"), required=(key,))
    assert not Path("exploded").exists()


def test_object_arrays_in_npy_are_never_unpickled(folder, refuses):
    np.save("bad.npy", np.array([Bomb()] * 40))
    refuses("train", "bad.npy", "-o", "m", *QUICK, match="bad.npy is an object array, which is never unpickled")
    Path("bad.npy").write_bytes(pickle.dumps(Bomb()))
    refuses("train", "bad.npy", "-o", "m", *QUICK, match="bad.npy is not a readable .npy")
    Path("bad.npz").write_bytes(pickle.dumps(Bomb()))
    refuses("train", "bad.npz", "-o", "m", *QUICK, match="bad.npz is not a readable .npz")
    assert not Path("exploded").exists()
    pickle.loads(Path("bad.npz").read_bytes())
    assert Path("exploded").exists()  # the bomb is a real one


def test_object_arrays_are_refused_in_python():
    with pytest.raises(InvalidInputError, match="array of objects"):
        as_embeddings(np.array([[object()]]))
    with pytest.raises(InvalidInputError, match="cannot be made into an array"):
        as_embeddings([[1.0, 2.0], [3.0]])


BAD_PARQUET: dict[str, tuple[dict[str, Any], str]] = {
    "ragged": ({"embeddings": [[1.0, 2.0], [3.0]]}, "column 'embeddings': its lists have different lengths"),
    "ragged on average equal": ({"embeddings": [[1.0], [2.0, 3.0, 4.0]]}, "have different lengths"),
    "null in a list": ({"embeddings": [[1.0, None], [3.0, 4.0]]}, "column 'embeddings' has 1 missing values"),
    "null list": ({"embeddings": [[1.0, 2.0], None]}, "column 'embeddings' has 1 missing values"),
    "null label": ({"embeddings": lists(X[:2]), "labels": [1, None]}, "column 'labels' has 1 missing values"),
    "null id": ({"embeddings": lists(X[:2]), "ids": [None, "a"]}, "column 'ids' has 1 missing values"),
    "text": ({"embeddings": ["1 2", "3 4"]}, "must hold real numbers, got <U"),
    "texts": ({"embeddings": [["1", "2"], ["3", "4"]]}, "must hold real numbers, got <U"),
    "binary": ({"embeddings": [b"12", b"34"]}, "has the type binary; expected numbers or strings"),
    "numbers": ({"embeddings": [1.0, 2.0]}, r"must have shape \(n, d\)"),
    "no column": ({"vectors": lists(X)}, r"no column 'embeddings'; found \['vectors'\]"),
    "no rows": ({"embeddings": lists(X).slice(0, 0)}, "is empty"),
    "ids twice": ({"embeddings": lists(X[:2]), "ids": ["a", "a"]}, "ids must be unique, but 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_bad_parquet_is_refused(folder, refuses, name):
    columns, match = BAD_PARQUET[name]
    write_parquet("bad.parquet", **columns)
    refuses("train", "bad.parquet", "-o", "m", *QUICK, match=f"bad.parquet: .*{match}|bad.parquet has {match}")


def test_a_column_that_stands_twice_is_refused(folder, refuses):
    pq.write_table(pa.Table.from_arrays([lists(X), lists(X)], ["embeddings", "embeddings"]), "bad.parquet")
    refuses("train", "bad.parquet", "-o", "m", *QUICK, match="bad.parquet.*embeddings")


def test_safetensors_without_embeddings_are_refused(folder, refuses):
    save_file({"vectors": X}, "bad.safetensors")
    refuses("train", "bad.safetensors", "-o", "m", match=r"no tensor 'embeddings'; found \['vectors'\]")


def test_items_that_do_not_fit_their_npy_are_refused(folder, refuses):
    np.save("e.npy", X)
    write_parquet("e.items.parquet", labels=LABELS[:39])
    refuses("train", "e.npy", "-o", "m", *QUICK, match="e.npy: there are 39 labels for 40 items")
    Path("e.items.parquet").write_bytes(Path("e.items.parquet").read_bytes()[:-9])
    refuses("train", "e.npy", "-o", "m", *QUICK, match="e.items.parquet is not a readable .parquet")


def edit_json(path, **changes):
    """Change keys of a JSON file; a value of None removes the key."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


MANIFEST, PART = Path("store/manifest.json"), Path("store/part-00001")
BAD_STORES = {
    "no manifest": (lambda: MANIFEST.unlink(), "no store of embeddings: it has no manifest.json"),
    "truncated manifest": (lambda: os.truncate(MANIFEST, 50), "not valid JSON .*may be truncated"),
    "not an object": (lambda: MANIFEST.write_text("[1]"), "holds a list, expected a JSON object"),
    "newer": (lambda: edit_json(MANIFEST, format_version=2), "store of format version 2, .*upgrade crovca"),
    "no version": (lambda: edit_json(MANIFEST, format_version=None), "store of format version None"),
    "no parts": (lambda: edit_json(MANIFEST, parts=[]), "the manifest lists no parts"),
    "odd part": (lambda: edit_json(MANIFEST, parts=["part-00000"]), "a part without 'name' and 'rows'"),
    "wrong rows": (
        lambda: edit_json(MANIFEST, parts=[{"name": "part-00000", "rows": 19}], sha256=None),
        "part-00000: 20 embeddings and 20 items, the manifest says 19",
    ),
    "fewer embeddings": (lambda: np.save(PART / "embeddings.npy", X[:7]), "7 embeddings and 20 items"),
    "some checksums": (
        lambda: edit_json(MANIFEST, parts=[{"name": "part-00000", "rows": 20}]),
        "some checksums are missing",
    ),
    "changed manifest": (lambda: edit_json(MANIFEST, seed=7), "does not have the checksum it says"),
    "a part elsewhere": (
        lambda: edit_json(MANIFEST, parts=[{"name": "../part-00000", "rows": 20}], sha256=None),
        "a part named '../part-00000', expected",
    ),
    "rows that are none": (
        lambda: edit_json(MANIFEST, parts=[{"name": "part-00000", "rows": 1e300}], sha256=None),
        "has '1e.300' rows",
    ),
    "a part twice": (
        lambda: edit_json(MANIFEST, parts=[{"name": "part-00000", "rows": 20}] * 2, sha256=None),
        "lists a part twice",
    ),
    "deep manifest": (lambda: MANIFEST.write_text("[" * 200_000), "nested too deeply"),
    "huge manifest": (lambda: os.truncate(MANIFEST, 1 << 30), "has 1,073,741,824 bytes, expected at most"),
    "a pipe": (
        lambda: as_pipe(PART / "embeddings.npy"),
        "embeddings.npy is a pipe or a device",
    ),
    "a pipe of items": (
        lambda: as_pipe(PART / "items.parquet"),
        "items.parquet is a pipe or a device",
    ),
    "no folder": (lambda: shutil.rmtree(PART), "part-00001/embeddings.npy does not exist"),
    "no items": (lambda: (PART / "items.parquet").unlink(), "part-00001/items.parquet does not exist"),
    "ids in one part": (
        lambda: write_parquet(PART / "items.parquet", id=list(range(20)), labels=LABELS[:20]),
        "some parts have ids",
    ),
    "truncated part": (lambda: os.truncate(PART / "embeddings.npy", 300), "not a readable .npy .*truncated"),
    "object part": (lambda: np.save(PART / "embeddings.npy", np.array([Bomb()])), "never unpickled"),
    "a number": (lambda: np.save(PART / "embeddings.npy", np.float32(1)), r"must have shape .*got \(\)"),
    "another width": (
        lambda: np.save(PART / "embeddings.npy", TEXTS[:20]),
        "part-00001: d is 6, the manifest says 8",
    ),
    "labels of two kinds": (
        lambda: write_parquet(PART / "items.parquet", labels=[[0, 1]] * 20),
        "the parts do not fit together",
    ),
    "labels in one part": (lambda: write_parquet(PART / "items.parquet", row=list(range(20))), "others have none"),
    "ids twice": (
        lambda: [
            write_parquet(part / "items.parquet", id=list(range(20)), labels=LABELS[:20])
            for part in (PART, PART.with_name("part-00000"))
        ],
        "ids must be unique, but '0' stands in several rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STORES)
def test_bad_stores_are_refused(folder, refuses, models, name):
    save_store(Path("store"), X, labels=LABELS, shard_size=20)
    spoil, match = BAD_STORES[name]
    spoil()
    refuses("encode", models.model, "store", match=f"store.*{match}")


# Any damage at all


def formats():
    small: dict[str, Any] = {"embeddings": X[:5, :3], "labels": LABELS[:5], "ids": IDS[:5]}
    return {
        "bad.npz": lambda path: np.savez(path, **small),
        "bad.npy": lambda path: np.save(path, small["embeddings"]),
        "bad.safetensors": lambda path: save_file({"embeddings": X[:5, :3]}, path),
        "bad.parquet": lambda path: write_parquet(path, embeddings=lists(X[:5, :3]), labels=LABELS[:5]),
    }


@pytest.fixture(scope="session", params=formats())
def damaged(request, tmp_path_factory):
    """A path, and the bytes of a sound file of that name."""
    path = tmp_path_factory.mktemp("damaged") / request.param
    formats()[request.param](path)
    return path, path.read_bytes()


def test_a_file_truncated_anywhere_is_refused(damaged):
    path, content = damaged
    for length in range(0, len(content), 1 if len(content) < 1000 else 7):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=re.escape(str(path))):
            load_embeddings(path)
    path.write_bytes(content)
    assert len(load_embeddings(path)) == 5


@settings(deadline=None, max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
@example(place=0.0, mask=1)
def test_any_changed_byte_gives_a_clear_error_or_a_sound_array(damaged, place, mask):
    path, content = damaged
    changed = bytearray(content)
    changed[int(place * len(content))] ^= mask
    path.write_bytes(changed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CrovcaWarning)
        try:
            found = load_embeddings(path)
        except CrovcaError:
            return
    if path.suffix == ".npz":  # its checksums cover the arrays, though not the list of their names
        assert np.array_equal(found.values[:], X[:5, :3])
        assert found.labels is None or np.array_equal(found.labels, LABELS[:5])
        assert found.ids is None or np.array_equal(found.ids, IDS[:5])


@settings(deadline=None, max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_changed_byte_of_codes_is_noticed(tmp_path_factory, place, mask):
    path = tmp_path_factory.getbasetemp() / "changed-codes.npz"
    codes = Codes.from_logits(X)
    codes.save(path)
    changed = bytearray(path.read_bytes())
    changed[int(place * len(changed))] ^= mask
    path.write_bytes(changed)
    try:
        assert Codes.load(path) == codes
    except FileFormatError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"packed": np.zeros((2, 2), np.uint8)}, "no array 'bits'"),
        ({"packed": np.zeros((2, 2), np.uint8), "bits": 1.5}, "'bits' must be one whole number"),
        ({"packed": np.zeros((2, 2), np.uint8), "bits": 17}, r"must have shape \(n, 3\)"),
        ({"packed": np.zeros((2, 2), np.int64), "bits": 16}, "must be a numpy array of uint8"),
        ({"packed": np.full((2, 2), 255, np.uint8), "bits": 13}, "must be 0; were these codes packed least"),
        ({"packed": np.zeros((2, 2), np.uint8), "bits": 16, "labels": [1, 2, 3]}, "3 labels for 2 items"),
        ({"packed": np.zeros((2, 2), np.uint8), "bits": 16, "ids": ["a"]}, "1 ids for 2 codes"),
        ({"packed": np.zeros((2, 2), np.uint8), "bits": 16, "logits": X}, "logits must have shape"),
    ],
)
def test_files_that_are_not_codes_are_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "codes.npz", **arrays)
    with pytest.raises(FileFormatError, match=match):
        Encoded.load(tmp_path / "codes.npz")


# Refused: the model


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_part(path, part, **changes):
    edit_json(path, **{part: {**json.loads(path.read_text())[part], **changes}})


CONFIG, WEIGHTS, LOG = Path("m/config.json"), Path("m/model.safetensors"), Path("m/log.jsonl")
BAD_MODELS = {
    "changed weights": (lambda: flip(WEIGHTS), "model.safetensors does not match its checksum"),
    "truncated weights": (lambda: os.truncate(WEIGHTS, 99), "model.safetensors does not match its checksum"),
    "no weights": (lambda: WEIGHTS.unlink(), "model.safetensors is missing; copy the whole folder"),
    "no config": (lambda: CONFIG.unlink(), "config.json is missing"),
    "truncated config": (lambda: os.truncate(CONFIG, 200), "config.json is not valid JSON .*truncated"),
    "empty config": (lambda: os.truncate(CONFIG, 0), "config.json is not valid JSON"),
    "binary config": (lambda: CONFIG.write_bytes(b"\xff\xfe"), "config.json is not valid JSON"),
    "list": (lambda: CONFIG.write_text("[]"), "holds no JSON object"),
    "newer": (lambda: edit_json(CONFIG, format_version=99), "format version 99, .*upgrade crovca"),
    "older": (lambda: edit_json(CONFIG, format_version=2), "format version 2, this crovca reads 3; train it again"),
    "no version": (lambda: edit_json(CONFIG, format_version=None), "format version None"),
    "no checksum": (lambda: edit_json(CONFIG, checksum=None), "does not match its checksum"),
    "edited": (lambda: edit_json(CONFIG, fitted={}), "does not match its checksum"),
    "unknown key": (lambda: rewrite(Path("m"), lambda c: c.update(color=1)), "unknown configuration key 'color'"),
    "odd log": (lambda: LOG.write_text('{"step": '), "log.jsonl does not match its checksum"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_refused(folder, refuses, models, name):
    shutil.copytree(models.model, "m")
    spoil, match = BAD_MODELS[name]
    spoil()
    refuses("encode", "m", "x.npz", match=match)
    refuses("evaluate", "m", "--database", "x.npz", "--query", "x.npz", match=match)


# Refused: where the result should go


def test_train_replaces_a_model_only_with_force(folder, refuses, accepts):
    accepts("train", "x.npz", "-o", "m", *QUICK)
    refuses("train", "x.npz", "-o", "m", *QUICK, match="m exists already; .*--force to replace it")
    before = WEIGHTS.read_bytes()
    accepts("train", "x.npz", "-o", "m", "--seed", "1", "--force", *QUICK)
    assert WEIGHTS.read_bytes() != before
    assert sorted(path.name for path in folder.iterdir()) == ["labeled.npz", "m", "x.npz"]


def test_force_replaces_earlier_results_only(folder, refuses, accepts, models):
    Path("photos").mkdir()
    Path("photos/a.jpg").write_text("mine")
    Path("note.txt").write_text("mine")
    data = ("--database", "labeled.npz", "--query", "labeled.npz")
    foreign = "photos is a folder of something else, which --force does not replace"
    refuses("train", "x.npz", "-o", "photos", "--force", *QUICK, match=foreign)
    refuses("encode", models.model, "x.npz", "-o", "photos", "--force", match=foreign)
    refuses("demo", "--report", "photos", "--force", match=foreign)
    refuses("train", "x.npz", "-o", "note.txt", "--force", *QUICK, match="note.txt is a file, which --force does not")
    replaced = "would replace the input"
    refuses("train", "x.npz", "-o", "x.npz", "--force", *QUICK, match=replaced)
    refuses("encode", models.model, "x.npz", "-o", "x.npz", "--force", match=replaced)
    refuses("evaluate", models.model, *data, "--report", models.model, "--force", match=replaced)
    Path("empty").mkdir()
    accepts("train", "x.npz", "-o", "empty", "--force", *QUICK)
    assert Path("empty/config.json").exists()


def test_force_keeps_an_unfinished_run_until_its_input_is_good(folder, refuses):
    Path("m.partial").mkdir()
    Path("m.partial/state.safetensors").write_text("hours of work")
    refuses("train", "missing.npz", "-o", "m", "--force", *QUICK, match="missing.npz does not exist")
    refuses("train", "x.npz", "-o", "m", "--force", "--shared", match="--shared goes with")
    assert Path("m.partial/state.safetensors").read_text() == "hours of work"


def test_encode_replaces_a_file_only_with_force(folder, refuses, accepts, models):
    Path("codes.npz").write_text("something of mine")
    refuses("encode", models.model, "x.npz", match="codes.npz exists already; .*--force to replace it")
    accepts("encode", models.model, "x.npz", "--force")
    assert len(Codes.load("codes.npz")) == 40


def test_reports_are_replaced_only_with_force(folder, refuses, accepts, models):
    pytest.importorskip("openTSNE")
    Path("report").mkdir()
    Path("report/old.txt").write_text("old")
    Path("report/metrics.json").write_text("{}")
    command = ("evaluate", models.model, "--database", "labeled.npz", "--query", "labeled.npz", "--report", "report")
    refuses(*command, match="report exists already; .*--force to replace it")
    refuses("demo", "--report", "report", match="report exists already; .*--force to replace it")
    accepts(*command, "--force")
    assert Path("report/index.html").exists()
    assert not Path("report/old.txt").exists()


def test_outputs_that_cannot_be_are_refused(refuses, models):
    match = "cannot write no/m: the folder no does not exist; create it first"
    refuses("train", "x.npz", "-o", "no/m", *QUICK, match=match)
    refuses("encode", models.model, "x.npz", "-o", "no/m", match=match)
    data = ("--database", "x.npz", "--query", "x.npz")
    refuses("evaluate", models.model, *data, "--report", "no/m", match=match)
    refuses("train", "x.npz", "-o", "x.npz/m", *QUICK, match="the folder x.npz does not exist")
    for output in (".", "..", "/"):
        match = f"error: {re.escape(output)} cannot be an output"
        refuses("train", "x.npz", "-o", output, "--force", *QUICK, match=match)
        refuses("encode", models.model, "x.npz", "-o", output, "--force", match=match)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission_are_refused(folder, refuses, models):
    Path("closed").mkdir(mode=0o500)
    refuses("train", "x.npz", "-o", "closed/m", *QUICK, match="no permission to write into closed")
    refuses("encode", models.model, "x.npz", "-o", "closed/c.npz", match="no permission to write into closed")
    Path("x.npz").chmod(0)
    with pytest.raises(StorageError, match=r"cannot read x\.npz: Permission denied"):
        load_embeddings("x.npz")


@contextmanager
def files_of_at_most(size):
    """Every write beyond ``size`` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python 3.11 would truncate it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = bytecode
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    ("command", "size"),
    [
        pytest.param(("encode", "MODEL", "x.npz"), 60, id="codes"),
        pytest.param(("encode", "MODEL", "x.npz", "--logits"), 1500, id="logits"),
        pytest.param(("train", "x.npz", "-o", "m", *QUICK), 100, id="settings of the run"),
        pytest.param(("train", "x.npz", "-o", "m", *QUICK), 1700, id="neighbors"),
        pytest.param(
            ("train", "x.npz", "-o", "m", "--bits", "256", "--epochs", "2", "--checkpoint-every", "0"), 5000, id="state"
        ),
        pytest.param(("train", "x.npz", "-o", "m", "--bits", "256", "--epochs", "1"), 5000, id="model"),
    ],
)  # fmt: skip
def test_a_full_disk_is_reported_and_leaves_nothing(folder, refuses, models, command, size):
    arguments = [models.model if argument == "MODEL" else argument for argument in command]
    with files_of_at_most(size):
        refuses(*arguments, match="cannot write .*File too large.*nothing was written")


def test_a_full_disk_keeps_what_stood_there(folder, refuses, accepts, models):
    accepts("train", "x.npz", "-o", "m", *QUICK)
    accepts("encode", "m", "x.npz")
    with files_of_at_most(60):
        refuses("encode", "m", "x.npz", "--force", match="cannot write codes.npz: .*nothing was written")
    with files_of_at_most(5000):
        refuses("train", "x.npz", "-o", "m", "--bits", "256", "--epochs", "1", "--force", match="cannot write")


@pytest.mark.starts
def test_a_full_disk_in_a_process_of_its_own(folder, models):
    script = Path("little_space.py")
    script.write_text(
        "import resource, signal, sys; sys.dont_write_bytecode = True\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))\n"
        "from crovca.cli.main import main; main(sys.argv[1:])\n"
    )
    before = contents(folder)
    done = ended([script, "encode", models.model, "x.npz"])
    check_refusal(done, "cannot write codes.npz: File too large; nothing")
    assert contents(folder) == before


def test_a_full_file_system(folder, refuses, models):
    Path("tiny").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", "tiny"]
    if not shutil.which("mount") or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        Path("tiny/filler").write_bytes(bytes(4096))
        match = "cannot write .*No space left on device"
        refuses("train", "x.npz", "-o", "tiny/m", "--bits", "512", "--epochs", "1", match=match)
        Path("tiny/more").write_bytes(bytes(4096))
        refuses("encode", models.model, "x.npz", "-o", "tiny/c.npz", match=match)
    finally:
        subprocess.run(["umount", "tiny"], check=True)


def test_a_result_that_fails_halfway_leaves_nothing(tmp_path):
    target = tmp_path / "result"
    for exchange in (atomic_file, atomic_directory):
        with pytest.raises(ZeroDivisionError), exchange(target) as temporary:
            temporary.mkdir(exist_ok=True) if exchange is atomic_directory else temporary.touch()
            raise ZeroDivisionError
        assert not list(tmp_path.iterdir())


# Refused: the options


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--bits 0", "bits must lie between 1 and 4,096, got 0"),
        ("--bits -3", "bits must lie between 1 and 4,096, got -3"),
        ("--bits 4097", "bits must lie between 1 and 4,096, got 4097"),
        ("--bits a,b", "--bits.*valid integer"),
        ("--epochs 0", "epochs must be a whole number of at least 1, got 0"),
        ("--epochs x", "--epochs.*valid integer"),
        ("--batch-size 1", "batch_size must be a whole number of at least 2, got 1"),
        ("--batch-size 0", "batch_size must be a whole number of at least 2, got 0"),
        ("--seed -1", "seed must be a whole number of at least 0, got -1"),
        ("--seed 99999999999999999999", r"seed must be below 2 \*\* 63"),
        ("--nested 16 --no-nested", "--nested and --no-nested contradict each other"),
        ("--nested a,b", "--nested must be whole numbers with commas, like 16,32,64; got 'a,b'"),
        ("--nested 8,32 --bits 16", r"nested must be .* from 1 to bits \(16\)"),
        ("--nested 0", "nested must be .* between 1 and 256"),
        ("--images x.npz", "give either DATA, or both --images and --texts"),
        ("--texts x.npz", "give either DATA, or both --images and --texts"),
        ("--images x.npz --texts x.npz", "give either DATA, or both --images and --texts"),
        ("--shared", "--shared goes with --images and --texts"),
        ("--pairing classes --unsupervised", "--unsupervised and --pairing classes contradict each other"),
        ("--pairing views,classes --unsupervised", "contradict each other"),
        ("--pairing classes", "pairing 'classes' needs labels"),
        ("--pairing views", r"views needs embeddings of shape \(n, v, d\)"),
        ("--pairing friends", "pairing must be 'auto' or some of .*'neighbors'.*got 'friends'"),
        ("--pairing views,views", "pairing must be 'auto' or some of"),
        ("--pairing auto,views", "pairing must be 'auto' or some of"),
        ("--preset huge", "unknown preset 'huge'; expected one of .*'small'"),
        ("--hashcoder medium", "--hashcoder"),
        ("--device quantum", "unknown device 'quantum'; use 'auto', 'cpu' or 'cuda'"),
        ("--device meta", "unknown device 'meta'"),
        ("--device cuda:99", "there is no device 'cuda:99'"),
        ("--color red", "No such option.*--color"),
        ("another.npz", "unexpected extra argument"),
    ],
)
def test_train_refuses_options_that_cannot_be(refuses, options, match):
    refuses("train", "x.npz", "-o", "m", *options.split(), match=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("", "give either DATA, or both --images and --texts"),
        ("--images x.npz", "give either DATA, or both --images and --texts"),
        ("--texts x.npz", "give either DATA, or both --images and --texts"),
        ("--images x.npz --texts x.npz --pairing views", "do not go with --images and --texts"),
        ("--images x.npz --texts x.npz --unsupervised", "do not go with --images and --texts"),
        ("--images x.npz --texts texts.npz --shared", "one width, got images of 8 and texts of 6"),
        ("--images x.npz --texts x.npz --preset huge", "unknown preset 'huge'"),
    ],
)
def test_train_refuses_options_of_two_modalities(folder, refuses, options, match):
    np.savez("texts.npz", embeddings=TEXTS)
    refuses("train", "-o", "m", *options.split(), match=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--bits 0", "bits must lie between 1 and 16, got 0"),
        ("--bits 17", "bits must lie between 1 and 16, got 17"),
        ("--bits 17 --logits", "bits must lie between 1 and 16, got 17"),
        ("--bits a,b", "--bits"),
        ("--modality images", "--modality is for models of two modalities; this model takes embeddings"),
        ("--modality sounds", "--modality"),
        ("--device quantum", "unknown device 'quantum'"),
        ("--device cuda:99", "there is no device 'cuda:99'"),
    ],
)
def test_encode_refuses_options_that_cannot_be(refuses, models, options, match):
    refuses("encode", models.model, "x.npz", *options.split(), match=match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--bits 0", "bits must lie between 1 and 16, got 0"),
        ("--bits 8,17", "bits must lie between 1 and 16, got 17"),
        ("--bits a,b", "--bits must be whole numbers with commas, like 16,32,64; got 'a,b'"),
        ("--top-k 0", "--top-k must be a whole number of at least 1, or 'all'; got '0'"),
        ("--top-k x", "--top-k must be a whole number of at least 1, or 'all'; got 'x'"),
        ("--top-k -5", "--top-k must be a whole number"),
        ("--images .", "--images goes with --report"),
        ("--images no-folder --report r", "no-folder is not a folder"),
        ("--query-modality images", "--query-modality is for models of two modalities"),
        ("--database-modality texts", "--database-modality is for models of two modalities"),
        ("--device quantum", "unknown device 'quantum'"),
    ],
)
def test_evaluate_refuses_options_that_cannot_be(refuses, models, options, match):
    data = ("--database", "labeled.npz", "--query", "labeled.npz")
    refuses("evaluate", models.model, *data, *options.split(), match=match)


def test_two_modalities_of_one_width_need_the_flag(refuses, accepts, models):
    match = "x.npz: images and texts are both 8 wide; say which these are with --modality images|texts"
    refuses("encode", models.twins, "x.npz", match=match)
    accepts("encode", models.twins, "x.npz", "--modality", "texts")
    command = ("evaluate", models.twins, "--database", "labeled.npz", "--query", "labeled.npz")
    refuses(*command, match="both 8 wide; say which these are with --database-modality")
    refuses(*command, "--database-modality", "images", match="both 8 wide; .*--query-modality")
    accepts(*command, "--database-modality", "images", "--query-modality", "texts")


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"bits": 16.0}, InvalidInputError, "bits must be a whole number, got 16.0"),
        ({"bits": True}, InvalidInputError, "bits must be a whole number, got True"),
        ({"bits": 5000}, InvalidInputError, "between 1 and 4,096"),
        ({"nested": "some"}, ConfigError, "nested must be"),
        ({"nested": 16}, ConfigError, "nested must be"),
        ({"epochs": 1.5}, ConfigError, "epochs must be a whole number"),
        ({"batch_size": "many"}, ConfigError, "batch_size must be a whole number"),
        ({"batch_size": "many", "epochs": 1}, ConfigError, "batch_size must be a whole number"),
        ({"learning_rate": 0}, ConfigError, "learning_rate must be greater than 0"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate must be greater than 0"),
        ({"weight_decay": -1}, ConfigError, "weight_decay must be 0 or more"),
        ({"hashcoder": "medium"}, ConfigError, "hashcoder must be 'small' or 'large'"),
        ({"neighbors": 0}, ConfigError, "neighbors must be a whole number of at least 1"),
        ({"feature_dropout": 1.0}, ConfigError, r"feature_dropout must lie in"),
        ({"pairing": ()}, ConfigError, "pairing must be"),
    ],
)
def test_hashers_refuse_parameters_that_cannot_be(parameters, error, match):
    with pytest.raises(error, match=match):
        Hasher(**{"bits": 16, **parameters}).fit(X)
