"""The one file that says what an index holds, and the lock that keeps it to one writer.

::

    INDEX/manifest.json                        see ``Manifest``; replaced in one step by every write
    INDEX/lock                                 locked by the writer
    INDEX/segments/00000001/                   see ``segment``
    INDEX/model/, INDEX/model-00000002/        the hasher that makes queries into logits (optional)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import uuid
from base64 import b64decode
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pyarrow as pa

from crovca.codes import check_bits
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.files import read_json, write_json
from crovca.index.memo import after_fork
from crovca.index.originals import Keep

FORMAT_VERSION = 2
_READ = (1, 2)  # the first has no originals, fingerprints and settings
IdType = Literal["int64", "string"]

SEGMENT_NAME = re.compile(r"[0-9]{8,12}")
DELETIONS_NAME = re.compile(r"deleted-[0-9]{8,12}\.npy")
FILES: dict[IdType, frozenset[str]] = {
    "int64": frozenset({"codes.npy", "hashes.npy", "ids.npy", "metadata.parquet"}),
    "string": frozenset({"codes.npy", "hashes.npy", "id_offsets.npy", "id_bytes.npy", "metadata.parquet"}),
}
MODEL_NAME = re.compile(r"model(-[0-9]{8,12})?")
_ORIGINALS = frozenset({"originals.npy", "scales.npy"})
PIECES = frozenset({"pieces.npy", "piece_sizes.npy", "piece_bounds.npy"})  # of a large segment, where they pay
SKETCHES = frozenset({"sketches.npy"})  # of kept embeddings; segments from before have none
MAX_ROWS = (1 << 32) - 1  # of a segment: engines count rows in 32 bits

_NAME = "manifest.json"
_MOST_BYTES = 64 << 20  # of a manifest
_MOST_WRITES = 10**12 - 1


@dataclass(frozen=True)
class FileEntry:
    """A file of a segment as it was written: size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and (
            self.name in FILES["int64"] | FILES["string"] | _ORIGINALS | PIECES | SKETCHES
            or DELETIONS_NAME.fullmatch(self.name)
        )
        _check(named, f"{self.name!r} is no file of a segment")
        _check_whole(self.bytes, f"the size of {self.name}", 1, 1 << 60)
        digest = isinstance(self.sha256, str) and re.fullmatch("[0-9a-f]{64}", self.sha256)
        _check(digest, f"the checksum of {self.name} is {self.sha256!r}")


