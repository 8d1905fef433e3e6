"""CIFAR-10: the same images from every form of it, no pickle ever run, and an export that survives being killed."""

import hashlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crovca.datasets import PROTOCOLS, open_dataset
from crovca.datasets.cifar10 import CLASSES, export_cifar10, read_batches
from crovca.datasets.plain_pickle import as_uint8_array, read_plain_pickle
from crovca.datasets.tree import Tree
from crovca.errors import ConfigError, FileFormatError, OutputExistsError

EACH = 20  # images in a batch: two of each class
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
SMALL = replace(
    PROTOCOLS["cifar10"],
    counts={"train": 5 * EACH, "database": 5 * EACH, "query": EACH},
    per_class={"train": 10, "database": 10, "query": 2},
    checksums={},
)


def batches(each=EACH):
    """Names, labels and pixels (n, 3072) of six batches."""
    random = np.random.default_rng(0)
    for name in NAMES:
        labels = random.permutation(np.arange(each) % 10).astype(np.uint8)
        yield name, labels, random.integers(0, 256, (each, 3072), np.uint8)


def write_binary(folder, each=EACH):
    folder.mkdir(parents=True)
    for name, labels, pixels in batches(each):
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], pixels], axis=1).tobytes())


def python2_pickle(name, labels, pixels):
    """The bytes that Python 2's cPickle wrote at protocol 2 for such a dictionary, as in the original archive."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    shape = b"K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08(K\x01"
        + shape
        + b"cnumpy\ndtype\nq\x09" + short(b"u1") + b"K\x00K\x01\x87Rq\x0a(K\x03" + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", pixels.size)
        + pixels.tobytes()
        + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    files = b"](" + b"".join(short(b"x_%d.png" % row) for row in range(len(labels))) + b"e"
    return (
        b"\x80\x02}q\x01(" + short(b"batch_label") + short(name.encode())
        + short(b"labels") + b"q\x03" + numbers + short(b"data") + array
        + short(b"filenames") + files + b"u."
    )  # fmt: skip


def write_python(folder, dump):
    folder.mkdir(parents=True)
    for name, labels, pixels in batches():
        (folder / name).write_bytes(dump(name, labels, pixels))


def dumped(protocol, keys=str):
    def dump(name, labels, pixels):
        content = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": ["x"]}
        return pickle.dumps({keys(key): value for key, value in content.items()}, protocol=protocol)

    return dump


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)


FORMS = {
    "binary": lambda root: write_binary(root / "cifar-10-batches-bin"),
    "python 2": lambda root: write_python(root / "cifar-10-batches-py", python2_pickle),
    "pickle 2": lambda root: write_python(root / "cifar-10-batches-py", dumped(2)),
    "pickle 4": lambda root: write_python(root / "cifar-10-batches-py", dumped(4, str.encode)),
}


@pytest.fixture(params=[*FORMS, "binary archive", "python archive"])
def folder(request, tmp_path):
    root = tmp_path / "cifar10"
    if request.param in FORMS:
        FORMS[request.param](root)
        return root
    root.mkdir()
    if request.param == "binary archive":
        write_binary(tmp_path / "cifar-10-batches-bin")
        pack(tmp_path / "cifar-10-batches-bin", root / "cifar-10-binary.tar.gz")
    else:
        write_python(tmp_path / "cifar-10-batches-py", python2_pickle)
        pack(tmp_path / "cifar-10-batches-py", root / "cifar-10-python.tar.gz")
    return root


def test_every_form_holds_the_same_images(folder):
    for batch, (name, labels, pixels) in zip(read_batches(Tree(folder, SMALL)), batches(), strict=True):
        assert batch.name == name
        assert batch.labels.tolist() == labels.tolist()
        # the file has the red of all pixels first, row by row
        assert batch.images.shape == (EACH, 32, 32, 3)
        assert np.array_equal(batch.images[3, 5, 7], pixels[3].reshape(3, 32, 32)[:, 5, 7])
        assert np.array_equal(batch.images.transpose(0, 3, 1, 2).reshape(EACH, -1), pixels)
    dataset = open_dataset("cifar10", folder, protocol=SMALL)
    assert not dataset.embeddable
    assert "--export" in dataset.notes[0]
    first = next(batches())[1]
    assert dataset.splits["train"].labels[:EACH].tolist() == first.tolist()
    assert dataset.splits["train"].paths[1] == f"train/{CLASSES[first[1]]}/00001.png"


def test_an_export_is_a_copy_of_the_archive(folder, tmp_path):
    image = pytest.importorskip("PIL.Image")
    out = export_cifar10(folder, tmp_path / "out", protocol=SMALL)
    archive, files = (open_dataset("cifar10", root, protocol=SMALL) for root in (folder, out))
    assert files.embeddable
    assert files.notes == ()
    for split in archive.splits:
        assert archive.splits[split].paths.tolist() == files.splits[split].paths.tolist()
        assert archive.splits[split].labels.tolist() == files.splits[split].labels.tolist()
    pixels = np.concatenate([pixels for _, _, pixels in batches()])
    for row, path in enumerate([*files.splits["train"].paths, *files.splits["query"].paths]):
        with image.open(out / path) as opened:
            assert opened.mode == "RGB"
            assert np.array_equal(np.asarray(opened).transpose(2, 0, 1).reshape(-1), pixels[row])
    query = files.splits["query"]
    assert (out / "test.txt").read_text().splitlines() == [
        f"{path} {label}" for path, label in zip(query.paths, query.labels, strict=True)
    ]
    assert sorted(path.name for path in out.iterdir()) == ["database.txt", "test", "test.txt", "train", "train.txt"]
    with pytest.raises(OutputExistsError):
        export_cifar10(folder, out, protocol=SMALL)
    with pytest.raises(ConfigError, match="nothing to export"):
        export_cifar10(out, tmp_path / "again", protocol=SMALL)


def fingerprint(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.starts
def test_a_killed_export_goes_on(tmp_path):
    """Killed at several points; what is finished by then stays, and the result is that of one run."""
    write_binary(tmp_path / "cifar10/cifar-10-batches-bin", each=500)
    code = textwrap.dedent("""
        import sys
        from dataclasses import replace
        from pathlib import Path
        from crovca.datasets import PROTOCOLS
        from crovca.datasets.cifar10 import export_cifar10
        protocol = replace(PROTOCOLS["cifar10"], counts={"train": 2500, "database": 2500, "query": 500},
                           per_class={}, checksums={})
        print("ready", flush=True)
        export_cifar10(Path("cifar10"), Path(sys.argv[1]), protocol=protocol)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    partial = tmp_path / "killed.partial"
    for wanted in (0, 1, 3):  # batches done when the kill comes
        process = subprocess.Popen(
            [sys.executable, "-c", code, "killed"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
        )
        process.stdout.readline()
        while process.poll() is None:
            if partial.exists() and len(list(partial.glob(".done/data_*"))) >= wanted and any(partial.rglob("*.png")):
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (tmp_path / "killed").exists()
        assert partial.exists()
    assert (partial / ".done/data_batch_1").exists()
    first = {path: path.stat().st_mtime_ns for path in (partial / "train/frog").glob("0000*.png")}
    for name in ("killed", "whole"):
        subprocess.run(
            [sys.executable, "-c", code, name], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL
        )
    assert not partial.exists()
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "whole")
    assert len(list((tmp_path / "killed").rglob("*.png"))) == 3000
    for path, stamp in first.items():  # a batch that was done is not written again
        assert (tmp_path / "killed/train/frog" / path.name).stat().st_mtime_ns == stamp


