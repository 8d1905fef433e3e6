"""The user's folder: which files are there, and what to say of those that are not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.datasets.structure import Dataset, Protocol, Split, check_splits
from crovca.errors import FileFormatError, StorageError
from crovca.files import read_json, read_text, sha256

_MAX_JSON = 2 << 30  # bytes; COCO's instances take half a GiB

PINS = "crovca-checksums.json"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Tree:
    """A dataset's folder. Every folder in it is listed once, so a million look-ups cost no million system calls."""

    def __init__(self, root: Path, protocol: Protocol) -> None:
        if not root.is_dir():
            raise FileFormatError(f"{protocol.name}: there is no folder {root}; {_what_to_fetch(protocol)}")
        self.root = root
        self.protocol = protocol
        self.used: list[str] = []
        self._listings: dict[str, frozenset[str]] = {}
        self._checksums = dict(protocol.checksums) | _read_pins(root / PINS)

    @property
    def classes(self) -> int:
        """Number of classes, of a dataset with labels."""
        assert self.protocol.classes is not None
        return self.protocol.classes

    def has(self, path: str) -> bool:
        """Whether the file ``path`` is there."""
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def has_folder(self, path: str) -> bool:
        """Whether the folder ``path`` is there."""
        return (self.root / path).is_dir()

    def names(self, folder: str) -> frozenset[str]:
        """Names of the files in a folder; none where it does not exist."""
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._listings[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = frozenset()
            except OSError as error:
                raise StorageError(f"cannot list {self.root / folder}: {error.strerror}") from error
        return self._listings[folder]

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"cannot list {self.root / folder}: {error.strerror}") from error

    def first(self, paths: Iterable[str]) -> str | None:
        """The first of these files that is there."""
        return next((path for path in paths if self.has(path)), None)

    def file(self, path: str) -> Path:
        """A file that will be read, after comparing its checksum where one is known or pinned."""
        full = self.root / path
        self.require([path])
        expected = self._checksums.get(path)
        if expected is not None and path not in self.used:
            kind, _, value = expected.partition(":")
            found = _digest(full, kind)
            if found != value.lower():
                raise FileFormatError(
                    f"{self.protocol.name}: {full} has the {kind} checksum {found}, expected {value.lower()}; "
                    f"it is damaged or another version: fetch it again from {self.protocol.source_of(path)}, "
                    f"or, if it was pinned in {PINS} and is meant to differ, remove it there"
                )
        if path not in self.used:
            self.used.append(path)
        return full

    def require(self, paths: Sequence[str], advice: Mapping[str, str] | None = None) -> None:
        """Make sure that files are there, naming all that are not, before any is read.

        ``advice`` says what else can be done where one of them is missing.
        """
        missing = [path for path in paths if not self.has(path)]
        if missing:
            fetch = "; ".join(
                f"get {path} from {self.protocol.source_of(path)}{(advice or {}).get(path, '')}" for path in missing
            )
            raise FileFormatError(
                f"{self.protocol.name}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing in "
                f"{self.root}; {fetch}"
            )

    def text(self, path: str) -> str:
        """Content of a UTF-8 text file, without a byte order mark."""
        return read_text(self.file(path), self.protocol.name)

    def json(self, path: str) -> dict[str, Any]:
        """A JSON object."""
        return read_json(self.file(path), self.protocol.name, most=_MAX_JSON)

    def dataset(self, splits: Mapping[str, Split], *, embeddable: bool = True, notes: tuple[str, ...] = ()) -> Dataset:
        """What was found, once ``check_splits`` has nothing against it."""
        check_splits(self.protocol, splits)
        return Dataset(self.protocol, self.root, splits, tuple(self.used), embeddable, notes)

    def locate(
        self, split: str, wanted: Sequence[str], places: Callable[[str], Iterable[str]] = lambda path: (path,)
    ) -> npt.NDArray[np.str_]:
        """Find the images of a split, named as ``wanted`` in its file.

        ``places`` gives the paths below the folder where an image of that name may lie, the likeliest first.
        """
        found = [self.first(places(path)) for path in wanted]
        missing = [path for path, place in zip(wanted, found, strict=True) if place is None]
        if missing:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise FileFormatError(
                f"{self.protocol.name}: {len(missing):,} of the {len(wanted):,} images of the split '{split}' are "
                f"not below {self.root}: {listed}; {_what_to_fetch(self.protocol, missing[0])}"
            )
        return np.array(found, np.str_)


def _what_to_fetch(protocol: Protocol, path: str = "") -> str:
    """What to get where ``path`` is missing, or everything."""
    folders = [source for source in protocol.sources if source.path.endswith("/")] or protocol.sources
    source = next((source for source in folders if path.startswith(source.path)), folders[0])
    return f"get {source.path} from {source.url} ('crovca datasets {protocol.name}' lists every source)"


def _read_pins(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    content = read_json(path, "pinned checksums").get("sha256")
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise FileFormatError(f'{path}: expected {{"sha256": {{"path": "checksum", ...}}}}')
    return {name: f"sha256:{value}" for name, value in content.items()}


def _digest(path: Path, kind: str) -> str:
    if kind == "sha256":
        return sha256(path)
    with path.open("rb") as file:  # publishers of old sets state MD5: against damage, not against forgery
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
