import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from crovca.codes import Codes
from crovca.data.embeddings import as_embeddings, load_embeddings
from crovca.data.encoded import Encoded
from crovca.data.labels import check_labels, share_a_label, to_membership
from crovca.data.store import PartedArray, save_store
from crovca.errors import InvalidInputError

VALUES = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float16)
VIEWS = np.random.default_rng(1).normal(size=(12, 3, 4)).astype(np.float32)
IDS = np.array([f"a/{number}.jpg" for number in range(12)])
LABELS = {
    "whole numbers": np.arange(12) % 3,
    "strings": np.array(["cat", "dog", "ü"] * 4),
    "multi-hot": np.arange(36).reshape(12, 3) % 2 == 0,
}


def write_npz(path, values, labels, ids):
    np.savez(path, embeddings=values, labels=labels, ids=ids)


def write_npy(path, values, labels, ids):
    np.save(path, values)
    items = {"labels": pa.array(labels.tolist()), "ids": pa.array(ids)}
    pq.write_table(pa.table(items), path.with_name(f"{path.stem}.items.parquet"))


def write_safetensors(path, values, labels, ids):
    write_npy(path.with_suffix(".npy"), values, labels, ids)
    path.with_suffix(".npy").unlink()
    save_file({"embeddings": values}, path)


def write_parquet(path, values, labels, ids):
    column = pa.array(values.reshape(-1))
    for width in values.shape[:0:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, width)
    pq.write_table(pa.table({"embeddings": column, "labels": labels.tolist(), "ids": ids}), path)


def write_store(path, values, labels, ids):
    save_store(path, values, labels=labels, ids=ids, shard_size=5)


WRITERS = {
    "e.npz": write_npz,
    "e.npy": write_npy,
    "e.safetensors": write_safetensors,
    "e.parquet": write_parquet,
    "store": write_store,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("values", [VALUES, VIEWS], ids=["single", "views"])
def test_every_format_gives_the_same_embeddings(tmp_path, name, kind, values):
    path = tmp_path / name
    WRITERS[name](path, values, LABELS[kind], IDS)
    found = load_embeddings(path)
    assert found.values.shape == values.shape
    assert found.values.dtype == values.dtype
    assert np.array_equal(found.values[:], values)
    assert np.array_equal(found.values[np.array([7, 0, 11])], values[[7, 0, 11]])
    assert np.array_equal(found.ids, IDS)
    assert np.array_equal(found.labels, LABELS[kind])
    assert (len(found), found.width, found.views) == (12, 4, 1 if values.ndim == 2 else 3)


def test_npy_and_stores_are_memory_mapped(tmp_path):
    np.save(tmp_path / "e.npy", VALUES)
    assert isinstance(load_embeddings(tmp_path / "e.npy").values, np.memmap)
    save_store(tmp_path / "store", VALUES, shard_size=5)
    store = load_embeddings(tmp_path / "store")
    assert isinstance(store.values, PartedArray)
    assert all(isinstance(part, np.memmap) for part in store.values._parts)
    assert store.ids is None
    assert store.labels is None


def test_embeddings_without_labels_or_ids(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=VALUES)
    found = load_embeddings(tmp_path / "e.npz")
    assert found.labels is None
    assert found.ids is None


@given(parts=st.lists(st.integers(0, 5), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_parted_arrays_read_like_one_array(parts, seed):
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(length, 2)) for length in parts]
    whole = np.concatenate(arrays)
    parted = PartedArray(arrays)
    assert parted.shape == whole.shape
    assert np.array_equal(parted[1:4], whole[1:4])
    if len(whole):
        rows = random.integers(len(whole), size=9)
        assert np.array_equal(parted[rows], whole[rows])
    with pytest.raises(IndexError):
        parted[np.array([len(whole)])]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda values: values.tolist()])
def test_arrays_of_any_library_are_taken(make):
    values = VALUES.astype(np.float32)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a list becomes float64, which is said
        found = as_embeddings(make(values))
    assert np.allclose(np.asarray(found.values), values)
    bfloat = as_embeddings(torch.zeros(2, 3, dtype=torch.bfloat16) + torch.arange(3))
    assert bfloat.values.dtype == np.float32


def test_labels_of_every_kind():
    assert check_labels([True, False], 2).dtype == np.int64
    assert check_labels(np.array([1.0, 2.0]), 2).tolist() == [1, 2]
    assert check_labels(np.array(["a", "b"], object), 2).dtype.kind == "U"
    members = to_membership(check_labels(["b", "a", "b"], 3))
    assert members.index.tolist() == [1, 0, 1]
    assert members.names.tolist() == ["a", "b"]
    for wrong in (np.array([0.5, 1]), np.array([None, "a"]), np.array([[2, 0], [0, 1]]), np.zeros((2, 1, 1))):
        with pytest.raises(InvalidInputError, match="labels"):
            check_labels(wrong, 2)


@given(st.integers(0, 99))
def test_relevance_is_sharing_a_label(seed):
    random = np.random.default_rng(seed)
    ours, theirs = random.random((3, 4)) < 0.3, random.random((9, 4)) < 0.3
    expected = np.array([[bool((a & b).any()) for b in theirs] for a in ours])
    assert np.array_equal(share_a_label(ours, theirs), expected)
    rows = np.stack([random.permutation(9)[:5] for _ in range(3)])
    assert np.array_equal(share_a_label(ours, theirs, rows), np.take_along_axis(expected, rows, axis=1))


def test_encoded_items_survive_saving(tmp_path):
    logits = np.random.default_rng(0).normal(size=(12, 10)).astype(np.float32)
    items = Encoded(Codes.from_logits(logits), IDS, LABELS["multi-hot"], logits)
    items.save(tmp_path / "codes.npz")
    found = Encoded.load(tmp_path / "codes.npz")
    assert found.codes == items.codes
    assert np.array_equal(found.ids, IDS)
    assert np.array_equal(found.labels, items.labels)
    assert np.array_equal(found.logits, logits)
    cut = found.prefix(3)
    assert cut.codes == items.codes.prefix(3)
    assert np.array_equal(cut.logits, logits[:, :3])
    with pytest.raises(InvalidInputError, match="11 ids for 12 codes"):
        Encoded(items.codes, IDS[:11])


def test_labels_given_beside_embeddings_win():
    data = as_embeddings(VALUES, np.arange(12) % 3)
    assert as_embeddings(data).labels.tolist() == data.labels.tolist()
    assert as_embeddings(data, np.arange(12) % 2).labels.tolist() == (np.arange(12) % 2).tolist()
