"""Where images and texts come from: a fixed list of items, each of which can be read by its number.

``open_images`` takes a folder, a split file, Parquet, a saved Hugging Face dataset or WebDataset tars; ``open_texts`` a
.txt, .csv, .tsv or .parquet, or a store whose items have captions. Opening the same data again gives the same list.
"""

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

from crovca.data.images import IMAGE_SUFFIXES, MAX_BYTES, UnreadableItem
from crovca.errors import FileFormatError, InvalidInputError

__all__ = ["Fault", "Source", "build_source", "open_images", "open_texts", "read_file"]

T = TypeVar("T")
Fault = tuple[str, str]  # a reason of ``REASONS``, and the detail


@dataclass(frozen=True)
class Source(Generic[T]):
    """n items in a fixed order.

    Attributes:
        kind: what the data were recognised as.
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
        """What ``fetch`` gives for an item, or its known fault.

        Raises:
            UnreadableItem: the item cannot be read.
        """
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
    array = np.asarray(ids, np.int64) if whole else np.asarray(names, np.str_)
    return Source(kind, array, fetch, digest.hexdigest(), faults=faults, **known)


def read_file(path: Path) -> bytes:
    """Read a file of at most ``MAX_BYTES``; never waits for a pipe or a device.

    Raises:
        UnreadableItem: it is missing, no regular file, too large, or refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        broken = path.is_symlink()
        raise UnreadableItem(
            "missing", "the link leads nowhere" if broken else "there is no such file"
        ) from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise UnreadableItem("not a file", "a socket") from error
        raise UnreadableItem("unreadable", error.strerror or type(error).__name__) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UnreadableItem("not a file", _kind_of(found.st_mode))
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > MAX_BYTES:
            raise UnreadableItem("too large", f"{found.st_size:,} bytes, the limit is {MAX_BYTES:,}")
        return file.read()


def open_images(
    path: str | Path,
    *,
    root: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> Source[bytes]:
    """Open a source of images; what ``path`` holds decides how.

    Args:
        path: a folder of images, of Parquet files or of tars; a saved Hugging Face dataset; a split file (.txt, .lst);
            a .parquet or .tar file.
        root: the folder that a split file's paths are relative to [default: the split file's own].
        image_column: Parquet and Hugging Face: the column of the images [default: the one that looks like it].
        caption_column: likewise, the column of their captions.

    Raises:
        FileFormatError: ``path`` is missing, damaged, or nothing that images are read from.
        InvalidInputError: it holds no image, or an option does not go with it.
    """
    from crovca.data import folders, tables, tars

    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    suffix = path.suffix.lower()
    columns = {"image_column": image_column, "caption_column": caption_column}
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = tables.open_saved_dataset(path, **columns)
        else:
            found = _open_folder(path, columns)
    elif suffix == ".parquet":
        found = tables.open_parquet_images([path], path.parent, **columns)
    elif suffix == ".tar":
        found = tars.open_tars([path], None)
    elif suffix in (".txt", ".lst"):
        found = folders.open_split(path, root or path.parent)
    else:
        raise FileFormatError(f"{path}: {_advice(path)}")
    if root is not None and found.kind != "split file":
        raise InvalidInputError(f"{path}: a root goes with a split file; this is a {found.kind}")
    if (image_column or caption_column) and found.kind not in ("Parquet", "Hugging Face dataset"):
        raise InvalidInputError(
            f"{path}: columns are named for Parquet and Hugging Face data; this is a {found.kind}"
        )
    return found


def open_texts(path: str | Path, *, caption_column: str | None = None) -> Source[str]:
    """Open a source of texts: .txt (a line each), .csv, .tsv or .parquet with a caption column, or a store's captions.

    A store's captions keep its ids and labels, row by row: images and texts of two such stores are pairs.

    Raises:
        FileFormatError: the file is missing, damaged or of another kind.
        InvalidInputError: it has no such column, or no text.
    """
    from crovca.data import texts

    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    return texts.open_texts(path, caption_column)


def _open_folder(path: Path, columns: dict[str, str | None]) -> Source[bytes]:
    from crovca.data import folders, tables, tars

    if (path / "manifest.json").is_file() and any(path.glob("part-*")):
        raise InvalidInputError(f"{path} is a store of embeddings already; give the images")
    files, others = folders.scan(path)
    by_suffix = {
        suffix: [file for file in others if file.lower().endswith(suffix)] for suffix in (".parquet", ".tar")
    }
    if files:
        return folders.open_folder(path, files, len(others))
    if by_suffix[".parquet"]:
        return tables.open_parquet_images([path / file for file in by_suffix[".parquet"]], path, **columns)
    if by_suffix[".tar"]:
        return tars.open_tars([path / file for file in by_suffix[".tar"]], path)
    raise InvalidInputError(
        f"{path} holds no image, but {len(others):,} other files; expected .jpg, .png, .webp and the like, "
        ".parquet or .tar"
    )


def _advice(path: Path) -> str:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "a single image; give the folder that it lies in"
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")):
        return "a compressed tar cannot be read at any place; unpack it, or store it uncompressed (.tar)"
    return (
        "not a source of images; expected a folder, a split file (.txt), .parquet, .tar, "
        "or the folder of a saved Hugging Face dataset"
    )


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind_of(mode: int) -> str:
    for test, what in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return what
    return "not a regular file"
