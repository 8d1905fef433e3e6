"""Segments: what an index is made of. Written once, never changed; deletions stand in a file of their own.

::

    segments/00000001/codes.npy              uint8 (n, bytes)
    segments/00000001/hashes.npy             uint64 (n,), ascending: the hash of each id (``ids.id_hashes``)
    segments/00000001/ids.npy                int64 (n,); or, for strings,
    segments/00000001/id_offsets.npy, id_bytes.npy    int64 (n + 1,) and the UTF-8 bytes, one id after the other
    segments/00000001/metadata.parquet       column id, and the metadata
    segments/00000001/originals.npy, scales.npy    int8 or float16 (n, d), float32 (n,): kept embeddings (``originals``)
    segments/00000001/sketches.npy           uint64 (n, words): of kept embeddings (``sketches``)
    segments/00000001/pieces.npy, piece_sizes.npy, piece_bounds.npy    where a search gains by them (``engines.pieces``)
    segments/00000001/deleted-00000007.npy   one bit a row, 1 where it is deleted (as of generation 7)

Rows stand in the order of (hash, id). That is the order of ties, so among equals the lower row wins; and an id is
found by bisection, without any index of ids in memory.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crovca.codes import Codes
from crovca.data.columns import arrow_array
from crovca.errors import CrovcaError, FileFormatError, InvalidInputError
from crovca.files import atomic_directory, atomic_file, remove, sha256
from crovca.ids import id_hashes, order_by_hash
from crovca.index.engines.base import ROW_BYTES, KeptPieces, Mask, rooms_of
from crovca.index.engines.choice import worth_laying_out
from crovca.index.manifest import FileEntry, IdType, SegmentEntry
from crovca.index.memo import Memo, imported
from crovca.index.metadata import ROW_GROUP, RowReader, read_ids
from crovca.index.originals import KEPT, Keep, Originals
from crovca.index.scoring import Int64
from crovca.index.sketches import Sketches, sketches_of, words_of

Hashes = npt.NDArray[np.uint64]

_ENGINES_KEPT = 4  # of the last lengths
_PADDED = 4  # text is an array of equal lengths where that takes at most so many times its own characters,
_FEW_CHARACTERS = 1 << 20  # or no more than this
_MERGED = 1 << 18  # rows that are merged at a time
_KEPT = 1 << 12  # embeddings that are written at a time

# What numpy.save writes of arrays such as these, and nothing else.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)(\{'descr': '([<|][uif][1248])', 'fortran_order': False, 'shape': \(([0-9]{1,15}),"
    rb"( [0-9]{1,5})?\), \} *\n)",
    re.DOTALL,
)


@dataclass(frozen=True)
class SegmentRows:
    """Items on their way into a segment: ``table`` has the column ``id`` and the metadata."""

    hashes: Hashes
    codes: Codes
    table: pa.Table
    originals: Originals | None = None

    @classmethod
    def of(
        cls, ids: npt.NDArray[Any], codes: Codes, metadata: pa.Table | None, originals: Originals | None = None
    ) -> SegmentRows:
        """Items in any order, sorted."""
        hashes = id_hashes(ids)
        kind = pa.int64() if ids.dtype.kind == "i" else pa.large_string()
        column = pa.chunked_array([arrow_array(ids, kind)])
        table = pa.table({"id": column})
        if metadata is not None:
            for name in metadata.column_names:
                table = table.append_column(name, metadata.column(name))
        return cls(hashes, codes, table, originals).sorted()

    def ids(self, rows: Int64 | Mask) -> npt.NDArray[Any]:
        """The ids of some rows, as ``Segment.ids``."""
        ids = self.table.column("id")
        return _numpy(ids.filter(pa.array(rows)) if rows.dtype == bool else ids.take(pa.array(rows)))

    def sorted(self) -> SegmentRows:
        """The same, by (hash, id)."""
        order = order_by_hash(self.hashes, self.ids)
        if (order[1:] > order[:-1]).all():
            return self
        originals = None if self.originals is None else self.originals.take(order)
        return SegmentRows(self.hashes[order], self.codes[order], self.table.take(pa.array(order)), originals)

    @classmethod
    def concatenate(cls, parts: Sequence[SegmentRows]) -> SegmentRows:
        """Join and sort; columns that a part lacks are null there."""
        return cls(
            np.concatenate([part.hashes for part in parts]),
            Codes.concatenate([part.codes for part in parts]),
            pa.concat_tables([part.table for part in parts], promote_options="default"),
            Originals.concatenate([part.originals for part in parts if part.originals is not None])
            if parts[0].originals is not None
            else None,
        ).sorted()

    def duplicate(self) -> Any | None:
        """An id that occurs twice, or None."""
        (same,) = np.nonzero(self.hashes[1:] == self.hashes[:-1])
        ids = self.table.column("id")
        return next((ids[int(row)].as_py() for row in same if ids[int(row)] == ids[int(row) + 1]), None)


def write_segment(folder: Path, parts: Iterable[SegmentRows], schema: pa.Schema) -> SegmentEntry:
    """Write a segment, atomically, and return its entry for the manifest. What stands there is never replaced.

    Args:
        folder: its place.
        parts: at least one, in the order of (hash, id) from one to the next; only one of them is held at a time.
        schema: of the parts' tables; columns that one lacks are null there.
    """
    with atomic_directory(folder, new=True) as temporary:
        with ExitStack() as stack:
            opened: dict[str, tuple[IO[bytes], npt.NDArray[Any]]] = {}
            counts: Counter[str] = Counter()

            def append(name: str, rows: npt.NDArray[Any]) -> None:
                if name not in opened:
                    opened[name] = stack.enter_context((temporary / name).open("wb")), rows[:0]
                    _write_header(*opened[name], 0)
                opened[name][0].write(np.ascontiguousarray(rows).data)
                counts[name] += len(rows)

            table = stack.enter_context(
                pq.ParquetWriter(temporary / "metadata.parquet", schema, compression="zstd", write_page_checksum=True)
            )
            for part in parts:
                append("codes.npy", part.codes.packed)
                append("hashes.npy", part.hashes)
                ids = part.table.column("id").combine_chunks()
                if pa.types.is_integer(ids.type):
                    append("ids.npy", ids.to_numpy())
                else:
                    offsets, content = _string_buffers(ids)
                    append("id_offsets.npy", offsets[min(1, counts["id_offsets.npy"]) :] + counts["id_bytes.npy"])
                    append("id_bytes.npy", content)
                if part.originals is not None:
                    append("scales.npy", part.originals.scales)
                    for start in range(0, len(part.originals), _KEPT):
                        rows = part.originals.kept(slice(start, start + _KEPT))
                        append("originals.npy", rows)
                        append("sketches.npy", sketches_of(rows))
                whole = pa.concat_tables([schema.empty_table(), part.table], promote_options="default")
                table.write_table(whole, row_group_size=ROW_GROUP)
            file, like = opened["codes.npy"]
            header = file.tell() - counts["codes.npy"] * like.shape[1]
            file.flush()
            shape = counts["codes.npy"], like.shape[1]
            codes = Codes(np.memmap(temporary / "codes.npy", np.uint8, "r", header, shape), part.codes.bits)
            if worth_laying_out(codes):
                for laid in imported("crovca.index.engines.pieces").lay_out(codes):
                    append("pieces.npy", laid.content)
                    append("piece_sizes.npy", laid.sizes)
                    append("piece_bounds.npy", laid.bounds)
            for name, (file, like) in opened.items():
                file.seek(0)
                _write_header(file, like, counts[name])
        files = tuple(_entry(file) for file in sorted(temporary.iterdir()))
    return SegmentEntry(folder.name, counts["codes.npy"], files)


def _write_header(file: IO[bytes], like: npt.NDArray[Any], rows: int) -> None:
    """The header of a .npy file; NumPy leaves room in it for any number of rows, so it can be written again."""
    shape = (rows, *like.shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(like.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def merged(segments: Sequence[Segment]) -> Iterator[SegmentRows]:
    """Everything that is not deleted in some segments, in order, some rows at a time, to be written anew.

    In memory there are at most about ``_MERGED`` rows and a row group of each segment: a step takes of each its share
    of these, up to the hash at which the first of them ends. The rest is read from what is mapped.

    Raises:
        FileFormatError: a file does not have its checksum: damage is not written anew.
    """
    for segment in segments:
        for problem in segment.problems():
            raise FileFormatError(f"{problem}; restore it from a copy")
    readers = [RowReader(segment.metadata, 0) for segment in segments]
    for segment, reader in zip(segments, readers, strict=True):
        if reader.layout.rows != len(segment):
            raise FileFormatError(f"segment {segment.name}: metadata.parquet is of other items; restore it from a copy")
    total, at = sum(map(len, segments)), [0] * len(segments)
    while any(start < len(segment) for start, segment in zip(at, segments, strict=True)):
        limit = min(
            segment.hashes[min(start + 1 + _MERGED * len(segment) // total, len(segment)) - 1]
            for start, segment in zip(at, segments, strict=True)
            if start < len(segment)
        )
        parts = []
        for number, segment in enumerate(segments):
            stop = at[number] + int(np.searchsorted(segment.hashes[at[number] :], limit, side="right"))
            rows = np.arange(at[number], stop)
            rows = rows if segment.alive is None else rows[segment.alive[rows]]
            at[number] = stop
            if len(rows):
                parts.append(segment.loaded(rows, readers[number]))
        if parts:
            yield SegmentRows.concatenate(parts)


def write_deletions(folder: Path, entry: SegmentEntry, deleted: npt.NDArray[np.bool_], generation: int) -> SegmentEntry:
    """Write which rows are deleted, and return the entry that says so."""
    path = folder / f"deleted-{generation:08d}.npy"
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.packbits(deleted), allow_pickle=False)
    return replace(entry, deleted=int(deleted.sum()), deletions=_entry(path))


def try_remove(folder: Path, held: str = "codes.npy") -> None:
    """Remove a segment (or a model) that is no longer listed, unless a reader holds it: the file of that name."""
    try:
        with opened_file(folder / held, follow=False) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)  # locked as long as it takes
    except (FileNotFoundError, NotADirectoryError, FileFormatError):  # no segment, so nobody reads it
        remove(folder)
    except OSError:
        return


class Hold:
    """A shared lock on one file of a folder: while it is held, no writer removes the folder (``try_remove``)."""

    def __init__(self, file: int) -> None:
        self.file = os.dup(file)
        fcntl.flock(self.file, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Segment:
    """A segment, memory-mapped; its files are held as long as anything refers to it.

    Attributes:
        name, folder, entry: where it is and what the manifest says of it.
        codes: (n,) as stored.
        hashes: uint64 (n,), ascending.
        kept: int8 or float16 (n, d), the kept embeddings without their scales; None where none are kept.
        sketches: uint64 (n, words) of the kept embeddings, where the segment has them.
        pieces: the codes in pieces, where the segment keeps them so.
        alive: bool (n,), or None where nothing is deleted.
        engines: what was built to search it, whatever is deleted (``view``).
        metadata_rows: reads the metadata.

    Raises:
        FileFormatError: a file is missing, of another size, or not what it should be.
        FileNotFoundError: a writer removes it at this moment.
    """

    def __init__(
        self,
        folder: Path,
        entry: SegmentEntry,
        bits: int,
        id_type: IdType,
        keep: Keep = "none",
        width: int | None = None,
    ) -> None:
        self.folder, self.entry, self.name = folder, entry, entry.name
        self._sizes = {file.name: file.bytes for file in entry.files}
        self._check_size(folder / "metadata.parquet", self._sizes["metadata.parquet"])
        with self._file("codes.npy") as codes:
            self._hold = Hold(codes)
            if os.fstat(codes).st_nlink == 0:  # removed before it was locked
                raise FileNotFoundError(f"{folder} was removed")
            try:
                self.codes = Codes(self._map("codes.npy", np.uint8, entry.rows, -(-bits // 8)), bits)
            except InvalidInputError as error:
                raise FileFormatError(f"{folder / 'codes.npy'} is damaged: {error}") from error
        self.hashes: Hashes = self._map("hashes.npy", np.uint64, entry.rows)
        self._offsets: Int64 | None = None
        if id_type == "int64":
            self._ids = self._map("ids.npy", np.int64, entry.rows)
        else:
            self._offsets = self._map("id_offsets.npy", np.int64, entry.rows + 1)
            self._ids = self._map("id_bytes.npy", np.uint8, None)
            if self._offsets[0] != 0 or self._offsets[-1] != len(self._ids):
                raise FileFormatError(f"{folder / 'id_offsets.npy'} is damaged: it does not fit id_bytes.npy")
        self.kept: npt.NDArray[Any] | None = None
        self.sketches: Sketches | None = None
        if keep != "none":
            self.kept = self._map("originals.npy", KEPT[keep], entry.rows, width)
            self._scales = self._map("scales.npy", np.float32, entry.rows)
            assert self.kept is not None
            if "sketches.npy" in self._sizes:
                self.sketches = self._map("sketches.npy", np.uint64, entry.rows, words_of(self.kept.shape[1]))
        self.pieces = self._pieces() if "pieces.npy" in self._sizes else None
        self.engines: Memo[Any, Any] = Memo(_ENGINES_KEPT)
        self.metadata_rows = RowReader(self.metadata)
        self._deletions_digest = ""
        self.alive: npt.NDArray[np.bool_] | None = self._read_deletions()

    def with_deletions(self, entry: SegmentEntry) -> Segment | None:
        """The same files and engines with what is deleted now; None unless it is what was deleted and more."""
        if entry.files != self.entry.files:
            return None
        segment = copy.copy(self)
        segment.entry = entry
        segment.alive = segment._read_deletions()
        revived = self.alive is not None and (segment.alive is None or bool((segment.alive & ~self.alive).any()))
        return None if revived else segment

    @property
    def id_type(self) -> pa.DataType:
        """What the ids are in tables."""
        return pa.int64() if self._offsets is None else pa.large_string()

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def live(self) -> int:
        """How many rows are not deleted."""
        return self.entry.rows - self.entry.deleted

    def live_numbers(self) -> Int64:
        """The rows that are not deleted."""
        return np.arange(len(self)) if self.alive is None else np.flatnonzero(self.alive)

    @property
    def metadata(self) -> Path:
        """The Parquet file with the column id and the metadata."""
        return self.folder / "metadata.parquet"

    def originals(self) -> Originals | None:
        """The kept embeddings of all rows, or None where none are kept."""
        return None if self.kept is None else Originals((self.kept,), self._scales, np.arange(len(self)))

    def ids(self, rows: Int64) -> npt.NDArray[Any]:
        """The ids of some rows: int64 or str, as objects where one long id would make all of them long."""
        if self._offsets is None:
            return self._ids[rows]
        starts, stops = self._offsets[rows], self._offsets[rows + 1]
        if not ((starts >= 0) & (starts <= stops) & (stops <= len(self._ids))).all():
            raise FileFormatError(
                f"segment {self.name}: id_offsets.npy is damaged; 'crovca index verify' tells what else is"
            )
        try:
            return as_text(
                [
                    self._ids[start:stop].tobytes().decode()
                    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
                ]
            )
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"segment {self.name}: an id is damaged ({error.reason}); 'crovca index verify' tells what else is"
            ) from error

    def find(self, ids: npt.NDArray[Any], hashes: Hashes) -> Int64:
        """The row of each id that is here and not deleted, else -1: int64 (len(ids),). Ascending hashes are found many
        times faster: what is read is read in order."""
        result = np.full(len(ids), -1, np.int64)
        rows = np.searchsorted(self.hashes, hashes)
        open_ = np.arange(len(ids))
        while len(open_):  # once, but for ids of equal hash
            open_, rows = open_[rows < len(self)], rows[rows < len(self)]
            equal = self.hashes[rows] == hashes[open_]
            open_, rows = open_[equal], rows[equal]
            same = self.ids(rows) == ids[open_]
            result[open_[same]] = rows[same]
            open_, rows = open_[~same], rows[~same] + 1
        if self.alive is not None:
            (found,) = np.nonzero(result >= 0)
            result[found[~self.alive[result[found]]]] = -1
        return result

    def loaded(self, rows: Int64, reader: RowReader) -> SegmentRows:
        """Some rows (ascending), loaded but for kept embeddings; ``reader`` is of ``metadata``."""
        if self._offsets is None:
            ids = pa.array(self._ids[rows])
        else:
            starts = self._offsets[rows[0] : rows[-1] + 2]
            content = self._ids[starts[0] : starts[-1]]
            every = pa.LargeStringArray.from_buffers(
                len(starts) - 1, pa.py_buffer(starts - starts[0]), pa.py_buffer(np.ascontiguousarray(content))
            )
            try:
                every.validate(full=True)
            except pa.ArrowInvalid as error:
                raise FileFormatError(f"segment {self.name}: its ids are damaged: {error}") from error
            ids = every.take(pa.array(rows - rows[0]))
        table = reader.rows(rows).set_column(0, "id", ids)
        originals = None if self.kept is None else Originals((self.kept,), self._scales[rows], rows)
        return SegmentRows(self.hashes[rows], self.codes[rows], table, originals)

    def problems(self) -> list[str]:
        """Compare every file with its checksum; what is wrong, a line each."""
        found = []
        for file in self.entry.files:
            try:
                if sha256(self.folder / file.name) != file.sha256:
                    found.append(self._differs(file))
            except (OSError, CrovcaError) as error:
                found.append(f"segment {self.name}: {file.name} cannot be read: {error}")
        if self.entry.deletions and self._deletions_digest != self.entry.deletions.sha256:
            found.append(self._differs(self.entry.deletions))
        return found

    def contradictions(self) -> list[str]:
        """Compare the files with each other, as far as checksums do not tell; what is wrong, a line each."""
        place = f"segment {self.name}: "
        start = 0
        try:
            if self.metadata_rows.layout.rows != len(self):
                return [f"{place}metadata.parquet is of other items"]
            for stored in read_ids(self.metadata):
                rows = np.arange(start, start + len(stored))
                ids = self.ids(rows)
                if (id_hashes(ids) != self.hashes[rows]).any():
                    return [f"{place}hashes.npy is not of these ids"]
                if stored.null_count or not np.array_equal(_numpy(stored), ids):
                    return [f"{place}metadata.parquet is of other items"]
                start += len(stored)
        except (FileFormatError, InvalidInputError) as error:
            return [place + str(error).removeprefix(place)]
        if self.pieces is not None and not imported("crovca.index.engines.pieces").are_of(self.codes, self.pieces):
            return [f"{place}pieces.npy is of other codes, or was laid out for another FAISS"]
        ordered = (self.hashes[1:] >= self.hashes[:-1]).all()
        return [] if ordered else [f"{place}its rows are not in the order of their hashes"]

    def _differs(self, file: FileEntry) -> str:
        return f"segment {self.name}: {file.name} does not have the checksum that it was written with"

    # --- files, of which nothing is believed ---

    def _check_size(self, path: Path, expected: int) -> None:
        try:
            status = path.stat()
            found = None if status.st_size == expected else f"has {status.st_size:,} bytes, expected {expected:,}"
            if not stat.S_ISREG(status.st_mode):
                found = "is no file"
        except OSError:
            found = "is missing"
        if found:
            raise FileFormatError(f"segment {self.name} is damaged: {path} {found}")

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        self._check_size(self.folder / name, self._sizes[name])
        with opened_file(self.folder / name) as file:
            yield file

    def _map(self, name: str, dtype: type[np.generic], rows: int | None, width: int | None = None) -> Any:
        """An array of a file: (rows,) or (rows, width); any number of rows where that is None."""
        path, kind = self.folder / name, np.dtype(dtype)
        with self._file(name) as file:
            begin = os.pread(file, 1024, 0)
            header = _HEADER.match(begin)
            if header is None or int.from_bytes(header[1], "little") != len(header[2]):
                raise FileFormatError(f"{path} is damaged: it does not begin as an array does")
            shape = tuple(int(size) for size in (header[4], header[5]) if size is not None)
            expected = (shape[0] if rows is None else rows, *(() if width is None else (width,)))
            if header[3].decode() != kind.str or shape != expected:
                raise FileFormatError(
                    f"{path} is damaged: {header[3].decode()} {shape}, expected {kind.str} {expected}"
                )
            size = int(np.prod(shape)) * kind.itemsize
            if header.end() + size != self._sizes[name]:
                raise FileFormatError(f"{path} is damaged: an array {shape} does not take {self._sizes[name]:,} bytes")
            if not size:
                return np.empty(shape, kind)
            with open(file, "rb", closefd=False) as opened:
                mapped = np.memmap(opened, kind, "r", header.end(), shape)
        return mapped.view(np.ndarray)  # indexing numpy's memmap class takes many times longer

    def _pieces(self) -> KeptPieces:
        """Its codes in pieces, as far as sizes tell that they are."""
        width = self.codes.bytes_per_item
        sizes: Int64 = np.array(self._map("piece_sizes.npy", np.int64, None))
        bounds = self._map("piece_bounds.npy", np.uint8, len(sizes), 2 * width)
        content = self._map("pieces.npy", np.uint8, None)
        with self._file("pieces.npy") as file:
            held = Hold(file)
        within = len(sizes) > 0 and sizes.min() >= 1 and sizes.max() <= len(self)
        if not within or sizes.sum() != len(self) or len(content) != int(rooms_of(sizes).sum()) * (width + ROW_BYTES):
            raise FileFormatError(f"segment {self.name} is damaged: the sizes of its pieces are not those of its codes")
        offset = self._sizes["pieces.npy"] - len(content)
        return KeptPieces(str(self.folder / "pieces.npy"), held, offset, sizes, bounds, content)

    def _read_deletions(self) -> npt.NDArray[np.bool_] | None:
        """Which rows are not deleted; None: all. In memory, as a writer removes the file at the next deletion."""
        file = self.entry.deletions
        if file is None:
            return None
        path = self.folder / file.name
        self._check_size(path, file.bytes)
        self._sizes = {**self._sizes, file.name: file.bytes}
        deleted = np.unpackbits(self._map(file.name, np.uint8, -(-len(self) // 8)), count=len(self))
        if int(deleted.sum(dtype=np.int64)) != self.entry.deleted:
            raise FileFormatError(f"segment {self.name} is damaged: {path} does not mark {self.entry.deleted:,} rows")
        with opened_file(path) as opened:
            self._deletions_digest = hashlib.sha256(os.pread(opened, file.bytes, 0)).hexdigest()
        return deleted == 0


@contextmanager
def opened_file(path: Path, *, follow: bool = True) -> Iterator[int]:
    """A file that is one: never a pipe or a device, which would wait or never end."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise FileFormatError(f"{path} is no file")
        yield file
    finally:
        os.close(file)


def as_text(texts: list[str]) -> npt.NDArray[Any]:
    """Strings as an array: of one length each, or of objects where few long ones would make all of them long."""
    padded = len(texts) * max(map(len, texts), default=0)
    even = padded <= max(_FEW_CHARACTERS, _PADDED * sum(map(len, texts)))
    return np.array(texts, np.str_ if even else object)


def _numpy(ids: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Ids of a table as an array."""
    return ids.to_numpy() if pa.types.is_integer(ids.type) else as_text(ids.to_pylist())


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.name, file.stat().st_size, sha256(file))


def _string_buffers(ids: pa.Array) -> tuple[Int64, npt.NDArray[np.uint8]]:
    """Offsets (n + 1,) and bytes of an Arrow array of large strings."""
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks)
    _, offsets_buffer, content_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    content = np.frombuffer(content_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content
