"""Searching segments: exact answers over whatever is stored, filtered, deleted, cut to a prefix.

``Reader`` is what ``HashIndex`` and ``ShardedIndex`` share. A segment's answer comes from its engine; answers of
several are merged by (distance, hash of the id, id), which is the order that one segment of all would give.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from threading import RLock
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import ConfigError, InvalidInputError
from crovca.ids import as_ids, id_hashes, order_by_hash
from crovca.index.conditions import DEFAULT_TIMEOUT
from crovca.index.duplicates import Duplicates, find_duplicates
from crovca.index.engines.base import Engine, Found, Mask
from crovca.index.engines.choice import EngineName, build_engine, choose_engine
from crovca.index.manifest import IdType
from crovca.index.metadata import matching_rows, read_rows
from crovca.index.results import Neighbors, RangeNeighbors, StoredItems
from crovca.index.scoring import BitScorer, Int64
from crovca.index.segment import Segment
from crovca.metrics import get_metric

__all__ = ["Reader"]

_VARIANTS_KEPT = 4  # engines of the last so many lengths and conditions
_FILTERS_KEPT = 4  # what the last conditions selected
_SCAN_SHARE = 0.25  # a condition that holds for more than this is checked after the scan, not before it
_DEAD_SHARE = 0.125  # engines are built anew without the deleted rows when these are more
_FIRST_RANGE = 128


class _Part:
    """Some rows of a segment, cut to a prefix, with the engine that searches them.

    Args:
        segment: whose rows they are.
        rows: int64, ascending, or None for all.
        bits: length of the prefix.
        engine: a name, or "auto".
    """

    def __init__(
        self, segment: Segment, rows: Int64 | None, bits: int, engine: EngineName | Literal["auto"]
    ) -> None:
        started = time.perf_counter()
        self.segment, self.rows = segment, rows
        codes = segment.codes if rows is None else segment.codes[rows]
        self.codes = codes if bits == codes.bits else codes.prefix(bits)
        name = choose_engine(bits, len(codes)) if engine == "auto" else engine
        self.engine: Engine = build_engine(name, self.codes)
        self.dead = 0 if rows is None else segment.entry.deleted  # deleted rows that are not in it
        self.seconds = time.perf_counter() - started

    @property
    def nbytes(self) -> int:
        """Memory held beyond the memory-mapped codes."""
        own = 0 if self.codes is self.segment.codes else self.codes.packed.nbytes
        return self.engine.nbytes + own + (0 if self.rows is None else self.rows.nbytes)

    def nearest(self, scorer: BitScorer, k: int, mask: Mask | None) -> list[Found]:
        """The k nearest of the rows for which ``mask`` (over the whole segment) is true."""
        allowed = None if mask is None else mask if self.rows is None else mask[self.rows]
        answers = self.engine.nearest(scorer.against(self.codes), k, allowed)
        if self.rows is None:
            return answers
        return [Found(self.rows[answer.rows], answer.distances) for answer in answers]


@dataclass
class _Selection:
    """The live rows of each segment for which a condition holds, and how long it took to find them."""

    rows: list[Int64]
    seconds: float
    masks: dict[int, Mask] = field(default_factory=dict)

    def mask(self, number: int, size: int) -> Mask:
        """The rows of one segment as booleans."""
        if number not in self.masks:
            mask = np.zeros(size, np.bool_)
            mask[self.rows[number]] = True
            self.masks[number] = mask
        return self.masks[number]

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(rows.nbytes for rows in self.rows) + sum(mask.nbytes for mask in self.masks.values())


class Reader(ABC):
    """Read access to segments of codes of one length. Several threads may search one reader at once."""

    bits: int
    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a condition is stopped; set it to allow more."""

    def __init__(self) -> None:
        self._guard = RLock()  # of what follows
        self._known: tuple[str, ...] = ()  # the segments that parts and selections are of
        self._parts: OrderedDict[tuple[Any, ...], _Part] = OrderedDict()
        self._selections: OrderedDict[str, _Selection] = OrderedDict()

    @property
    @abstractmethod
    def _segments(self) -> Sequence[Segment]: ...

    @property
    @abstractmethod
    def id_type(self) -> IdType | None:
        """What the ids are; None as long as there are none."""

    def __len__(self) -> int:
        return sum(segment.live for segment in self._segments)

    # --- searching ---

    def search(
        self,
        queries: npt.ArrayLike | Codes,
        k: int = 10,
        *,
        metric: str = "bce",
        where: str | None = None,
        bits: int | None = None,
        engine: EngineName | Literal["auto"] = "auto",
    ) -> Neighbors:
        """The k nearest items of each query, exactly (but for the engine "inverted").

        Args:
            queries: logits float (q, b) with b at least the length searched, or ``Codes`` for Hamming.
            k: how many, at least 1.
            metric: a score of ``crovca.metrics`` that needs codes alone: "bce", "hamming", ...
            where: a SQL condition on ``id`` and the metadata, like ``"year < 1960 AND place = 'Bern'"``.
            bits: search by the first so many bits only.
            engine: "auto" picks by length and size; ``stats`` says what it picked.

        Returns:
            ids and distances (q, min(k, matching items)); ties in the order of ``ids.tie_order``.

        Raises:
            InvalidInputError: queries, k, metric, condition or bits that cannot be used.
        """
        _check_k(k)
        scorer = self._scorer(queries, metric, bits)
        answers = self._merged(scorer, int(k), where, engine)
        if len(answers) == 1:
            (found,) = answers
            return Neighbors(self._ids(found.rows)[None], found.distances[None])
        width = min((len(answer.distances) for answer in answers), default=0)
        rows = (
            np.concatenate([answer.rows[:width] for answer in answers]) if answers else np.empty(0, np.int64)
        )
        distances = np.concatenate(
            [answer.distances[:width] for answer in answers] or [np.empty(0, np.float32)]
        )
        shape = (len(answers), width)
        return Neighbors(self._ids(rows).reshape(shape), distances.reshape(shape))

    def range_search(
        self,
        queries: npt.ArrayLike | Codes,
        radius: float,
        *,
        metric: str = "bce",
        where: str | None = None,
        bits: int | None = None,
        engine: EngineName | Literal["auto"] = "auto",
    ) -> RangeNeighbors:
        """All items at a distance of at most ``radius`` (in the metric's own unit); else as ``search``."""
        if not isinstance(radius, int | float | np.number) or not abs(float(radius)) < 1e38:
            raise InvalidInputError(f"the radius must be a finite number, got {radius!r}")
        scorer = self._scorer(queries, metric, bits)
        total = len(self)
        results: dict[int, Found] = {}
        pending, k = np.arange(len(scorer.weights)), _FIRST_RANGE
        while len(pending):
            part = scorer.only(pending)
            again = []
            for query, found in zip(pending, self._merged(part, k, where, engine), strict=True):
                if len(found.rows) == k < total and found.distances[-1] <= radius:
                    again.append(query)
                    continue
                inside = int(np.searchsorted(found.distances, np.float32(radius), side="right"))
                results[int(query)] = Found(found.rows[:inside], found.distances[:inside])
            pending, k = np.array(again, np.int64), 8 * k
        answers = [results[query] for query in range(len(results))]
        offsets = np.cumsum([0, *(len(answer.rows) for answer in answers)]).astype(np.int64)
        rows = np.concatenate([answer.rows for answer in answers] or [np.empty(0, np.int64)])
        distances = np.concatenate([answer.distances for answer in answers] or [np.empty(0, np.float32)])
        return RangeNeighbors(offsets, self._ids(rows), distances)

    def neighbors_of(
        self, ids: Any, k: int = 10, *, where: str | None = None, bits: int | None = None
    ) -> Neighbors:
        """The items nearest to stored ones, by Hamming distance between codes, each item itself left out.

        Args:
            ids: one id, or several (q,).
            k, where, bits: as for ``search``.

        Returns:
            As many for each id as there are for all of them: where fewer than k items match the condition, that is
            one less than match, if one of the asked matches itself.

        Raises:
            InvalidInputError: an id that is not in the index.
        """
        _check_k(k)
        asked = self._as_ids([ids] if isinstance(ids, str | int | np.integer) else ids)
        found = self.search(self.get(asked).codes, k + 1, metric="hamming", where=where, bits=bits)
        if not found.ids.size:
            return found
        itself = found.ids == asked[:, None]
        # An item may be beyond the k + 1 nearest: among many at distance 0, or not matching the condition.
        drop = np.where(itself.any(1), itself.argmax(1), found.ids.shape[1] - 1)
        if found.ids.shape[1] and (found.ids.shape[1] > k or itself.any()):
            kept = np.arange(found.ids.shape[1])[None, :] != drop[:, None]
            shape = (len(asked), found.ids.shape[1] - 1)
            return Neighbors(found.ids[kept].reshape(shape), found.distances[kept].reshape(shape))
        return found

    def duplicates(self, radius: int = 0, *, bits: int | None = None) -> Duplicates:
        """Groups of items whose codes are within a Hamming distance of each other (``duplicates.Duplicates``)."""
        bits = self.bits if bits is None else check_bits(bits, at_most=self.bits)
        live = [
            np.arange(len(segment)) if segment.alive is None else np.flatnonzero(segment.alive)
            for segment in self._segments
        ]
        rows = np.concatenate(
            [np.empty(0, np.int64), *(start + own for start, own in zip(self._starts(), live, strict=False))]
        )
        parts = [segment.codes[own] for segment, own in zip(self._segments, live, strict=True)]
        codes = Codes.concatenate(parts).prefix(bits) if parts else self._no_codes(bits)
        if len(parts) > 1:  # in the order of ties, as one segment of all would have them
            order = order_by_hash(self._hashes(rows), lambda chosen: self._ids(rows[chosen]))
            rows, codes = rows[order], codes[order]
        return find_duplicates(codes, radius, lambda chosen: self._ids(rows[chosen]))

    def select(self, where: str) -> npt.NDArray[Any]:
        """The ids of all items for which a SQL condition holds."""
        with self._guard:
            self._forget()
            selected = self._select(where).rows
        rows = [start + own for start, own in zip(self._starts(), selected, strict=False)]
        return self._ids(np.concatenate([np.empty(0, np.int64), *rows]))

    # --- reading ---

    def get(self, ids: Any) -> StoredItems:
        """The codes and metadata of some items, in the order asked for.

        Raises:
            InvalidInputError: an id that is not in the index.
        """
        asked = self._as_ids(ids)
        rows = self._find(asked)
        if (rows < 0).any():
            missing = asked[rows < 0]
            raise InvalidInputError(
                f"{len(missing)} of {len(asked)} ids are not in the index, for example {missing[0].item()!r}"
            )
        starts = np.array(self._starts())
        owner = np.searchsorted(starts, rows, side="right") - 1
        packed = np.empty((len(asked), -(-self.bits // 8)), np.uint8)
        tables, places = [], []
        for number in np.unique(owner):
            (mine,) = np.nonzero(owner == number)
            segment, own = self._segments[int(number)], rows[mine] - starts[number]
            packed[mine] = segment.codes.packed[own]
            tables.append(read_rows(segment.metadata, own))
            places.append(mine)
        metadata = None
        if tables:
            table = pa.concat_tables(tables, promote_options="default").drop_columns("id")
            if table.num_columns:
                metadata = table.take(pa.array(np.argsort(np.concatenate(places))))
        return StoredItems(asked, Codes(packed, self.bits), metadata)

    def contains(self, ids: Any) -> Mask:
        """Which of some ids are in the index: bool (n,)."""
        return self._find(self._as_ids(ids)) >= 0

    def __contains__(self, item: object) -> bool:
        try:
            return bool((self._find(self._as_ids([item])) >= 0).all())
        except InvalidInputError:  # not an id of this index's kind
            return False

    def batches(self, rows: int = 65536) -> Iterator[StoredItems]:
        """All items, ``rows`` or fewer at a time, in an order that is fixed until the next write."""
        for segment in self._segments:
            live = np.arange(len(segment)) if segment.alive is None else np.flatnonzero(segment.alive)
            for start in range(0, len(live), rows):
                own = live[start : start + rows]
                table = read_rows(segment.metadata, own).drop_columns("id")
                yield StoredItems(segment.ids(own), segment.codes[own], table if table.num_columns else None)

    def prepare(self, *, bits: int | None = None, engine: EngineName | Literal["auto"] = "auto") -> None:
        """Build the engines now, which the first search would do."""
        bits = self.bits if bits is None else check_bits(bits, at_most=self.bits)
        self._searched(bits, None, engine)

    def engines(self) -> list[dict[str, Any]]:
        """What was built for searching so far: engine, bits, rows, seconds to build, bytes of memory."""
        return [
            {
                "segment": part.segment.name,
                "engine": part.engine.name,
                "exact": part.engine.exact,
                "bits": part.codes.bits,
                "rows": len(part.codes),
                "build_seconds": round(part.seconds, 4),
                "bytes": part.nbytes,
                **({"recall_at_100": part.engine.recall} if hasattr(part.engine, "recall") else {}),
            }
            for part in self._parts.values()
        ]

    @property
    def _memory(self) -> int:
        """Bytes held beyond what is mapped: engines, selections, deletions."""
        with self._guard:
            parts = sum(part.nbytes for part in self._parts.values())
            selections = sum(selection.nbytes for selection in self._selections.values())
            alive = sum(segment.alive.nbytes for segment in self._segments if segment.alive is not None)
            return parts + selections + alive

    # --- inside ---

    def _scorer(self, queries: npt.ArrayLike | Codes, metric: str, bits: int | None) -> BitScorer:
        bits = self.bits if bits is None else check_bits(bits, at_most=self.bits)
        get_metric(metric, stored=True)
        if isinstance(queries, Codes):
            if metric != "hamming":
                raise InvalidInputError(
                    f"codes are compared by metric='hamming'; {metric!r} takes the queries' logits"
                )
            queries = queries.unpack().astype(np.float32) - np.float32(0.5)
        try:
            logits = np.asarray(queries)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InvalidInputError(f"queries must be an array of logits (q, {bits}): {error}") from error
        if logits.ndim != 2 or logits.shape[1] < bits or logits.dtype.kind not in "fiu":
            raise InvalidInputError(
                f"queries must be logits of shape (q, {bits}) for codes of {bits} bits (or wider, to be cut), "
                f"got {logits.dtype} {logits.shape}"
            )
        return BitScorer.of(metric, logits[:, :bits], self._no_codes(bits))

    @staticmethod
    @cache
    def _no_codes(bits: int) -> Codes:
        return Codes(np.empty((0, -(-bits // 8)), np.uint8), bits)

    def _merged(
        self, scorer: BitScorer, k: int, where: str | None, engine: EngineName | Literal["auto"]
    ) -> list[Found]:
        """The k nearest of all segments, rows counted through all of them."""
        answers: list[list[Found]] = []
        for start, part, mask in self._searched(scorer.weights.shape[1], where, engine):
            found = part.nearest(scorer, k, mask)
            answers.append([Found(start + one.rows, one.distances) for one in found])
        if len(answers) == 1:
            return answers[0]
        return [self._merge(list(found), k) for found in zip(*answers, strict=True)] or [
            Found(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in range(len(scorer.weights))
        ]

    def _merge(self, parts: list[Found], k: int) -> Found:
        rows = np.concatenate([part.rows for part in parts])
        distances = np.concatenate([part.distances for part in parts])
        hashes = np.concatenate([self._hashes(part.rows) for part in parts])
        order = np.lexsort((hashes, distances))
        same = (np.diff(distances[order]) == 0) & (hashes[order][1:] == hashes[order][:-1])
        if same.any():  # ids of equal hash: put in order by the ids themselves
            ids = self._ids(rows)
            order = np.lexsort((ids, hashes, distances))
        order = order[:k]
        return Found(rows[order], distances[order])

    def _searched(
        self, bits: int, where: str | None, engine: EngineName | Literal["auto"]
    ) -> list[tuple[int, _Part, Mask | None]]:
        """The parts to search: first row of the segment, part, and which of the segment's rows count."""
        with self._guard:
            self._forget()
            return list(self._parts_of(bits, where, engine))

    def _parts_of(
        self, bits: int, where: str | None, engine: EngineName | Literal["auto"]
    ) -> Iterator[tuple[int, _Part, Mask | None]]:
        if engine not in ("auto", *get_args(EngineName)):
            raise ConfigError(
                f"unknown engine {engine!r}; expected 'auto' or one of {list(get_args(EngineName))}"
            )
        selection = None if where is None else self._select(where)
        for number, (start, segment) in enumerate(zip(self._starts(), self._segments, strict=False)):
            if not segment.live:
                continue
            if selection is None:
                part = self._part(segment, bits, engine)
                yield start, part, segment.alive if segment.entry.deleted > part.dead else None
                continue
            rows = selection.rows[number]
            if len(rows) == 0:
                continue
            if len(rows) > _SCAN_SHARE * segment.live:
                yield start, self._part(segment, bits, engine), selection.mask(number, len(segment))
            else:
                yield start, self._selected_part(segment, rows, where, bits, engine), None

    def _part(self, segment: Segment, bits: int, engine: EngineName | Literal["auto"]) -> _Part:
        key = (segment.identity, bits, engine)
        part = self._parts.get(key)
        if part is None or segment.entry.deleted - part.dead > _DEAD_SHARE * len(part.codes):
            rows = None
            if segment.alive is not None and segment.entry.deleted > _DEAD_SHARE * len(segment):
                rows = np.flatnonzero(segment.alive)
            part = _Part(segment, rows, bits, engine)
        return self._remember(key, part)

    def _selected_part(
        self,
        segment: Segment,
        rows: Int64,
        where: str | None,
        bits: int,
        engine: EngineName | Literal["auto"],
    ) -> _Part:
        key = (segment.identity, bits, engine, where)
        return self._remember(key, self._parts.get(key) or _Part(segment, rows, bits, engine))

    def _remember(self, key: tuple[Any, ...], part: _Part) -> _Part:
        """Keep a part, and those of the last few lengths, engines and conditions only."""
        if self._parts.get(key) is part and next(reversed(self._parts)) == key:
            return part
        self._parts[key] = part
        self._parts.move_to_end(key)
        variants = list(dict.fromkeys(kept[1:] for kept in reversed(self._parts)))
        for variant in variants[_VARIANTS_KEPT:]:
            for old in [kept for kept in self._parts if kept[1:] == variant]:
                del self._parts[old]
        return part

    def _select(self, where: str) -> _Selection:
        """The live rows of each segment for which a condition holds; the last few are remembered."""
        if isinstance(where, str) and where in self._selections:
            self._selections.move_to_end(where)
            return self._selections[where]
        started = time.perf_counter()
        rows = matching_rows(
            [segment.metadata for segment in self._segments], where, timeout=self.where_timeout
        )
        rows = [
            own if segment.alive is None else own[segment.alive[own]]
            for own, segment in zip(rows, self._segments, strict=True)
        ]
        self._selections[where] = selection = _Selection(rows, time.perf_counter() - started)
        if len(self._selections) > _FILTERS_KEPT:
            self._selections.popitem(last=False)
        return selection

    def _forget(self) -> None:
        """Forget what is of other segments, or of other deletions, than there are now."""
        states = tuple(segment.state for segment in self._segments)
        if states == self._known:
            return
        self._known = states
        self._selections.clear()
        present = {segment.identity for segment in self._segments}
        self._parts = OrderedDict(
            item for item in self._parts.items() if len(item[0]) == 3 and item[0][0] in present
        )

    def _starts(self) -> list[int]:
        """The first row of each segment, rows counted through all of them."""
        return list(accumulate((len(segment) for segment in self._segments[:-1]), initial=0))

    def _hashes(self, rows: Int64) -> npt.NDArray[np.uint64]:
        return self._gathered(rows, lambda segment, own: segment.hashes[own], np.empty(0, np.uint64))

    def _ids(self, rows: Int64) -> npt.NDArray[Any]:
        nothing: npt.NDArray[Any] = np.empty(0, np.int64 if self.id_type == "int64" else np.str_)
        return self._gathered(rows, lambda segment, own: segment.ids(own), nothing)

    def _gathered(self, rows: Int64, read: Any, nothing: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if not len(rows):
            return nothing
        if len(self._segments) == 1:
            return read(self._segments[0], rows)
        starts = np.array(self._starts())
        owner = np.searchsorted(starts, rows, side="right") - 1
        # Empty segments share a start with the next one: the last of them owns the row, which is right.
        order = np.argsort(owner, kind="stable")
        pieces = [
            read(self._segments[number], rows[owner == number] - starts[number])
            for number in np.unique(owner)
        ]
        joined = np.concatenate(pieces)
        result = np.empty(len(rows), joined.dtype)
        result[order] = joined
        return result

    def _as_ids(self, ids: Any) -> npt.NDArray[Any]:
        found = as_ids(ids)
        if self.id_type is not None and len(found) and (found.dtype.kind == "i") != (self.id_type == "int64"):
            expected = "64-bit whole numbers" if self.id_type == "int64" else "strings"
            raise InvalidInputError(f"the ids of this index are {expected}, got {found[0].item()!r}")
        return found

    def _find(self, ids: npt.NDArray[Any]) -> Int64:
        """The row of each id, rows counted through all segments, or -1."""
        hashes = id_hashes(ids) if len(ids) else np.empty(0, np.uint64)
        result = np.full(len(ids), -1, np.int64)
        for start, segment in zip(self._starts(), self._segments, strict=False):
            own = segment.find(ids, hashes)
            result[own >= 0] = start + own[own >= 0]
        return result


def _check_k(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInputError(f"k must be a whole number of at least 1, got {k!r}")
