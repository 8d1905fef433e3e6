"""COCO: the hashing benchmark on COCO 2014, and text and image on val2017."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.datasets.splits import open_split_files, read_split
from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split, split_files
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError

_ANNOTATIONS_2014 = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
_LICENSE = "annotations CC BY 4.0; images are their owners' on Flickr"

PROTOCOL = Protocol(
    name="coco",
    title="COCO",
    folder="coco",
    task="image to image",
    counts={"train": 10_000, "database": 117_218, "query": 5_000},
    metric="mAP@5000",
    k=5000,
    relevance="share a label",
    classes=80,
    multi_label=True,
    train_in_database=True,
    sources=(
        *split_files("coco"),
        Fetched("train2014/", "http://images.cocodataset.org/zips/train2014.zip"),
        Fetched("val2014/", "http://images.cocodataset.org/zips/val2014.zip"),
        Fetched("annotations/captions_train2014.json", _ANNOTATIONS_2014, needed=False),
        Fetched("annotations/captions_val2014.json", _ANNOTATIONS_2014, needed=False),
        Fetched("annotations/instances_train2014.json", f"{_ANNOTATIONS_2014} (for --rebuild)", needed=False),
        Fetched("annotations/instances_val2014.json", f"{_ANNOTATIONS_2014} (for --rebuild)", needed=False),
    ),
    license=_LICENSE,
    notes=(
        "database.txt must be fetched; or it is rebuilt from the annotations (every image of train2014 and val2014 "
        "with an instance, without the queries): --rebuild",
        "the order of the 80 columns is HashNet's own; a rebuild derives it from train.txt and test.txt",
        "a random order scores about 35 %",
    ),
)

TEXT_PROTOCOL = Protocol(
    name="coco-text",
    title="COCO (captions)",
    folder="coco",
    task="image to text, text to image",
    counts={"query": 5_000},
    metric="Recall@1",
    k=1,
    relevance="own caption",
    captions={"query": 25_000},
    sources=(
        Fetched(
            "annotations/captions_val2017.json",
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        ),
        Fetched("val2017/", "http://images.cocodataset.org/zips/val2017.zip"),
    ),
    license=_LICENSE,
    notes=(
        "the paper does not say which 5,000 images: here val2017 (the Karpathy test split is another 5,000)",
        "some images have more than five captions: the first five by annotation number are taken, which gives 25,000",
        "the '25,000 for training' of Table 9 is not explained in the paper and not here",
    ),
)

_CAPTIONS_PER_IMAGE = 5
_ADVICE = ", or rebuild it: crovca datasets coco --folder DIR --rebuild"
_YEARS = ("train2014", "val2014")


def open_coco(tree: Tree) -> Dataset:
    """Read the split files, and the captions of 2014 where both files of them are there."""
    splits, _ = open_split_files(tree, advice=_ADVICE)
    files = [f"annotations/captions_{year}.json" for year in _YEARS]
    if all(tree.has(file) for file in files):
        texts: dict[str, list[str]] = {}
        for year, file in zip(_YEARS, files, strict=True):
            texts |= {f"{year}/{name}": found for name, found in captions_by_image(tree, file).items()}
        for name, split in splits.items():
            assert split.paths is not None
            rows = [texts.get(path, []) for path in split.paths.tolist()]
            splits[name] = Split(split.paths, split.labels, Captions.gather(rows))
    return tree.dataset(splits)


def open_coco_text(tree: Tree) -> Dataset:
    """The images of val2017 with their first five captions each."""
    texts = captions_by_image(tree, "annotations/captions_val2017.json")
    names = sorted(texts)
    short = [name for name in names if len(texts[name]) < _CAPTIONS_PER_IMAGE]
    if short:
        raise FileFormatError(
            f"{tree.protocol.name}: {short[0]} has {len(texts[short[0]])} captions in captions_val2017.json, "
            f"expected at least {_CAPTIONS_PER_IMAGE}"
        )
    captions = Captions.gather([texts[name][:_CAPTIONS_PER_IMAGE] for name in names])
    paths = tree.locate("query", [f"val2017/{name}" for name in names])
    return tree.dataset({"query": Split(paths, None, captions)})


def captions_by_image(tree: Tree, path: str) -> dict[str, list[str]]:
    """Captions of each image, by its file name, in the order of their numbers."""
    content = tree.json(path)
    texts: dict[int, list[str]] = defaultdict(list)
    try:
        for note in sorted(content["annotations"], key=lambda note: note["id"]):
            texts[note["image_id"]].append(str(note["caption"]))
        return {image["file_name"]: texts[image["id"]] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise FileFormatError(
            f"{tree.root / path} is not a captions file of COCO (no {error}); expected 'images' with 'id' and "
            "'file_name', 'annotations' with 'id', 'image_id' and 'caption'"
        ) from error


def database_of_coco(tree: Tree) -> list[str]:
    """Lines of database.txt: every image with an instance, without the queries, in the columns of the split files."""
    classes = tree.classes
    notes: list[tuple[str, int, bool]] = []
    for year in _YEARS:
        notes += _instances(tree, year)
    categories = sorted({category for _, category, _ in notes})
    if len(categories) != classes:
        raise FileFormatError(
            f"{tree.protocol.name}: the instances have {len(categories)} categories, expected {classes}"
        )
    known: dict[str, npt.NDArray[np.bool_]] = {}
    queries: set[str] = set()
    for split in ("train", "query"):
        paths, labels = read_split(tree, split)
        known |= dict(zip(paths, labels, strict=True))
        queries = set(paths)
    tried = []
    for with_crowds in (True, False):  # which of the two HashNet took is not written down
        labels_of = _label_rows([note for note in notes if with_crowds or not note[2]], categories)
        order, differing = _column_order(known, labels_of, classes)
        if order is not None:
            return [
                " ".join([path, *("1" if label else "0" for label in labels_of[path][order])])
                for path in sorted(labels_of)
                if path not in queries
            ]
        tried.append(differing)
    raise FileFormatError(
        f"{tree.protocol.name}: no order of the categories explains the labels in train.txt and test.txt (the best one "
        f"differs in {min(tried):,} of {len(known) * classes:,}); the annotations are of another version, or the files "
        "are; fetch database.txt"
    )


def _instances(tree: Tree, year: str) -> list[tuple[str, int, bool]]:
    """Of each instance in a year's annotations: the image's path, the category, and whether it is a crowd."""
    path = f"annotations/instances_{year}.json"
    content: dict[str, Any] = tree.json(path)
    try:
        paths = {image["id"]: f"{year}/{image['file_name']}" for image in content["images"]}
        return [
            (paths[note["image_id"]], int(note["category_id"]), bool(note["iscrowd"]))
            for note in content["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{tree.root / path} is not an instances file of COCO ({error} is missing)") from error


def _label_rows(notes: list[tuple[str, int, bool]], categories: list[int]) -> dict[str, npt.NDArray[np.bool_]]:
    """The categories of each image as bool (C,), in the order of ``categories``."""
    column = {category: number for number, category in enumerate(categories)}
    rows: dict[str, npt.NDArray[np.bool_]] = {}
    for path, category, _ in notes:
        rows.setdefault(path, np.zeros(len(categories), np.bool_))[column[category]] = True
    return rows


def _column_order(
    known: dict[str, npt.NDArray[np.bool_]], labels_of: dict[str, npt.NDArray[np.bool_]], classes: int
) -> tuple[npt.NDArray[np.int64] | None, int]:
    """Which category each column of the split files is: the one with the same labels on every known image.

    int64 (C,) or None, and how many labels differ under the best category for each column.
    """
    none = np.zeros(classes, np.bool_)
    given = np.array(list(known.values())).astype(np.float32)
    ours = np.array([labels_of.get(path, none) for path in known]).astype(np.float32)
    differing = given.T @ (1 - ours) + (1 - given).T @ ours  # (column, category)
    order = differing.argmin(axis=1)
    best = int(differing.min(axis=1).sum())
    unique = (differing == 0).sum(axis=1) == 1
    return (order.astype(np.int64), 0) if best == 0 and unique.all() else (None, best)
