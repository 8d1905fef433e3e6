"""What an engine is, and how a fast but rough pass becomes an exact answer.

An engine holds codes and answers one question: which rows are nearest to these queries? Ids, deletions, files
and SQL are not its business. Among equals the lower row wins: whoever builds an engine hands it the codes in
tie order (``ids.tie_order``).

Most engines only propose candidates, with a bound: no row that was left out scores better than ``beyond``.
``CandidateEngine`` scores the candidates exactly and takes the answer where the bound proves that nothing was
missed; where it does not, it asks for more candidates, and at last for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.index.scoring import BitScorer, Float32, Int64, rank, sortable

Mask = npt.NDArray[np.bool_]

BLOCK = 32  # codes that FAISS lays side by side, in a piece
ROW_BYTES = 8  # of a row number in a piece
_SOME, _HASHED = 1 << 16, 1 << 20  # codes by which ``few_distinct`` judges, and that it reads at a time
_WIDEN = 4  # times more candidates when a bound does not prove the answer


class HeldFile(Protocol):
    """A file that is kept open: its descriptor."""

    file: int


class KeptPieces(NamedTuple):
    """Codes in pieces that begin alike, in a segment's files (``pieces`` says what these hold): ``sizes`` int64 (p,),
    ``bounds`` uint8 (p, 2 * bytes), and ``content`` uint8, mapped from the open file ``held``, of that name, where it
    begins at ``offset``."""

    name: str
    held: HeldFile
    offset: int
    sizes: Int64
    bounds: npt.NDArray[np.uint8]
    content: npt.NDArray[np.uint8]


def rooms_of(sizes: Int64) -> Int64:
    """The codes that pieces of these sizes have room for: whole blocks."""
    return -(-sizes // BLOCK) * BLOCK


class Found(NamedTuple):
    """The nearest rows of one query, best first: rows int64 (k,), distances float32 (k,)."""

    rows: Int64
    distances: Float32


class Engine(Protocol):
    """Finds the nearest of the codes it was built from."""

    name: ClassVar[str]
    exact: ClassVar[bool]

    @property
    def nbytes(self) -> int:
        """Memory that the engine holds beyond the codes themselves."""

    def nearest(self, scorer: BitScorer, k: int, allowed: Mask | None = None) -> list[Found]:
        """The k nearest rows of each query by (distance, row), fewer where fewer are allowed.

        Args:
            scorer: the queries, against the codes that the engine was built from.
            k: at least 1.
            allowed: bool (n,); rows that are False are never returned.
        """


def exhaustive(scorer: BitScorer, k: int, allowed: Mask | None = None) -> Iterator[Found]:
    """Score every row exactly: the answer that every engine must give, one query after another."""
    rows = None if allowed is None else np.flatnonzero(allowed)
    if rows is not None:
        scorer = scorer.against(scorer.codes[rows])
    if not len(scorer.codes):
        yield from (_nothing() for _ in range(len(scorer.weights)))
        return
    for _, ranking in rank(scorer, k):
        for found, distances in zip(ranking.rows, ranking.distances, strict=True):
            yield Found(found if rows is None else rows[found], distances)


class Candidates(NamedTuple):
    """What a rough pass proposes for one query.

    Attributes:
        entries: int64 (c,), distinct, in any order.
        beyond: the inner product of the query's weights with the bits of every other entry is at most this;
            -inf where there is no other, or where the engine promises nothing (``exact = False``).
    """

    entries: Int64
    beyond: float


class CandidateEngine(ABC):
    """An engine that proposes candidates, settled exactly.

    Entries are what is scored: rows, or distinct codes (``Groups``) where many rows share one.

    Args:
        codes: (n,), in tie order.
        groups: the distinct codes of these and their rows, or None to score rows.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True

    def __init__(self, codes: Codes, groups: Groups | None = None) -> None:
        self.entries = codes if groups is None else groups.codes
        self.groups = groups
        self.rows = len(codes)

    @abstractmethod
    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """About ``count`` entries (at most all) of the highest inner product, for each query's weights (q, b)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """See ``Engine``."""

    def first_count(self, k: int, *, whole: bool) -> int:
        """How many candidates to ask for first, so that k are mostly proven; ``whole``: distances are whole
        numbers, so many are equal."""
        return k

    def nearest(self, scorer: BitScorer, k: int, allowed: Mask | None = None) -> list[Found]:
        """See ``Engine``."""
        matches = self.rows if allowed is None else int(np.count_nonzero(allowed))
        if not matches:
            return [_nothing() for _ in range(len(scorer.weights))]
        k = min(k, matches)
        scorer = scorer.against(self.entries)
        results: list[Found | None] = [None] * len(scorer.weights)
        pending, weights = list(range(len(results))), scorer.weights
        # Among so many of all there are k of the allowed, most of the time.
        needed = k if matches == self.rows else k * self.rows // matches * 5 // 4 + 16
        count = self.first_count(needed, whole=scorer.metric.whole)
        while pending and count < len(self.entries) // 2:
            for query, candidates in zip(pending, self.best(weights, count), strict=True):
                results[query] = self._settle(scorer, query, candidates, k, allowed)
            pending = [query for query in pending if results[query] is None]
            weights = scorer.weights[pending]
            count *= _WIDEN
        if pending:
            answers = self._all(scorer.only(np.array(pending)), k, allowed)
            for query, found in zip(pending, answers, strict=True):
                results[query] = found
        return [found for found in results if found is not None]

    def _all(self, scorer: BitScorer, k: int, allowed: Mask | None) -> Iterator[Found]:
        if self.groups is None:
            yield from exhaustive(scorer, k, allowed)
            return
        everything = Candidates(np.arange(len(self.entries)), -np.inf)
        for query in range(len(scorer.weights)):
            distances = scorer.distances(slice(query, query + 1))[0]
            rows, distances = self.groups.expand(everything.entries, distances, k, allowed)
            yield _smallest(rows, distances, k)

    def _settle(
        self, scorer: BitScorer, query: int, candidates: Candidates, k: int, allowed: Mask | None
    ) -> Found | None:
        """The exact answer, or None where these candidates do not prove it."""
        rows = candidates.entries
        distances = scorer.distances_to(query, rows)
        if self.groups is not None:
            rows, distances = self.groups.expand(rows, distances, k, allowed)
        elif allowed is not None:
            kept = allowed[rows]
            rows, distances = rows[kept], distances[kept]
        if len(rows) < k:
            return None
        found = _smallest(rows, distances, k)
        if candidates.beyond == -np.inf:
            return found
        # Float32 rounding keeps order, so what is left out is at no less than this, ties included.
        beyond = candidates.beyond
        if scorer.metric.whole:
            beyond = np.floor(beyond + 1e-3)
        nearest_left_out = np.float32(scorer.offsets[query] - beyond)
        return found if found.distances[-1] < nearest_left_out else None


def _smallest(rows: Int64, distances: Float32, k: int) -> Found:
    """The k smallest by (distance, row)."""
    if len(rows) > 4 * k and len(rows) > 1000:  # as one unsigned 64-bit key each, of which k are selected
        keys = sortable(distances).astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64)
        chosen = np.argpartition(keys, k - 1)[:k]
        rows, distances = rows[chosen], distances[chosen]
    order = np.lexsort((rows, distances))[:k]
    return Found(rows[order], distances[order])


def _nothing() -> Found:
    return Found(np.empty(0, np.int64), np.empty(0, np.float32))


# --- rows that share a code -------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Distinct codes, and the rows that have each.

    Attributes:
        codes: (g,) distinct, ascending as numbers.
        starts: int64 (g + 1,): the rows of code i are ``rows[starts[i]:starts[i + 1]]``.
        rows: uint32 (n,), ascending within each code.
    """

    codes: Codes
    starts: Int64
    rows: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, codes: Codes) -> Groups:
        """Group the rows of ``codes``."""
        order = _stable_order(codes)
        ordered = codes.packed[order]
        changes = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
        starts = np.concatenate([[0], changes, [len(codes)]]).astype(np.int64)
        return cls(Codes(ordered[starts[:-1]], codes.bits), starts, order.astype(np.uint32))

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.codes.packed.nbytes + self.starts.nbytes + self.rows.nbytes

    def expand(self, entries: Int64, distances: Float32, k: int, allowed: Mask | None) -> tuple[Int64, Float32]:
        """The rows of some codes, as far as they can be among the k nearest, and their distances.

        Of one code its first k rows suffice, and no code is needed beyond the distance at which k rows are found.
        """
        order = np.argsort(distances, kind="stable")
        entries, distances = entries[order], distances[order]
        if allowed is not None:
            return self._expand_allowed(entries, distances, k, allowed)
        starts = self.starts[entries]
        counts = np.minimum(self.starts[entries + 1] - starts, k)
        enough = int(np.searchsorted(np.cumsum(counts), k))
        if enough < len(entries):
            last = int(np.searchsorted(distances, distances[enough], side="right"))
            starts, counts, distances = starts[:last], counts[:last], distances[:last]
        return self._rows(starts, counts), np.repeat(distances, counts)

    def _expand_allowed(self, entries: Int64, distances: Float32, k: int, allowed: Mask) -> tuple[Int64, Float32]:
        rows, found, taken, start = [], [], 0, 0
        while start < len(entries) and taken < k:
            # A step of codes of equal distance, or of 64 codes where that is more.
            stop = int(np.searchsorted(distances, distances[min(start + 63, len(entries) - 1)], side="right"))
            starts = self.starts[entries[start:stop]]
            counts = self.starts[entries[start:stop] + 1] - starts
            members = self._rows(starts, counts)
            kept = allowed[members]
            rows.append(members[kept])
            found.append(np.repeat(distances[start:stop], counts)[kept])
            taken += len(rows[-1])
            start = stop
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return np.concatenate(rows), np.concatenate(found)

    def _rows(self, starts: Int64, counts: Int64) -> Int64:
        before = np.cumsum(counts) - counts
        return self.rows[np.repeat(starts - before, counts) + np.arange(counts.sum())].astype(np.int64)


