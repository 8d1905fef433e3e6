"""Image and text with labels as DDBH has them (the paper's Table 6): index.mat, caption.mat and label.mat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.labels import check_labels
from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError, InvalidInputError

SEED = 1814
"""DDBH's default, with which it draws queries and training set from all items."""

_DRAW = (
    "5,000 queries and 10,000 training items are drawn from all items with seed 1814, and everything that is no "
    "query is database, as DDBH does"
)
_QUERIES = 5_000
_TRAIN = 10_000
_HOME = (
    "https://github.com/QinLab-WFU/DDBH (index.mat, caption.mat or caption.txt, label.mat, made by the scripts of DSPH "
    "and DCMHT from the original annotations)"
)

FLICKR25K_PROTOCOL = Protocol(
    name="flickr25k-ddbh",
    title="Flickr25K (DDBH, image and text)",
    folder="flickr25k",
    task="image to text, text to image",
    counts={"train": _TRAIN, "database": None, "query": _QUERIES},
    metric="mAP@all",
    k=None,
    relevance="share a label",
    classes=24,
    multi_label=True,
    train_in_database=True,
    unlabeled={"train": None, "database": None, "query": None},
    sources=(
        Fetched("ddbh/index.mat", _HOME),
        Fetched("ddbh/caption.mat", _HOME),
        Fetched("ddbh/label.mat", _HOME),
        Fetched("mirflickr/", "https://press.liacs.nl/mirflickr/mirdownload.html (mirflickr25k.zip)"),
    ),
    license="Creative Commons, a license for each image",
    notes=(
        _DRAW,
        "the paper's Table 9 says a database of 10,000, which that draw does not give",
        "the order of items in index.mat decides the draw: two people's files give two splits unless they are equal; "
        "pin yours with --pin",
        "the text is the image's tags; numbers of DDBH are supervised, the paper's in Table 6 use pairs alone",
    ),
)

NUSWIDE21_PROTOCOL = replace(
    FLICKR25K_PROTOCOL,
    name="nuswide21-ddbh",
    title="NUS-WIDE-21 (DDBH, image and text)",
    folder="nuswide21",
    classes=21,
    sources=(
        *FLICKR25K_PROTOCOL.sources[:3],
        Fetched("images/", "https://github.com/TreezzZ/DSDH_PyTorch (NUS-WIDE.tar.gz)"),
    ),
    license="images are their owners' on Flickr; labels for non-commercial research",
    notes=(
        _DRAW,
        "the 193,734 of the paper's Table 9 are the database of the other protocol (nuswide21)",
        *FLICKR25K_PROTOCOL.notes[2:],
    ),
)

COCO_PROTOCOL = replace(
    FLICKR25K_PROTOCOL,
    name="coco-ddbh",
    title="COCO (DDBH, image and text)",
    folder="coco",
    classes=80,
    sources=(
        *FLICKR25K_PROTOCOL.sources[:3],
        Fetched("train2017/", "http://images.cocodataset.org/zips/train2017.zip"),
        Fetched("val2017/", "http://images.cocodataset.org/zips/val2017.zip"),
    ),
    license="annotations CC BY 4.0; images are their owners' on Flickr",
    notes=(
        _DRAW,
        FLICKR25K_PROTOCOL.notes[2],
        "the text is the image's captions; numbers of DDBH are supervised, the paper's in Table 6 use pairs alone",
    ),
)


