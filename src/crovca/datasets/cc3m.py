"""CC3M (Conceptual Captions): a training set of image and text, as img2dataset downloads it."""

from __future__ import annotations

import numpy as np

from crovca.datasets.structure import Captions, Dataset, Fetched, Protocol, Split
from crovca.datasets.tree import IMAGE_SUFFIXES, Tree
from crovca.errors import FileFormatError, StorageError

PROTOCOL = Protocol(
    name="cc3m",
    title="CC3M",
    folder="cc3m",
    task="training, image and text",
    counts={"train": None},
    metric="none: training only",
    k=None,
    relevance=None,
    sources=(
        Fetched(
            "00000/",
            "https://ai.google.com/research/ConceptualCaptions/download (Train_GCC-training.tsv), downloaded with "
            "img2dataset --output_format files",
        ),
    ),
    license="captions: free with attribution to Google; images are their owners', a license each",
    notes=(
        "the list is of addresses, and many are dead: no two copies are equal, so nothing can be counted or compared",
        "tars (img2dataset --output_format webdataset) need no listing: 'crovca embed' takes them as they are",
    ),
)


def open_cc3m(tree: Tree) -> Dataset:
    """List the pairs NUMBER/NUMBER.jpg and .txt that img2dataset wrote."""
    shards = [name for name in tree.folders("") if name.isdecimal()]
    paths: list[str] = []
    texts: list[list[str]] = []
    for shard in shards:
        files = tree.names(shard)
        for name in sorted(files):
            stem, dot, suffix = name.rpartition(".")
            if f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES:
                continue
            if f"{stem}.txt" not in files:
                raise FileFormatError(
                    f"{tree.protocol.name}: {tree.root / shard / name} has no caption: {stem}.txt is not beside it"
                )
            paths.append(f"{shard}/{name}")
            texts.append([_read(tree, f"{shard}/{stem}.txt")])
    if not paths:
        tars = any(name.endswith(".tar") for name in tree.names(""))
        raise FileFormatError(
            f"{tree.protocol.name}: {tree.root} has no images in 00000/, 00001/, ...; "
            + (
                "it has .tar files, which 'crovca embed' takes as they are"
                if tars
                else f"get them: {tree.protocol.sources[0].url}"
            )
        )
    notes = (f"{len(paths):,} pairs of the list's 3.3 million are in this copy",)
    return tree.dataset({"train": Split(np.array(paths, np.str_), None, Captions.gather(texts))}, notes=notes)


def _read(tree: Tree, path: str) -> str:
    try:  # text from the web: a wrong byte is no reason to stop
        return " ".join((tree.root / path).read_text("utf-8", errors="replace").split())
    except OSError as error:
        raise StorageError(f"cannot read {tree.root / path}: {error.strerror}") from error