def few_distinct(codes: Codes) -> bool:
    """Whether perhaps at most about half of the codes are distinct, judged by some of them.

    By the first, of an order that says nothing: if none of them are equal, most are not; if half are, a few codes are
    most. Else by all that have one of some hashes, among which every code is with all of its rows, or with none.
    """
    first = _hashes(codes[:_SOME])
    distinct = len(np.unique(first))
    if distinct == len(first) or 2 * distinct <= len(first):
        return distinct < len(first)
    share = np.uint64(1 + len(codes) // _SOME)
    parts = (_hashes(codes[start : start + _HASHED]) for start in range(0, len(codes), _HASHED))
    some = np.concatenate([part[part % share == 0] for part in parts])
    return 2 * len(np.unique(some)) <= 1.1 * len(some)


def _hashes(codes: Codes) -> npt.NDArray[np.uint64]:
    keys = np.zeros(len(codes), np.uint64)
    for word in codes.words().T:
        keys = (keys ^ (keys >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + word
    keys ^= keys >> np.uint64(32)
    return keys * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(16)


def _stable_order(codes: Codes) -> Int64:
    """Rows ordered by code, those of one code by row."""
    words = codes.words()
    if codes.bytes_per_item <= 4:  # code and row in one number: an unstable sort is fast and does
        keys = words[:, 0] | np.arange(len(codes), dtype=np.uint64)
        keys.sort()
        return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if words.shape[1] == 1:
        return np.argsort(words[:, 0], kind="stable")
    return np.lexsort(words.T[::-1])
