"""Distances between queries and codes, and exact top-k over them: what every faster engine must equal.

A score is a row of ``crovca.metrics``: float query weights w and an offset.

    distance = offset - sum over {j: y_j = 1} of w_j

The sum is taken in float64 over float32 weights in bit order, and rounded to float32. Equal codes therefore have
equal distances, whatever the block size or the machine. Ties are put in order by a seeded hash of the item's id,
then by the id (``ids.tie_order``), so an answer does not depend on how items are stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from crovca.codes import Codes
from crovca.data.embeddings import unit_rows
from crovca.errors import InvalidInputError
from crovca.metrics import Metric, get_metric

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_UNIT = 2.0**-53  # rounding unit of float64
_CHUNK = 8192  # database rows unpacked at a time
_AGAIN = 4096  # pairs summed again at a time
_PAIRS = 1 << 22  # bits of few items that are added at a time


# --- the scores, as functions of all pairs ----------------------------------------------------------


def hamming_distance(query: Codes, database: Codes) -> Float32:
    """Numbers of differing bits: float32 (q, n), whole numbers."""
    logits = query.unpack().astype(np.float32) - np.float32(0.5)
    return BitScorer.of("hamming", logits, database).distances(slice(None))


def asymmetric_hamming_distance(query_logits: npt.ArrayLike, database: Codes) -> Float32:
    """sum_j |sigmoid(z_j) - y_j| between query logits (q, b) and codes (n): float32 (q, n)."""
    return BitScorer.of("asymmetric_hamming", query_logits, database).distances(slice(None))


def bce_distance(query_logits: npt.ArrayLike, database: Codes) -> Float32:
    """BCE(y, sigmoid(z)) summed over bits, in nats (paper, section 3.3): float32 (q, n)."""
    return BitScorer.of("bce", query_logits, database).distances(slice(None))


def symmetric_bce_distance(query_logits: npt.ArrayLike, database: Codes, database_logits: npt.ArrayLike) -> Float32:
    """BCE(y, sigmoid(z_q)) + BCE([z_q > 0], sigmoid(z_item)), in nats: float32 (q, n) (paper, appendix A.1)."""
    return BitScorer.of("symmetric_bce", query_logits, database, database_logits).distances(slice(None))


def cosine_distance(query: npt.ArrayLike, database: npt.ArrayLike) -> Float32:
    """1 - cosine similarity of float vectors (q, d) and (n, d): float32 (q, n). Zero vectors are at distance 1."""
    return CosineScorer(np.asarray(query), np.asarray(database)).distances(slice(None))


# --- scorers: distances from a block of queries to every item ---------------------------------------


class Scorer(Protocol):
    """Gives distances from some queries to all items."""

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, items)."""

    def distances(self, queries: slice) -> Float32:
        """Distances float32 (len(queries), items)."""


