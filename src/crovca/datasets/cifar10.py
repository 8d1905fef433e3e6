"""CIFAR-10: the original archives in either form, or a folder of images."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crovca.datasets.plain_pickle import as_bytes, as_uint8_array, read_plain_pickle
from crovca.datasets.splits import write_split
from crovca.datasets.structure import FILES, Dataset, Fetched, Protocol, Split
from crovca.datasets.tree import IMAGE_SUFFIXES, Tree
from crovca.errors import ConfigError, FileFormatError, StorageError, needed
from crovca.files import atomic_file, check_output, remove

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_PYTHON = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_BINARY = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

PROTOCOL = Protocol(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar10",
    task="image to image",
    counts={"train": 50_000, "database": 50_000, "query": 10_000},
    metric="mAP@1000",
    k=1000,
    relevance="same class",
    classes=10,
    train_in_database=True,
    per_class={"train": 5_000, "database": 5_000, "query": 1_000},
    checksums={  # from cs.toronto.edu/~kriz/cifar.html; those of single batches from torchvision
        "cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py/data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    sources=(Fetched("cifar-10-binary.tar.gz", _BINARY), Fetched("cifar-10-python.tar.gz", _PYTHON, needed=False)),
    license="none stated; the authors ask for citation of Krizhevsky (2009)",
    notes=(
        "any one of: cifar-10-binary.tar.gz, cifar-10-python.tar.gz, either of them unpacked, or "
        "train/CLASS/*.png with test/CLASS/*.png",
        "the database is the training set (official 50,000 and 10,000, as in the paper); the three protocols of "
        "DeepHash-pytorch and that of CIBHash are others, and numbers on them do not compare",
        "copies as .jpg are encoded again: not the original pixels",
        "the archives hold no image files: 'crovca datasets cifar10 --folder DIR --export OUT' writes them as PNG",
    ),
)

_BATCHES = {f"data_batch_{number}": "train" for number in range(1, 6)} | {"test_batch": "test"}
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFile:
    """One file of the archive: its name, "train" or "test", labels uint8 (n,) and images uint8 (n, 32, 32, 3)."""

    name: str
    part: str
    labels: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]


def open_cifar10(tree: Tree) -> Dataset:
    """List CIFAR-10; for an archive, with the paths that ``export_cifar10`` will give the images."""
    notes: tuple[str, ...] = ()
    images = tree.has_folder("train")
    if images:
        parts = {part: _list_images(tree, part) for part in ("train", "test")}
        if any(path.lower().endswith((".jpg", ".jpeg")) for path in parts["train"][0].tolist()):
            notes = ("the images are .jpg: encoded again, not the original pixels",)
    else:
        parts = _list_batches(tree)
        notes = (f"the images are in {tree.used[0].split('/')[0]}; write them as files with --export",)
    train, test = Split(*parts["train"]), Split(*parts["test"])
    return tree.dataset({"train": train, "database": train, "query": test}, embeddable=images, notes=notes)


def read_batches(tree: Tree) -> Iterator[CifarFile]:
    """Read the archive in the folder, batch by batch; nothing in it is run (see ``plain_pickle``)."""
    for folder, suffix, parse in _FORMS:
        if tree.has_folder(folder):
            for name, part in _BATCHES.items():
                path = tree.file(f"{folder}/{name}{suffix}")
                yield CifarFile(name, part, *parse(path.read_bytes(), str(path)))
            return
    for (folder, suffix, parse), archive in zip(_FORMS, _ARCHIVES, strict=True):
        if tree.has(archive):
            for name, content in _members(tree.file(archive), folder, suffix):
                where = f"{tree.root / archive}: {name}{suffix}"
                yield CifarFile(name, _BATCHES[name], *parse(content, where))
            return
    raise FileFormatError(
        f"{tree.protocol.name}: {tree.root} holds none of {', '.join(_ARCHIVES)}, "
        f"{', '.join(form[0] for form in _FORMS)}, train/CLASS/; get the first from {_BINARY}"
    )


def export_cifar10(
    folder: Path, output: Path, *, protocol: Protocol = PROTOCOL, progress: Callable[[str, float], None] | None = None
) -> Path:
    """Write the images of an archive as PNG files, with split files beside them.

    ::

        OUTPUT/train/CLASS/00000.png      the number is the image's place in the archive's training (or test) set
        OUTPUT/test/CLASS/00000.png
        OUTPUT/train.txt, database.txt, test.txt

    The work is done in ``OUTPUT.partial``, renamed at the end; batches that an interrupted run finished are not
    written again.

    Raises:
        FileFormatError: the archive is missing or damaged.
        ConfigError: the folder holds image files already, or OUTPUT.partial is of another copy of CIFAR-10.
        OutputExistsError: ``output`` exists.
        StorageError: the operating system refused to write.
    """
    check_output(output, force=False, inputs=[folder])
    tree = Tree(folder, protocol)
    if tree.has_folder("train"):
        raise ConfigError(f"{folder} holds CIFAR-10 as image files already; there is nothing to export")
    dataset = open_cifar10(tree)  # all of it is checked before anything is written
    partial = output.with_name(f"{output.name}.partial")
    try:
        (partial / _DONE).mkdir(parents=True, exist_ok=True)
        counted = {"train": 0, "test": 0}
        for number, batch in enumerate(read_batches(tree)):
            _write_batch(partial, batch, counted[batch.part])
            counted[batch.part] += len(batch.labels)
            if progress is not None:
                progress("exporting", (number + 1) / len(_BATCHES))
        for name, file in FILES.items():
            with atomic_file(partial / file) as temporary:
                write_split(temporary, dataset.splits[name])
        remove(partial / _DONE)
        partial.replace(output)
    except OSError as error:
        raise StorageError(
            f"cannot write {partial}: {error.strerror or error}; the same command goes on from there"
        ) from error
    return output


_DONE = ".done"
_MAX_BATCH = 64 << 20  # bytes; a batch of 10,000 images has half of that


def _write_batch(output: Path, batch: CifarFile, first: int) -> None:
    """Write a batch's images, unless they are there: its mark is written once they are all on the disk."""
    content = hashlib.sha256(batch.labels.tobytes() + batch.images.tobytes()).hexdigest()
    done = output / _DONE / batch.name
    if done.exists():
        if done.read_text() != content:
            raise ConfigError(
                f"{output} was begun from another copy of CIFAR-10 ({batch.name} differs); remove it to begin again"
            )
        return
    for name in CLASSES:
        (output / batch.part / name).mkdir(parents=True, exist_ok=True)
    pillow = needed("PIL.Image", "images", "writing images", package="pillow")
    for row, (label, pixels) in enumerate(zip(batch.labels, batch.images, strict=True), start=first):
        pillow.fromarray(pixels).save(output / _path(batch.part, int(label), row))
    os.sync()  # one call for ten thousand small files; syncing each takes minutes
    with atomic_file(done) as temporary:
        temporary.write_text(content)


