"""Flickr30K: images with five captions each."""

from __future__ import annotations

import re

from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError

_HOME = "https://shannon.cs.illinois.edu/DenotationGraph/ (a form to fill in)"

PROTOCOL = Protocol(
    name="flickr30k",
    title="Flickr30K",
    folder="flickr30k",
    task="image to text, text to image",
    counts={"query": 31_783},
    metric="Recall@1",
    k=1,
    relevance="own caption",
    captions={"query": 158_915},
    sources=(
        Fetched("results_20130124.token", f"{_HOME}; Kaggle's results.csv does as well"),
        Fetched("flickr30k-images/", _HOME),
    ),
    license="non-commercial research; images are their owners' on Flickr",
    notes=(
        "the whole set is searched (31,783 images, 158,915 captions), not the usual 1,000 test images of Karpathy's "
        "split: Recall@1 is much lower here",
        "the paper's Table 9 also says 30,000 for training, and does not say which",
    ),
)

_FOLDERS = ("flickr30k-images/", "flickr30k_images/", "flickr30k_images/flickr30k_images/", "images/")
_TOKEN = re.compile(r"(?P<name>[^#]+)#(?P<number>\d+)\t(?P<text>.*)")
# One row of Kaggle's file, of image 2199200615.jpg, lacks the second bar.
_CSV = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d+)\s*\|?(?P<text>.*)")
_CAPTIONS_PER_IMAGE = 5


def open_flickr30k(tree: Tree) -> Dataset:
    """Read the captions, and find the image of each."""
    table = tree.first(("results.csv", "flickr30k_images/results.csv"))
    path = "results_20130124.token" if table is None or tree.has("results_20130124.token") else table
    lines = tree.text(path).split("\n")
    pattern = _TOKEN if path.endswith(".token") else _CSV
    texts: dict[str, dict[int, str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (pattern is _CSV and line.startswith("image_name")):
            continue
        found = pattern.fullmatch(line.rstrip("\r"))
        if found is None:
            raise FileFormatError(
                f"{tree.root / path}, line {number}: expected an image, a number and a caption, got {line[:60]!r}"
            )
        mine = texts.setdefault(found["name"].strip(), {})
        if int(found["number"]) in mine:
            raise FileFormatError(
                f"{tree.root / path}, line {number}: {found['name'].strip()!r} has two captions of number "
                f"{found['number']}"
            )
        mine[int(found["number"])] = found["text"]
    names = sorted(texts)
    wrong = [name for name in names if len(texts[name]) != _CAPTIONS_PER_IMAGE]
    if wrong:
        raise FileFormatError(
            f"{tree.root / path}: {wrong[0]!r} has {len(texts[wrong[0]])} captions, expected {_CAPTIONS_PER_IMAGE}"
        )
    images = tree.locate("query", names, lambda name: [f"{folder}{name}" for folder in _FOLDERS])
    rows = [[texts[name][number] for number in sorted(texts[name])] for name in names]
    return tree.dataset({"query": Split(images, None, Captions.gather(rows))})