def open_ddbh(tree: Tree) -> Dataset:
    """Read the three files, draw the splits as DDBH does, and find the images."""
    text = "caption" + (".txt" if tree.has("ddbh/caption.txt") else ".mat")
    tree.require(["ddbh/index.mat", f"ddbh/{text}", "ddbh/label.mat"])
    paths = [path.replace("\\", "/") for texts in _cells(tree, "index") for path in texts]
    captions = _captions(tree)
    labels = _labels(tree, len(paths))
    if not len(paths) == len(captions) == len(labels):
        raise FileFormatError(
            f"{tree.protocol.name}: index.mat has {len(paths):,} items, the captions {len(captions):,}, label.mat "
            f"{len(labels):,}; expected as many of each"
        )
    twice = len(paths) - len(set(paths))
    if twice:
        raise FileFormatError(f"{tree.protocol.name}: index.mat lists {twice:,} images more than once")
    sizes = [tree.protocol.counts[name] for name in ("query", "train")]
    queries, train = (size or 0 for size in sizes)
    if len(paths) < queries + train:
        raise FileFormatError(
            f"{tree.protocol.name}: index.mat lists {len(paths):,} images, expected at least "
            f"{queries + train:,} ({queries:,} queries and {train:,} to train on)"
        )
    found = tree.locate("all", paths, _endings)
    # DDBH draws with NumPy's old generator; its stream is frozen, and only it gives the same split.
    drawn = np.random.RandomState(SEED).permutation(len(paths))
    rows = {"query": drawn[:queries], "train": drawn[queries : queries + train], "database": drawn[queries:]}
    splits = {
        name: Split(found[mine], labels[mine], Captions.gather([captions[row] for row in mine.tolist()]))
        for name, mine in rows.items()
    }
    return tree.dataset(splits)


def _endings(path: str) -> Iterator[str]:
    """A path of another machine, and what is left of it when its first folders are dropped one by one."""
    rest = path.strip("/")
    while rest:
        yield rest
        rest = rest.partition("/")[2]


def _captions(tree: Tree) -> list[list[str]]:
    if tree.has("ddbh/caption.txt"):
        if tree.has("ddbh/caption.mat"):
            raise FileFormatError(
                f"{tree.protocol.name}: {tree.root / 'ddbh'} has both caption.mat and caption.txt; remove one"
            )
        return [[line] for line in tree.text("ddbh/caption.txt").rstrip("\n").split("\n")]
    return _cells(tree, "caption")


def _labels(tree: Tree, items: int) -> npt.NDArray[np.bool_]:
    values = _load(tree, "label", "category")
    try:
        labels = check_labels(values, items)
    except InvalidInputError as error:
        raise FileFormatError(f"{tree.root / 'ddbh/label.mat'}: {error}") from error
    if labels.ndim != 2 or labels.shape[1] != tree.protocol.classes:
        raise FileFormatError(
            f"{tree.root / 'ddbh/label.mat'}: labels have the shape {labels.shape}, "
            f"expected {tree.protocol.classes} columns"
        )
    return labels


def _cells(tree: Tree, name: str) -> list[list[str]]:
    """The strings of each item: an array of strings (n,), or of cells with one or several each."""
    values = _load(tree, name, name)
    if values.ndim > 1 and 1 in values.shape:
        values = values.reshape(-1)
    rows = [list(_strings(value)) for value in values]
    if not rows or not all(rows):
        empty = next((row for row, texts in enumerate(rows) if not texts), 0)
        raise FileFormatError(f"{tree.root / f'ddbh/{name}.mat'}: item {empty} holds no text")
    return rows


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, np.ndarray):
        for inner in value.reshape(-1):
            yield from _strings(inner)


def _load(tree: Tree, name: str, key: str) -> npt.NDArray[Any]:
    from scipy.io import loadmat

    path = tree.file(f"ddbh/{name}.mat")
    try:
        content = loadmat(path)
    except NotImplementedError:
        raise FileFormatError(
            f"{path} is a .mat of version 7.3 (HDF5), which is not read; save it with -v7 in MATLAB, or with "
            "scipy.io.savemat"
        ) from None
    except Exception as error:  # SciPy's reader has no error of its own for a damaged file
        raise FileFormatError(f"{path} is not a readable .mat ({error}); it may be truncated") from error
    if key not in content:
        found = sorted(other for other in content if not other.startswith("__"))
        raise FileFormatError(f"{path} has no variable {key!r}; found {found}")
    return np.asarray(content[key])