@dataclass(frozen=True)
class BitScorer:
    """Distances between query weights and packed codes; see above.

    Built by ``BitScorer.of``. ``database_logits`` is None but for a metric that needs them.
    """

    metric: Metric
    logits: Float32  # (q, b) of the queries
    weights: Float32  # (q, b), against the item's bits
    offsets: Float64  # (q,)
    codes: Codes
    database_logits: Float32 | None = None  # (n, b)

    @classmethod
    def of(
        cls, metric: str, query_logits: npt.ArrayLike, database: Codes, database_logits: npt.ArrayLike | None = None
    ) -> BitScorer:
        """Check the shapes and compute each query's weights and offset.

        Args:
            metric: a name of ``crovca.metrics``.
            query_logits: (q, b), finite.
            database: n codes of b bits.
            database_logits: (n, b), where the metric needs them; else passed over.

        Raises:
            InvalidInputError: unknown metric, shapes that do not fit, logits that are not finite, or missing
                logits of the items.
        """
        chosen = get_metric(metric)
        logits = np.asarray(query_logits, np.float32)
        if logits.ndim != 2 or logits.shape[1] != database.bits:
            raise InvalidInputError(
                f"query logits must have shape (q, {database.bits}) for codes of {database.bits} bits, "
                f"got {logits.shape}"
            )
        if not np.isfinite(logits).all():
            raise InvalidInputError("query logits must be finite, got NaN or infinity")
        weights, offsets = chosen.weights(logits.astype(np.float64))
        scorer = cls(chosen, logits, weights.astype(np.float32), offsets, database)
        if not chosen.needs_item_logits:
            return scorer
        if database_logits is None:
            raise InvalidInputError(f"the metric {metric!r} needs the logits of the database items as well")
        theirs = np.asarray(database_logits, np.float32)
        if theirs.shape != (len(database), database.bits):
            raise InvalidInputError(
                f"database logits must have shape {(len(database), database.bits)}, got {theirs.shape}"
            )
        if not np.isfinite(theirs).all():
            raise InvalidInputError("database logits must be finite, got NaN or infinity")
        return replace(scorer, database_logits=theirs)

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, items)."""
        return len(self.weights), len(self.codes)

    def against(self, database: Codes) -> BitScorer:
        """The same queries against other codes of the same length."""
        return replace(self, codes=database)

    def only(self, queries: Int64) -> BitScorer:
        """Some of the queries."""
        return replace(self, logits=self.logits[queries], weights=self.weights[queries], offsets=self.offsets[queries])

    def distances_to(self, query: int, rows: Int64) -> Float32:
        """Distances float32 (len(rows),) from one query to these items: what ``distances`` gives for them.

        Not for a metric that needs the items' logits. For a few items: it adds bit after bit, all items at once.
        """
        weights = self.weights[query].astype(np.float64)[:, None]
        most = _PAIRS // self.codes.bits
        if len(rows) > most:
            starts = range(0, len(rows), most)
            return np.concatenate([self.distances_to(query, rows[start : start + most]) for start in starts])
        bits = np.unpackbits(self.codes.packed.take(rows, axis=0).T, axis=0, count=self.codes.bits)
        # A reduction over the first axis adds row to row, in order.
        inner = np.add.reduce(bits * weights, axis=0)
        return (self.offsets[query] - inner).astype(np.float32) + np.float32(0)

    def distances(self, queries: slice) -> Float32:
        """See ``Scorer``; exact."""
        weights = self.weights[queries].astype(np.float64)
        offsets = self.offsets[queries]
        term = self.metric.item_term
        if term is not None:  # [weights, weights of the term] against [item bits, item logits]
            weights = np.hstack([weights, term.weights(self.logits[queries].astype(np.float64))])
        result = np.empty((len(weights), len(self.codes)), np.float32)
        for start in range(0, len(self.codes), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            features = self.codes[chunk].unpack().astype(np.float64)
            item_offsets = np.zeros(len(features))
            if term is not None:
                assert self.database_logits is not None  # see ``of``
                logits = self.database_logits[chunk].astype(np.float64)
                features = np.hstack([features, logits])
                item_offsets = term.offsets(logits)
            result[:, chunk] = _ordered_distances(weights, offsets, features, item_offsets, exact=self.metric.whole)
        return result


def _ordered_distances(
    weights: Float64, offsets: Float64, features: Float64, item_offsets: Float64, *, exact: bool
) -> Float32:
    """float32(offset + item offset - sum_j w_j f_j), the sum in the order of j.

    A matrix product sums in whatever order is fast. Where both ends of its error bound round to the same
    float32, that is the answer; the few others are summed again in order. ``exact`` says that
    all terms are whole numbers, for which no order matters.
    """
    inner = weights @ features.T
    offset = np.broadcast_to(offsets[:, None] + item_offsets[None, :], inner.shape)
    if exact:
        return (offset - inner).astype(np.float32)
    # |error| of a sum of f products: f * unit * sum |w_j f_j| for either order; doubled to be safe.
    scale = np.abs(weights).sum(1)[:, None] * max(float(np.abs(features).max(initial=0)), 1.0)
    bound = 4 * (weights.shape[1] + 4) * _UNIT * (scale + np.abs(offset).max(initial=0))
    distance = offset - inner
    low, high = (distance - bound).astype(np.float32), (distance + bound).astype(np.float32)
    queries, items = np.nonzero(low != high)
    for start in range(0, len(queries), _AGAIN):
        query, item = queries[start : start + _AGAIN], items[start : start + _AGAIN]
        in_order = np.cumsum(weights[query] * features[item], axis=1)[:, -1]
        low[query, item] = (offset[query, item] - in_order).astype(np.float32)
    return low + np.float32(0)  # -0.0 becomes 0.0: they must tie


class Vectors(Protocol):
    """Rows of float vectors (n, d), read a slice at a time: arrays, memory maps, anything that has rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class CosineScorer:
    """1 - cosine between float vectors, computed in float32; optionally after subtracting a mean.

    Args:
        query: (q, d), any real dtype.
        database: (n, d), any real dtype; read in chunks, so a memory map is fine.
        center: (d,) subtracted from both, or None.
    """

    query: Vectors
    database: Vectors
    center: Float32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, items)."""
        return len(self.query), len(self.database)

    def distances(self, queries: slice) -> Float32:
        """See ``Scorer``; to float32 rounding."""
        unit = unit_rows(self.query[queries], self.center)
        result = np.empty((len(unit), len(self.database)), np.float32)
        for start in range(0, len(self.database), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            np.subtract(1, unit @ unit_rows(self.database[chunk], self.center).T, out=result[:, chunk])
        return result


# --- exact top-k ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """The nearest items of some queries, best first.

    Attributes:
        rows: int64 (q, k), row numbers of the database.
        distances: float32 (q, k), ascending; infinity for an item that was left out.
        boundary: for each query the rows beyond k that tie with the k-th, unordered (for tie-aware metrics).
    """

    rows: Int64
    distances: Float32
    boundary: list[Int64]


def top_k(
    scorer: Scorer, k: int, *, ties: npt.NDArray[np.uint32] | None = None, left_out: Int64 | None = None
) -> Ranking:
    """The k nearest items of every query, exactly; ``rank`` in one piece.

    >>> codes = Codes.from_bits(np.array([[1, 1], [0, 1], [1, 1]]))
    >>> top_k(BitScorer.of("hamming", [[1.0, 1.0]], codes), 3, ties=np.array([2, 1, 0], np.uint32)).rows
    array([[2, 0, 1]])
    """
    parts = [part for _, part in rank(scorer, k, ties=ties, left_out=left_out)]
    if not parts:
        raise InvalidInputError("there are no queries")
    return Ranking(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.distances for part in parts]),
        [rows for part in parts for rows in part.boundary],
    )


def rank(
    scorer: Scorer,
    k: int,
    *,
    ties: npt.NDArray[np.uint32] | None = None,
    left_out: Int64 | None = None,
    block_bytes: int = 192 << 20,
) -> Iterator[tuple[slice, Ranking]]:
    """Rank every item for one block of queries after another.

    Args:
        scorer: gives the distances.
        k: how many items to return a query; more than there are means all.
        ties: uint32 (n,), each item's place among equals (``tie_order``); None: by row number.
        left_out: int64 (q,), a row that is put last with infinite distance, or -1; None: nowhere.
        block_bytes: how large one worker's array of keys may grow.

    Yields:
        The queries' slice and their ranking, in order.
    """
    queries, items = scorer.shape
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, got {k}")
    if items < 1:
        raise InvalidInputError("there is nothing to search: the database is empty")
    k = min(k, items)
    if ties is None:
        ties = np.arange(items, dtype=np.uint32)
    by_tie = np.empty(items, np.int64)
    by_tie[ties] = np.arange(items)

    block = max(1, min(64, block_bytes // (items * 24)))
    slices = [slice(start, min(start + block, queries)) for start in range(0, queries, block)]

    def work(part: slice) -> tuple[slice, Ranking]:
        distances = scorer.distances(part)
        if left_out is not None:
            (local,) = np.nonzero(left_out[part] >= 0)
            distances[local, left_out[part][local]] = np.inf
        return part, _select(distances, k, ties, by_tie)

    if len(slices) == 1:  # no threads to be started or limited, which takes longer than to score a few rows
        yield work(slices[0])
        return
    workers = max(1, min(_processors(), len(slices)))
    with threadpool_limits(limits=1), ThreadPoolExecutor(workers) as pool:
        pending = [pool.submit(work, part) for part in slices[: workers + 1]]
        for index in range(len(slices)):
            yield pending.pop(0).result()
            if index + workers + 1 < len(slices):
                pending.append(pool.submit(work, slices[index + workers + 1]))


def _processors() -> int:
    """How many this process may use; not every system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _select(distances: Float32, k: int, ties: npt.NDArray[np.uint32], by_tie: Int64) -> Ranking:
    """Smallest k of each row by (distance, tie place), as one sort of unsigned 64-bit keys."""
    keys = sortable(distances).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ties
    if k < keys.shape[1]:
        keys.partition(k - 1, axis=1)
    best = np.sort(keys[:, :k], axis=1)
    rest = keys[:, k:]
    tied = (rest >> np.uint64(32)) == (best[:, -1:] >> np.uint64(32))
    low = np.uint64(0xFFFFFFFF)
    boundary = [by_tie[(row[mask] & low).astype(np.int64)] for row, mask in zip(rest, tied, strict=True)]
    rows = by_tie[(best & low).astype(np.int64)]
    return Ranking(rows, np.take_along_axis(distances, rows, axis=1), boundary)


def sortable(values: Float32) -> npt.NDArray[np.uint32]:
    """Unsigned integers in the order of the floats (no NaN)."""
    bits = values.view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x80000000))