def test_an_export_of_another_copy_is_not_continued(tmp_path):
    write_binary(tmp_path / "a/cifar-10-batches-bin")
    (tmp_path / "out.partial/.done").mkdir(parents=True)
    (tmp_path / "out.partial/.done/data_batch_1").write_text("0" * 64)
    with pytest.raises(ConfigError, match=r"begun from another copy of CIFAR-10 .*remove it"):
        export_cifar10(tmp_path / "a", tmp_path / "out", protocol=SMALL)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_folder_of_images(tmp_path, suffix):
    for part, count in (("train", 10), ("test", 2)):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / part / name / f"{number:04d}.{suffix}").touch()
    dataset = open_dataset("cifar10", tmp_path, protocol=SMALL)
    assert dataset.embeddable
    assert bool(dataset.notes) == (suffix == "jpg")  # encoded again
    split = dataset.splits["query"]
    assert [CLASSES[label] for label in split.labels] == [path.split("/")[1] for path in split.paths]
    (tmp_path / "train/ship/0000").with_suffix(f".{suffix}").unlink()
    with pytest.raises(FileFormatError, match="'train' holds 99 items, expected 100"):
        open_dataset("cifar10", tmp_path, protocol=SMALL)
    (tmp_path / "test/truck").rename(tmp_path / "test/lorry")
    with pytest.raises(FileFormatError, match=r"there is no folder .*test/truck; expected one for each of"):
        open_dataset("cifar10", tmp_path, protocol=SMALL)


def refused(root, match, protocol=SMALL):
    with pytest.raises(FileFormatError, match=match) as error:
        open_dataset("cifar10", root, protocol=protocol)
    assert "\n" not in str(error.value)


