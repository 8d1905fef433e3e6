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

import logging
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EMFILE
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes
from crovca.data.embeddings import Rows
from crovca.errors import ConfigError, CrovcaError, FileFormatError, InvalidInputError, OutputExistsError, StorageError
from crovca.files import atomic_directory, remove
from crovca.index.idfilter import IdFilter
from crovca.index.manifest import (
    DELETIONS_NAME,
    MAX_ROWS,
    MODEL_NAME,
    PIECES,
    SEGMENT_NAME,
    IdType,
    Manifest,
    SegmentEntry,
    WriterLock,
)
from crovca.index.memo import after_fork
from crovca.index.metadata import Metadata, as_table, conform
from crovca.index.model import KeptModel
from crovca.index.origin import Origin
from crovca.index.originals import NO_ORIGINALS, Keep, Loss, Originals
from crovca.index.reader import Reader
from crovca.index.scoring import Float32, Int64
from crovca.index.segment import Segment, SegmentRows, merged, try_remove, write_deletions, write_segment
from crovca.index.tuned import Tuned
from crovca.index.view import View

_MERGE_ROWS = 1 << 20  # a write takes smaller segments than this along into its own
_MAX_ROWS = 1 << 28  # of a merged segment
_MERGE_BYTES = 1 << 28  # of metadata that is held to merge, a row group of each segment
_TIER = 8  # so many segments of like size are merged
_BLOCK = 1 << 14  # items encoded at a time
_logger = logging.getLogger(__name__)

_ATTEMPTS = 20  # to open a generation before a writer has replaced it


class _State(NamedTuple):
    """What is open: one generation."""

    manifest: Manifest
    view: View | None  # None: closed
    damaged: tuple[str, ...] = ()


