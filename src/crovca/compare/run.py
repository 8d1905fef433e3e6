"""Every method on the same embeddings, measured the same way: what ``crovca compare`` runs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import crovca
from crovca.baselines.base import BinaryBaseline, Float32, ScoreBaseline, as_matrix
from crovca.codes import Codes, check_bits
from crovca.compare.methods import OUR_LENGTHS, Method, choose_methods
from crovca.compare.results import FORMAT, OWN_SCORE, Cell, Comparison
from crovca.data.embeddings import Embeddings, mean_embedding
from crovca.errors import ConfigError, InvalidInputError, reason_of
from crovca.evaluation import metrics
from crovca.evaluation.evaluate import NEIGHBOR_RECALLS, Measure, Ranked
from crovca.evaluation.situations import Judge, Situation, make_situations
from crovca.hasher import Hasher
from crovca.index.scoring import BitScorer, CosineScorer
from crovca.metrics import of_codes

Model = Hasher | BinaryBaseline | ScoreBaseline

_NO_NUMBERS = frozenset(
    ("archive", "cli", "datasets", "embedding", "encoders", "reproduce", "servers", "service", "sources")
)
"""Rooms that make no codes, ranks or measures: where any other changes, kept results are of other code."""


def fingerprint(
    database: Embeddings,
    query: Embeddings,
    k: int,
    train: Embeddings | None = None,
    epochs: int | None = None,
    hold_out: float | None = None,
    learned_classes: Sequence[Any] | None = None,
) -> str:
    """SHA-256 of all that a result hangs on: numbers, labels and ids of all sides, settings, and crovca's own code."""
    digest = hashlib.sha256(f"{FORMAT} {_code()} {k} {epochs} {hold_out} {learned_classes}".encode())
    for side in (database, query) if train is None else (database, query, train):
        for array in (side.values[:], side.labels, side.ids):
            content = None if array is None else np.ascontiguousarray(array)
            digest.update(b"-" if content is None else f"{content.dtype} {content.shape}".encode())
            digest.update(b"" if content is None else content.tobytes())
    return digest.hexdigest()


