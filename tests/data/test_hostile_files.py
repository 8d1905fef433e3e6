"""Files from anybody: refused in words, or read as what they say, at no more cost than their size."""

import io
import os
import struct
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from crovca import files
from crovca.cli.main import main
from crovca.codes import Codes
from crovca.data.columns import column, read_table
from crovca.data.embeddings import as_embeddings, load_embeddings
from crovca.data.encoded import Encoded
from crovca.data.labels import check_labels
from crovca.data.store import open_store, save_store, verify_store
from crovca.errors import CrovcaWarning, FileFormatError, InvalidInputError, StorageError, printable
from tests.torture.fuzz_files import fuzz

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def npy_header(descr, shape):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def write_npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --- arrays -----------------------------------------------------------------------------------------------------

DECLARED = {
    "4 TB": npy_header("|u1", "(2000000000000, 2)") + bytes(4),
    "long strings": npy_header("<U500000000", "(2,)") + bytes(8),
    "negative": npy_header("<f4", "(-2, -2)") + bytes(16),
    "longer": npy_header("<f4", "(2, 2)") + bytes(20),
    "no bracket": npy_header("<f4", "(2, 2)").replace(b"}", b" ") + bytes(16),
    "deep": npy_header("<f4", "(" * 5000) + bytes(16),
    "version 3": b"\x93NUMPY\x03\x00" + npy_header("<f4", "(2, 2)")[8:] + bytes(16),
}


@pytest.mark.parametrize("name", DECLARED)
def test_sizes_that_an_array_declares_are_compared(tmp_path, name):
    (tmp_path / "x.npy").write_bytes(DECLARED[name])
    with pytest.raises(FileFormatError, match=r"not a readable \.npy"):
        files.open_npy(tmp_path / "x.npy")
    write_npz(tmp_path / "x.npz", x=DECLARED[name])
    with pytest.raises(FileFormatError, match=r"not a readable \.npz"):
        files.load_arrays(tmp_path / "x.npz", required=("x",))


def test_only_arrays_that_are_asked_for_are_read(tmp_path):
    packed, bits = as_npy(np.zeros((2, 2), np.uint8)), as_npy(np.int64(16))
    write_npz(tmp_path / "c.npz", packed=packed, bits=bits, other=npy_header("|O", "(2,)") + b"cos\nsystem\n.")
    assert len(Codes.load(tmp_path / "c.npz")) == 2
    with pytest.raises(FileFormatError, match="'other', which no file of codes has"):
        Encoded.load(tmp_path / "c.npz")


def test_archives_that_unpack_to_many_times_their_size_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FREE_BYTES", 1 << 16)
    zeros = np.zeros((1 << 17, 2), np.uint8)
    write_npz(tmp_path / "bomb.npz", packed=as_npy(zeros), bits=as_npy(np.int64(16)))
    with pytest.raises(FileFormatError, match="decompression bomb"):
        Codes.load(tmp_path / "bomb.npz")
    np.savez(tmp_path / "plain.npz", packed=zeros, bits=16)
    assert len(Codes.load(tmp_path / "plain.npz")) == 1 << 17
    write_npz(tmp_path / "many.npz", **{f"a{number}": b"" for number in range(1001)})
    with pytest.raises(FileFormatError, match="1,001 members"):
        files.array_names(tmp_path / "many.npz")


