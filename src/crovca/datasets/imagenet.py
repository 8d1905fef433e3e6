"""ImageNet-1k (ILSVRC-2012), and its 100-class benchmark."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from crovca.datasets.splits import open_split_files, read_split, to_classes
from crovca.datasets.structure import FILES, Captions, Dataset, Fetched, Protocol, Split, split_files
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError
from crovca.files import split_lines

_KAGGLE = "https://www.kaggle.com/c/imagenet-object-localization-challenge"
_IMAGENET = f"https://image-net.org/challenges/LSVRC/2012/ (free account) or {_KAGGLE}"
_LICENSE = "non-commercial research; images are their owners'"

TEMPLATE = "a photo of a {}."
"""The prompt of a class: the paper does not give its own."""

PROTOCOL_100 = Protocol(
    name="imagenet100",
    title="ImageNet100",
    folder="imagenet100",
    task="image to image",
    counts={"train": 13_000, "database": 128_503, "query": 5_000},
    metric="mAP@1000",
    k=1000,
    relevance="same class",
    classes=100,
    train_in_database=True,
    per_class={"train": 130, "query": 50},
    sources=(
        *split_files("imagenet"),
        Fetched("image/", f"{_IMAGENET}: the training images; train/SYNSET/*.JPEG does as well"),
        Fetched("val_image/", f"{_IMAGENET}: the validation images; val/ does as well, flat or by SYNSET"),
    ),
    license=_LICENSE,
    notes=(
        "database.txt must be fetched; or it is rebuilt (every training image of the 100 synsets): --rebuild",
        "encoders trained on ImageNet-1k have seen the database: with those, 'unsupervised' numbers lean on its labels",
    ),
)

PROTOCOL_1K = Protocol(
    name="imagenet1k",
    title="ImageNet-1k",
    folder="imagenet1k",
    task="image to image",
    counts={"train": 1_281_167, "database": 45_000, "query": 5_000},
    metric="mAP@1000",
    k=1000,
    relevance="same class",
    classes=1000,
    train_in_database=False,
    per_class={"database": 45, "query": 5},
    sources=(
        Fetched("train/", f"{_IMAGENET}: train/SYNSET/*.JPEG"),
        Fetched("val/", f"{_IMAGENET}: val/SYNSET/*.JPEG, or flat with LOC_val_solution.csv"),
        Fetched("LOC_val_solution.csv", f"{_KAGGLE} (where val/ is flat)", needed=False),
    ),
    license=_LICENSE,
    notes=(
        "database and queries are the validation set; which 5,000 are the queries is not given in the paper: here the "
        "five of each class whose file names come first",
        "a class's number is the place of its synset among the 1,000 in alphabetical order, as is usual",
        "the folders of Kaggle (ILSVRC/Data/CLS-LOC/train, .../val) are found as well",
    ),
)

PROTOCOL_1K_TEXT = Protocol(
    name="imagenet1k-text",
    title="ImageNet-1k (class prompts)",
    folder="imagenet1k",
    task="text to image",
    counts={"database": 50_000, "query": 1_000},
    metric="mAP@1 to mAP@50",
    k=50,
    relevance="same class",
    classes=1000,
    per_class={"database": 50, "query": 1},
    sources=(
        Fetched("LOC_synset_mapping.txt", f"{_KAGGLE}: the classes' names"),
        Fetched("val/", f"{_IMAGENET}: val/SYNSET/*.JPEG, or flat with LOC_val_solution.csv"),
        Fetched("LOC_val_solution.csv", f"{_KAGGLE} (where val/ is flat)", needed=False),
    ),
    license=_LICENSE,
    notes=(
        f"the paper does not give its prompt: here '{TEMPLATE}' with the first of the class's names",
        "some names stand for two classes (crane, maillot, ...), so not every query can be answered perfectly",
    ),
)

_ROOTS = ("", "ILSVRC/Data/CLS-LOC/")
_SYNSET = re.compile(r"n\d{8}")
_ADVICE = ", or rebuild it: crovca datasets imagenet100 --folder DIR --rebuild"
_QUERIES_PER_CLASS = 5


def open_imagenet100(tree: Tree) -> Dataset:
    """Read the split files; images may lie as there, or as ImageNet is usually unpacked."""
    tree.require(list(FILES.values()), {FILES["database"]: _ADVICE})
    synsets = _synsets_of_100(tree)
    paths, hot = read_split(tree, "query")
    labels = to_classes(hot, paths, str(tree.root / FILES["query"]))
    synset_of = {path: synsets[label] for path, label in zip(paths, labels.tolist(), strict=True)}

    def places(path: str) -> Iterator[str]:
        yield path
        name = path.rpartition("/")[2]
        part, synset = ("val", synset_of[path]) if path in synset_of else ("train", name.partition("_")[0])
        for root in _ROOTS:
            yield f"{root}{part}/{synset}/{name}"
            yield f"{root}{part}/{name}"

    return tree.dataset(open_split_files(tree, places)[0])


def database_of_imagenet100(tree: Tree) -> list[str]:
    """Lines of database.txt: every training image of the 100 synsets, with the columns of train.txt."""
    synsets = _synsets_of_100(tree)
    lines = []
    flat = sorted(tree.names("image"))
    for column, synset in enumerate(synsets):
        hot = " ".join("1" if number == column else "0" for number in range(len(synsets)))
        names = [name for name in flat if name.startswith(f"{synset}_")]
        for root in _ROOTS:
            names = names or sorted(tree.names(f"{root}train/{synset}"))
        lines += [f"image/{name} {hot}" for name in names if name.endswith(".JPEG")]
    return lines


def open_imagenet1k(tree: Tree) -> Dataset:
    """Training images by synset; the validation images cut into queries and database."""
    root = next((root for root in _ROOTS if tree.has_folder(f"{root}train")), None)
    if root is None:
        raise FileFormatError(
            f"{tree.protocol.name}: there is no folder {tree.root / 'train'}; "
            f"get it from {tree.protocol.source_of('train/')}"
        )
    synsets = [name for name in tree.folders(f"{root}train") if _SYNSET.fullmatch(name)]
    _check_synsets(tree, synsets, f"{root}train")
    train = _images(tree, f"{root}train", synsets)
    by_class = _validation(tree, synsets)
    queries = [names[:_QUERIES_PER_CLASS] for names in by_class]
    database = [names[_QUERIES_PER_CLASS:] for names in by_class]
    return tree.dataset({"train": _as_split(train), "database": _as_split(database), "query": _as_split(queries)})


def open_imagenet1k_text(tree: Tree) -> Dataset:
    """A prompt for each class; the whole validation set."""
    names: dict[str, str] = {}
    for line in split_lines(tree.text("LOC_synset_mapping.txt")):
        synset, _, synonyms = line.partition(" ")
        names[synset] = synonyms.partition(",")[0].strip()
    synsets = sorted(names)
    _check_synsets(tree, synsets, "LOC_synset_mapping.txt")
    prompts = Captions.gather([[TEMPLATE.format(names[synset])] for synset in synsets])
    queries = Split(None, np.arange(len(synsets)), prompts)
    return tree.dataset({"database": _as_split(_validation(tree, synsets)), "query": queries})


def _synsets_of_100(tree: Tree) -> list[str]:
    """The benchmark's synsets: a label's column is the synset's place in alphabetical order."""
    file, classes = FILES["train"], tree.classes
    paths, hot = read_split(tree, "train")
    found = [path.rpartition("/")[2].partition("_")[0] for path in paths]
    synsets = sorted(set(found))
    labels = to_classes(hot, paths, str(tree.root / file))
    rank = {synset: number for number, synset in enumerate(synsets)}
    wrong = [row for row, synset in enumerate(found) if rank[synset] != labels[row]]
    if len(synsets) != classes or wrong:
        detail = f"{len(synsets)} synsets" if not wrong else f"{paths[wrong[0]]} has class {labels[wrong[0]]}"
        raise FileFormatError(
            f"{tree.root / file}: {detail}; expected {classes} synsets whose columns are in alphabetical order"
        )
    return synsets