@cache
def _code() -> str:
    """SHA-256 of the source files that numbers come from: a version is many of them while it is worked on."""
    root = Path(crovca.__file__).parent
    digest = hashlib.sha256(crovca.__version__.encode())
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] not in _NO_NUMBERS:
            digest.update(f"{place} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def compare(
    database: Embeddings,
    query: Embeddings,
    *,
    train: Embeddings | None = None,
    lengths: Sequence[int] = (16, 32, 64),
    methods: Sequence[str] | None = None,
    seeds: int = 3,
    k: int = 1000,
    epochs: int | None = None,
    hold_out: float | None = 0.5,
    learned_classes: Sequence[Any] | None = None,
    kept: Mapping[str, Any] | None = None,
    save: Callable[[Comparison], None] = lambda state: None,
    advance: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Fit every method on the database at every length, and measure how it ranks the database for the queries.

    Then again on half of the classes, for the situations new and mixed (``evaluation.situations``; the same halves for
    all methods and seeds). An item is relevant to a query if they share a label; where one side has no labels, only the
    floats' order is measured, and methods that learn from labels are left out. A method that fails is noted with its
    reason, and the others go on.

    Args:
        database: embeddings that are searched; of several views every method sees the mean.
        query: embeddings that are asked for.
        train: embeddings that are learned from; None: the database.
        lengths: code lengths.
        methods: names; None: all.
        seeds: how many, from 0 on; a method without chance is run once, Hashing-Baseline with its 10 rotations.
        k: cut-off rank of mAP@k.
        epochs: passes over the data of every learned method, ours too (the paper's settings keep their 5); None: as
            many as each takes by default.
        hold_out: share of the classes that is held out for new and mixed; None, or where there are other items to learn
            from: these are not measured.
        learned_classes: for new and mixed these are learned, instead of a share that is drawn; needs labels.
        kept: what an earlier call's ``to_dict`` gave: its cells are not run again, except those that failed.
        save: is given the state after every method, length and seed.
        advance: is told what is run next.

    Raises:
        ConfigError: unknown methods, no lengths, or ``kept`` from other data.
    """
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    asked = tuple(sorted({check_bits(length) for length in lengths}))
    if not asked:
        raise ConfigError("there are no lengths to compare at; give some, like 16,32,64")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    for name, side in (("queries", query), ("training items", train)):
        if side is not None and side.width != database.width:
            raise InvalidInputError(
                f"database and {name} must have one width, got {database.width} and {side.width} numbers"
            )
    labeled = database.labels is not None and query.labels is not None
    if not labeled:
        database, query = replace(database, labels=None), replace(query, labels=None)
    learned = database if train is None else train
    chosen = choose_methods(methods, labeled=labeled and learned.labels is not None)
    situations, hold_out = _situations(database, query, train, hold_out, learned_classes)
    bench = _Bench(situations, learned, min(k, len(database)), epochs)
    state = Comparison(
        fingerprint=fingerprint(database, query, k, train, epochs, hold_out, learned_classes),
        k=bench.measure.k,
        queries=len(query),
        database=len(database),
        labeled=labeled,
        chance_map=bench.measure.chance(),
        lengths=asked,
        trained=None if train is None else len(train),
        epochs=epochs,
        hold_out=hold_out,
        cells={} if kept is None else dict(kept["cells"]),
        methods=tuple(method.name for method in chosen),
        seeds=seeds,
    )
    if kept is not None and kept.get("fingerprint") != state.fingerprint:
        raise ConfigError(
            f"the kept results are of {_difference(kept, state)}; give another output, or --force to replace it"
        )
    _warm_up()
    for method in chosen:
        sizes = {"asked": asked, "width": (database.width,), "float": (32 * database.width,)}[method.size]
        for seed in range(seeds if method.seeds is None else method.seeds):
            missing = [bits for bits in sizes if "failed" in state.cells.get(_key(method, bits, seed), {"failed": ""})]
            for group in _groups(method, missing):
                named = f"{method.title}, {', '.join(map(str, group))} bits, seed {seed}"
                advance(named)
                for cell in bench.run(method, group, seed):
                    state.cells[_key(method, cell["bits"], seed)] = cell
                save(state)
    return state


def _situations(
    database: Embeddings,
    query: Embeddings,
    train: Embeddings | None,
    hold_out: float | None,
    learned_classes: Sequence[Any] | None,
) -> tuple[tuple[Situation, ...], float | None]:
    """The situations to measure, and the share of the classes that is held out; None: seen alone."""
    if train is not None:
        return make_situations(database, query, hold_out=None), None
    if learned_classes is not None and database.labels is not None:
        labels = database.labels
        count = labels.shape[1] if labels.ndim == 2 else len(np.unique(labels))
        hold_out = 1 - len(set(learned_classes)) / count
    found = make_situations(database, query, hold_out=hold_out, learned_classes=learned_classes)
    return found, hold_out if len(found) > 1 else None


def _groups(method: Method, lengths: Sequence[int]) -> list[list[int]]:
    """Lengths that are fitted together.

    Those of our usual nested model are. Another length has a model of its own, so that no number hangs on what else was
    asked for.
    """
    together = [bits for bits in lengths if method.nested and bits in OUR_LENGTHS]
    return ([together] if together else []) + [[bits] for bits in lengths if bits not in together]


def _warm_up() -> None:
    """What a library does at its first use is no method's time."""
    random = np.random.default_rng(0)
    Hasher(bits=8, nested=False, epochs=1).fit(random.normal(size=(64, 8)).astype(np.float32))


class _Place:
    """A situation with its numbers in memory, every item one row."""

    def __init__(self, situation: Situation, k: int) -> None:
        self.judge = Judge(situation, k)
        self.learned, self.searched, self.asked = (
            as_matrix(side, name)
            for side, name in (
                (situation.learned, "training items"),
                (situation.searched, "database"),
                (situation.asked, "queries"),
            )
        )
        self.labels = situation.learned.labels


@dataclass(frozen=True)
class _Stored:
    """What a method keeps of some items, ready to be asked."""

    bits: int
    bytes_per_item: int
    logits: Float32 | None = None  # of the queries
    codes: Codes | None = None
    scorer: _OwnScorer | None = None


class _Bench:
    """The data in every situation, and the float ranking that all are measured against."""

    def __init__(self, situations: Sequence[Situation], train: Embeddings, k: int, epochs: int | None) -> None:
        if k < 1:
            raise InvalidInputError(f"k must be at least 1, got {k}")
        self.epochs = epochs
        seen = replace(situations[0], learned=train)
        self.measure = Measure(seen.asked, seen.searched, k)
        self.places = {found.name: _Place(found, k) for found in (seen, *situations[1:])}
        place = self.places["seen"]
        true = self.measure(CosineScorer(place.asked, place.searched, mean_embedding(place.searched)))
        self.true_rows = true.rows

    def run(self, method: Method, lengths: Sequence[int], seed: int) -> list[Cell]:
        """The cells of one fit; where it fails, cells that say why."""
        named = {"method": method.name, "seed": seed}
        try:
            cells = {bits: {**named, "bits": bits, **cell} for bits, cell in self._seen(method, lengths, seed)}
        except Exception as error:  # whatever a method cannot do with these data, the others go on
            return [{**named, "bits": bits, "failed": reason_of(error)} for bits in lengths]
        if len(self.places) > 1:
            try:
                for bits, name, measured in self._held_out(method, lengths, seed):
                    cells[bits]["measures"][name] = measured
            except Exception as error:
                for cell in cells.values():
                    cell["held_out_failed"] = reason_of(error)
        return list(cells.values())

    def _seen(self, method: Method, lengths: Sequence[int], seed: int) -> Iterator[tuple[int, Cell]]:
        place = self.places["seen"]
        started = time.perf_counter()
        model = self._fit(method, lengths, seed, place)
        fitted = time.perf_counter() - started
        found, encoded = _store(model, lengths, place)
        for stored in found:
            yield (
                stored.bits,
                {
                    "bytes": stored.bytes_per_item,
                    "fit_seconds": round(fitted, 3),
                    "encode_rate": round(len(place.searched) / max(encoded, 1e-9), 1),
                    "scores": self._scores(stored),
                    "measures": {"seen": _measures(stored, place.judge)},
                },
            )

    def _held_out(
        self, method: Method, lengths: Sequence[int], seed: int
    ) -> Iterator[tuple[int, str, dict[str, float | None]]]:
        model = self._fit(method, lengths, seed, self.places["new"])
        for name in ("new", "mixed"):
            for stored in _store(model, lengths, self.places[name])[0]:
                yield stored.bits, name, _measures(stored, self.places[name].judge)

    def _fit(self, method: Method, lengths: Sequence[int], seed: int, place: _Place) -> Model:
        labels = place.labels if method.supervised else None
        if method.ours is not None:
            hasher = method.ours(lengths, seed)
            if self.epochs is not None:
                hasher.set_params(epochs=self.epochs)
            return hasher.fit(place.learned, labels)
        assert method.baseline is not None
        passes: dict[str, Any] = {"epochs": self.epochs} if method.learned and self.epochs is not None else {}
        return method.baseline(lengths[0], seed=seed, **passes).fit(place.learned, labels)

    def _scores(self, stored: _Stored) -> dict[str, Any]:
        if stored.scorer is not None:
            return {OWN_SCORE: self._measured(self.measure(stored.scorer))}
        assert stored.logits is not None
        assert stored.codes is not None
        return {
            score: self._measured(self.measure(BitScorer.of(score, stored.logits, stored.codes)))
            for score in of_codes()
        }

    def _measured(self, ranked: Ranked) -> dict[str, Any]:
        recalls = {
            f"{m}@{top}": float(metrics.neighbor_recall(self.true_rows[:, :m], ranked.rows[:, :top]).mean())
            for m, top in NEIGHBOR_RECALLS
            if top <= len(self.measure.ties)
        }
        names = ("map", "map_min_k_r", "expected_map", "expected_map_min_k_r")
        return {**{name: getattr(ranked, name) for name in names}, "float_neighbour_recall": recalls}


def _store(model: Model, lengths: Sequence[int], place: _Place) -> tuple[list[_Stored], float]:
    """What a fitted method keeps of the searched items, and the seconds that it took to make."""
    started = time.perf_counter()
    if isinstance(model, ScoreBaseline):
        kept = model.store(place.searched)
        seconds = time.perf_counter() - started
        scorer = _OwnScorer(model, place.asked, kept, len(place.searched))
        return [_Stored(lengths[0], model.bytes_per_item, scorer=scorer)], seconds
    whole = Codes.from_logits(model.logits(place.searched))
    seconds = time.perf_counter() - started
    logits = model.logits(place.asked)
    found = []
    for bits in lengths:
        codes = whole.prefix(bits)
        found.append(_Stored(bits, codes.bytes_per_item, logits[:, :bits], codes))
    return found, seconds


def _measures(stored: _Stored, judge: Judge) -> dict[str, float | None]:
    if stored.scorer is not None:
        kept = stored.scorer.stored
        plain = isinstance(kept, np.ndarray) and stored.scorer.method.size == "asked"
        return judge(stored.scorer, kept if plain else None).to_dict()
    assert stored.logits is not None
    assert stored.codes is not None
    return judge.of_codes(stored.logits, stored.codes).to_dict()


@dataclass(frozen=True)
class _OwnScorer:
    """Distances from a method's similarities."""

    method: ScoreBaseline
    queries: Float32
    stored: Any
    items: int

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, items)."""
        return len(self.queries), self.items

    def distances(self, queries: slice) -> npt.NDArray[np.float32]:
        """See ``Scorer``."""
        similarities = self.method.compare(self.queries[queries], self.stored)
        if np.isnan(similarities).any():
            raise InvalidInputError("its scores hold NaN")
        return -similarities + np.float32(0)


def _difference(kept: Mapping[str, Any], state: Comparison) -> str:
    """In what kept results are others, as far as they say."""
    ours = state.to_dict()
    for name in ("version", "queries", "database", "trained", "epochs", "hold_out", "k"):
        if kept.get(name) != ours[name]:
            what = {"version": "crovca", "trained": "training items"}.get(name, name)
            return f"another run: {what} {kept.get(name)}, now {ours[name]}"
    return "other data, another k or another state of crovca's code"


def _key(method: Method, bits: int, seed: int) -> str:
    return f"{method.name}/{bits}/{seed}"