def test_an_array_that_the_directory_lost_is_missed(tmp_path):
    Encoded(Codes.from_logits(X), labels=np.arange(6), logits=X).save(tmp_path / "c.npz")
    data = (tmp_path / "c.npz").read_bytes()
    last, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    size = struct.unpack("<I", data[end + 12 : end + 16])[0] - (end - last)
    lost = data[:last] + data[end : end + 12] + struct.pack("<I", size) + data[end + 16 :]
    (tmp_path / "c.npz").write_bytes(lost)
    with pytest.raises(FileFormatError, match="does not list all that it holds"):
        Encoded.load(tmp_path / "c.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">f4", "<f2", "<i8", "<U3", "?"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, order, dtype):
    array = np.asarray(np.arange(12).reshape(3, 4), order=order).astype(dtype, order="K")
    np.savez_compressed(tmp_path / "a.npz", a=array, empty=array[:0], one=array[0, 0])
    np.save(tmp_path / "a.npy", array)
    found = files.load_arrays(tmp_path / "a.npz", required=("a", "empty", "one"))
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype
    assert found["empty"].shape == (0, 4)
    assert found["one"] == array[0, 0]
    np.testing.assert_array_equal(files.open_npy(tmp_path / "a.npy"), array)


def test_a_map_that_became_shorter_is_not_read(tmp_path):
    save_store(tmp_path / "s", X)
    values, _, _ = open_store(tmp_path / "s")
    assert len(values[:]) == 6
    os.truncate(tmp_path / "s/part-00000/embeddings.npy", 130)
    with pytest.raises(FileFormatError, match="was truncated to 130 bytes"):
        values[:]


# --- JSON, text, locks ------------------------------------------------------------------------------------------


def test_json_from_anybody(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(path, "x") == {"a": 1}
    for content, match in ((b"[" * 100_000, "nested too deeply"), (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
                           (b"\xff", "not UTF-8"), (b"[]", "holds a list")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=match):
            files.read_json(path, "x")
    os.truncate(path, 1 << 30)
    with pytest.raises(FileFormatError, match="expected at most"):
        files.read_json(path, "x")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileFormatError, match="a pipe or a device"):
        files.read_json(path, "x")


def test_lines_end_at_line_feeds_only():
    text = "a\u2028b\nc\x0bd\r\ne\x85f\x1cg\n\nlast"
    assert files.split_lines(text) == ["a\u2028b", "c\x0bd", "e\x85f\x1cg", "", "last"]
    assert files.split_lines("") == []
    assert files.split_lines("a\n") == ["a"]


def test_a_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / ".out.lock").symlink_to(tmp_path / "made")
    with pytest.raises(StorageError), files.locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "made").exists()


# --- tables -----------------------------------------------------------------------------------------------------


def test_lists_of_more_numbers_than_offsets_count(monkeypatch):
    """Joined, the chunks of such a column do not fit Arrow's lists; here two chunks stand for them."""
    halves = [pa.array(X[:4].tolist(), pa.list_(pa.float32())), pa.array(X[4:].tolist(), pa.list_(pa.float32()))]
    table = pa.table({"embeddings": pa.chunked_array(halves)})
    monkeypatch.setattr(pa, "concat_arrays", None)
    np.testing.assert_array_equal(column(table, "embeddings", "x"), X)
    ragged = pa.table({"e": pa.chunked_array([[[1.0, 2.0]], [[1.0]]])})
    with pytest.raises(FileFormatError, match="different lengths"):
        column(ragged, "e", "x")


KINDS = {
    "large_list": pa.array(X.tolist(), pa.large_list(pa.float32())),
    "list_view": pa.array(X.tolist(), pa.list_view(pa.float32())),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(X),
    "half": pa.array(X.astype(np.float16).tolist(), pa.list_(pa.float16())),
}


@pytest.mark.parametrize("name", KINDS)
def test_lists_of_every_kind(tmp_path, name):
    pq.write_table(
        pa.table({"embeddings": KINDS[name], "id": pa.array(list("abcdef"), pa.string_view())}), tmp_path / "e.parquet"
    )
    found = load_embeddings(tmp_path / "e.parquet")
    np.testing.assert_allclose(found.values, X, rtol=1e-3)
    assert found.ids.tolist() == list("abcdef")


def test_a_few_bytes_that_declare_a_billion_values(tmp_path, monkeypatch):
    monkeypatch.setattr("crovca.data.columns._FREE_VALUES", 1 << 10)
    monkeypatch.setattr("crovca.data.columns._VALUES_PER_BYTE", 100)
    pq.write_table(pa.table({"id": np.zeros(2_000_000, np.int64)}), tmp_path / "b.parquet")
    with pytest.raises(FileFormatError, match="2,000,000 values in a column"):
        read_table(tmp_path / "b.parquet")


