"""``HashIndex``: a durable collection of codes with ids and metadata, searched exactly.

>>> import tempfile
>>> codes = Codes.from_logits(np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]))
>>> index = HashIndex.create(Path(tempfile.mkdtemp()) / "index", bits=2)
>>> index.add(["a", "b", "c"], codes, {"year": [1900, 1950, 2000]})
>>> index.search([[2.0, 0.5]], k=2, where="year < 1960").ids
array([['b', 'a']], dtype='<U1')
>>> index.close()
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from errno import EMFILE
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from crovca.codes import Codes
from crovca.errors import FileFormatError, InvalidInputError, OutputExistsError, StorageError
from crovca.files import atomic_directory, remove
from crovca.index.manifest import IdType, Manifest, SegmentEntry, WriterLock
from crovca.index.metadata import Metadata, as_table, conform
from crovca.index.reader import Reader
from crovca.index.scoring import Int64
from crovca.index.segment import Segment, SegmentRows, try_remove, write_deletions, write_segment

__all__ = ["HashIndex"]

_MERGE_ROWS = 1 << 20  # a write takes smaller segments than this along into its own
_MAX_ROWS = 1 << 28  # of one segment
_ATTEMPTS = 20  # to open a generation before a writer has replaced it


class HashIndex(Reader):
    """Codes of one length, with ids (strings or int64) and metadata, in a folder.

    One process writes at a time; any number read beside it, each seeing the generation that it opened until it
    calls ``refresh``. A write that returned is on disk; one that was cut short has not happened.

    Build with ``create`` or ``open``; use as a context manager, or call ``close``.
    """

    def __init__(self, path: Path, lock: WriterLock | None, *, skip_damaged: bool = False) -> None:
        super().__init__()
        self.path = path
        self._closed = False
        self._lock = lock
        self._skip_damaged = skip_damaged
        self._open_segments: list[Segment] = []
        self.damaged: list[str] = []
        self._manifest = self._load()
        self.bits = self._manifest.bits
        if lock is not None:
            self._sweep()

    @classmethod
    def create(
        cls,
        path: str | Path,
        bits: int = 64,
        *,
        id_type: IdType | None = None,
        encoder: dict[str, Any] | None = None,
    ) -> HashIndex:
        """Make an empty index and open it for writing.

        Args:
            path: a folder that does not exist yet, or is empty.
            bits: length of the codes, 1 to 4,096.
            id_type: "int64" or "string"; None: as the first items have it.
            encoder: what makes embeddings of queries, kept for whoever searches (JSON).

        Raises:
            OutputExistsError: something stands at ``path``.
            StorageError: the folder cannot be written.
        """
        path = Path(path).absolute()  # wherever the process goes later
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputExistsError(
                f"{path} exists already; open it with HashIndex.open, or give another folder"
            )
        manifest = Manifest.new(bits, id_type, encoder)
        with atomic_directory(path) as folder:
            (folder / "segments").mkdir()
            manifest.save(folder)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False, skip_damaged: bool = False) -> HashIndex:
        """Open an index; nothing is loaded but its manifest.

        Args:
            path: its folder.
            writable: become its one writer.
            skip_damaged: search what is whole where a segment is missing or cut short (``damaged`` names those);
                reading only.

        Raises:
            FileFormatError: not an index, of a newer format, or a segment is damaged.
            StorageError: another process writes it, or the folder cannot be written.
        """
        path = Path(path).absolute()
        if writable and skip_damaged:
            raise InvalidInputError(
                "a damaged index cannot be written: open it with skip_damaged to copy what is left"
            )
        Manifest.load(path)  # an error about the index comes before one about its lock
        lock = WriterLock(path) if writable else None
        try:
            return cls(path, lock, skip_damaged=skip_damaged)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def close(self) -> None:
        """Let go of files and of the writer's place. The index can be opened again, not used any longer."""
        self._closed = True
        for segment in self._open_segments:
            segment.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HashIndex({str(self.path)!r}, items={len(self)}, bits={self.bits})"

    @property
    def id_type(self) -> IdType | None:
        """See ``Reader``."""
        return self._manifest.id_type

    @property
    def generation(self) -> int:
        """Counts the writes; changes with every one."""
        return self._manifest.generation

    @property
    def uuid(self) -> str:
        """Names this index for ever, wherever its folder goes."""
        return self._manifest.uuid

    @property
    def encoder(self) -> dict[str, Any] | None:
        """What makes embeddings of queries, if it was told."""
        return self._manifest.encoder

    @property
    def _segments(self) -> Sequence[Segment]:
        if self._closed:
            raise StorageError(f"{self.path} is closed; open it again")
        return self._open_segments

    def refresh(self) -> bool:
        """See what has been written since; True if anything has.

        Raises:
            FileFormatError: another index stands there now.
        """
        newest = Manifest.load(self.path)
        if newest.uuid != self.uuid:
            raise FileFormatError(f"{self.path} was built anew; open it again")
        if newest.generation == self.generation:
            return False
        with self._guard:
            self._manifest = self._load()
        return True

    # --- writing ---

    def add(self, ids: Any, codes: Codes, metadata: Metadata | None = None) -> None:
        """Add new items, durably.

        Args:
            ids: (n,) strings or int64, none of them in the index yet.
            codes: (n,) of the index's length.
            metadata: columns of n values: a mapping or an Arrow table. New columns may come at any time.

        Raises:
            InvalidInputError: what is wrong with them; nothing was added.
            StorageError: not open for writing, or the disk refused; nothing was added.
        """
        self._write(ids, codes, metadata, replacing=False)

    def upsert(self, ids: Any, codes: Codes, metadata: Metadata | None = None) -> int:
        """Add items, in the place of those that have the same ids; else as ``add``. Returns how many were replaced."""
        return self._write(ids, codes, metadata, replacing=True)

    def delete(self, ids: Any) -> int:
        """Delete items, durably. Ids that are not in the index are passed over. Returns how many were deleted."""
        self._check_writable()
        rows = self._find(self._as_ids(ids))
        rows = np.unique(rows[rows >= 0])
        if len(rows):
            entries = self._with_deleted(rows)
            self._commit(self._manifest.next(segments=tuple(entries)))
        return len(rows)

    def compact(self) -> int:
        """Write everything that is not deleted into one segment, all of it in memory meanwhile.

        Returns:
            How many deleted items were dropped.
        """
        self._check_writable()
        dropped = sum(segment.entry.deleted for segment in self._segments)
        if len(self._segments) < 2 and not dropped:
            return 0
        entries: list[SegmentEntry] = []
        rows = SegmentRows.concatenate([segment.live_rows() for segment in self._segments])
        for start in range(0, len(rows.codes), _MAX_ROWS):
            entries.append(self._write_segment(rows[start : start + _MAX_ROWS], len(entries)))
        written = self._manifest.written + len(entries)
        self._commit(self._manifest.next(segments=tuple(entries), written=written))
        return dropped

    def verify(self) -> list[str]:
        """Read everything and compare it with its checksums; what is wrong, a line each.

        Beside a writer that retires files meanwhile, the newest state is looked at.
        """
        while True:
            found = [*self.damaged, *(line for segment in self._segments for line in segment.problems())]
            if not found or not self.refresh():
                return found

    def stats(self) -> dict[str, Any]:
        """Sizes on disk and in memory, and the engines that were built so far."""
        engines = self.engines()
        return {
            "items": len(self),
            "deleted": sum(segment.entry.deleted for segment in self._segments),
            "bits": self.bits,
            "id_type": self.id_type,
            "generation": self.generation,
            "metadata": self._manifest.columns,
            "segments": [
                {"name": segment.name, "rows": len(segment), "deleted": segment.entry.deleted}
                for segment in self._segments
            ],
            "disk_bytes": {
                name: sum(
                    file.bytes
                    for segment in self._segments
                    for file in segment.entry.files
                    if file.name in files
                )
                for name, files in {
                    "codes": ["codes.npy"],
                    "ids": ["ids.npy", "id_offsets.npy", "id_bytes.npy", "hashes.npy"],
                    "metadata": ["metadata.parquet"],
                }.items()
            },
            "memory_bytes": self._memory,
            "engines": engines,
            "damaged": self.damaged,
        }

    # --- inside ---

    def _write(self, ids: Any, codes: Codes, metadata: Metadata | None, *, replacing: bool) -> int:
        self._check_writable()
        keys = self._as_ids(ids)
        if not isinstance(codes, Codes) or codes.bits != self.bits:
            got = f"{codes.bits} bits" if isinstance(codes, Codes) else type(codes).__name__
            raise InvalidInputError(f"the index holds codes of {self.bits} bits, got {got}")
        if len(keys) != len(codes):
            raise InvalidInputError(f"there are {len(keys)} ids for {len(codes)} codes")
        table = as_table(metadata, len(keys))
        if not len(keys):
            return 0
        known = self._schema()
        if table is not None:
            table = conform(table, known)
        rows = SegmentRows.of(keys, codes, table)
        twice = rows.duplicate()
        if twice is not None:
            raise InvalidInputError(f"the id {twice!r} occurs twice among those given")
        present = self._find(keys)
        if not replacing and (present >= 0).any():
            known = keys[present >= 0]
            raise InvalidInputError(
                f"{len(known)} of {len(keys)} ids are in the index already, for example {known[0].item()!r}; "
                "use upsert (--replace) to put these in their place"
            )
        replaced = present[present >= 0]
        entries = self._with_deleted(replaced) if len(replaced) else [one.entry for one in self._segments]
        entries, rows = self._take_along(entries, rows)
        entry = self._write_segment(rows, 0)
        if table is not None:
            known = pa.unify_schemas([known, table.schema.remove_metadata()])
        self._commit(
            self._manifest.next(
                segments=(*entries, entry),
                written=self._manifest.written + 1,
                columns={field.name: str(field.type).removeprefix("large_") for field in known},
                schema=b64encode(known.serialize()).decode(),
                id_type="int64" if keys.dtype.kind == "i" else "string",
            )
        )
        return len(replaced)

    def _schema(self) -> pa.Schema:
        """The types of the metadata's columns."""
        if not self._manifest.schema:
            return pa.schema([])
        return pa.ipc.read_schema(pa.py_buffer(b64decode(self._manifest.schema)))

    def _take_along(
        self, entries: list[SegmentEntry], rows: SegmentRows
    ) -> tuple[list[SegmentEntry], SegmentRows]:
        """Merge the last segments into new rows while they are less than twice as many.

        So there are never more than a few segments of each size up to 1 M rows, and an item is rewritten a few times
        only; larger ones are left to ``compact``.
        """
        total, kept = len(rows.codes), len(entries)
        while kept:
            live = entries[kept - 1].rows - entries[kept - 1].deleted
            if live >= 2 * total or live + total > _MERGE_ROWS:
                break
            kept, total = kept - 1, total + live
        if kept == len(entries):
            return entries, rows
        taken = [self._opened(entry).live_rows() for entry in entries[kept:] if entry.rows > entry.deleted]
        return entries[:kept], SegmentRows.concatenate([*taken, rows])

    def _with_deleted(self, rows: Int64) -> list[SegmentEntry]:
        """The segments' entries, after these rows (counted through all) are deleted as well."""
        entries = []
        for start, segment in zip(self._starts(), self._segments, strict=False):
            own = rows[(rows >= start) & (rows < start + len(segment))] - start
            if not len(own):
                entries.append(segment.entry)
                continue
            deleted = np.zeros(len(segment), np.bool_) if segment.alive is None else ~segment.alive
            deleted[own] = True
            entries.append(write_deletions(segment.folder, segment.entry, deleted, self.generation + 1))
        return [entry for entry in entries if entry.rows > entry.deleted]

    def _write_segment(self, rows: SegmentRows, number: int) -> SegmentEntry:
        name = f"{self._manifest.written + number + 1:08d}"
        return write_segment(self.path / "segments" / name, rows)

    def _commit(self, manifest: Manifest) -> None:
        self._check_writable()  # nobody has built another index here in the meantime
        with self._guard:
            try:
                manifest.save(self.path)
            except BaseException:
                self._manifest = self._load()  # which of the two stands there now
                raise
            self._manifest = manifest
            self._adopt(manifest)
        self._sweep()

    def _load(self) -> Manifest:
        """Open what the newest manifest lists. A writer may replace it meanwhile: then the next one is taken."""
        for _ in range(_ATTEMPTS):
            manifest = Manifest.load(self.path)
            try:
                self._adopt(manifest)
            except (FileFormatError, FileNotFoundError) as error:
                if Manifest.load(self.path).generation != manifest.generation:
                    time.sleep(0.01)
                    continue
                if isinstance(error, FileNotFoundError):
                    raise StorageError(
                        f"{self.path} changes faster than it can be opened; try again"
                    ) from error
                raise
            except OSError as error:
                if error.errno == EMFILE:
                    raise StorageError(
                        f"{self.path}: too many open files for its {len(manifest.segments):,} segments; allow more "
                        "(ulimit -n), and merge them with 'crovca index compact'"
                    ) from error
                raise
            if self.damaged and Manifest.load(self.path).generation != manifest.generation:
                continue  # retired, not damaged
            return manifest
        raise StorageError(f"{self.path} changes faster than it can be opened; try again")

    def _adopt(self, manifest: Manifest) -> None:
        known = {segment.name: segment for segment in self._open_segments}
        opened, damaged = [], []
        for entry in manifest.segments:
            segment = known.get(entry.name)
            if segment is not None and segment.entry == entry:
                opened.append(segment)
                continue
            try:
                opened.append(self._opened(entry, manifest))
            except FileFormatError as error:
                if not self._skip_damaged:
                    raise FileFormatError(
                        f"{self.path}: {error}; restore it from a copy, or open what is left with skip_damaged=True"
                    ) from error
                damaged.append(str(error))
        self._open_segments, self.damaged = opened, damaged

    def _opened(self, entry: SegmentEntry, manifest: Manifest | None = None) -> Segment:
        manifest = manifest or self._manifest
        assert manifest.id_type is not None  # there is a segment, so there were ids
        return Segment(self.path / "segments" / entry.name, entry, manifest.bits, manifest.id_type)

    def _check_writable(self) -> None:
        if self._closed:
            raise StorageError(f"{self.path} is closed; open it again")
        if self._lock is None:
            raise StorageError(f"{self.path} is open for reading only; open it with writable=True")
        if not self._lock.holds(self.path):
            raise StorageError(
                f"{self.path} was moved or built anew while it was open for writing; nothing was written"
            )

    def _sweep(self) -> None:
        """Remove what no manifest lists any more and no reader holds; the rest is left for a later write."""
        for left in self.path.glob(".manifest.json.*.tmp"):  # of writers that were killed
            remove(left)
        listed = {entry.name: entry for entry in self._manifest.segments}
        for folder in (self.path / "segments").iterdir():
            entry = listed.get(folder.name)
            if entry is None:
                try_remove(folder)
                continue
            current = entry.deletions.name if entry.deletions else ""
            for file in folder.iterdir():
                if file.name != current and file.name not in {one.name for one in entry.files}:
                    remove(file)