def _check_synsets(tree: Tree, synsets: list[str], where: str) -> None:
    if len(synsets) != tree.protocol.classes:
        raise FileFormatError(
            f"{tree.protocol.name}: {tree.root / where} has {len(synsets):,} synsets, "
            f"expected {tree.protocol.classes:,}"
        )


def _images(tree: Tree, folder: str, synsets: list[str]) -> list[list[str]]:
    """Paths of the images of each synset in a folder with a subfolder for each."""
    return [
        [f"{folder}/{synset}/{name}" for name in sorted(tree.names(f"{folder}/{synset}")) if name.endswith(".JPEG")]
        for synset in synsets
    ]


def _validation(tree: Tree, synsets: list[str]) -> list[list[str]]:
    """Paths of the validation images of each synset, sorted by file name."""
    root = next((root for root in _ROOTS if tree.has_folder(f"{root}val")), "")
    folder = f"{root}val"
    if tree.has_folder(f"{folder}/{synsets[0]}"):
        return _images(tree, folder, synsets)
    if not tree.names(folder):
        raise FileFormatError(
            f"{tree.protocol.name}: there are no images in {tree.root / folder}; "
            f"get them from {tree.protocol.source_of('val/')}"
        )
    number = {synset: row for row, synset in enumerate(synsets)}
    found: list[list[str]] = [[] for _ in synsets]
    tree.require(["LOC_val_solution.csv"], {"LOC_val_solution.csv": f", or sort {folder} into folders by synset"})
    solution = tree.text("LOC_val_solution.csv")
    for line, row in enumerate(csv.reader(split_lines(solution)), start=1):
        if row[:1] == ["ImageId"]:
            continue
        synset = row[1].partition(" ")[0] if len(row) == 2 else ""
        if synset not in number:
            raise FileFormatError(
                f"{tree.root / 'LOC_val_solution.csv'}, line {line}: expected an image and a known synset, got {row}"
            )
        found[number[synset]].append(f"{folder}/{row[0]}.JPEG")
    for paths in found:
        tree.locate("validation", paths)
        paths.sort()
    return found


def _as_split(by_class: list[list[str]]) -> Split:
    labels: npt.NDArray[np.int64] = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class])
    return Split(np.array([path for paths in by_class for path in paths], np.str_), labels)