# --- what is taken for what -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_that_numpy_does_not_have(tmp_path, dtype):
    tensor = torch.tensor(X).to(dtype)
    save_file({"embeddings": tensor, "labels": torch.arange(6)}, tmp_path / "e.safetensors")
    found = load_embeddings(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(found.values, tensor.float().numpy())
    assert found.labels.tolist() == list(range(6))
    np.testing.assert_array_equal(as_embeddings(tensor).values, tensor.float().numpy())
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = X.astype(getattr(ml_dtypes, str(dtype).removeprefix("torch.")))
    with pytest.warns(CrovcaWarning, match="converted to float32"):
        np.testing.assert_array_equal(as_embeddings(narrow).values, narrow.astype(np.float32))
    np.save(tmp_path / "e.npy", narrow)
    with pytest.raises(FileFormatError, match=r"raw values of \d bytes|not a valid dtype"):
        load_embeddings(tmp_path / "e.npy")


def test_other_names_of_ids_and_labels_are_taken_and_said(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=X, id=np.array(list("abcdef")), label=np.arange(6), extra=X)
    with pytest.warns(CrovcaWarning) as said:
        found = load_embeddings(tmp_path / "e.npz")
    assert found.ids.tolist() == list("abcdef")
    assert found.labels.tolist() == list(range(6))
    texts = [str(one.message) for one in said]
    assert "e.npz: labels are taken from 'label'" in texts
    assert "e.npz: 'extra' not read; embeddings, labels and ids are" in texts
    np.savez(tmp_path / "e.npz", embeddings=X, labels=np.arange(6), label=np.zeros(6, int))
    with pytest.warns(CrovcaWarning) as said:
        assert load_embeddings(tmp_path / "e.npz").labels.tolist() == list(range(6))
    assert any("both 'labels' and 'label'; 'labels' is taken" in str(one.message) for one in said)


def test_a_column_of_labels_is_one_class_each():
    for labels in ([[0], [1], [1]], [[3], [5], [5]], np.array([["a"], ["b"], ["b"]])):
        found = check_labels(labels, 3)
        assert found.tolist() == [row[0] for row in np.asarray(labels).tolist()]


HUGE = np.array([1, 2**63 + 5, 2**64 - 1], np.uint64)


def test_whole_numbers_beyond_int64_are_refused_at_every_entrance(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=X[:3], ids=HUGE)
    pq.write_table(
        pa.table({"embeddings": pa.array(X[:3].tolist(), pa.list_(pa.float32())), "ids": HUGE}), tmp_path / "e.parquet"
    )
    packed = Codes.from_logits(X[:3])
    np.savez(tmp_path / "c.npz", packed=packed.packed, bits=4, ids=HUGE)
    for read in (
        lambda: load_embeddings(tmp_path / "e.npz"),
        lambda: load_embeddings(tmp_path / "e.parquet"),
        lambda: as_embeddings(X[:3], ids=HUGE),
        lambda: as_embeddings(X[:3], labels=HUGE),
        lambda: Encoded(packed, HUGE),
        lambda: Encoded.load(tmp_path / "c.npz"),
    ):
        with pytest.raises((InvalidInputError, FileFormatError), match=r"must be at most 2\^63 - 1"):
            read()
    assert as_embeddings(X[:3], ids=HUGE.astype(str)).ids[2] == str(2**64 - 1)


def test_text_that_holds_no_characters_is_refused():
    ids = np.array(["a", "b", "c"])
    ids.view(np.uint32)[1] = 0xD800
    for point in (0xD800, 0x110000):
        ids.view(np.uint32)[1] = point
        with pytest.raises(InvalidInputError, match="damaged Unicode"):
            as_embeddings(X[:3], ids=ids)
    assert as_embeddings(X[:3], ids=np.array(list("abc"), np.dtypes.StringDType())).ids.tolist() == list("abc")


def test_what_is_no_array_of_numbers_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(InvalidInputError, match="sparse matrix; give it dense"):
        as_embeddings(sparse.csr_matrix(X))
    with pytest.raises(InvalidInputError, match="masked array"):
        as_embeddings(np.ma.array(X, mask=np.eye(6, 4, dtype=bool)))


def test_codes_are_not_the_buffer_that_they_were_made_of():
    buffer = np.zeros((3, 2), np.uint8)
    codes = Codes(buffer, 16)
    buffer[:] = 255
    assert not codes.unpack().any()
    read_only = np.zeros((3, 2), np.uint8)
    read_only.flags.writeable = False
    assert Codes(read_only, 16).packed is read_only


@pytest.mark.parametrize(("logits", "match"), [
    ([[1.0, np.nan], [0, 1]], "NaN in 1 of 2 rows, the first 0"),
    ([["a", "b"]], "real numbers"), ([[1j, 0]], "real numbers"),
])  # fmt: skip
def test_logits_without_a_sign_are_refused(logits, match):
    with pytest.raises(InvalidInputError, match=match):
        Codes.from_logits(np.array(logits))


def test_a_code_is_that_of_the_logits_as_they_are_searched_with(tmp_path):
    logits = np.array([[1e-50, 2.0**-150, 2.0**-149, 1.0, 1e300, -1e-50, -1e300, 0.0]])
    codes = Codes.from_logits(logits)
    assert codes.unpack().tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
    with np.errstate(over="ignore"):
        assert codes == Codes.from_logits(logits.astype(np.float32))
    Encoded(Codes.from_logits(logits[:, :4]), np.arange(1), None, logits[:, :4]).save(tmp_path / "codes.npz")
    assert Encoded.load(tmp_path / "codes.npz").codes == codes.prefix(4)


# --- checksums --------------------------------------------------------------------------------------------------


def test_verify_names_what_changed(tmp_path, capsys):
    save_store(tmp_path / "s", X, ids=np.array(list("abcdef")), shard_size=2)
    assert verify_store(tmp_path / "s") == []
    with pytest.raises(SystemExit) as ended:
        main(["store", "verify", str(tmp_path / "s")])
    assert ended.value.code == 0
    assert "6 items in 3 parts, all whole" in capsys.readouterr().out
    file = tmp_path / "s/part-00001/embeddings.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    load_embeddings(tmp_path / "s")  # nobody notices
    (tmp_path / "s/part-00002/items.parquet").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["store", "verify", str(tmp_path / "s")])
    assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "damaged: part-00001/embeddings.npy has changed since it was written"
    assert lines[1].startswith("damaged: part-00002/items.parquet cannot be read")


