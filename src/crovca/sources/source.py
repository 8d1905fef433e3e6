"""A fixed list of images or texts, each of which can be read by its number (``opening`` makes one of a path)."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from crovca.ids import as_ids
from crovca.sources.decode import MAX_BYTES, UnreadableItem

_CLUTTER = {
    "@eadir", "@recycle", "@__thumb", "#recycle", "#snapshot", "$recycle.bin", "system volume information",
    "lost+found", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}

T = TypeVar("T")
Fault = tuple[str, str]  # a reason of ``REASONS``, and the detail


@dataclass(frozen=True)
class Source(Generic[T]):
    """n items in a fixed order.

    Attributes:
        kind: what the data were recognized as.
        ids: (n,) int64 or str; repeated ids are faults from the second on.
        fetch: reads an item by its number: the bytes of an image file, or a text; raises UnreadableItem.
        fingerprint: of the list and of what tells that content changed (sizes, or a checksum where that is cheap).
        labels: (n,) int64 or str, (n, C) bool, or None. Those of items with a fault mean nothing.
        paths: (n,) where each item was found, or None where the id says it.
        captions: (n,), or None.
        faults: items of which it is known already that they cannot be read.
        notes: what a person should know about how the data were understood.
    """

    kind: str
    ids: npt.NDArray[Any]
    fetch: Callable[[int], T]
    fingerprint: str
    labels: npt.NDArray[Any] | None = None
    paths: Sequence[str] | None = None
    captions: Sequence[str] | None = None
    faults: dict[int, Fault] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, row: int) -> T:
        """What ``fetch`` gives for an item, or its known fault."""
        if row in self.faults:
            raise UnreadableItem(*self.faults[row])
        try:
            return self.fetch(row)
        except OSError as error:
            raise UnreadableItem("unreadable", error.strerror or type(error).__name__) from error


def build_source(
    kind: str,
    ids: Sequence[str] | npt.NDArray[Any],
    fetch: Callable[[int], T],
    fingerprint: Iterable[str],
    **known: Any,
) -> Source[T]:
    """Make a source: ids are checked, repeated ones become faults, the fingerprint's parts are hashed."""
    faults: dict[int, Fault] = known.pop("faults", {})
    names = list(ids)
    seen: dict[Any, int] = {}
    for row, name in enumerate(names):
        if isinstance(name, str) and (not name.isprintable() or "\ufffd" in name) and not _encodes(name):
            names[row] = name.encode("utf-8", "backslashreplace").decode()
            faults.setdefault(row, ("bad name", "the name is not UTF-8"))
        elif seen.setdefault(name, row) != row:
            faults.setdefault(row, ("duplicate", f"item {seen[name]} has the id {name!r} already"))
    digest = hashlib.sha256()
    for part in (kind, *fingerprint):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    whole = isinstance(ids, np.ndarray) and ids.dtype.kind in "iu"
    array = as_ids(ids) if whole else np.asarray(names, np.str_)
    return Source(kind, array, fetch, digest.hexdigest(), faults=faults, **known)


def is_clutter(name: str) -> bool:
    """Whether a file or a folder of this name is a system's own: hidden, a thumbnail, a recycle bin."""
    return name.startswith(".") or name.lower() in _CLUTTER


def numbers_or_names(values: Sequence[str]) -> npt.NDArray[Any]:
    """Labels that were read as text: int64 where each is written as a number is, else as they stand ("007")."""
    whole = all(
        value.isascii() and value.isdecimal() and len(value) < 19 and (value == "0" or value[0] != "0")
        for value in values
    )
    return np.array(values, np.int64 if whole else np.str_)


def read_below(root: Path, name: str) -> bytes:
    """Read a file that a table or a list names.

    Raises:
        UnreadableItem: as ``read_file``; or the path leads out of ``root``.
    """
    path = os.path.normpath(root / name)
    if "\0" in name or not Path(path).is_relative_to(os.path.normpath(root)):
        raise UnreadableItem("missing", f"the path leads out of the folder {root}")
    return read_file(Path(path))


def read_file(path: Path) -> bytes:
    """Read a file of at most ``MAX_BYTES``; never waits for a pipe or a device.

    Raises:
        UnreadableItem: it is missing, no regular file, too large, or refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        broken = path.is_symlink()
        raise UnreadableItem("missing", "the link leads nowhere" if broken else "there is no such file") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UnreadableItem("not a file", "a socket") from error
        raise UnreadableItem("unreadable", error.strerror or type(error).__name__) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UnreadableItem("not a file", _KINDS.get(stat.S_IFMT(found.st_mode), "not a regular file"))
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > MAX_BYTES:
            raise UnreadableItem("too large", f"{found.st_size:,} bytes, the limit is {MAX_BYTES:,}")
        return file.read()


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