def test_damaged_copies_are_refused(tmp_path):
    refused(tmp_path, "holds none of cifar-10-binary.tar.gz.*https://www.cs.toronto.edu")
    write_binary(tmp_path / "cifar-10-batches-bin")
    batch = tmp_path / "cifar-10-batches-bin/data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    refused(tmp_path, "data_batch_3.bin has 61,459 bytes, expected a multiple of 3,073")
    batch.write_bytes(b"\x0a" + whole[1:])
    refused(tmp_path, "data_batch_3.bin has the label 10, expected 0 to 9")
    batch.write_bytes(bytes([(whole[0] + 1) % 10]) + whole[1:])
    refused(tmp_path, "'train' has (9|11) items of class .*, expected 10")
    batch.write_bytes(whole[: 10 * 3073])
    refused(tmp_path, "'train' holds 90 items, expected 100")
    batch.unlink()
    refused(tmp_path, "data_batch_3.bin is missing")


def test_damaged_archives_are_refused(tmp_path):
    (tmp_path / "c").mkdir()
    write_binary(tmp_path / "cifar-10-batches-bin")
    archive = tmp_path / "c/cifar-10-binary.tar.gz"
    (tmp_path / "cifar-10-batches-bin/test_batch.bin").unlink()
    pack(tmp_path / "cifar-10-batches-bin", archive)
    refused(tmp_path / "c", "has no cifar-10-batches-bin/test_batch.bin")
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    refused(tmp_path / "c", "is not a readable archive .*truncated")
    refused(tmp_path / "c", "has the md5 checksum .*, expected c32a1d4ab5d03f1284b67883e8d87530", PROTOCOLS["cifar10"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_never_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps({"labels": Evil(), "data": None}, protocol=protocol)
    with pytest.raises(FileFormatError, match=r"it names (posix|nt)\.mkdir, which is not plain data"):
        read_plain_pickle(evil, "x")
    write_python(tmp_path / "cifar-10-batches-py", lambda *_: evil)
    refused(tmp_path, r"data_batch_1 is not a pickle of plain data .*mkdir")
    assert not (tmp_path / "evil").exists()
    pickle.loads(evil)  # what would have happened
    assert (tmp_path / "evil").exists()


@given(st.binary(max_size=60), st.integers(0, 400))
def test_ill_formed_pickles_are_refused_in_one_line(noise, cut):
    whole = python2_pickle("x", [1], np.zeros((1, 8), np.uint8))
    for content in (noise, whole[: cut % len(whole)], whole[: cut % len(whole)] + noise):
        try:
            read_plain_pickle(content, "file")
        except FileFormatError as error:
            assert str(error).startswith("file is not a")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(plain, st.sampled_from([3, 4, 5]))
def test_plain_data_is_what_pickle_reads(value, protocol):
    assert read_plain_pickle(pickle.dumps(value, protocol=protocol), "x") == value


LAUGHS = b"]q\x000" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c0" % (n + 1) for n in range(100)) + b"hd"
HOSTILE = {
    "eval": b'c__builtin__\neval\n(S\'open("evil","w")\'\ntR.',
    "inst": b"(S'touch evil'\nios\nsystem\n.",
    "a huge memo": b"Nr\xff\xff\xff\x7f.",
    "a huge text": b"\x8d" + b"\xff" * 7 + b"\x0f.",
    "an extension": b"\x82\x01.",
    "a persistent id": b"Pabc\n.",
    "deep": b"N" + b"\x85" * 100_000 + b".",
    "laughs": LAUGHS + b".",
    "attributes of a class": b"cnumpy\nndarray\n(N}S'state'\nI1\nstb.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end(tmp_path, name):
    try:
        read_plain_pickle(HOSTILE[name], "x")
    except FileFormatError as error:
        assert "x is not a pickle of plain data" in str(error)
    write_python(tmp_path / "cifar-10-batches-py", lambda *_: HOSTILE[name])
    refused(tmp_path, "data_batch_1 is not")
    batch = b"}(S'labels'\n" + LAUGHS + b"S'data'\n" + LAUGHS + b"u."
    write_python(tmp_path / "again" / "cifar-10-batches-py", lambda *_: batch)
    refused(tmp_path / "again", "data_batch_1 is not a batch of CIFAR-10")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_pickle_reads(protocol, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8), order=order)
    read = as_uint8_array(read_plain_pickle(pickle.dumps(array, protocol), "x"))
    np.testing.assert_array_equal(read, array)
    with pytest.raises(ValueError, match="uint8"):
        as_uint8_array(read_plain_pickle(pickle.dumps(array.astype(int), protocol), "x"))
