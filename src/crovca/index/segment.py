"""Segments: what an index is made of. Written once, never changed; deletions stand in a file of their own.

::

    segments/00000001/codes.npy              uint8 (n, bytes)
    segments/00000001/hashes.npy             uint64 (n,), ascending: the hash of each id (``ids.id_hashes``)
    segments/00000001/ids.npy                int64 (n,); or, for strings,
    segments/00000001/id_offsets.npy, id_bytes.npy    int64 (n + 1,) and the UTF-8 bytes, one id after the other
    segments/00000001/metadata.parquet       column id, and the metadata
    segments/00000001/deleted-00000007.npy   one bit a row, 1 where it is deleted (as of generation 7)

Rows stand in the order of (hash, id). That is the order of ties, so among equals the lower row wins; and an id is
found by bisection, without any index of ids in memory.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crovca.codes import Codes
from crovca.errors import FileFormatError
from crovca.files import atomic_directory, atomic_file, remove, sha256
from crovca.ids import id_hashes, order_by_hash
from crovca.index.manifest import FileEntry, IdType, SegmentEntry
from crovca.index.metadata import ROW_GROUP, read_all
from crovca.index.scoring import Int64

__all__ = ["Segment", "SegmentRows", "try_remove", "write_deletions", "write_segment"]

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SegmentRows:
    """Items on their way into a segment: ``table`` has the column ``id`` and the metadata."""

    hashes: Hashes
    codes: Codes
    table: pa.Table

    @classmethod
    def of(cls, ids: npt.NDArray[Any], codes: Codes, metadata: pa.Table | None) -> SegmentRows:
        """Items in any order, sorted."""
        hashes = id_hashes(ids)
        kind = pa.int64() if ids.dtype.kind == "i" else pa.large_string()
        column = pa.chunked_array([pa.array(ids, kind)])
        table = pa.table({"id": column})
        if metadata is not None:
            for name in metadata.column_names:
                table = table.append_column(name, metadata.column(name))
        return cls(hashes, codes, table).sorted()

    def __getitem__(self, rows: slice) -> SegmentRows:
        start, stop, _ = rows.indices(len(self.codes))
        return SegmentRows(self.hashes[rows], self.codes[rows], self.table.slice(start, stop - start))

    def sorted(self) -> SegmentRows:
        """The same, by (hash, id)."""
        ids = self.table.column("id")
        order = order_by_hash(self.hashes, lambda rows: _numpy(ids.take(pa.array(rows))))
        if (order[1:] > order[:-1]).all():
            return self
        return SegmentRows(self.hashes[order], self.codes[order], self.table.take(pa.array(order)))

    @classmethod
    def concatenate(cls, parts: Sequence[SegmentRows]) -> SegmentRows:
        """Join and sort; columns that a part lacks are null there."""
        return cls(
            np.concatenate([part.hashes for part in parts]),
            Codes.concatenate([part.codes for part in parts]),
            pa.concat_tables([part.table for part in parts], promote_options="default"),
        ).sorted()

    def duplicate(self) -> Any | None:
        """An id that occurs twice, or None."""
        (same,) = np.nonzero(self.hashes[1:] == self.hashes[:-1])
        ids = self.table.column("id")
        return next((ids[int(row)].as_py() for row in same if ids[int(row)] == ids[int(row) + 1]), None)


def write_segment(folder: Path, rows: SegmentRows) -> SegmentEntry:
    """Write a segment, atomically, and return its entry for the manifest."""
    with atomic_directory(folder) as temporary:
        np.save(temporary / "codes.npy", rows.codes.packed, allow_pickle=False)
        np.save(temporary / "hashes.npy", rows.hashes, allow_pickle=False)
        ids = rows.table.column("id").combine_chunks()
        if pa.types.is_integer(ids.type):
            np.save(temporary / "ids.npy", ids.to_numpy(), allow_pickle=False)
        else:
            offsets, content = _string_buffers(ids)
            np.save(temporary / "id_offsets.npy", offsets, allow_pickle=False)
            np.save(temporary / "id_bytes.npy", content, allow_pickle=False)
        pq.write_table(
            rows.table,
            temporary / "metadata.parquet",
            row_group_size=ROW_GROUP,
            compression="zstd",
            write_page_checksum=True,
        )
        files = tuple(_entry(file) for file in sorted(temporary.iterdir()))
    return SegmentEntry(folder.name, len(rows.codes), files)


def write_deletions(
    folder: Path, entry: SegmentEntry, deleted: npt.NDArray[np.bool_], generation: int
) -> SegmentEntry:
    """Write which rows are deleted, and return the entry that says so."""
    path = folder / f"deleted-{generation:08d}.npy"
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.packbits(deleted), allow_pickle=False)
    return replace(entry, deleted=int(deleted.sum()), deletions=_entry(path))


def try_remove(folder: Path) -> None:
    """Remove a segment that is no longer listed, unless a reader holds it (``Segment``)."""
    codes = folder / "codes.npy"
    if codes.exists():
        hold = os.open(codes, os.O_RDONLY)
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)  # locked as long as it takes
        except OSError:
            return
        finally:
            os.close(hold)
    else:
        remove(folder)


class Segment:
    """A segment, memory-mapped.

    Attributes:
        name, folder, entry: where it is and what the manifest says of it.
        identity, state: differ where anything that is stored differs; state, where deletions differ as well.
        codes: (n,) as stored.
        hashes: uint64 (n,), ascending.
        alive: bool (n,), or None where nothing is deleted.

    Raises:
        FileFormatError: a file is missing, of another size, or not what it should be.
    """

    def __init__(self, folder: Path, entry: SegmentEntry, bits: int, id_type: IdType) -> None:
        self.folder, self.entry, self.name = folder, entry, entry.name
        checksums = "".join(file.sha256 for file in entry.files)
        self.identity = f"{folder}:{checksums}"  # of what is stored
        self.state = f"{self.identity}:{entry.deleted}:{entry.deletions and entry.deletions.name}"
        for file in (*entry.files, *([entry.deletions] if entry.deletions else ())):
            path = folder / file.name
            size = path.stat().st_size if path.exists() else None
            if size != file.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes, expected {file.bytes:,}"
                raise FileFormatError(f"segment {entry.name} is damaged: {path} {found}")
        # While this is held, no writer removes the segment's files (``try_remove``).
        self._hold = os.open(folder / "codes.npy", os.O_RDONLY)
        fcntl.flock(self._hold, fcntl.LOCK_SH)
        if os.fstat(self._hold).st_nlink == 0:  # removed before it was locked
            raise FileNotFoundError(f"{folder} was removed")
        self.codes = Codes(_map(folder / "codes.npy", np.uint8, entry.rows), bits)
        self.hashes: Hashes = _map(folder / "hashes.npy", np.uint64, entry.rows)
        self._offsets: Int64 | None = None
        if id_type == "int64":
            self._ids = _map(folder / "ids.npy", np.int64, entry.rows)
        else:
            self._offsets = _map(folder / "id_offsets.npy", np.int64, entry.rows + 1)
            self._ids = _map(folder / "id_bytes.npy", np.uint8, int(self._offsets[-1]))
        self.alive: npt.NDArray[np.bool_] | None = None
        if entry.deletions is not None:
            deleted = _map(folder / entry.deletions.name, np.uint8, -(-entry.rows // 8))
            self.alive = np.unpackbits(deleted, count=entry.rows) == 0

    def close(self) -> None:
        """Let a writer remove the files, once they are retired. What is mapped stays readable."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def __del__(self) -> None:
        if hasattr(self, "_hold"):
            self.close()

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def live(self) -> int:
        """How many rows are not deleted."""
        return self.entry.rows - self.entry.deleted

    @property
    def metadata(self) -> Path:
        """The Parquet file with the column id and the metadata."""
        return self.folder / "metadata.parquet"

    def ids(self, rows: Int64) -> npt.NDArray[Any]:
        """The ids of some rows: int64 or str."""
        if self._offsets is None:
            return self._ids[rows]
        try:
            texts = [
                self._ids[start:stop].tobytes().decode()
                for start, stop in zip(self._offsets[rows], self._offsets[rows + 1], strict=True)
            ]
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"segment {self.name}: an id is damaged ({error.reason}); 'crovca index verify' tells what else is"
            ) from error
        return np.array(texts, np.str_)

    def find(self, ids: npt.NDArray[Any], hashes: Hashes) -> Int64:
        """The row of each id that is here and not deleted, else -1: int64 (len(ids),)."""
        result = np.full(len(ids), -1, np.int64)
        first = np.searchsorted(self.hashes, hashes, side="left")
        last = np.searchsorted(self.hashes, hashes, side="right")
        for step in range(int((last - first).max(initial=0))):  # 1, but for ids of equal hash
            (open_,) = np.nonzero((result < 0) & (first + step < last))
            rows = first[open_] + step
            same = self.ids(rows) == ids[open_]
            result[open_[same]] = rows[same]
        if self.alive is not None:
            (found,) = np.nonzero(result >= 0)
            result[found[~self.alive[result[found]]]] = -1
        return result

    def live_rows(self) -> SegmentRows:
        """Everything that is not deleted, loaded, to be written anew.

        Raises:
            FileFormatError: a file does not have its checksum: damage is not written anew.
        """
        for problem in self.problems():
            raise FileFormatError(f"{problem}; restore it from a copy")
        table = read_all(self.metadata)
        if self.alive is None:
            return SegmentRows(
                np.asarray(self.hashes), Codes(np.asarray(self.codes.packed), self.codes.bits), table
            )
        rows = np.flatnonzero(self.alive)
        return SegmentRows(self.hashes[rows], self.codes[rows], table.take(pa.array(rows)))

    def problems(self) -> list[str]:
        """Compare every file with its checksum; what is wrong, a line each."""
        found = []
        for file in (*self.entry.files, *([self.entry.deletions] if self.entry.deletions else ())):
            try:
                if sha256(self.folder / file.name) != file.sha256:
                    found.append(
                        f"segment {self.name}: {file.name} does not have the checksum that it was written with"
                    )
            except OSError as error:
                found.append(f"segment {self.name}: {file.name} cannot be read: {error.strerror}")
        return found


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.name, file.stat().st_size, sha256(file))


def _map(path: Path, dtype: type[np.generic], rows: int) -> npt.NDArray[Any]:
    try:
        array = (
            np.load(path, mmap_mode="r", allow_pickle=False) if rows else np.load(path, allow_pickle=False)
        )
    except (ValueError, EOFError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    if array.dtype != dtype or len(array) != rows:
        raise FileFormatError(f"{path} is damaged: {array.dtype} {array.shape}, expected {rows} rows")
    return array.view(np.ndarray)  # indexing numpy's memmap class takes many times longer


def _numpy(ids: pa.ChunkedArray) -> npt.NDArray[Any]:
    if pa.types.is_integer(ids.type):
        return ids.to_numpy()
    return np.array(ids.to_pylist(), np.str_)


def _string_buffers(ids: pa.Array) -> tuple[Int64, npt.NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of an Arrow array of large strings."""
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks)
    _, offsets_buffer, content_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    content = np.frombuffer(content_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content
