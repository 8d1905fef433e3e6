"""Split files of the hashing benchmarks: a line ``relative/path l_1 ... l_C`` an image, each label 0 or 1."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.datasets.structure import FILES, Dataset, Split
from crovca.datasets.tree import Tree
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import atomic_directory, check_output, split_lines, write_json


def parse_split(text: str, classes: int, where: str) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """The n paths, which may contain spaces, and the labels, bool (n, classes), of a split file's text.

    ``where`` names the file in errors, which have the number of the line.
    """
    lines = split_lines(text)
    first: dict[str, int] = {}
    columns: list[str] = []
    for number, line in enumerate(lines, start=1):
        path, *labels = line.rsplit(None, classes)[: classes + 1] if line.strip() else [""]
        joined = "".join(labels)
        if len(labels) != classes or path.split()[-1] in ("0", "1"):
            found = _count_labels(line)
            raise FileFormatError(
                f"{where}, line {number}: {found} label columns after the path, expected {classes}: {line[:60]!r}"
            )
        if len(joined) != classes or joined.strip("01"):
            raise FileFormatError(f"{where}, line {number}: labels must be 0 or 1: {line[:60]!r}")
        if path.startswith("/") or ".." in PurePosixPath(path).parts:
            raise FileFormatError(
                f"{where}, line {number}: {path!r} does not lie below the dataset's folder; expected a relative path"
            )
        if path in first:
            raise FileFormatError(f"{where}: {path!r} stands in line {first[path]} and in line {number}")
        first[path] = number
        columns.append(joined)
    values = np.frombuffer("".join(columns).encode("ascii"), np.uint8).reshape(len(lines), classes)
    return list(first), values == ord("1")


def read_split(tree: Tree, split: str) -> tuple[list[str], npt.NDArray[np.bool_]]:
    """Paths and labels of a split file, as ``parse_split``."""
    file = FILES[split]
    return parse_split(tree.text(file), tree.classes, str(tree.root / file))


def open_split_files(
    tree: Tree, places: Callable[[str], Iterable[str]] = lambda path: (path,), *, advice: str = ""
) -> tuple[dict[str, Split], dict[str, list[str]]]:
    """Read train.txt, database.txt and test.txt of a folder, and find their images (``places``: see ``Tree.locate``).

    Gives the splits, and for each the paths as its file has them. ``advice``: what else can be done where database.txt
    is missing.
    """
    protocol = tree.protocol
    tree.require(list(FILES.values()), {FILES["database"]: advice})
    names: dict[str, list[str]] = {}
    labels: dict[str, npt.NDArray[Any]] = {}
    for split, file in FILES.items():
        paths, hot = read_split(tree, split)
        expected = protocol.counts[split]
        if expected is not None and len(paths) != expected:
            raise FileFormatError(
                f"{protocol.name}: {tree.root / file} lists {len(paths):,} images, expected {expected:,}; "
                f"fetch it again from {protocol.source_of(file)}"
            )
        names[split] = paths
        labels[split] = hot if protocol.multi_label else to_classes(hot, paths, str(tree.root / file))
    # Only now are images looked for: nobody unpacks 20 GB for split files that are of no use.
    splits = {split: Split(tree.locate(split, names[split], places), labels[split]) for split in FILES}
    return splits, names


def to_classes(hot: npt.NDArray[np.bool_], paths: list[str], where: str) -> npt.NDArray[np.int64]:
    """Turn one-hot labels bool (n, C) into class numbers int64 (n,)."""
    sums = hot.sum(axis=1)
    wrong = np.flatnonzero(sums != 1)
    if len(wrong):
        raise FileFormatError(
            f"{where}: {paths[wrong[0]]!r} has {sums[wrong[0]]} labels, expected one class for each image"
        )
    return hot.argmax(axis=1).astype(np.int64)


def write_split(path: Path, split: Split) -> None:
    """Write a split for ``crovca embed``; one line an image.

    Several labels an image are C columns of 0 and 1, one class an image is its number (1,000 columns for each of
    ImageNet's images would take 2.5 GB); without labels, nothing stands after the path.
    """
    if split.paths is None:
        raise InvalidInputError("a split of texts has no images to list")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row, name in enumerate(split.paths.tolist()):
            file.write(f"{name}{_label_columns(split.labels, row)}\n")


def export_splits(dataset: Dataset, output: Path, *, force: bool = False) -> Path:
    """Write the splits of a dataset for ``crovca embed SPLIT.txt --root FOLDER``.

    ::

        OUTPUT/train.txt, database.txt, query.txt     the images, each with its labels
        OUTPUT/train.captions.csv, ...                path, caption; a line for each caption, where there are any
        OUTPUT/protocol.json                          k, relevance, counts, and where the images lie
    """
    check_output(output, force=force, inputs=[dataset.folder], marker="protocol.json")
    with atomic_directory(output) as folder:
        for name, split in dataset.splits.items():
            if split.paths is not None:
                write_split(folder / f"{name}.txt", split)
            if split.captions is not None:
                _write_captions(folder / f"{name}.captions.csv", split)
        content: dict[str, Any] = asdict(dataset.protocol)
        content["root"] = str(dataset.folder.resolve())
        content["found"] = {name: len(split) for name, split in dataset.splits.items()}
        write_json(folder / "protocol.json", {"format_version": 1, **content})
    return output


def _label_columns(labels: npt.NDArray[Any] | None, row: int) -> str:
    if labels is None:
        return ""
    if labels.ndim == 2:
        return " " + " ".join("1" if label else "0" for label in labels[row])
    return f" {labels[row]}"


def _write_captions(path: Path, split: Split) -> None:
    assert split.captions is not None
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path" if split.paths is not None else "label", "caption"])
        keys = split.paths if split.paths is not None else split.labels
        assert keys is not None
        for text, row in zip(split.captions.texts, split.captions.items.tolist(), strict=True):
            writer.writerow([keys[row], text])


def _count_labels(line: str) -> int:
    """How many whole numbers stand at the end of a line."""
    words = line.split()
    count = 0
    while count < len(words) and words[-1 - count].lstrip("-").isdecimal():
        count += 1
    return count
