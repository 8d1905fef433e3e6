"""What a benchmark prescribes (``Protocol``), and what was found of it (``Dataset``, with its ``Split``s)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError

FILES: Mapping[str, str] = {"train": "train.txt", "database": "database.txt", "query": "test.txt"}

Relevance = Literal["same class", "share a label", "own caption"]


@dataclass(frozen=True)
class Fetched:
    """A file or folder that the user fetches from ``url`` to ``path``, below the dataset's folder."""

    path: str
    url: str
    needed: bool = True


def split_files(folder: str) -> tuple[Fetched, ...]:
    """The split files of DeepHash-pytorch, in a folder of its data."""
    home = "https://github.com/swuxyj/DeepHash-pytorch/raw/ab14068/data"
    return tuple(Fetched(file, f"{home}/{folder}/{file}") for file in FILES.values())


@dataclass(frozen=True)
class Protocol:
    """One row of the paper's Table 9 (or the training set behind one): what is measured, on which items, and how.

    Attributes:
        name: what ``open_dataset`` and ``crovca datasets`` call it.
        title: what papers call it.
        folder: name of the dataset's folder below ``--data``; several protocols may share one.
        task: what is searched with what.
        counts: items in each split; None: not known beforehand, so not checked.
        relevance: when an item answers a query; None for a set that is only trained on.
        metric: as the paper's Table 9 has it.
        k: the cut-off of the metric; None: all of the database.
        classes: number of classes, or None without labels.
        multi_label: whether an item may have several.
        train_in_database: whether the training set is part of the database; False: they share no item; None: unchecked.
        unlabeled: items without any label in each split; a split that is not named may have none, unless it
            stands here with None: not known, so not checked.
        per_class: items of each class, for the splits where every class has equally many.
        captions: number of captions in a split, where it is known.
        checksums: "md5:..." or "sha256:..." of files below the folder, where the publisher states one.
        sources: what to fetch.
        license: a note, no legal advice.
        notes: traps.
    """

    name: str
    title: str
    folder: str
    task: str
    counts: Mapping[str, int | None]
    metric: str
    k: int | None
    relevance: Relevance | None
    sources: tuple[Fetched, ...]
    license: str
    classes: int | None = None
    multi_label: bool = False
    train_in_database: bool | None = None
    unlabeled: Mapping[str, int | None] = field(default_factory=dict)
    per_class: Mapping[str, int] = field(default_factory=dict)
    captions: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def source_of(self, path: str) -> str:
        """Where to get the file ``path``: the URL of the source with that path, else of the first one."""
        for source in self.sources:
            if path == source.path or path.startswith(source.path.rstrip("/") + "/"):
                return source.url
        return self.sources[0].url


@dataclass(frozen=True)
class Captions:
    """Texts that belong to the items of a split.

    Attributes:
        texts: the m texts.
        items: int64 (m,) the row of the item that each belongs to, ascending.
    """

    texts: tuple[str, ...]
    items: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def gather(cls, rows: list[list[str]]) -> Captions:
        """From a list of texts for each item; empty texts are left out."""
        pairs = [(text, row) for row, texts in enumerate(rows) for text in map(str.strip, texts) if text]
        return cls(tuple(text for text, _ in pairs), np.array([row for _, row in pairs], np.int64))


@dataclass(frozen=True)
class Split:
    """Items of one split, in the order of its file.

    Attributes:
        paths: str (n,) the images' paths below the dataset's folder, which are their ids; None: the items are texts.
        labels: int64 (n,) one class each, bool (n, C) several, or None.
        captions: texts of the items, or None.
    """

    paths: npt.NDArray[np.str_] | None
    labels: npt.NDArray[Any] | None
    captions: Captions | None = None

    def __len__(self) -> int:
        if self.paths is not None:
            return len(self.paths)
        return 0 if self.captions is None else len(self.captions)


@dataclass(frozen=True)
class Dataset:
    """A benchmark as it lies in a folder, checked against its protocol.

    Attributes:
        protocol: what it was checked against.
        folder: where it lies; paths of items are relative to it.
        splits: ``train``, ``database`` and ``query``, as far as the protocol has them.
        files: the split and annotation files that were read, relative to the folder.
        embeddable: whether the images are files; False where they lie in an archive (CIFAR-10: export it first).
        notes: what a user should know of this copy.
    """

    protocol: Protocol
    folder: Path
    splits: Mapping[str, Split]
    files: tuple[str, ...]
    embeddable: bool = True
    notes: tuple[str, ...] = ()


def check_splits(protocol: Protocol, splits: Mapping[str, Split]) -> None:
    """Compare splits with the protocol: counts, labels, and which splits may share items."""
    for name, expected in protocol.counts.items():
        _check_split(protocol, name, expected, splits[name])
    paths = {
        name: set(split.paths.tolist())
        for name, split in splits.items()
        if split.paths is not None and name in ("train", "database", "query")
    }
    for name in ("database", "train"):
        if {"query", name} <= set(paths):
            _refuse_shared(protocol, paths["query"] & paths[name], f"'query' and '{name}'")
    if protocol.train_in_database is not None and {"train", "database"} <= set(paths):
        if protocol.train_in_database:
            outside = paths["train"] - paths["database"]
            if outside:
                raise FileFormatError(
                    f"{protocol.name}: {len(outside):,} items of 'train' are not in 'database' "
                    f"({min(outside)}), which holds the whole training set in this benchmark; "
                    "are the split files of one kind?"
                )
        else:
            _refuse_shared(protocol, paths["train"] & paths["database"], "'train' and 'database'")


def _refuse_shared(protocol: Protocol, shared: set[str], where: str) -> None:
    if shared:
        raise FileFormatError(
            f"{protocol.name}: {where} share {len(shared):,} items ({min(shared)}), expected none; "
            "are the split files of one kind?"
        )


def _check_split(protocol: Protocol, name: str, expected: int | None, split: Split) -> None:
    where = f"{protocol.name}: the split '{name}'"
    if expected is not None and len(split) != expected:
        raise FileFormatError(
            f"{where} holds {len(split):,} items, expected {expected:,}; "
            f"fetch it again from {protocol.source_of(FILES.get(name, name))}"
        )
    if not len(split):
        raise FileFormatError(f"{where} is empty")
    texts = protocol.captions.get(name)
    if texts is not None and split.captions is not None and len(split.captions) != texts:
        raise FileFormatError(f"{where} has {len(split.captions):,} captions, expected {texts:,}")
    if split.labels is None:
        return
    if split.labels.ndim == 2:
        bare, allowed = int((~split.labels.any(axis=1)).sum()), protocol.unlabeled.get(name, 0)
        if allowed is not None and bare != allowed:
            raise FileFormatError(f"{where} has {bare:,} items without a label, expected {allowed:,}")
    elif name in protocol.per_class and protocol.classes is not None:
        sizes = np.bincount(split.labels, minlength=protocol.classes)
        wrong = np.flatnonzero(sizes != protocol.per_class[name])
        if len(wrong):
            raise FileFormatError(
                f"{where} has {sizes[wrong[0]]:,} items of class {wrong[0]}, expected {protocol.per_class[name]:,}"
            )
