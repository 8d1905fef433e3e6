"""Images in folders: all that lie below one, or those that a split file lists."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crovca.data.store import JOB
from crovca.errors import FileFormatError, StorageError
from crovca.files import read_text, split_lines
from crovca.sources.decode import IMAGE_SUFFIXES
from crovca.sources.source import Source, build_source, is_clutter, numbers_or_names, read_below, read_file


class Found(NamedTuple):
    """A file named like an image: its path below the root (with "/"), bytes, and when it was changed, in ns.

    Of a link that leads nowhere, both numbers are -1.
    """

    name: str
    size: int
    modified: int


def scan(root: Path) -> tuple[list[Found], list[str]]:
    """List the files below a folder; hidden names and systems' own (@eaDir, Thumbs.db) are left out.

    Links are followed, but for those to folders that lie below the root anyway.

    Returns:
        Files named like images, and the paths of the others, both sorted.
    """
    images: list[Found] = []
    others: list[str] = []
    _scan(root, "", (), images, others, root.resolve())
    return sorted(images), sorted(others)


def _scan(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], images: list[Found], others: list[str], root: Path
) -> None:
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise StorageError(f"cannot read the folder {folder}: {error.strerror}") from error
    if (here.st_dev, here.st_ino) in above:  # a link back up
        return
    if above and any(entry.name == JOB for entry in entries):  # a store that was put among the images
        return
    for entry in entries:
        if is_clutter(entry.name):
            continue
        name = prefix + entry.name
        if entry.is_dir():
            if entry.is_symlink() and _met_anyway(Path(entry.path).resolve(), root):
                continue
            _scan(Path(entry.path), f"{name}/", (*above, (here.st_dev, here.st_ino)), images, others, root)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            try:
                status = entry.stat()
                images.append(Found(name, status.st_size, status.st_mtime_ns))
            except OSError:  # a link that leads nowhere
                images.append(Found(name, -1, -1))
        else:
            others.append(name)


def _met_anyway(folder: Path, root: Path) -> bool:
    """Whether a folder is listed without any link to it."""
    return folder.is_relative_to(root) and not any(map(is_clutter, folder.relative_to(root).parts))


def open_folder(root: Path, files: list[Found], others: int) -> Source[bytes]:
    """The images that ``scan`` found. Labels are the names of the first-level folders, if every image lies in one."""
    names = [file.name for file in files]
    classes = [name.split("/", 1)[0] if "/" in name else None for name in names]
    labels, notes = None, []
    if None not in classes:
        labels = np.array([str(name).encode("utf-8", "backslashreplace").decode() for name in classes])
    elif any(classes):
        notes.append(
            f"{sum(name is None for name in classes):,} images lie in {root.name} itself: "
            "subfolders are not taken as classes"
        )
    if others:
        notes.append(f"{others:,} files in {root.name} are not named like images and were passed over")
    return build_source(
        "folder",
        names,
        lambda row: read_file(root / names[row]),
        (f"{file.name}\0{file.size}" for file in files),
        labels=labels,
        notes=tuple(notes),
    )


def open_split(path: Path, root: Path) -> Source[bytes]:
    """The images that a split file lists: a path on each line, and its labels.

    C columns of 0 and 1 are multi-hot labels; a single number is the class. The id is the path as it stands there.
    """
    text = read_text(path, "split file")
    names: list[str] = []
    rows: list[list[str]] = []
    columns = -1
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        if columns < 0:
            columns = len(re.search(r"((?:\s+[01])*)\s*$", line)[1].split())  # type: ignore[index]
            columns = columns or int(re.search(r"\S\s+\d+\s*$", line) is not None)
        name, *values = line.strip().rsplit(None, columns) if columns else [line.strip()]
        if len(values) != columns or not all(value.isdecimal() for value in values):
            raise FileFormatError(
                f"{path}, line {number}: expected a path and {columns} labels as in the first line, got {line[:80]!r}"
            )
        names.append(name)
        rows.append(values)
    if not names:
        raise FileFormatError(f"{path} lists no image")
    return build_source(
        "split file",
        names,
        lambda row: read_below(root, names[row]),
        [hashlib.sha256(text.encode()).hexdigest()],
        labels=_labels(rows, columns, path),
    )


def _labels(rows: list[list[str]], columns: int, path: Path) -> npt.NDArray[Any] | None:
    if not columns:
        return None
    if columns == 1:
        return numbers_or_names([value for (value,) in rows])
    values = np.array(rows, np.int64)
    wrong = np.flatnonzero((values > 1).any(axis=1))
    if len(wrong):
        raise FileFormatError(f"{path}: labels must be 0 or 1 where there are several; item {wrong[0]} has others")
    return values.astype(np.bool_)
