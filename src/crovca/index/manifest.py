"""The one file that says what an index holds, and the lock that keeps it to one writer.

::

    INDEX/manifest.json                        see ``Manifest``; replaced in one step by every write
    INDEX/lock                                 locked by the writer
    INDEX/segments/00000001/                   see ``segment``
    INDEX/model/                               the hasher that makes queries into logits (optional)
"""

from __future__ import annotations

import fcntl
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from crovca.codes import check_bits
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.files import read_json, write_json

__all__ = ["FORMAT_VERSION", "FileEntry", "IdType", "Manifest", "SegmentEntry", "WriterLock"]

FORMAT_VERSION = 1
IdType = Literal["int64", "string"]

_NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """A file of a segment as it was written: size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentEntry:
    """A segment: its folder's name, its rows, its files, and which rows are deleted."""

    name: str
    rows: int
    files: tuple[FileEntry, ...]
    deleted: int = 0
    deletions: FileEntry | None = None


@dataclass(frozen=True)
class Manifest:
    """What an index holds.

    Attributes:
        bits: length of every code.
        id_type: fixed by the first items.
        uuid: names the index for ever; generation: counts its writes.
        columns: the metadata's columns and their Arrow types, to be read by people; schema: the same in Arrow's own
            form (base64).
        encoder: what made the embeddings (id or folder, revision), where that is known.
        written: number of segments ever written; the next one's name.
    """

    bits: int
    id_type: IdType | None = None
    uuid: str = ""
    generation: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    schema: str = ""
    encoder: dict[str, Any] | None = None
    written: int = 0
    segments: tuple[SegmentEntry, ...] = ()

    @classmethod
    def new(cls, bits: int, id_type: IdType | None, encoder: dict[str, Any] | None) -> Manifest:
        """An empty index's."""
        if id_type not in (None, "int64", "string"):
            raise InvalidInputError(f"id_type must be 'int64' or 'string', got {id_type!r}")
        return cls(check_bits(bits), id_type, uuid=str(uuid.uuid4()), encoder=encoder)

    def next(self, **changes: Any) -> Manifest:
        """The manifest of the next generation."""
        return replace(self, generation=self.generation + 1, **changes)

    def save(self, index: Path) -> None:
        """Put this manifest in the old one's place: the moment at which a write has happened."""
        write_json(index / _NAME, {"format_version": FORMAT_VERSION, "kind": "crovca index", **asdict(self)})

    @classmethod
    def load(cls, index: Path) -> Manifest:
        """Read an index's manifest.

        Raises:
            FileFormatError: there is none, it is damaged, or of a newer format.
        """
        if not (index / _NAME).exists():
            raise FileFormatError(
                f"{index} is not an index: it has no {_NAME}; make one with 'crovca index build'"
            )
        content = read_json(index / _NAME, "index")
        version = content.pop("format_version", None)
        if content.pop("kind", None) != "crovca index":
            raise FileFormatError(f"{index} is not an index: its {_NAME} is that of something else")
        if version != FORMAT_VERSION:
            raise FileFormatError(
                f"{index}: index of format version {version!r}, this crovca reads {FORMAT_VERSION}; upgrade crovca"
            )
        try:
            segments = tuple(_segment(entry) for entry in content.pop("segments"))
            check_bits(content["bits"])
            return cls(**content, segments=segments)
        except (TypeError, KeyError, AttributeError, InvalidInputError) as error:
            raise FileFormatError(f"{index / _NAME} is damaged: {error}") from error


def _segment(entry: dict[str, Any]) -> SegmentEntry:
    files = tuple(FileEntry(**file) for file in entry.pop("files"))
    deletions = entry.pop("deletions")
    return SegmentEntry(**entry, files=files, deletions=deletions and FileEntry(**deletions))


class WriterLock:
    """Held by the one writer of an index; the system releases it when the process ends, however it ends."""

    def __init__(self, index: Path) -> None:
        path = index / "lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"cannot write to the index {index}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 100).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            raise StorageError(
                f"{index} is being written by {holder}; wait until it has finished, or open the index for reading"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()}\n".encode(), 0)

    def holds(self, index: Path) -> bool:
        """Whether this is still the lock of what stands at that path: it may have been moved, or built anew."""
        try:
            return self._file >= 0 and os.path.samestat(os.fstat(self._file), (index / "lock").stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let another writer in."""
        if self._file >= 0:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