def _path(part: str, label: int, row: int) -> str:
    return f"{part}/{CLASSES[label]}/{row:05d}.png"


_Part = tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]  # paths and labels


def _list_images(tree: Tree, part: str) -> _Part:
    found = [name for name in tree.folders(part) if name in CLASSES]
    if len(found) < len(CLASSES):
        missing = next(name for name in CLASSES if name not in found)
        raise FileFormatError(
            f"{tree.protocol.name}: there is no folder {tree.root / part / missing}; expected one for each of "
            f"{', '.join(CLASSES)}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(CLASSES):
        images = [file for file in tree.names(f"{part}/{name}") if file.lower().endswith(IMAGE_SUFFIXES)]
        paths += [f"{part}/{name}/{file}" for file in images]
        labels += [label] * len(images)
    order = sorted(range(len(paths)), key=lambda row: (paths[row].rpartition("/")[2], paths[row]))
    return np.array(paths, np.str_)[order], np.array(labels, np.int64)[order]


def _list_batches(tree: Tree) -> dict[str, _Part]:
    labels: dict[str, list[npt.NDArray[np.uint8]]] = {"train": [], "test": []}
    for batch in read_batches(tree):
        labels[batch.part].append(batch.labels)
    parts = {}
    for part, found in labels.items():
        numbers = np.concatenate(found).astype(np.int64)
        paths = [_path(part, label, row) for row, label in enumerate(numbers.tolist())]
        parts[part] = np.array(paths, np.str_), numbers
    return parts


def _members(archive: Path, folder: str, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The batches in a .tar.gz, in order; nothing is unpacked to the disk."""
    wanted = {f"{folder}/{name}{suffix}": name for name in _BATCHES}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = wanted.get(member.name.removeprefix("./"))
                file = tar.extractfile(member) if name is not None and member.isfile() else None
                if name is not None and file is not None:
                    contents[name] = file.read(_MAX_BATCH + 1)
                    if len(contents[name]) > _MAX_BATCH:
                        raise FileFormatError(f"{archive}: {member.name} has more bytes than a batch of CIFAR-10")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise FileFormatError(f"{archive} is not a readable archive ({error}); it may be truncated") from error
    missing = [name for name in _BATCHES if name not in contents]
    if missing:
        raise FileFormatError(f"{archive} has no {folder}/{missing[0]}{suffix}; it may be truncated")
    for name in _BATCHES:
        yield name, contents.pop(name)


_Parsed = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def _parse_binary(content: bytes, where: str) -> _Parsed:
    if not content or len(content) % (1 + _PIXELS):
        raise FileFormatError(
            f"{where} has {len(content):,} bytes, expected a multiple of {1 + _PIXELS:,} (label and pixels); "
            "it may be truncated"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _checked(records[:, 0], records[:, 1:], where)


def _parse_python(content: bytes, where: str) -> _Parsed:
    found = read_plain_pickle(content, where)
    try:
        named = {as_bytes(key): value for key, value in found.items()}
        if not all(type(label) is int for label in named[b"labels"]):  # lists of lists may have no end
            raise ValueError("labels that are no numbers")
        labels = np.array(named[b"labels"], np.int64)
        pixels = as_uint8_array(named[b"data"])
        if labels.shape != (len(pixels),) or pixels.shape[1:] != (_PIXELS,):
            raise ValueError(f"labels {labels.shape}, data {pixels.shape}")
    except (AttributeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise FileFormatError(f"{where} is not a batch of CIFAR-10 ({error}); it may be damaged") from error
    return _checked(labels, pixels, where)


def _checked(labels: npt.NDArray[np.integer], pixels: npt.NDArray[np.uint8], where: str) -> _Parsed:
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(CLASSES):
        raise FileFormatError(f"{where} has the label {labels.max()}, expected 0 to 9; it may be damaged")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # the file has one color after the other
    return labels.astype(np.uint8), np.ascontiguousarray(images)


_FORMS: tuple[tuple[str, str, Callable[[bytes, str], _Parsed]], ...] = (
    ("cifar-10-batches-bin", ".bin", _parse_binary),
    ("cifar-10-batches-py", "", _parse_python),
)
_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
