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
from crovca.errors import ConfigError, CrovcaError, InvalidInputError
from crovca.evaluation import metrics
from crovca.evaluation.evaluate import NEIGHBOR_RECALLS, Measure, Ranked
from crovca.hasher import Hasher
from crovca.index.scoring import BitScorer, CosineScorer
from crovca.metrics import of_codes

__all__ = ["compare", "fingerprint"]

_SOURCES = (
    "codes.py",
    "ids.py",
    "metrics.py",
    "evaluation",
    "hasher",
    "hashing",
    "baselines",
    "index/scoring.py",
)
"""What makes codes, ranks and measures: where one of these changes, kept results are of other code."""


def fingerprint(
    database: Embeddings,
    query: Embeddings,
    k: int,
    train: Embeddings | None = None,
    epochs: int | None = None,
) -> str:
    """SHA-256 of all that a result hangs on: numbers, labels and ids of all sides, k, epochs and crovca's own code."""
    digest = hashlib.sha256(f"{FORMAT} {_code()} {k} {epochs}".encode())
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
    for place in _SOURCES:
        for path in sorted((root / place).rglob("*.py") if (root / place).is_dir() else [root / place]):
            digest.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode() + path.read_bytes())
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
    kept: Mapping[str, Any] | None = None,
    save: Callable[[Comparison], None] = lambda state: None,
    advance: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Fit every method on the database at every length, and measure how it ranks the database for the queries.

    An item is relevant to a query if they share a label; where one side has no labels, only the recall of float
    neighbors is measured, and methods that learn from labels are left out. A method that fails is noted with its
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
    bench = _Bench(database, query, learned, min(k, len(database)), epochs)
    state = Comparison(
        fingerprint=fingerprint(database, query, k, train, epochs),
        k=bench.measure.k,
        queries=len(query),
        database=len(database),
        labeled=labeled,
        chance_map=bench.measure.chance(),
        lengths=asked,
        trained=None if train is None else len(train),
        epochs=epochs,
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
            missing = [bits for bits in sizes if not _done(state.cells.get(_key(method, bits, seed)))]
            for group in _groups(method, missing):
                named = f"{method.title}, {', '.join(map(str, group))} bits, seed {seed}"
                advance(named)
                for cell in bench.run(method, group, seed):
                    state.cells[_key(method, cell["bits"], seed)] = cell
                save(state)
    return state


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


class _Bench:
    """The data, and the float ranking that all are measured against."""

    def __init__(
        self, database: Embeddings, query: Embeddings, train: Embeddings, k: int, epochs: int | None
    ) -> None:
        if k < 1:
            raise InvalidInputError(f"k must be at least 1, got {k}")
        self.values, self.queries = as_matrix(database, "database"), as_matrix(query, "queries")
        self.training = self.values if train is database else as_matrix(train, "training items")
        self.labels = train.labels
        self.epochs = epochs
        self.measure = Measure(query, database, k)
        true = self.measure(CosineScorer(self.queries, self.values, mean_embedding(self.values)))
        self.true_rows = true.rows

    def run(self, method: Method, lengths: Sequence[int], seed: int) -> list[Cell]:
        """The cells of one fit; where it fails, cells that say why."""
        named = {"method": method.name, "seed": seed}
        try:
            return [
                {**named, **cell}
                for cell in (
                    self._ours(method, lengths, seed)
                    if method.baseline is None
                    else self._baseline(method, lengths[0], seed)
                )
            ]
        except Exception as error:  # whatever a method cannot do with these data, the others go on
            reason = str(error) if isinstance(error, CrovcaError) else f"{type(error).__name__}: {error}"
            return [{**named, "bits": bits, "failed": " ".join(reason.split())} for bits in lengths]

    def _ours(self, method: Method, lengths: Sequence[int], seed: int) -> Iterator[Cell]:
        assert method.ours is not None
        hasher = method.ours(lengths, seed)
        if self.epochs is not None:
            hasher.set_params(epochs=self.epochs)
        started = time.perf_counter()
        hasher.fit(self.training, self.labels if method.supervised else None)
        fitted = time.perf_counter() - started
        started = time.perf_counter()
        logits = hasher.logits(self.values)
        whole = Codes.from_logits(logits)
        encoded = time.perf_counter() - started
        queries = hasher.logits(self.queries)
        for bits in lengths:
            codes = whole.prefix(bits)
            yield self._cell(
                bits, codes.bytes_per_item, fitted, encoded, self._by_code(queries[:, :bits], codes)
            )

    def _baseline(self, method: Method, bits: int, seed: int) -> Iterator[Cell]:
        assert method.baseline is not None
        passes: dict[str, Any] = {"epochs": self.epochs} if method.learned and self.epochs is not None else {}
        found = method.baseline(bits, seed=seed, **passes)
        started = time.perf_counter()
        found.fit(self.training, self.labels if method.supervised else None)
        fitted = time.perf_counter() - started
        started = time.perf_counter()
        if isinstance(found, BinaryBaseline):
            codes = found.encode(self.values)
            encoded = time.perf_counter() - started
            scores = self._by_code(found.logits(self.queries), codes)
            size = codes.bytes_per_item
        else:
            stored = found.store(self.values)
            encoded = time.perf_counter() - started
            scorer = _OwnScorer(found, self.queries, stored, len(self.values))
            scores = {OWN_SCORE: self._measured(self.measure(scorer))}
            size = found.bytes_per_item
        yield self._cell(bits, size, fitted, encoded, scores)

    def _by_code(self, logits: Float32, codes: Codes) -> dict[str, Any]:
        return {
            score: self._measured(self.measure(BitScorer.of(score, logits, codes))) for score in of_codes()
        }

    def _measured(self, ranked: Ranked) -> dict[str, Any]:
        recalls = {
            f"{m}@{top}": float(metrics.neighbor_recall(self.true_rows[:, :m], ranked.rows[:, :top]).mean())
            for m, top in NEIGHBOR_RECALLS
            if top <= len(self.values)
        }
        return {
            "map": ranked.map,
            "map_min_k_r": ranked.map_min_k_r,
            "expected_map": ranked.expected_map,
            "expected_map_min_k_r": ranked.expected_map_min_k_r,
            "float_neighbour_recall": recalls,
        }

    def _cell(self, bits: int, size: int, fitted: float, encoded: float, scores: Mapping[str, Any]) -> Cell:
        return {
            "bits": bits,
            "bytes": size,
            "fit_seconds": round(fitted, 3),
            "encode_rate": round(len(self.values) / max(encoded, 1e-9), 1),
            "scores": dict(scores),
        }


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
    for name in ("version", "queries", "database", "trained", "epochs", "k"):
        if kept.get(name) != ours[name]:
            what = {"version": "crovca", "trained": "training items"}.get(name, name)
            return f"another run: {what} {kept.get(name)}, now {ours[name]}"
    return "other data, another k or another state of crovca's code"


def _done(cell: Cell | None) -> bool:
    return cell is not None and "failed" not in cell


def _key(method: Method, bits: int, seed: int) -> str:
    return f"{method.name}/{bits}/{seed}"