@dataclass(frozen=True)
class SegmentEntry:
    """A segment: its folder's name, its rows, its files, and which rows are deleted."""

    name: str
    rows: int
    files: tuple[FileEntry, ...]
    deleted: int = 0
    deletions: FileEntry | None = None

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and SEGMENT_NAME.fullmatch(self.name)
        _check(named, f"{self.name!r} cannot be the name of a segment")
        _check_whole(self.rows, f"the rows of segment {self.name}", 1, MAX_ROWS)
        _check_whole(self.deleted, f"the deleted rows of segment {self.name}", 0, self.rows)
        _check(
            (self.deleted > 0) == (self.deletions is not None),
            f"segment {self.name} has {self.deleted} deleted rows and the file of deletions {self.deletions}",
        )
        if self.deletions is not None:
            _check(
                DELETIONS_NAME.fullmatch(self.deletions.name),
                f"segment {self.name} has its deletions in {self.deletions.name!r}",
            )


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
        written: number of the last segment that was written.
        keep: what is kept of embeddings; width: the numbers in one, once there are some.
        model: name of the model's folder; fingerprint: of what made the codes (``Hasher.fingerprint``), or "".
        tuned: what ``tuning`` chose and measured.
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
    keep: Keep = "none"
    width: int | None = None
    model: str = "model"
    fingerprint: str = ""
    tuned: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        _check(self.id_type in (None, *FILES), f"id_type must be 'int64' or 'string', got {self.id_type!r}")
        named = isinstance(self.uuid, str) and re.fullmatch("[0-9a-f-]{36}", self.uuid)
        _check(named, f"the uuid is {self.uuid!r}")
        _check_whole(self.generation, "generation", 0, _MOST_WRITES)
        _check_whole(self.written, "written", 0, _MOST_WRITES)
        described = isinstance(self.columns, dict) and all(isinstance(kind, str) for kind in self.columns.values())
        _check(described, "'columns' is not names and types")
        _check(isinstance(self.schema, str), "'schema' is not text")
        _check(self.encoder is None or isinstance(self.encoder, dict), "'encoder' is not an object")
        _check(self.keep in get_args(Keep), f"'keep' must be one of {get_args(Keep)}, got {self.keep!r}")
        if self.width is not None:
            _check_whole(self.width, "width", 1, 1 << 24)
        named = isinstance(self.model, str) and MODEL_NAME.fullmatch(self.model)
        _check(named, f"{self.model!r} cannot be the folder of a model")
        digest = isinstance(self.fingerprint, str) and re.fullmatch("([0-9a-f]{64})?", self.fingerprint)
        _check(digest, f"the fingerprint of the model is {self.fingerprint!r}")
        _check(self.tuned is None or isinstance(self.tuned, dict), "'tuned' is not an object")
        names = [segment.name for segment in self.segments]
        _check(len(set(names)) == len(names), "a segment is listed twice")
        for segment in self.segments:
            _check(int(segment.name) <= self.written, f"segment {segment.name} is beyond 'written', {self.written}")
            files = [file.name for file in segment.files]
            expected = segment_files(self.id_type, self.keep) if self.id_type else frozenset()
            for optional in (PIECES, SKETCHES if self.keep != "none" else frozenset[str]()):
                if optional & set(files):
                    expected |= optional
            _check(
                len(files) == len(expected) and set(files) == expected,
                f"segment {segment.name} has the files {sorted(files)}, expected {sorted(expected)}",
            )

    @classmethod
    def new(cls, bits: int, **settings: Any) -> Manifest:
        """An empty index's."""
        return cls(check_bits(bits), uuid=str(uuid.uuid4()), **settings)

    def next(self, **changes: Any) -> Manifest:
        """The manifest of the next generation."""
        return replace(self, generation=self.generation + 1, **changes)

    def arrow_schema(self) -> pa.Schema:
        """The metadata's columns.

        Raises:
            FileFormatError: ``schema`` is not one.
        """
        if not self.schema:
            return pa.schema([])
        try:
            return pa.ipc.read_schema(pa.py_buffer(b64decode(self.schema, validate=True)))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise FileFormatError(f"{_NAME} is damaged: its schema cannot be read ({error})") from error

    def save(self, index: Path) -> None:
        """Put this manifest in the old one's place: the moment at which a write has happened."""
        write_json(index / _NAME, {**self._content(), "sha256": self.digest()})

    def digest(self) -> str:
        """SHA-256 of all it says, the checksums of every file among it."""
        return _digest(self._content())

    def _content(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, "kind": "crovca index", **asdict(self)}

    @classmethod
    def load(cls, index: Path) -> Manifest:
        """Read an index's manifest; nothing in it is believed before it is checked.

        Raises:
            FileFormatError: there is none, it is damaged, or of a newer format.
        """
        path = index / _NAME
        if not path.is_file():
            raise FileFormatError(f"{index} is not an index: it has no {_NAME}; make one with 'crovca index build'")
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise FileFormatError(f"{path} has {size:,} bytes, more than the manifest of an index can have")
        try:
            content = read_json(path, "index")
        except RecursionError as error:
            raise FileFormatError(f"{path} is damaged: it is nested too deeply") from error
        if content.get("kind") != "crovca index":
            raise FileFormatError(f"{index} is not an index: its {_NAME} is that of something else")
        version = content.get("format_version")
        if version not in _READ:
            raise FileFormatError(
                f"{index}: index of format version {version!r}, this crovca reads 1 and 2; upgrade crovca"
            )
        digest = content.pop("sha256", None)  # which indexes of crovca 0.1.0 lack
        try:
            if digest is not None and digest != _digest(content):
                raise InvalidInputError("it does not have the checksum that it was written with")
            del content["kind"], content["format_version"]
            segments = tuple(_segment(entry) for entry in content.pop("segments"))
            return cls(**content, segments=segments)
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {error}; restore it from a copy") from error


def segment_files(id_type: IdType, keep: Keep) -> frozenset[str]:
    """The files that every segment has."""
    return FILES[id_type] | (_ORIGINALS if keep != "none" else frozenset())


def _segment(entry: dict[str, Any]) -> SegmentEntry:
    files = tuple(FileEntry(**file) for file in entry.pop("files"))
    deletions = entry.pop("deletions")
    return SegmentEntry(**entry, files=files, deletions=None if deletions is None else FileEntry(**deletions))


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check(condition: object, fault: str) -> None:
    if not condition:
        raise InvalidInputError(fault)


def _check_whole(number: object, what: str, low: int, high: int) -> None:
    whole = isinstance(number, int) and not isinstance(number, bool) and low <= number <= high
    _check(whole, f"{what} must be a whole number from {low:,} to {high:,}, got {number!r}")


class WriterLock:
    """Held by the one writer of an index; the system releases it when the process ends, however it ends.

    A forked child does not hold it: it lets go of its copy at once, so that the writer's end frees the index.

    Raises:
        StorageError: another process holds it, the index cannot be written, or the lock is a link to something else.
    """

    def __init__(self, index: Path) -> None:
        path = index / "lock"
        try:
            # Whoever sent the index may have made a link of its lock: that is not followed, nor emptied.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            linked = f"{path} is a link" if path.is_symlink() else error.strerror
            raise StorageError(f"cannot write to the index {index}: {linked}") from error
        try:
            status = os.fstat(self._file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise StorageError(
                    f"cannot write to the index {index}: {path} is a link, or no file; remove it if you trust the rest"
                )
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(self._file, 100).decode(errors="replace").strip()
                if not re.fullmatch("process [0-9]+", holder):
                    holder = "another process"
                raise StorageError(
                    f"{index} is being written by {holder}; wait until it has finished, or open the index for reading"
                ) from error
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(self._file)
            raise
        self.inherited = False  # by a forked child, which is no writer
        after_fork(self)

    def forked(self) -> None:
        """See ``memo.Forked``."""
        if self._file >= 0:
            os.close(self._file)  # the parent still holds its own
            self._file, self.inherited = -1, True

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

    def __exit__(self, *_: object) -> None:
        self.release()
