"""Evaluation of codes: rank the database for every query by every score, and measure."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import Rows, mean_embedding
from crovca.data.encoded import Encoded
from crovca.data.labels import share_a_label
from crovca.errors import CrovcaWarning, InvalidInputError
from crovca.evaluation import metrics
from crovca.evaluation.diagnostics import diagnose
from crovca.ids import tie_order
from crovca.index.scoring import BitScorer, CosineScorer, Ranking, Scorer, rank
from crovca.metrics import METRICS, REPORTED, get_metric

NEIGHBOR_RECALLS = ((1, 10), (10, 10), (10, 100), (100, 1000))
"""Pairs (m, k): the share of the float ranking's top m that stands in the codes' top k, named "m@k"."""

_KEPT = max(top for _, top in NEIGHBOR_RECALLS)

Advance = Callable[[str], None]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranked:
    """How one score ranks the database, averaged over queries; all but ``tied`` and ``rows`` None without labels.

    Attributes:
        tied: share of the top k that is at the same distance as another item.
        rows: the first rows of every ranking (q, up to ``kept``), for neighbor recall and pictures.
        map: mAP@k divided by the hits in the top k.
        map_min_k_r: mAP@k divided by min(k, R).
        precision, recall, hit_at_1: as in ``metrics``.
        expected_map, expected_map_min_k_r: the two forms expected over the orders within ties.
        curve, curve_min_k_r: mAP@i for i = 1..k, in the two forms.
        hit_curve: share of queries with anything relevant in the top i, for i = 1..k (the papers' "Recall@i").
    """

    tied: float
    rows: Int64
    map: float | None = None
    map_min_k_r: float | None = None
    precision: float | None = None
    recall: float | None = None
    hit_at_1: float | None = None
    expected_map: float | None = None
    expected_map_min_k_r: float | None = None
    curve: Float64 | None = None
    curve_min_k_r: Float64 | None = None
    hit_curve: Float64 | None = None


@dataclass(frozen=True)
class LengthResult:
    """Results at one code length. ``scores`` has None where a score needs logits that are not there."""

    bits: int
    scores: dict[str, Ranked | None]
    float_neighbour_recall: dict[str, float | None] | None
    codes: dict[str, float | int]

    def map_of(self, metric: str) -> float | None:
        """mAP@k (hits) by a score, or None where it was not measured."""
        ranked = self.scores.get(metric)
        return None if ranked is None else ranked.map

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as in docs/formats.md."""

        def of(name: str) -> dict[str, float | None]:
            return {metric: getattr(self.scores.get(metric), name, None) for metric in METRICS}

        return {
            "bits": self.bits,
            "bytes": -(-self.bits // 8),
            **{name: of(name) for name in ("map", "map_min_k_r", "precision", "recall", "hit_at_1")},
            "float_neighbour_recall": self.float_neighbour_recall,
            "ties": {name: of(name) for name in ("expected_map", "expected_map_min_k_r", "tied")},
            "codes": self.codes,
        }


@dataclass(frozen=True)
class Evaluation:
    """All that was measured.

    Attributes:
        k: cut-off rank; queries, database: how many items.
        left_out: how many queries have their own item in the database, which is then left out.
        chance_map: expected mAP@k of a random order; None without labels.
        floats: rankings by "cosine" and "cosine_centred" of the embeddings; empty where there are none.
        lengths: results at each code length.
        seconds: how long it took.
    """

    k: int
    queries: int
    database: int
    left_out: int
    chance_map: float | None
    floats: dict[str, Ranked]
    lengths: list[LengthResult] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as in docs/formats.md."""
        names = ("cosine", "cosine_centred")
        return {
            **{name: getattr(self, name) for name in ("k", "queries", "database", "left_out", "chance_map")},
            "float": {name: self.floats[name].map if name in self.floats else None for name in names},
            "float_min_k_r": {name: self.floats[name].map_min_k_r if name in self.floats else None for name in names},
            "lengths": [result.to_dict() for result in self.lengths],
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    query: Encoded,
    database: Encoded,
    *,
    k: int | None = 1000,
    lengths: Sequence[int] | None = None,
    metrics_: Sequence[str] | None = None,
    query_embeddings: Rows | None = None,
    database_embeddings: Rows | None = None,
    advance: Advance = lambda what: None,
) -> Evaluation:
    """Measure how codes retrieve.

    An item is relevant to a query if they have a label in common. A database item with the query's
    own id is left out. Ties are put in the fixed order of ``tie_order``.

    Args:
        query: with logits.
        database: with codes; its logits are needed for symmetric BCE and its like only.
        k: cut-off rank; None: all.
        lengths: prefixes of the codes to measure; None: the whole codes.
        metrics_: which scores of ``crovca.metrics``; None: all.
        query_embeddings: (q, d), for the float baseline and the recall of float neighbors; None: leave it out.
        database_embeddings: (n, d), likewise.
        advance: is told what is ranked next.

    Raises:
        InvalidInputError: no query or database items, logits missing, or labels that cannot be compared.
    """
    started = time.perf_counter()
    if query.logits is None:
        raise InvalidInputError("evaluation needs the queries' logits; encode them with their logits")
    if not len(query) or not len(database):
        raise InvalidInputError(f"nothing to evaluate: {len(query)} queries, {len(database)} database items")
    k = len(database) if k is None else min(k, len(database))
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, got {k}")
    measure = Measure(query, database, k)

    floats: dict[str, Ranked] = {}
    if query_embeddings is not None and database_embeddings is not None:
        for name, center in (("cosine", None), ("cosine_centred", mean_embedding(database_embeddings))):
            advance(f"embeddings, {name}")
            scorer = CosineScorer(_Part(query_embeddings), _Part(database_embeddings), center)
            floats[name] = measure(scorer)

    results = []
    for bits in (database.codes.bits,) if lengths is None else lengths:
        ours, theirs = query.prefix(bits), database.prefix(bits)
        scores: dict[str, Ranked | None] = {}
        for metric in METRICS if metrics_ is None else metrics_:
            if get_metric(metric).needs_item_logits and theirs.logits is None:
                scores[metric] = None
                continue
            advance(f"{bits} bits, {metric}")
            assert ours.logits is not None
            scores[metric] = measure(BitScorer.of(metric, ours.logits, theirs.codes, theirs.logits))
        recalls = None
        found = scores.get(REPORTED)
        if floats and found is not None:
            true = floats["cosine_centred"].rows
            recalls = {
                f"{m}@{top}": float(metrics.neighbor_recall(true[:, :m], found.rows[:, :top]).mean())
                if top <= len(database)
                else None
                for m, top in NEIGHBOR_RECALLS
            }
        results.append(LengthResult(bits, scores, recalls, diagnose(theirs.codes).to_dict()))
    return Evaluation(
        k=k,
        queries=len(query),
        database=len(database),
        left_out=int((measure.own_row >= 0).sum()),
        chance_map=measure.chance(),
        floats=floats,
        lengths=results,
        seconds=time.perf_counter() - started,
    )


class Items(Protocol):
    """Items with what is known of them: ``Encoded`` and ``Embeddings`` are."""

    @property
    def ids(self) -> npt.NDArray[Any] | None:
        """(n,) int64 or str, or None: the row number is the id."""

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """(n,) int64 or str, (n, C) bool, or None."""

    def __len__(self) -> int: ...


class Measure:
    """Ranks by any scorer and measures; what does not depend on the scorer is kept.

    Args:
        query: the queries, in the scorers' order.
        database: the items, likewise.
        k: cut-off rank, 1 to the number of items.
        kept: how many rows of each ranking are kept; the default suffices for the recall of float neighbors.
    """

    def __init__(self, query: Items, database: Items, k: int, *, kept: int = _KEPT) -> None:
        self.k = k
        self.kept = min(len(database), kept)
        self.ties = tie_order(database.ids, len(database))
        self.own_row = _own_rows(query.ids, database.ids, len(query))
        self.labels: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
        if query.labels is not None and database.labels is not None:
            self.labels = (query.labels, database.labels)
            self.total = self._count_relevant()
            if not self.total.any():
                warnings.warn(
                    f"no query has a label that occurs in the database (queries: {_examples(query.labels)}; database: "
                    f"{_examples(database.labels)}), so that nothing is relevant; are they written alike in both?",
                    CrovcaWarning,
                    stacklevel=2,
                )

    def chance(
        self, of: Callable[[Int64, int, int], Float64] = metrics.chance_average_precision, k: int | None = None
    ) -> float | None:
        """Expected mAP@k (hits), or another of ``metrics``, of a random order; None without labels."""
        k = self.k if k is None else k
        if self.labels is None:
            return None
        found = np.zeros(len(self.total))
        for left_out in (False, True):  # a query that stands in the database is ranked among one item less
            rows = np.flatnonzero((self.own_row >= 0) == left_out)
            items = len(self.ties) - left_out
            if len(rows) and items:
                found[rows] = of(self.total[rows], items, min(k, items))
        return float(found.mean())

    def __call__(self, scorer: Scorer) -> Ranked:
        """Rank the database for every query by ``scorer``, and measure."""
        depth = max(self.k, self.kept)
        rows, values, tied, curves = [], [], 0.0, np.zeros((3, self.k))
        for part, ranking in rank(scorer, depth, ties=self.ties, left_out=self.own_row):
            rows.append(ranking.rows[:, : self.kept])
            groups = _group_sizes(ranking)
            tied += sum(metrics.tied_items(sizes, self.k) for sizes in groups) / self.k
            if self.labels is not None:
                block, block_curves = self._against_labels(part, ranking, groups)
                values.append(block)
                curves += block_curves * len(block)
        found = np.concatenate(rows)
        if self.labels is None:
            return Ranked(tied / len(found), found)
        names = ("map", "map_min_k_r", "precision", "recall", "hit_at_1", "expected_map", "expected_map_min_k_r")
        means = dict(zip(names, np.concatenate(values).mean(axis=0).tolist(), strict=True))
        hits, min_k_r, any_hit = curves / len(found)
        return Ranked(tied / len(found), found, **means, curve=hits, curve_min_k_r=min_k_r, hit_curve=any_hit)

    def _against_labels(self, part: slice, ranking: Ranking, groups: list[Int64]) -> tuple[Float64, Float64]:
        """One line of metrics a query, in the order of ``Ranked``; and the block's three mean curves (3, k)."""
        assert self.labels is not None
        relevance = share_a_label(self.labels[0][part], self.labels[1], ranking.rows)
        relevance &= np.isfinite(ranking.distances)  # left out
        total, top = self.total[part], relevance[:, : self.k]
        expected = np.array(
            [
                metrics.expected_average_precision(sizes, relevant, self.k, int(count))
                for sizes, relevant, count in zip(
                    groups, self._relevant_in(groups, part, ranking, relevance), total, strict=True
                )
            ]
        )
        columns = (
            metrics.average_precision_hits(top),
            metrics.average_precision_min_k_r(top, total),
            top.sum(axis=1) / np.minimum(self.k, len(self.ties) - (self.own_row[part] >= 0)).clip(1),
            metrics.recall(top, total),
            metrics.hit(top[:, :1]),
            expected[:, 0],
            expected[:, 1],
        )
        curves = (metrics.map_curve_hits(top), metrics.map_curve_min_k_r(top, total), metrics.hit_curve(top))
        return np.stack(columns, axis=1), np.stack(curves)

    def _relevant_in(
        self, groups: list[Int64], part: slice, ranking: Ranking, relevance: npt.NDArray[np.bool_]
    ) -> list[Int64]:
        """How many items of each group of ties are relevant."""
        assert self.labels is not None
        ours, theirs = self.labels[0][part], self.labels[1]
        found = []
        for number, (sizes, flags, beyond) in enumerate(zip(groups, relevance, ranking.boundary, strict=True)):
            counts = np.add.reduceat(flags, np.cumsum(sizes) - sizes, dtype=np.int64)
            if len(beyond):
                counts[-1] += share_a_label(ours[number : number + 1], theirs, beyond[None, :]).sum()
            found.append(counts)
        return found

    def _count_relevant(self) -> Int64:
        assert self.labels is not None
        ours, theirs = self.labels
        total = np.zeros(len(ours), np.int64)
        for start in range(0, len(ours), 64):
            part = slice(start, start + 64)
            relevant = share_a_label(ours[part], theirs)
            own = self.own_row[part]
            (local,) = np.nonzero(own >= 0)
            relevant[local, own[local]] = False
            total[part] = relevant.sum(axis=1)
        return total


def _examples(labels: npt.NDArray[Any]) -> str:
    if labels.ndim == 2:
        return f"multi-hot, {int(labels.any(axis=1).sum()):,} of {len(labels):,} rows have a class"
    return ", ".join(map(repr, np.unique(labels)[:3].tolist()))


def one_view(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Embeddings (n, d), or the mean over the views of (n, v, d), as float32 (n, d)."""
    part = np.asarray(values, np.float32)
    return part if part.ndim == 2 else part.mean(axis=1)


class _Part:
    """Rows of embeddings as (n, d): the mean over stored views, where there are several."""

    def __init__(self, values: Rows) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        return one_view(self._values[rows])


def _own_rows(ours: npt.NDArray[Any] | None, theirs: npt.NDArray[Any] | None, queries: int) -> Int64:
    """For each query the database row with its id, or -1."""
    rows = np.full(queries, -1, np.int64)
    if ours is None or theirs is None or (ours.dtype.kind == "U") != (theirs.dtype.kind == "U"):
        return rows
    order = np.argsort(theirs)
    place = np.minimum(np.searchsorted(theirs, ours, sorter=order), len(theirs) - 1)
    candidate = order[place]
    same = theirs[candidate] == ours
    rows[same] = candidate[same]
    return rows


def _group_sizes(ranking: Ranking) -> list[Int64]:
    """Sizes of the groups of equal distance of each query, in rank order, the last one whole."""
    groups = []
    for distances, beyond in zip(ranking.distances, ranking.boundary, strict=True):
        starts = np.concatenate([[0], np.flatnonzero(distances[1:] != distances[:-1]) + 1])
        sizes = np.diff(np.append(starts, len(distances)))
        sizes[-1] += len(beyond)
        groups.append(sizes)
    return groups
