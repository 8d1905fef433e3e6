"""The five measures: how codes serve what was learned, what was not, and the floats' own order.

A collection is met in three situations:

* *seen*: learned from all of it, all of it searched;
* *new*: learned from half of the classes, searched among the other half, with queries of those;
* *mixed*: learned from half of the classes, everything searched, with queries of the other half.

In each, whatever ranks is measured by mAP@k, by *order* (the floats' own top 10 by centered cosine, found in the top
100, and in the top 10) and by *distinct* (different codes among the searched items). Where there are no labels, k-means
cells take the place of classes in making the situations, and order the place of mAP in judging them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.data.clusters import k_means
from crovca.data.embeddings import Embeddings, Rows, chunks, evenly_spaced, mean_embedding, unit_rows
from crovca.data.labels import share_a_label
from crovca.errors import ConfigError, InvalidInputError
from crovca.evaluation import metrics
from crovca.evaluation.diagnostics import counts_of_rows
from crovca.evaluation.evaluate import Measure, one_view
from crovca.index.scoring import BitScorer, CosineScorer, Ranking, Scorer, rank
from crovca.metrics import REPORTED

Name = Literal["seen", "new", "mixed"]
SITUATIONS: tuple[Name, ...] = ("seen", "new", "mixed")
FIVE = (*SITUATIONS, "order", "distinct")
"""Names of the five measures; the other ``COLUMNS`` say more of the last two."""

Float32 = npt.NDArray[np.float32]
Encode = Callable[[Rows], Mapping[int, Float32]]
"""Gives logits float32 (n, bits) of embeddings (n, d), by length."""
Learn = Callable[[Embeddings], Encode]
"""Learns from items."""

_TOP, _WITHIN = 10, 100  # order: the floats' top 10 in the codes' top 100
_CELLS, _ITEMS_A_CELL, _SAMPLE = 100, 20, 100_000


@dataclass(frozen=True)
class Situation:
    """What is learned from, what is searched, and what is asked; labels on both sides or on neither.

    Attributes:
        name: "seen", "new" or "mixed".
        learned: items to learn from, with all their labels; those of "new" and "mixed" are one object.
        searched, asked: items; of several classes an item keeps those that were held out.
    """

    name: Name
    learned: Embeddings
    searched: Embeddings
    asked: Embeddings


def make_situations(
    database: Embeddings,
    query: Embeddings,
    *,
    hold_out: float | None = 0.5,
    seed: int = 0,
    learned_classes: Collection[Any] | None = None,
) -> tuple[Situation, ...]:
    """Make the situations from any two files of one collection.

    An item of several classes is learned from where none of them was held out, and is among the others where one was.

    Args:
        database: items to learn from and to search.
        query: items to ask with.
        hold_out: share of the classes (without labels: of k-means cells) that is not learned; None or 0: "seen" alone.
        seed: which classes.
        learned_classes: these classes are learned, whatever ``hold_out`` and ``seed`` say; needs labels.

    Raises:
        ConfigError: ``hold_out`` is not a share, or classes were named where there are no labels.
        InvalidInputError: too few classes to hold some out, or no queries of those.
    """
    if (database.labels is None) != (query.labels is None):
        database, query = replace(database, labels=None), replace(query, labels=None)
    seen = Situation("seen", database, database, query)
    if not hold_out and learned_classes is None:
        return (seen,)
    if hold_out is not None and not 0 < hold_out < 1:
        raise ConfigError(f"the share of classes to hold out must lie between 0 and 1, got {hold_out}; try 0.5")
    if database.labels is None or query.labels is None:
        if learned_classes is not None:
            raise ConfigError("classes to learn were named, but there are no labels on both sides")
        held, asked_held = _hold_out(*_cells(database, query, seed), hold_out or 0.5, seed, None)
        labels: list[npt.NDArray[Any] | None] = [None, None]
    else:
        held, asked_held = _hold_out(database.labels, query.labels, hold_out or 0.5, seed, learned_classes)
        labels = [database.labels, query.labels]
        if database.labels.ndim == 2:  # what was learned makes nothing relevant
            kept = database.labels & held, query.labels & asked_held
            labels = [*kept]
            held, asked_held = (np.asarray(side.any(axis=1), np.bool_) for side in kept)
    if not asked_held.any() or not held.any() or held.all():
        raise InvalidInputError(
            f"of {len(database):,} items {int(held.sum()):,} are of classes that are held out, and of {len(query):,} "
            f"queries {int(asked_held.sum()):,}; choose another share or seed"
        )
    learned = _take(database, ~held)
    asked = _take(replace(query, labels=labels[1]), asked_held)
    everything = replace(database, labels=labels[0])
    return (
        seen,
        Situation("new", learned, _take(everything, held), asked),
        Situation("mixed", learned, everything, asked),
    )


def _hold_out(
    labels: npt.NDArray[Any], asked: npt.NDArray[Any], share: float, seed: int, learned: Collection[Any] | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Items (n,) and queries (q,) of the classes that are held out; of multi-hot labels those columns, twice (C,)."""
    classes = np.arange(labels.shape[1]) if labels.ndim == 2 else np.unique(labels)
    if learned is None:
        count = round(share * len(classes))
        if min(count, len(classes) - count) < 2:
            raise InvalidInputError(
                f"holding out {share:g} of {len(classes)} classes leaves {len(classes) - count} to learn and "
                f"{count} to search among; both need at least 2"
            )
        held = np.random.default_rng(seed).permutation(len(classes))[:count]
    else:
        unknown = [name for name in learned if name not in set(classes.tolist())]
        if unknown:
            raise ConfigError(f"no item has the class {unknown[0]!r}; name classes that are there")
        held = np.flatnonzero(~np.isin(classes, list(learned)))
    if labels.ndim == 2:
        columns = np.isin(classes, classes[held])
        return columns, columns
    return np.isin(labels, classes[held]), np.isin(asked, classes[held])


