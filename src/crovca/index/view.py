"""What an index holds at one moment: the segments that one call reads, from its beginning to its end.

A view never changes, so whatever is written or refreshed meanwhile, an answer's ids, distances and metadata are of the
same items. Rows are counted through all segments. The files stay as long as a view, or a result of it, refers to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes
from crovca.data.embeddings import unit_rows
from crovca.errors import FileFormatError, InvalidInputError
from crovca.ids import as_ids, id_hashes, order_by_hash
from crovca.index.engines.base import Engine, Found, KeptPieces, Mask
from crovca.index.engines.choice import build_engine, check_engine, choose_engine
from crovca.index.manifest import IdType
from crovca.index.memo import Memo, imported
from crovca.index.metadata import count_values, matching_rows, most_frequent
from crovca.index.model import KeptModel
from crovca.index.origin import Origin
from crovca.index.originals import NO_ORIGINALS, Originals, cosines
from crovca.index.reader import Condition, Reader
from crovca.index.scoring import BitScorer, Float32, Int64
from crovca.index.segment import Segment, as_text
from crovca.index.sketches import Sketches, SketchQuery
from crovca.metrics import METRICS

_ENGINES_KEPT = 2  # of the same rows: two metrics may need different ones
_FILTERS_KEPT = 4  # what the last conditions selected, and the engines for it
_SCAN_SHARE = 0.25  # a condition that holds for more than this is checked after the scan, not before it
_DEAD_SHARE = 0.125  # engines are built anew without the deleted rows when these are more
_JOINED_ROWS = 1 << 13  # segments of at most so many rows are searched as one
_SKETCHED, _SKETCHES = 10, (1000, 4096)  # candidates by bits for an embedding that is read; least and most of a query
_UNKNOWN = Origin()


class _Part:
    """Some rows of a segment (or of a view), cut to a prefix, with the engines that search them.

    Args:
        name: of the segment.
        codes: of these rows, in tie order.
        rows: int64, their numbers; None: all of the segment.
        bits: length of the prefix.
        items: how many there are in the whole index.
        pieces: these codes in pieces, where a segment keeps them so.
    """

    def __init__(
        self, name: str, codes: Codes, rows: Int64 | None, bits: int, items: int, pieces: KeptPieces | None = None
    ) -> None:
        self.name, self.rows = name, rows
        self._pieces = pieces if bits == codes.bits else None
        self.codes = codes if bits == codes.bits else codes.prefix(bits)
        mapped = rows is None and bits == codes.bits
        self._own = (0 if mapped else self.codes.packed.nbytes) + (0 if rows is None else rows.nbytes)
        self._items = items
        self._chosen: Memo[str, str] = Memo(len(METRICS))  # the engine of each metric
        self._built: Memo[str, tuple[Engine, float]] = Memo(_ENGINES_KEPT)

    @property
    def nbytes(self) -> int:
        """Memory held beyond the memory-mapped codes."""
        return self._own + sum(engine.nbytes for _, (engine, _) in self._built.items())

    def engine(self, metric: str, name: str) -> Engine:
        """The engine of this name, or "auto": what is best for the metric; built when it is first needed."""
        if name == "auto":
            laid_out = self._pieces is not None
            name = self._chosen.get(metric, partial(choose_engine, self.codes, metric, self._items, laid_out=laid_out))

        def build() -> tuple[Engine, float]:
            started = time.perf_counter()
            return build_engine(name, self.codes, self._pieces), time.perf_counter() - started

        return self._built.get(name, build)[0]

    def nearest(self, scorer: BitScorer, k: int, mask: Mask | None, engine: str) -> list[Found]:
        """The k nearest of the rows for which ``mask`` (over the whole segment) is true."""
        allowed = None if mask is None else mask if self.rows is None else mask[self.rows]
        answers = self.engine(scorer.metric.name, engine).nearest(scorer.against(self.codes), k, allowed)
        if self.rows is None:
            return answers
        return [Found(self.rows[answer.rows], answer.distances) for answer in answers]

    def described(self) -> list[dict[str, Any]]:
        """See ``Reader.engines``."""
        return [
            {
                "segment": self.name,
                "engine": name,
                "metrics": sorted(metric for metric, chosen in self._chosen.items() if chosen == name),
                "exact": engine.exact,
                "bits": self.codes.bits,
                "rows": len(self.codes),
                "build_seconds": round(seconds, 4),
                "bytes": engine.nbytes + (0 if number else self._own),
                **({"recall_at_100": engine.recall} if hasattr(engine, "recall") else {}),
                **({"read": round(engine.read, 4)} if hasattr(engine, "read") else {}),
            }
            for number, (name, (engine, seconds)) in enumerate(self._built.items())
        ]


class _Selection:
    """The live rows of each segment for which a condition holds: as rows, and as masks where they are many."""

    def __init__(self, segments: Sequence[Segment], condition: Condition) -> None:
        imported("duckdb")  # as ``matching_rows`` would
        try:
            files = [segment.metadata for segment in segments]
            found = matching_rows(files, condition.where, timeout=condition.timeout)
        except (RuntimeError, UnicodeError) as error:  # what DuckDB's Python makes of text that is none
            raise _damaged(error) from error
        self.rows: list[Int64] = []
        self.masks: list[Mask | None] = []
        for segment, rows in zip(segments, found, strict=True):
            if len(rows) and rows[-1] >= len(segment):
                raise FileFormatError(f"segment {segment.name}: metadata.parquet has more rows than there are items")
            live = rows if segment.alive is None else rows[segment.alive[rows]]
            mask = None
            if len(live) > _SCAN_SHARE * segment.live:
                mask = np.zeros(len(segment), np.bool_)
                mask[live] = True
            self.rows.append(live)
            self.masks.append(mask)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(part.nbytes for part in (*self.rows, *self.masks) if part is not None)


class View(Reader):
    """See the module.

    Args:
        segments: in the order in which their rows are counted.
        bits: length of the codes.
        id_type: what ids are; None where there are none.
        model: that makes logits of embeddings; None: there is none.
        origin: what made codes and embeddings.
        tuned: what ``tuning`` chose, as the manifest has it.
        generation: of the index, that this is a state of.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        bits: int,
        id_type: IdType | None,
        *,
        model: KeptModel | None = None,
        origin: Origin = _UNKNOWN,
        tuned: dict[str, Any] | None = None,
        generation: int = 0,
    ) -> None:
        self.segments = tuple(segments)
        self.generation = generation
        self.model, self.origin, self.tuned = model, origin, tuned
        self.bits = bits
        self._id_type = id_type
        self.starts = list(accumulate((len(segment) for segment in self.segments[:-1]), initial=0))
        self.items = sum(segment.live for segment in self.segments)
        self._selections: Memo[str, _Selection] = Memo(_FILTERS_KEPT)
        small = [number for number, segment in enumerate(self.segments) if 0 < segment.live <= _JOINED_ROWS]
        self._small = dict.fromkeys(small if len(small) > 1 else [])  # what is searched as one, in order
        self._large = [number for number in range(len(self.segments)) if number not in self._small]
        self._joined: Memo[int, _Part] = Memo(_FILTERS_KEPT)
        self._selected: Memo[tuple[str, int], list[tuple[int, _Part]]] = Memo(_FILTERS_KEPT)

    @property
    def id_type(self) -> IdType | None:
        """See ``Reader``."""
        return self._id_type

    def view(self) -> View:
        """Itself."""
        return self

    # --- searching ---

    def nearest(self, scorer: BitScorer, k: int, condition: Condition | None, engine: str) -> list[Found]:
        """The k nearest rows of each query, of all segments."""
        if engine != "auto":
            check_engine(engine)
        answers: list[list[Found]] = []
        for start, part, mask in self.searched(scorer.weights.shape[1], condition):
            found = part.nearest(scorer, k, mask, engine)
            answers.append([Found(start + one.rows, one.distances) for one in found])
        if len(answers) == 1:
            return answers[0]
        return [self._merge(list(found), k) for found in zip(*answers, strict=True)] or [
            Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(scorer.weights))
        ]

    def _merge(self, parts: list[Found], k: int) -> Found:
        rows = np.concatenate([part.rows for part in parts])
        distances = np.concatenate([part.distances for part in parts])
        hashes = np.concatenate([self.hashes(part.rows) for part in parts])
        order = np.lexsort((hashes, distances))
        same = (np.diff(distances[order]) == 0) & (hashes[order][1:] == hashes[order][:-1])
        if same.any():  # ids of equal hash: put in order by the ids themselves
            order = np.lexsort((self.ids(rows), hashes, distances))
        order = order[:k]
        return Found(rows[order], distances[order])

    @property
    def width(self) -> int | None:
        """The numbers in a kept embedding; None where not every item has one."""
        widths = {None if segment.kept is None else segment.kept.shape[1] for segment in self.segments}
        return widths.pop() if len(widths) == 1 else None

    @property
    def embedding_bytes(self) -> int | None:
        """Bytes of a kept embedding, its scale and its sketch included; None where not every item has one."""
        first = self.segments[0] if self.width else None
        if first is None or first.kept is None:
            return None
        sketch = 0 if first.sketches is None else first.sketches.itemsize * first.sketches.shape[1]
        return first.kept.shape[1] * first.kept.itemsize + 4 + sketch

    def kept(self, rows: Int64) -> Float32:
        """The kept embeddings (m, d) of some rows, without their scales: cosine does not see them."""
        pieces, place = self._by_segment(rows, _kept)
        return np.concatenate(pieces)[place]

    def candidates_for(self, read: int) -> int:
        """How many candidates by bits there are to be, where so many kept embeddings of a query are to be read."""
        sketched = self.width is not None and all(segment.sketches is not None for segment in self.segments)
        least, most = _SKETCHES
        return max(read, least, min(_SKETCHED * read, most)) if sketched else read

    def sketched(self, unit: Float32, rows: Int64) -> Float32:
        """Of some rows (m,), the nearer to a query's embedding (d,) of length 1 the less, by their sketches: float32
        (m,); all 0 where a segment has none."""
        if not len(rows) or any(segment.sketches is None for segment in self.segments):
            return np.zeros(len(rows), np.float32)
        pieces, place = self._by_segment(rows, _sketches)
        return SketchQuery.of(unit).distances(np.concatenate(pieces).take(place, axis=0))

    def rescored(self, embeddings: Float32, answers: list[Found], k: int, read: int) -> list[Found]:
        """The k candidates of each query that are nearest by 1 - cosine of the kept embeddings, of which no others
        are read.

        Args:
            embeddings: (q, d) of the queries.
            answers: the candidates of each, ``candidates_for(read)`` or fewer.
            k: how many to keep.
            read: of how many candidates the embeddings are read; their sketches tell of which.
        """
        results: list[Found] = []
        for unit, candidates in zip(unit_rows(embeddings), answers, strict=True):
            rows = candidates.rows
            if not len(rows):
                results.append(candidates)
                continue
            if len(rows) > read:
                rows = rows[np.argsort(self.sketched(unit, rows), kind="stable")[:read]]
            pieces, place = self._by_segment(rows, partial(_cosines, unit))
            distances = (1 - np.concatenate(pieces)[place]).astype(np.float32)
            results.append(self._merge([Found(rows, distances)], k))
        return results

    def originals(self) -> Originals:
        """The kept embeddings of all rows, the deleted ones among them, not read yet.

        Raises:
            InvalidInputError: there are none.
        """
        kept = [segment.originals() for segment in self.segments]
        if self.width is None:
            raise InvalidInputError(NO_ORIGINALS)
        return Originals.concatenate([one for one in kept if one is not None])

    def searched(self, bits: int, condition: Condition | None) -> list[tuple[int, _Part, Mask | None]]:
        """The parts to search: number of its row 0, part, and which rows of the segment count. Small segments are one
        part, kept by the view: a query costs less than a tenth of a millisecond a part, whatever is in it."""
        parts: list[tuple[int, _Part, Mask | None]] = []
        if condition is None:
            for number in self._large:
                segment = self.segments[number]
                if segment.live:
                    dead, part = _part(segment, bits, self.items)
                    parts.append((self.starts[number], part, segment.alive if segment.entry.deleted > dead else None))
            if self._small:
                parts.append((0, self._joined.get(bits, lambda: self._join(None, bits)), None))
            return parts
        selection = self.select_rows(condition)
        selected = self._selected.get((condition.where, bits), lambda: self._parts_of(selection, bits))
        for number in self._large:
            mask = selection.masks[number]
            if mask is not None:
                parts.append((self.starts[number], _part(self.segments[number], bits, self.items)[1], mask))
        return [*parts, *((start, part, None) for start, part in selected)]

    def _parts_of(self, selection: _Selection, bits: int) -> list[tuple[int, _Part]]:
        """Parts of the rows that a condition selects, but for those of the masks."""
        parts = [
            (self.starts[number], _Part(segment.name, segment.codes[rows], rows, bits, self.items))
            for number in self._large
            for segment, rows in [(self.segments[number], selection.rows[number])]
            if selection.masks[number] is None and len(rows)
        ]
        small = [selection.rows[number] for number in self._small]
        return [*parts, (0, self._join(small, bits))] if any(map(len, small)) else parts

    def _join(self, rows: list[Int64] | None, bits: int) -> _Part:
        """One part of some rows of each small segment; None: of those that are not deleted."""
        if rows is None:
            rows = [self.segments[number].live_numbers() for number in self._small]
        own = np.concatenate([self.starts[number] + some for number, some in zip(self._small, rows, strict=True)])
        own = own[order_by_hash(self.hashes(own), lambda chosen: self.ids(own[chosen]))]
        return _Part(f"{len(self._small)} small ones", self.codes(own), own, bits, self.items)

    def select_rows(self, condition: Condition) -> _Selection:
        """The live rows of each segment for which a condition holds; the last few are remembered."""
        where = condition.where
        if not isinstance(where, str):
            raise InvalidInputError(f"where must be a SQL condition as text, got {where!r}")
        return self._selections.get(where, lambda: _Selection(self.segments, condition))

    def parts(self) -> list[_Part]:
        """What was built so far."""
        own = [part for segment in self.segments for _, part in segment.engines.items()]
        joined = [part for _, part in self._joined.items()]
        return [*own, *joined, *(part for _, parts in self._selected.items() for _, part in parts)]

    @property
    def nbytes(self) -> int:
        """Bytes held beyond what is mapped: engines, selections, deletions."""
        alive = sum(segment.alive.nbytes for segment in self.segments if segment.alive is not None)
        selections = sum(selection.nbytes for _, selection in self._selections.items())
        metadata = sum(segment.metadata_rows.nbytes for segment in self.segments)
        return sum(part.nbytes for part in self.parts()) + selections + alive + metadata

    # --- rows ---

    def live_rows(self) -> list[Int64]:
        """The rows of each segment that are not deleted, counted within it."""
        return [segment.live_numbers() for segment in self.segments]

    def live(self) -> Int64:
        """The rows (n,) that are not deleted, counted over all segments."""
        own = zip(self.starts, self.live_rows(), strict=False)  # without segments there is still the first start
        return np.concatenate([np.empty(0, np.int64), *(at + rows for at, rows in own)])

    def find(self, ids: npt.NDArray[Any]) -> Int64:
        """The row of each id, or -1."""
        hashes = id_hashes(ids) if len(ids) else np.empty(0, np.uint64)
        order = np.argsort(hashes)
        ids, hashes, found = ids[order], hashes[order], np.full(len(ids), -1, np.int64)
        for start, segment in zip(self.starts, self.segments, strict=False):
            own = segment.find(ids, hashes)
            found[own >= 0] = start + own[own >= 0]
        result = np.empty_like(found)
        result[order] = found
        return result

    def find_all(self, ids: Any) -> Int64:
        """The row of each id.

        Raises:
            InvalidInputError: one is not there, or not of this index's kind.
        """
        asked = self.as_ids(ids)
        rows = self.find(asked)
        if (rows < 0).any():
            missing = asked[rows < 0]
            raise InvalidInputError(
                f"{len(missing)} of {len(asked)} ids are not in the index, for example {missing[:1].tolist()[0]!r}"
            )
        return rows

    def as_ids(self, ids: Any) -> npt.NDArray[Any]:
        """Ids of this index's kind."""
        found = as_ids(ids)
        if self._id_type is not None and len(found) and (found.dtype.kind == "i") != (self._id_type == "int64"):
            expected = "64-bit whole numbers" if self._id_type == "int64" else "strings"
            raise InvalidInputError(f"the ids of this index are {expected}, got {found[:1].tolist()[0]!r}")
        return found

    def ids(self, rows: Int64) -> npt.NDArray[Any]:
        """The ids of some rows."""
        if not len(rows):
            return np.empty(0, np.int64 if self._id_type == "int64" else np.str_)
        if len(self.segments) == 1:
            return self.segments[0].ids(rows)
        pieces, place = self._by_segment(rows, lambda segment, own: segment.ids(own))
        if any(piece.dtype == object for piece in pieces):
            return as_text([text for piece in pieces for text in piece.tolist()])[place]
        return np.concatenate(pieces)[place]

    def hashes(self, rows: Int64) -> npt.NDArray[np.uint64]:
        """The hashes of the ids of some rows."""
        if not len(rows):
            return np.empty(0, np.uint64)
        pieces, place = self._by_segment(rows, lambda segment, own: segment.hashes[own])
        return np.concatenate(pieces)[place]

    def codes(self, rows: Int64) -> Codes:
        """The codes of some rows."""
        packed = np.empty((len(rows), -(-self.bits // 8)), np.uint8)
        if len(rows):
            pieces, place = self._by_segment(rows, lambda segment, own: segment.codes.packed[own])
            packed = np.concatenate(pieces)[place]
        return Codes(packed, self.bits)

    def metadata(self, rows: Int64) -> pa.Table | None:
        """The metadata of some rows, in their order; None where there is none."""
        if not len(rows):
            return None
        distinct, again = np.unique(rows, return_inverse=True)
        pieces, place = self._by_segment(distinct, lambda segment, own: segment.metadata_rows.rows(own))
        try:
            table = pa.concat_tables(pieces, promote_options="default").drop_columns("id")
        except pa.ArrowException as error:  # segments of one index have columns of the same types
            raise _damaged(error) from error
        return table.take(pa.array(place[again])) if table.num_columns else None

    def most_frequent(
        self, column: str, most: int, where: str | None = None, *, few: bool = False
    ) -> list[tuple[Any, int]]:
        """The most frequent values of a column of the metadata, and how many items have each.

        Args:
            column: its name.
            most: how many values.
            where: a condition on the items.
            few: nothing is found where there are more values than that, which costs less than to count them.
        """
        chosen = self.live_rows() if where is None else self.select_rows(Condition(where, self.where_timeout)).rows
        counted: list[pa.Table] = []
        for segment, rows in zip(self.segments, chosen, strict=True):
            wanted = None if len(rows) == len(segment) else np.isin(np.arange(len(segment)), rows, kind="table")
            for part in count_values(segment.metadata, column, wanted):
                if few and len(part) > most:
                    return []
                counted.append(part)
        found = most_frequent(counted, most + 1)
        return [] if few and len(found) > most else found[:most]

    def _by_segment(self, rows: Int64, read: Callable[[Segment, Int64], Any]) -> tuple[list[Any], Int64]:
        """What each segment has for its own of these rows, and where each row is in what they have together."""
        if len(self.segments) == 1:
            return [read(self.segments[0], rows)], np.arange(len(rows))
        starts = np.array(self.starts)
        owner = np.searchsorted(starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        pieces = [
            read(self.segments[owner[own[0]]], rows[own] - starts[owner[own[0]]])
            for own in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)
        ]
        place = np.empty(len(rows), np.int64)
        place[order] = np.arange(len(rows))
        return pieces, place


def _damaged(error: Exception) -> FileFormatError:
    return FileFormatError(f"a metadata.parquet is damaged: {error}; 'crovca index verify' tells which")


def _cosines(unit: Float32, segment: Segment, rows: Int64) -> Float32:
    assert segment.kept is not None  # see ``View.width``, which the caller compares
    return cosines(segment.kept.take(rows, axis=0), unit)


def _sketches(segment: Segment, rows: Int64) -> Sketches:
    assert segment.sketches is not None  # see ``View.candidates_for``
    return segment.sketches.take(rows, axis=0)  # several times faster than by indexing


def _kept(segment: Segment, rows: Int64) -> Float32:
    assert segment.kept is not None  # see ``View.width``, which the caller compares
    return segment.kept.take(rows, axis=0).astype(np.float32)


def _part(segment: Segment, bits: int, items: int) -> tuple[int, _Part]:
    """All rows of a segment that are not deleted, or all that were not so when the engine was built: how many were
    deleted then, and the part. Rows are only ever deleted, so an engine serves as long as its dead rows are few; an
    older view needs rows that a newer engine may lack."""
    dead = segment.entry.deleted
    few = _DEAD_SHARE * len(segment)
    built = [
        key[1]
        for key, part in segment.engines.items()
        if key[0] == bits and key[1] <= dead and dead - key[1] <= _DEAD_SHARE * len(part.codes)
    ]
    basis = max(built, default=0 if dead <= few else dead)

    def build() -> _Part:
        if basis == 0 or segment.alive is None:
            return _Part(segment.name, segment.codes, None, bits, items, segment.pieces)
        rows = np.flatnonzero(segment.alive)
        return _Part(segment.name, segment.codes[rows], rows, bits, items)

    return basis, segment.engines.get((bits, basis), build)