def test_a_store_from_before_checksums_is_opened(tmp_path):
    save_store(tmp_path / "s", X)
    manifest = files.read_json(tmp_path / "s/manifest.json", "store")
    del manifest["sha256"], manifest["parts"][0]["sha256"]
    files.write_json(tmp_path / "s/manifest.json", manifest)
    np.testing.assert_array_equal(load_embeddings(tmp_path / "s").values[:], X)
    with pytest.raises(FileFormatError, match="written without checksums"):
        verify_store(tmp_path / "s")


@pytest.mark.parametrize("what", ["store", "codes"])
def test_mutations_are_refused_or_named(tmp_path, what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fuzz(tmp_path, what, range(1000, 1100))
    assert not found["traceback"] + found["changed"], found
    assert len(found["refused"]) > 30


# --- foreign text -----------------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J[red]$\\frac{1}{2$<b>\u202e[/nothing]\r"


def test_terminals_are_not_commanded(tmp_path):
    from rich.table import Table

    from crovca.cli.output import Console

    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, color_system=None)
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    console.print(EVIL)
    console.print(table)
    shown = file.getvalue()
    assert shown.count(printable(EVIL)) == 4
    assert "\x1b]" not in shown
    assert "\u202e" not in shown
    assert printable("façade \U0001f469\u200d\U0001f680 日本\tx\ny") == "façade \U0001f469\u200d\U0001f680 日本\tx\ny"


def test_figures_draw_labels_as_they_stand():
    pytest.importorskip("matplotlib")
    from crovca.evaluation.figures import _plain, map_of_items_figure

    names = ["$\\frac{1}{2", "$\\undefined$", "a$b$c_{", "_hidden", EVIL, "日本"]
    points = np.random.default_rng(0).normal(size=(12, 2))
    assert map_of_items_figure({EVIL: points}, np.array(names * 2)).startswith(b"\x89PNG")
    assert not _plain("_hidden").startswith("_")


def test_pages_run_no_script():
    from crovca.evaluation import page

    text = page.as_page("<script>", "<script>", [page.Large("<script>", page.picture(None, '"><script>'))])
    assert "<script" not in text
    assert "default-src 'none'" in text