def _cells(database: Embeddings, query: Embeddings, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The k-means cells of items (n,) and queries (q,): by centered cosine, one for 20 items, at most 100."""
    center = mean_embedding(database.values)

    def unit(values: npt.NDArray[Any]) -> Float32:
        return unit_rows(one_view(values), center)

    sample = unit(np.asarray(database.values[evenly_spaced(len(database), _SAMPLE)]))
    count = min(_CELLS, max(2, len(sample) // _ITEMS_A_CELL))
    centroids = k_means(sample, count, seed=seed, spherical=True)
    database_cells, query_cells = (
        np.concatenate([(unit(part) @ centroids.T).argmax(axis=1) for _, part in chunks(side.values)])
        for side in (database, query)
    )
    return database_cells, query_cells


def _take(items: Embeddings, wanted: npt.NDArray[np.bool_]) -> Embeddings:
    rows = np.flatnonzero(wanted)
    return Embeddings(
        np.asarray(items.values[rows]),
        None if items.labels is None else items.labels[rows],
        None if items.ids is None else items.ids[rows],
        np.flatnonzero(np.isin(rows, items.degenerate)),
    )


# --- measures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    """How one way of ranking does in one situation, as shares of 1; None where it cannot be measured.

    Attributes:
        map: mAP@k divided by the relevant items in the top k; None without labels.
        order: the floats' top 10 found in the top 100; None without floats.
        order_10: the floats' top 10 found in the top 10; None without floats.
        distinct: different codes by searched items; None where there are no codes.
        shared: searched items whose code is not theirs alone.
        tied: share of the first 10 places that are at the same distance as another item.
        tie_cost: by how much ``order_10`` would be higher if ties stood in the floats' order.
    """

    map: float | None = None
    order: float | None = None
    order_10: float | None = None
    distinct: float | None = None
    shared: float | None = None
    tied: float | None = None
    tie_cost: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return asdict(self)


class Judge:
    """Measures whatever ranks one situation. The floats are ranked once.

    ``floats``: False where their ranking is not known, as where the sides are embedded by different encoders.
    """

    def __init__(self, situation: Situation, k: int = 1000, *, floats: bool = True) -> None:
        self.situation = situation
        searched, asked = situation.searched, situation.asked
        self.k = min(k, len(searched))
        self._measure = Measure(asked, searched, self.k)
        self._labels = asked.labels, searched.labels
        self._true: npt.NDArray[np.int64] | None = None
        self.floats: Measures | None = None
        if floats:
            ours, theirs = (
                np.concatenate([one_view(part) for _, part in chunks(side.values)]) for side in (asked, searched)
            )
            scorer = CosineScorer(ours, theirs, mean_embedding(searched.values))
            top = min(_TOP, len(searched))
            self._true = np.concatenate([ranking.rows for _, ranking in self._rank(scorer, top)])
            digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in theirs)
            self.floats = self(scorer, np.frombuffer(digests, np.uint8).reshape(-1, 16))

    def of_codes(self, logits: Float32, codes: Codes) -> Measures:
        """Of query logits (q, bits) against codes, by the score of reports (asymmetric Hamming)."""
        return self(BitScorer.of(REPORTED, logits, codes), codes.packed)

    def __call__(self, scorer: Scorer, stored: npt.NDArray[Any] | None = None) -> Measures:
        """Of any scorer; ``stored`` (n, m) is what is kept of the items, to tell whether they differ."""
        depth = max(_WITHIN, self.k if self._labels[0] is not None else 1)
        columns: list[npt.NDArray[np.float64]] = []
        for part, ranking in self._rank(scorer, depth):
            columns.append(np.stack([*self._against_labels(part, ranking), *self._against_floats(part, ranking)]))
        precision, order, order_10, tied, cost = np.concatenate(columns, axis=1).mean(axis=1).tolist()
        labeled, known = self._labels[0] is not None, self._true is not None
        counts = None if stored is None else counts_of_rows(stored)
        return Measures(
            map=precision if labeled else None,
            order=order if known else None,
            order_10=order_10 if known else None,
            distinct=None if counts is None else len(counts) / counts.sum(),
            shared=None if counts is None else float(counts[counts > 1].sum() / counts.sum()),
            tied=tied,
            tie_cost=cost if known else None,
        )

    def _rank(self, scorer: Scorer, depth: int) -> Any:
        return rank(scorer, depth, ties=self._measure.ties, left_out=self._measure.own_row)

    def _against_labels(self, part: slice, ranking: Ranking) -> tuple[npt.NDArray[np.float64]]:
        ours, theirs = self._labels
        if ours is None or theirs is None:
            return (np.zeros(len(ranking.rows)),)
        relevance = share_a_label(ours[part], theirs, ranking.rows[:, : self.k])
        relevance &= np.isfinite(ranking.distances[:, : self.k])  # left out
        return (metrics.average_precision_hits(relevance),)

    def _against_floats(self, part: slice, ranking: Ranking) -> tuple[npt.NDArray[np.float64], ...]:
        """Order in 100 and in 10, ties among the first 10, and what they cost, a number for each query."""
        distances = ranking.distances
        top = min(_TOP, distances.shape[1])
        beyond = np.array([np.nan if not len(rows) else 1.0 for rows in ranking.boundary])[:, None] * distances[:, -1:]
        padded = np.concatenate([np.full_like(distances[:, :1], np.nan), distances, beyond.astype(np.float32)], axis=1)
        tied = (padded[:, 1 : top + 1] == padded[:, :top]) | (padded[:, 1 : top + 1] == padded[:, 2 : top + 2])
        if self._true is None:
            nothing = np.zeros(len(distances))
            return nothing, nothing, tied.mean(axis=1), nothing
        true = self._true[part]
        found = ranking.rows[:, :, None] == true[:, None, :]
        count = true.shape[1]
        last = distances[:, top - 1 : top]
        nearer = (found & (distances < last)[:, :, None]).sum(axis=(1, 2))
        level = (found & (distances == last)[:, :, None]).sum(axis=(1, 2))
        for row in np.flatnonzero((distances[:, -1:] == last).ravel()):
            level[row] += np.isin(true[row], ranking.boundary[row]).sum()
        room = top - (distances < last).sum(axis=1)
        as_ranked = found[:, :top].sum(axis=(1, 2))
        best = nearer + np.minimum(level, room)
        order = found[:, :_WITHIN].sum(axis=(1, 2)) / count
        return order, as_ranked / count, tied.mean(axis=1), (best - as_ranked) / count


# --- several methods in all situations --------------------------------------------------------------


@dataclass(frozen=True)
class FiveMeasures:
    """Methods in all situations.

    Attributes:
        labeled: whether mAP judges; else order does.
        counts: by situation, how many items were learned from, searched and asked.
        floats: by situation; empty where the floats' ranking is not known.
        methods: by name, length and situation.
    """

    labeled: bool
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    floats: dict[str, Measures] = field(default_factory=dict)
    methods: dict[str, dict[int, dict[str, Measures]]] = field(default_factory=dict)

    def lines(self) -> list[tuple[str, int | None, dict[str, Measures]]]:
        """For tables: name, bits and measures by situation, all methods of a length together, the floats last."""
        lengths = sorted({bits for found in self.methods.values() for bits in found})
        rows: list[tuple[str, int | None, dict[str, Measures]]] = [
            (name, bits, found[bits]) for bits in lengths for name, found in self.methods.items() if bits in found
        ]
        return [*rows, ("float, centered", None, self.floats)] if self.floats else rows

    def columns(self) -> list[Column]:
        """Of tables: those of the situations that were measured, and of what is measured in "seen"."""
        return [one for one in COLUMNS if one.name not in SITUATIONS or one.name in self.counts]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as in docs/formats.md."""

        def plain(found: Mapping[str, Measures]) -> dict[str, Any]:
            return {name: measures.to_dict() for name, measures in found.items()}

        return {
            "labeled": self.labeled,
            "counts": self.counts,
            "float": plain(self.floats),
            "methods": {
                name: {str(bits): plain(measured) for bits, measured in found.items()}
                for name, found in self.methods.items()
            },
        }


def five_measures(
    situations: Sequence[Situation],
    methods: Mapping[str, Learn],
    *,
    k: int = 1000,
    floats: bool = True,
    advance: Callable[[str], None] = lambda what: None,
) -> FiveMeasures:
    """Learn and measure every method in every situation; what two situations learn from is learned once.

    A method may leave out lengths; ``floats`` is as for ``Judge``.
    """
    found = FiveMeasures(situations[0].asked.labels is not None)
    models: dict[tuple[str, int], Encode] = {}
    for situation in situations:
        advance(f"{situation.name}: embeddings")
        judge = Judge(situation, k, floats=floats)
        if judge.floats is not None:
            found.floats[situation.name] = judge.floats
        found.counts[situation.name] = {
            side: len(getattr(situation, side)) for side in ("learned", "searched", "asked")
        }
        for name, learn in methods.items():
            advance(f"{situation.name}: {name}")
            key = (name, id(situation.learned))
            if key not in models:
                models[key] = learn(situation.learned)
            encode = models[key]
            queries, items = encode(situation.asked.values), encode(situation.searched.values)
            for bits, logits in items.items():
                measured = judge.of_codes(queries[bits], Codes.from_logits(logits))
                found.methods.setdefault(name, {}).setdefault(bits, {})[situation.name] = measured
    return found


@dataclass(frozen=True)
class Column:
    """A column of every table of the five measures, named as in ``Measures``, or after a situation."""

    name: str
    title: str
    meaning: str
    more_is_better: bool = True


COLUMNS = (
    Column("seen", "seen", "learned from what is searched"),
    Column("new", "new", "learned from other classes than those searched"),
    Column("mixed", "mixed", "everything searched, for classes that were not learned"),
    Column("order", "order", "the floats' own top 10 (centered cosine) found in the codes' top 100"),
    Column("order_10", "in top 10", "the floats' own top 10 found in the codes' top 10"),
    Column("distinct", "distinct", "different codes, as a share of the items"),
    Column("shared", "shared", "items whose code is not theirs alone", more_is_better=False),
    Column(
        "tie_cost",
        "ties cost",
        "what the top 10 would gain if items at one distance stood in the floats' order",
        more_is_better=False,
    ),
)
"""Seen, new and mixed are mAP@k, without labels order; the others are measured where all was learned."""


def column_value(measured: Mapping[str, Measures | Mapping[str, Any]], name: str, *, labeled: bool) -> float | None:
    """What stands in a column: ``measured`` by situation, as ``Measures`` or as their dict."""
    situation, key = (name, "map" if labeled else "order") if name in SITUATIONS else ("seen", name)
    found = measured.get(situation)
    if found is None:
        return None
    return (found.to_dict() if isinstance(found, Measures) else found).get(key)
