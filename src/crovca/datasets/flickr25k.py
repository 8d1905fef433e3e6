"""Flickr25K (MIRFLICKR-25000)."""

from __future__ import annotations

from pathlib import PurePosixPath

from crovca.datasets.splits import open_split_files
from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split, split_files
from crovca.datasets.tree import Tree

PROTOCOL = Protocol(
    name="flickr25k",
    title="Flickr25K",
    folder="flickr25k",
    task="image to image",
    counts={"train": 4_000, "database": 20_000, "query": 1_000},
    metric="mAP@5000",
    k=5000,
    relevance="share a label",
    classes=38,
    multi_label=True,
    train_in_database=False,
    unlabeled={"train": None, "database": 328, "query": 19},
    sources=(
        *split_files("mirflickr"),
        Fetched("mirflickr/", "https://press.liacs.nl/mirflickr/mirdownload.html (mirflickr25k.zip)"),
        Fetched("mirflickr/meta/tags/", "the same mirflickr25k.zip: the users' tags", needed=False),
    ),
    license="Creative Commons, a license for each image (in the download)",
    notes=(
        "19 of the 1,000 queries have no label: they score 0 whatever the method, so 98.1 % is the most there is",
        "a random order scores about 53.5 %: images share labels easily",
        "the 38 columns are 24 labels and 14 narrower ones, each within one of the 24: relevance is the same with 24",
        "training set and database share no image, unlike in the other sets",
    ),
)

_FOLDERS = ("", "mirflickr/", "mirflickr25k/", "images/")


def open_flickr25k(tree: Tree) -> Dataset:
    """Read the split files; the users' tags become an image's text where ``meta/tags`` is there."""
    splits, _ = open_split_files(tree, lambda path: [f"{folder}{path}" for folder in _FOLDERS])
    tags = next((f"{base}meta/tags" for base in _FOLDERS if tree.has_folder(f"{base}meta/tags")), None)
    if tags is not None:
        splits = {name: _with_tags(tree, split, tags) for name, split in splits.items()}
    return tree.dataset(splits)


def _with_tags(tree: Tree, split: Split, folder: str) -> Split:
    """im12.jpg has its tags in tags12.txt, one a line; joined by spaces they are its text."""
    assert split.paths is not None
    rows = []
    for path in split.paths.tolist():
        file = f"{folder}/tags{PurePosixPath(path).stem.removeprefix('im')}.txt"
        # 25,000 small files of free text in many languages: a wrong byte in a tag is no reason to stop
        words = (tree.root / file).read_text("utf-8", errors="replace").split() if tree.has(file) else []
        rows.append([" ".join(words)])
    return Split(split.paths, split.labels, Captions.gather(rows))