class HashIndex(Reader):
    """Codes of one length, with ids (strings or int64) and metadata, in a folder.

    One process writes at a time; any number read beside it, each seeing the generation that it opened until it
    calls ``refresh``. A write that returned is on disk; one that was cut short has not happened. Threads may share one
    ``HashIndex`` for reading and for writing; a forked process may go on reading (docs/reliability.md).

    Build with ``create`` or ``open``; use as a context manager, or call ``close``.

    Attributes:
        bits: length of the codes.
        loss: the cosine between the embeddings that were added through this object and what was kept of them.
    """

    def __init__(self, path: Path, lock: WriterLock | None, *, skip_damaged: bool = False) -> None:
        self.path = path
        self._lock = lock
        self._skip_damaged = skip_damaged
        self._turn = RLock()  # held by the thread that changes ``_state``; whoever reads takes that once, without it
        after_fork(self)
        self.loss = Loss()
        self._filter: IdFilter | None = None  # of a writer, once it is worth it
        self._asked = 0  # lookups of ids in a segment so far
        self._state = self._load(None)
        self._set(self._state)
        if lock is not None:
            self._sweep()

    def forked(self) -> None:
        """See ``memo.Forked``."""
        self._turn = RLock()

    @classmethod
    def create(
        cls,
        path: str | Path,
        bits: int = 64,
        *,
        id_type: IdType | None = None,
        encoder: dict[str, Any] | None = None,
        model: str = "",
        keep: Keep = "none",
    ) -> HashIndex:
        """Make an empty index and open it for writing.

        Args:
            path: a folder that does not exist yet, or is empty.
            bits: length of the codes, 1 to 4,096.
            id_type: "int64" or "string"; None: as the first items have it.
            encoder: what makes embeddings of queries, kept for whoever searches (JSON).
            model: fingerprint of the model that makes the codes (``Hasher.fingerprint``); "": as is told first.
            keep: "int8" or "float16" keep the items' embeddings beside their codes, at one or two bytes a number, for
                ``search(rescore=...)``; "none" does not.

        Raises:
            ConfigError: another ``keep``.
            OutputExistsError: something stands at ``path``.
            StorageError: the folder cannot be written.
        """
        path = Path(path).absolute()  # wherever the process goes later
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputExistsError(f"{path} exists already; open it with HashIndex.open, or give another folder")
        _check_keep(keep)
        manifest = Manifest.new(bits, id_type=id_type, encoder=encoder, fingerprint=model, keep=keep)
        lock = None
        try:
            with atomic_directory(path.resolve(), new=True) as folder:  # of two who create, the second fails
                (folder / "segments").mkdir()
                manifest.save(folder)
                lock = WriterLock(folder)  # before anybody else can have it
            return cls(path, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

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
            raise InvalidInputError("a damaged index cannot be written: open it with skip_damaged to copy what is left")
        manifest = Manifest.load(path)  # an error about the index comes before one about its lock
        if not writable:
            return cls(path, None, skip_damaged=skip_damaged)
        _refuse_links(path, manifest)
        lock = WriterLock(path)
        try:
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Let go of files and of the writer's place, once calls that run and results that were kept let go of them.

        The index can be opened again, not used any longer.
        """
        with self._turn:
            self._state = self._state._replace(view=None)
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HashIndex({str(self.path)!r}, items={len(self)}, bits={self.bits})"

    @property
    def id_type(self) -> IdType | None:
        """See ``Reader``."""
        return self._state.manifest.id_type

    @property
    def generation(self) -> int:
        """Counts the writes; changes with every one."""
        return self._state.manifest.generation

    @property
    def uuid(self) -> str:
        """Names this index for ever, wherever its folder goes."""
        return self._state.manifest.uuid

    @property
    def digest(self) -> str:
        """Of everything in this generation: another one where a copy of the index was written to since."""
        return self._state.manifest.digest()

    @property
    def encoder(self) -> dict[str, Any] | None:
        """What makes embeddings of queries, if it was told."""
        return self._state.manifest.encoder

    @property
    def damaged(self) -> list[str]:
        """Segments that are missing or cut short, a line each (``open`` with ``skip_damaged``)."""
        return list(self._state.damaged)

    @property
    def keep(self) -> Keep:
        """What is kept of embeddings: "none", "float16" or "int8"."""
        return self._state.manifest.keep

    @property
    def origin(self) -> Origin:
        """What made the codes and the embeddings, as far as it is known."""
        return self.view().origin

    @property
    def model_folder(self) -> Path:
        """Where the model of this generation lies, or would."""
        return self.path / self._state.manifest.model

    def view(self) -> View:
        """See ``Reader``."""
        return self._opened_state()[1]

    def _opened_state(self) -> tuple[Manifest, View]:
        manifest, view, _ = self._state
        if view is None:
            raise StorageError(f"{self.path} is closed; open it again")
        return manifest, view

    def refresh(self) -> bool:
        """See what has been written since; True if anything has.

        Raises:
            FileFormatError: another index stands there now.
        """
        with self._turn:
            manifest, view = self._opened_state()
            newest = Manifest.load(self.path)
            if newest.uuid != manifest.uuid:
                raise FileFormatError(f"{self.path} was built anew; open it again")
            if newest == manifest:
                return False
            self._set(self._load(view))
            return True

    # --- writing ---

    def add(
        self,
        ids: Any,
        codes: Codes,
        metadata: Metadata | None = None,
        embeddings: Any = None,
        *,
        origin: Origin | None = None,
    ) -> None:
        """Add new items, durably.

        Args:
            ids: (n,) strings or int64, none of them in the index yet.
            codes: (n,) of the index's length.
            metadata: columns of n values: a mapping or an Arrow table. New columns may come at any time.
            embeddings: (n, d), where the index keeps them; else passed over.
            origin: what made the codes and the embeddings, where it is known.

        Raises:
            InvalidInputError: what is wrong with them; nothing was added.
            StorageError: not open for writing, or the disk refused; nothing was added.
        """
        self._write(ids, codes, metadata, embeddings, origin or Origin(), replacing=False)

    def upsert(
        self,
        ids: Any,
        codes: Codes,
        metadata: Metadata | None = None,
        embeddings: Any = None,
        *,
        origin: Origin | None = None,
    ) -> int:
        """Add items, in the place of those that have the same ids; else as ``add``. Returns how many were replaced."""
        return self._write(ids, codes, metadata, embeddings, origin or Origin(), replacing=True)

    def delete(self, ids: Any) -> int:
        """Delete items, durably. Ids that are not in the index are passed over. Returns how many were deleted."""
        with self._writing() as (manifest, view):
            rows = view.find(view.as_ids(ids))
            rows = np.unique(rows[rows >= 0])
            if len(rows):
                with self._nothing_changes():
                    entries = self._with_deleted(manifest, view, rows)
                self._commit(manifest.next(segments=tuple(entries)), view)
            return len(rows)

    def merge(self, rows: int = 1 << 26) -> bool:
        """Do one step of what keeps segments few: merge eight of like size. True if there was something to merge.

        Segments of more than 1 M rows come from no write, so that all writes cost alike; call this when there is time,
        until it returns False. An item is then rewritten once for each eightfold growth of the index.

        Args:
            rows: at most so many are rewritten in this step, about two million a second.
        """
        return self._merge(lambda segments: _tier(segments, rows)) is not None

    def compact(self) -> int:
        """Write everything that is not deleted into one segment (of at most 268 million rows), some rows at a time.

        Where it takes several steps, each is a write: what was cut short, however, goes on from there.

        Returns:
            How many deleted items were dropped.
        """
        dropped = 0
        while (gone := self._merge(_smallest)) is not None:
            dropped += gone
        return dropped

    def recode(
        self,
        encode: Callable[[Float32], Codes],
        *,
        bits: int,
        origin: Origin,
        save_model: Callable[[Path], object],
        embeddings: Callable[[Any], Rows] | None = None,
        keep: Keep | None = None,
        advance: Callable[[float], object] = lambda share: None,
    ) -> None:
        """Give every item a new code, by a new model, in one step: until then, and whatever happens, all is as it was.

        Args:
            encode: makes codes of embeddings float32 (n, d).
            bits: length of the new codes.
            origin: what makes them.
            save_model: puts the model into a folder.
            embeddings: gives the embeddings of some ids; None: those that are kept.
            keep: what is kept from now on; None: as before.
            advance: told what share is done.

        Raises:
            InvalidInputError: there are no embeddings.
            StorageError: not open for writing, or the disk refused; nothing has changed.
        """
        with self._writing() as (manifest, view):
            keep = _check_keep(manifest.keep if keep is None else keep)
            model = f"model-{manifest.generation + 1:08d}"
            width, done, loss = None, 0, Loss()

            def recoded(rows: SegmentRows) -> SegmentRows:
                nonlocal width, done, loss
                floats = rows.originals if embeddings is None else embeddings(rows.ids(np.arange(len(rows.codes))))
                if floats is None:
                    raise InvalidInputError(NO_ORIGINALS)
                parts = []
                for start in range(0, len(floats), _BLOCK):
                    parts.append(encode(np.asarray(floats[start : start + _BLOCK], np.float32)))
                    advance((done + min(start + _BLOCK, len(floats))) / view.items)
                done, width, originals = done + len(floats), int(floats.shape[-1]), rows.originals
                if embeddings is not None or keep != manifest.keep:
                    originals, loss = (None, loss) if keep == "none" else Originals.of(floats, keep, loss)
                return replace(rows, codes=Codes.concatenate(parts), originals=originals)

            with self._nothing_changes():
                remove(self.path / model)
                save_model(self.path / model)
                written = [
                    self._write_segment(map(recoded, merged([segment])), _schema([segment]))
                    for segment in view.segments
                ]
            changed = manifest.next(
                segments=tuple(written),
                written=int(written[-1].name) if written else manifest.written,
                bits=bits,
                model=model,
                fingerprint=origin.model or "",
                encoder=manifest.encoder if origin.encoder is None else dict(origin.encoder),
                keep=keep,
                width=None if keep == "none" else width,
                tuned=None,
            )
            self._commit(changed, view)
            self.loss = loss

    def keep_tuned(self, tuned: Tuned) -> None:
        """Keep what ``tuning`` chose, for searches with rescore="tuned"."""
        with self._writing() as (manifest, view):
            self._commit(manifest.next(tuned=tuned.to_dict()), view)

    def verify(self) -> list[str]:
        """Read everything and compare it with its checksums and with each other; what is wrong, a line each."""
        _, view = self._opened_state()
        found = self.damaged
        for segment in view.segments:
            found += segment.problems() or segment.contradictions()
        try:
            Manifest.load(self.path)
        except CrovcaError as error:
            found.append(str(error))
        return found

    def stats(self) -> dict[str, Any]:
        """Sizes on disk and in memory, and the engines that were built so far."""
        manifest, view = self._opened_state()
        return {
            "items": view.items,
            "deleted": sum(segment.entry.deleted for segment in view.segments),
            "bits": manifest.bits,
            "id_type": manifest.id_type,
            "generation": manifest.generation,
            "metadata": manifest.columns,
            "segments": [
                {"name": segment.name, "rows": len(segment), "deleted": segment.entry.deleted}
                for segment in view.segments
            ],
            "disk_bytes": {
                name: sum(file.bytes for segment in view.segments for file in segment.entry.files if file.name in files)
                for name, files in {
                    "codes": ["codes.npy"],
                    "ids": ["ids.npy", "id_offsets.npy", "id_bytes.npy", "hashes.npy"],
                    "metadata": ["metadata.parquet"],
                    "originals": ["originals.npy", "scales.npy", "sketches.npy"],
                    "pieces": PIECES,
                }.items()
            },
            "keep": manifest.keep,
            "width": manifest.width,
            "tuned": manifest.tuned,
            "memory_bytes": view.nbytes + (0 if self._filter is None else self._filter.nbytes),
            "engines": view.engines(),
            "damaged": self.damaged,
        }

    # --- inside ---

    @contextmanager
    def _writing(self) -> Iterator[tuple[Manifest, View]]:
        """This thread's turn to write, from reading the state to committing the next one."""
        with self._turn:
            self._check_writable()
            manifest, view = self._opened_state()
            if Manifest.load(self.path) != manifest:  # an earlier write of ours broke off, and nobody knew how
                self._set(self._load(view))
            yield self._opened_state()

    def _check_writable(self) -> None:
        self._opened_state()
        if self._lock is None:
            raise StorageError(f"{self.path} is open for reading only; open it with writable=True")
        if self._lock.inherited:
            raise StorageError(
                f"{self.path} was opened for writing by the process that this one was forked from, which alone may "
                "write; this one may read, or open it for writing once that one has closed it"
            )
        if not self._lock.holds(self.path):
            raise StorageError(
                f"{self.path} was moved or built anew while it was open for writing; nothing was written"
            )

    @contextmanager
    def _nothing_changes(self) -> Iterator[None]:
        """Whatever fails before the commit, the index is as it was."""
        try:
            yield
        except StorageError as error:
            raise StorageError(f"{self.path} is as it was: {error}") from error

    def _write(
        self, ids: Any, codes: Codes, metadata: Metadata | None, embeddings: Any, origin: Origin, *, replacing: bool
    ) -> int:
        if not isinstance(codes, Codes) or codes.bits != self.bits:
            got = f"{codes.bits} bits" if isinstance(codes, Codes) else type(codes).__name__
            raise InvalidInputError(f"the index holds codes of {self.bits} bits, got {got}")
        with self._writing() as (manifest, view):
            view.origin.check(origin, "these items")
            known_origin = view.origin.known(origin)
            keys = view.as_ids(ids)
            if len(keys) != len(codes):
                raise InvalidInputError(f"there are {len(keys)} ids for {len(codes)} codes")
            if len(keys) > MAX_ROWS - _MERGE_ROWS:
                raise InvalidInputError(f"{len(keys):,} items are too many for one write; add them in parts")
            table = as_table(metadata, len(keys))
            if not len(keys):
                return 0
            known = manifest.arrow_schema()
            if table is not None:
                table = conform(table, known)
            kept, loss = _kept(manifest, embeddings, len(keys), self.loss)
            rows = SegmentRows.of(keys, codes, table, kept)
            twice = rows.duplicate()
            if twice is not None:
                raise InvalidInputError(f"the id {twice!r} occurs twice among those given")
            keys, replaced = self._find(view, rows)
            if not replacing and len(keys):
                taken = keys.tolist()
                raise InvalidInputError(
                    f"{len(taken)} of {len(codes)} ids are in the index already, for example {taken[0]!r}; "
                    "use upsert (--replace) to put these in their place"
                )
            with self._nothing_changes():
                entries = self._with_deleted(manifest, view, replaced)
                entries, rows = self._take_along(manifest, view, entries, rows)
                entry = self._write_segment([rows], rows.table.schema)
            if table is not None:
                known = pa.unify_schemas([known, table.schema.remove_metadata()])
            changed = manifest.next(
                segments=(*entries, entry),
                written=int(entry.name),
                columns={field.name: str(field.type).removeprefix("large_") for field in known},
                schema=b64encode(known.serialize()).decode(),
                id_type="int64" if pa.types.is_integer(rows.table.schema.field("id").type) else "string",
                width=None if kept is None else kept.shape[1],
                fingerprint=known_origin.model or "",
                encoder=None if known_origin.encoder is None else dict(known_origin.encoder),
            )
            self._commit(changed, view)
            self.loss = loss
            return len(replaced)

    def _take_along(
        self, manifest: Manifest, view: View, entries: list[SegmentEntry], rows: SegmentRows
    ) -> tuple[list[SegmentEntry], SegmentRows]:
        """Merge the last segments into new rows while they are less than twice as many.

        So there are never more than a few segments of each size up to 1 M rows, and an item is rewritten a few times
        only; larger ones are left to ``merge``.
        """
        total, kept = len(rows.codes), len(entries)
        while kept:
            live = entries[kept - 1].rows - entries[kept - 1].deleted
            if live >= 2 * total or live + total > _MERGE_ROWS:
                break
            kept, total = kept - 1, total + live
        if kept == len(entries):
            return entries, rows
        _logger.info("%s: %d segments are merged with what is added", self.path, len(entries) - kept)
        taken = merged([self._segment(entry, manifest, view) for entry in entries[kept:]])
        return entries[:kept], SegmentRows.concatenate([*taken, rows])

    def _with_deleted(self, manifest: Manifest, view: View, rows: Int64) -> list[SegmentEntry]:
        """The segments' entries, after these rows are deleted as well."""
        entries = []
        for start, segment in zip(view.starts, view.segments, strict=False):
            own = rows[(rows >= start) & (rows < start + len(segment))] - start
            if not len(own):
                entries.append(segment.entry)
                continue
            deleted = np.zeros(len(segment), np.bool_) if segment.alive is None else ~segment.alive
            deleted[own] = True
            entries.append(write_deletions(segment.folder, segment.entry, deleted, manifest.generation + 1))
        return [entry for entry in entries if entry.rows > entry.deleted]

    def _find(self, view: View, rows: SegmentRows) -> tuple[npt.NDArray[Any], Int64]:
        """Those ids of new rows that are there already, and the rows that have them."""
        self._asked += len(rows.codes) * len(view.segments)
        known = self._filter
        if known is None or known.count > 2 * (view.items + _MERGE_ROWS):  # a lookup costs as much as to take in two
            if 2 * self._asked < max(view.items, _MERGE_ROWS):
                known = None
            else:
                known = IdFilter()
                for segment in view.segments:
                    known.add(segment.hashes)
        ids = rows.ids(np.arange(len(rows.codes)) if known is None else known.may_have(rows.hashes))
        found = view.find(ids)
        if known is not None:
            known.add(rows.hashes)  # of those that were there as well: what is replaced is not taken out
        self._filter = known
        return ids[found >= 0], found[found >= 0]

    def _merge(self, choose: Callable[[Sequence[Segment]], list[Segment]]) -> int | None:
        """Merge some segments into one; how many deleted items were dropped, None where there is nothing to do."""
        with self._writing() as (manifest, view):
            chosen = choose(view.segments)
            if not chosen:
                return None
            _logger.info("%s: %d segments are merged", self.path, len(chosen))
            with self._nothing_changes():
                entry = self._write_segment(merged(chosen), _schema(chosen))
            names = {segment.name for segment in chosen}
            left = [one for one in manifest.segments if one.name not in names]
            # The largest come first, so that a write finds the small ones at the end.
            segments = sorted([*left, entry], key=lambda one: one.deleted - one.rows)
            self._commit(manifest.next(segments=tuple(segments), written=int(entry.name)), view)
            return sum(segment.entry.deleted for segment in chosen)

    def _write_segment(self, parts: Iterable[SegmentRows], schema: pa.Schema) -> SegmentEntry:
        """Write a segment under a name that nothing has: what stands, listed or left, is never replaced."""
        segments = self.path / "segments"
        standing = [int(one.name) for one in segments.iterdir() if SEGMENT_NAME.fullmatch(one.name)]
        number = max([self._state.manifest.written, *standing]) + 1
        return write_segment(segments / f"{number:08d}", parts, schema)

    def _set(self, state: _State) -> None:
        self._state = state
        self.bits = state.manifest.bits

    def _commit(self, manifest: Manifest, view: View) -> None:
        self._check_writable()  # nobody has built another index here in the meantime
        state = self._open_all(manifest, view)  # what cannot be opened is not committed
        try:
            manifest.save(self.path)
        except BaseException:
            with suppress(CrovcaError, OSError):  # the next write looks again
                self._set(self._load(view))  # which of the two stands there now
            raise
        self._set(state)
        rows = sum(entry.rows - entry.deleted for entry in manifest.segments)
        _logger.info("%s: state %d written, %d items", self.path, manifest.generation, rows)
        del view, state
        self._sweep()

    def _load(self, view: View | None) -> _State:
        """Open what the newest manifest lists. A writer may replace it meanwhile: then the next one is taken."""
        for _ in range(_ATTEMPTS):
            manifest = Manifest.load(self.path)
            try:
                state = self._open_all(manifest, view)
            except (FileFormatError, FileNotFoundError) as error:
                if Manifest.load(self.path).generation != manifest.generation:
                    time.sleep(0.01)
                    continue
                if isinstance(error, FileNotFoundError):
                    raise StorageError(f"{self.path} changes faster than it can be opened; try again") from error
                raise
            gone = state.damaged or (manifest.fingerprint and state.view and state.view.model is None)
            if gone and Manifest.load(self.path).generation != manifest.generation:
                continue  # retired, not damaged
            return state
        raise StorageError(f"{self.path} changes faster than it can be opened; try again")

    def _open_all(self, manifest: Manifest, view: View | None) -> _State:
        """The segments that a manifest lists, those of a view where they are the same."""
        opened, damaged = [], []
        for entry in manifest.segments:
            try:
                opened.append(self._segment(entry, manifest, view))
            except FileFormatError as error:
                if not self._skip_damaged:
                    raise FileFormatError(
                        f"{self.path}: {error}; restore it from a copy, or open what is left with skip_damaged=True"
                    ) from error
                damaged.append(str(error))
            except OSError as error:
                if error.errno == EMFILE:
                    raise StorageError(
                        f"{self.path}: too many open files for its {len(manifest.segments):,} segments; allow more "
                        "(ulimit -n), and merge them with 'crovca index compact'"
                    ) from error
                if isinstance(error, FileNotFoundError):
                    raise
                raise StorageError(f"cannot read {self.path}: {error.strerror or error}") from error
        folder, model = self.path / manifest.model, None if view is None else view.model
        if model is None or (model.folder, model.fingerprint) != (folder, manifest.fingerprint):
            model = KeptModel.of(folder, manifest.fingerprint)
        origin = Origin(manifest.fingerprint or None, manifest.encoder)
        view = View(
            opened, manifest.bits, manifest.id_type,
            model=model, origin=origin, tuned=manifest.tuned, generation=manifest.generation,
        )  # fmt: skip
        return _State(manifest, view, tuple(damaged))

    def _segment(self, entry: SegmentEntry, manifest: Manifest, view: View | None) -> Segment:
        for segment in () if view is None else view.segments:
            if segment.name == entry.name:
                same = segment if segment.entry == entry else segment.with_deletions(entry)
                if same is not None:
                    return same
        assert manifest.id_type is not None  # a manifest without it lists no segments
        folder = self.path / "segments" / entry.name
        return Segment(folder, entry, manifest.bits, manifest.id_type, manifest.keep, manifest.width)

    def _sweep(self) -> None:
        """Remove what no manifest lists any more and no reader holds; the rest is left for a later write."""
        listed = {entry.name: entry for entry in self._state.manifest.segments}
        with suppress(OSError):  # what cannot be removed does no harm
            for left in self.path.glob(".manifest.json.*.tmp"):  # of writers that were killed
                remove(left)
            for left in self.path.glob(".model*.tmp*"):
                remove(left)
            for folder in self.path.glob("model*"):
                if MODEL_NAME.fullmatch(folder.name) and folder.name != self._state.manifest.model:
                    try_remove(folder, "config.json")
            for folder in (self.path / "segments").iterdir():
                entry = listed.get(folder.name)
                if entry is not None:
                    current = entry.deletions.name if entry.deletions else ""
                    for file in folder.iterdir():
                        own = DELETIONS_NAME.fullmatch(file.name) or file.name.startswith(".deleted-")
                        if own and file.name != current:
                            remove(file)
                elif SEGMENT_NAME.fullmatch(folder.name):
                    try_remove(folder)
                elif folder.name.startswith(".") and ".tmp" in folder.name:
                    remove(folder)


def _smallest(segments: Sequence[Segment], rows: int = _MAX_ROWS) -> list[Segment]:
    """As many of the smallest segments as can be merged at once, at least two; or one that has deleted rows."""
    chosen: list[Segment] = []
    total = held = 0
    for segment in sorted(segments, key=lambda one: one.live):
        total, held = total + segment.live, held + segment.metadata_rows.layout.largest
        if total > rows or (held > _MERGE_BYTES and len(chosen) > 1):
            break
        chosen.append(segment)
    return chosen if len(chosen) > 1 else [one for one in segments if one.entry.deleted][:1]


def _tier(segments: Sequence[Segment], rows: int) -> list[Segment]:
    """The smallest ``_TIER`` segments of like size, if they have no more rows than this."""
    tiers: dict[int, list[Segment]] = {}
    for segment in sorted(segments, key=lambda one: one.live):
        tier = tiers.setdefault((3 * segment.live // (2 * _MERGE_ROWS)).bit_length() // 3, [])
        tier.append(segment)
        if len(tier) == _TIER and len(chosen := _smallest(tier, rows)) > 1:
            return chosen
    return []


def _schema(segments: Sequence[Segment]) -> pa.Schema:
    """All columns that any of them has."""
    schemas = [segment.metadata_rows.layout.schema for segment in segments]
    return pa.unify_schemas([pa.schema([("id", segments[0].id_type)]), *schemas])


def _check_keep(keep: Keep) -> Keep:
    if keep not in get_args(Keep):
        raise ConfigError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep!r}")
    return keep


def _kept(manifest: Manifest, embeddings: Any, count: int, loss: Loss) -> tuple[Originals | None, Loss]:
    """What is kept of the embeddings of new items, and the loss with theirs.

    Raises:
        InvalidInputError: they are missing, or are not what the index keeps.
    """
    if manifest.keep == "none":
        return None, loss
    if embeddings is None:
        raise InvalidInputError(
            f"the index keeps embeddings ({manifest.keep}): give those of the items beside their codes (embeddings=)"
        )
    values = embeddings if hasattr(embeddings, "shape") else np.asarray(embeddings)
    if len(values.shape) != 2 or len(values) != count or manifest.width not in (None, values.shape[1]):
        width = "d" if manifest.width is None else manifest.width
        raise InvalidInputError(f"the embeddings must have shape ({count}, {width}), got {tuple(values.shape)}")
    return Originals.of(values, manifest.keep, loss)


def _refuse_links(path: Path, manifest: Manifest) -> None:
    """Nothing is written or removed through a link that came with an index."""
    folders = [path / "segments", *(path / "segments" / entry.name for entry in manifest.segments)]
    for folder in folders:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise StorageError(
                f"cannot write to the index {path}: {folder} is a link, or no folder; copy the index with what it "
                "points to, or open it for reading"
            )
