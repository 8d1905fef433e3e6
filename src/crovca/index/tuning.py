"""How many bits, and how many candidates, a collection needs: measured on the index itself.

At most 512 of its own items ask (each without itself) for the k that are nearest by the floats. The codes' candidates,
in the order of the kept embeddings, are compared with these. What rounding to int8 has lost is not there any more, so
the floats are drawn evenly from what each kept number may have been, or given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import Rows, unit_rows
from crovca.errors import ConfigError, InvalidInputError
from crovca.index.index import HashIndex
from crovca.index.originals import NO_ORIGINALS, Originals, cosines
from crovca.index.scoring import Float32, Int64
from crovca.index.tuned import Point, Tuned
from crovca.index.view import View

OVERSAMPLINGS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_BEYOND = (48, 64, 100)  # chosen only where nothing else reaches the target
_LENGTHS = (16, 32, 64, 128, 256, 512)
_QUERIES, _TIMED = 512, 32
_ONE_SIDED = 1.645  # standard errors below the mean: what the recall is at least, with 95 %
_LEARNED = 1.3  # a query that the model has not learned from misses more: 1.2 to 1.4 times as much (measured)
_BLOCK = 8192


def tune(
    index: HashIndex,
    target: float,
    k: int = 10,
    *,
    embeddings: Callable[[Any], Rows] | None = None,
    seed: int = 0,
    advance: Callable[[float], object] = lambda share: None,
) -> Tuned:
    """Find the fewest bits, and for these the smallest oversampling, whose recall@k is at least ``target``; where that
    takes more than 32 k candidates, the smallest oversampling.

    What must reach it is the lower bound of the mean (95 %, one-sided) for queries that the model has not learned from.
    Nothing is written (``HashIndex.keep_tuned``).

    Args:
        index: with a model where codes are compared with logits; else they are compared by Hamming distance.
        target: in (0, 1).
        k: how many neighbors are asked for.
        embeddings: gives the floats of some ids; None: the kept embeddings stand for them.
        seed: of the sample.
        advance: told what share is done.

    Raises:
        ConfigError: a target or k that cannot be.
        InvalidInputError: no embeddings are kept or given, or too few items.
    """
    if not 0 < target < 1:
        raise ConfigError(f"the target must lie between 0 and 1, like 0.95; got {target!r}")
    generation, view = index.generation, index.view()
    if not 1 <= k <= view.items - 2:
        raise InvalidInputError(f"recall@{k} cannot be measured among {view.items} items")
    rng = np.random.default_rng(seed)
    live = view.live()
    asked = np.sort(rng.choice(live, min(_QUERIES, len(live)), replace=False))
    kept = view.originals() if view.width is not None else None
    if embeddings is None and kept is None:
        raise InvalidInputError(NO_ORIGINALS)
    floats = _Drawn(kept, rng) if embeddings is None and kept is not None else None
    queries = floats[asked] if floats is not None else np.asarray(embeddings(view.ids(asked))[:], np.float32)  # type: ignore[misc]
    true = _true_neighbors(view, live, asked, queries, k, floats or embeddings, advance)
    logits, metric = _questions(view, asked, queries)
    curve: list[Point] = []
    lengths = sorted({bits for bits in _LENGTHS if bits < view.bits} | {view.bits})
    for number, bits in enumerate(lengths):
        curve += _measured(view, bits, logits, metric, asked, queries, true, k, kept)
        advance(0.5 + 0.5 * (number + 1) / len(lengths))
    reaching = [point for point in curve if point.low >= target]
    few = [point for point in reaching if (point.oversampling or 1) <= OVERSAMPLINGS[-1]]
    if few:
        chosen = few[0]
    elif reaching:
        chosen = min(reaching, key=lambda point: (point.oversampling, point.bits))
    else:
        chosen = max(curve, key=lambda point: point.low)
    return Tuned(
        float(target), int(k), chosen, bool(reaching), len(asked), view.items, generation,
        -(-chosen.bits // 8), -(-view.bits // 8) + (view.embedding_bytes or 0),
        _milliseconds(view, logits, metric, queries, chosen, k),
        "" if reaching else _advice(target, curve, view, kept),
        tuple(curve),
    )  # fmt: skip


class _Drawn:
    """The floats of kept rows: what they may have been before they were rounded to int8."""

    def __init__(self, kept: Originals, rng: np.random.Generator) -> None:
        self._kept, self._rng = kept, rng
        self._rounded = kept.arrays[0].dtype == np.int8

    def __getitem__(self, rows: Int64) -> Float32:
        values = self._kept.kept(rows).astype(np.float32)
        if self._rounded:
            values += self._rng.random(values.shape, np.float32) - np.float32(0.5)
        return values * self._kept.scales[rows][:, None]


def _true_neighbors(
    view: View, live: Int64, asked: Int64, queries: Float32, k: int, floats: Any, advance: Callable[[float], object]
) -> Int64:
    """The k rows nearest to each query by cosine of the floats, itself left out: int64 (q, k)."""
    unit = unit_rows(queries)
    best = np.full((len(unit), k), -2, np.float32)
    rows = np.full((len(unit), k), -1, np.int64)
    for start in range(0, len(live), _BLOCK):
        part = live[start : start + _BLOCK]
        values = floats[part] if isinstance(floats, _Drawn) else np.asarray(floats(view.ids(part))[:], np.float32)
        if values.shape[1] != unit.shape[1]:
            raise InvalidInputError("the embeddings differ in width")
        found = unit @ unit_rows(values).T
        found[asked[:, None] == part[None, :]] = -2
        found = np.concatenate([best, found], axis=1)
        every = np.concatenate([rows, np.broadcast_to(part, (len(unit), len(part)))], axis=1)
        top = np.argpartition(-found, k - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(found, top, 1), np.take_along_axis(every, top, 1)
        advance(0.5 * (start + len(part)) / len(live))
    return rows


def _questions(view: View, asked: Int64, queries: Float32) -> tuple[Any, str]:
    """What the codes are asked with: logits of the model, or the items' own codes."""
    if view.model is None:
        return view.codes(asked), "hamming"
    return view.model.logits(queries)[:, : view.bits], "bce"


def _measured(
    view: View,
    bits: int,
    logits: Any,
    metric: str,
    asked: Int64,
    queries: Float32,
    true: Int64,
    k: int,
    kept: Originals | None,
) -> list[Point]:
    """The recall of so many bits, by oversampling; by bits alone where no embeddings are kept."""
    misses = 1.0 if view.model is None else _LEARNED
    reads = [] if kept is None else [int(np.ceil(oversampling * k)) for oversampling in (*OVERSAMPLINGS, *_BEYOND)]
    reads = [count for number, count in enumerate(reads) if number == 0 or count < view.items]
    most = min(max(map(view.candidates_for, reads), default=k), view.items - 1)
    candidates = view.candidates(logits, most + 1, metric, bits)
    recalls, units = np.zeros((max(len(reads), 1), len(asked))), unit_rows(queries)
    for query, found in enumerate(candidates):
        rows = found.rows[found.rows != asked[query]]
        if kept is None:
            recalls[0, query] = np.isin(rows[:k], true[query]).sum() / k
            continue
        order = np.argsort(view.sketched(units[query], rows), kind="stable")
        # Of so many candidates, by bits, those whose embeddings are read.
        chosen = [order[order < view.candidates_for(count)][:count] for count in reads]
        read = np.unique(np.concatenate(chosen))
        distances = np.empty(len(rows), np.float32)
        distances[read] = 1 - cosines(kept.kept(rows[read]), units[query])
        hits = np.isin(rows, true[query])
        for number, places in enumerate(chosen):
            nearest = places[np.lexsort((places, distances[places]))[:k]]
            recalls[number, query] = hits[nearest].sum() / k
    if kept is None:
        return [_point(bits, None, recalls[0], misses)]
    return [_point(bits, how, found, misses) for how, found in zip((*OVERSAMPLINGS, *_BEYOND), recalls, strict=False)]


def _point(bits: int, oversampling: float | None, recalls: npt.NDArray[np.float64], misses: float) -> Point:
    """The mean, and what it is at least for other queries: as if one more had found nothing, or a few perfect ones
    would prove all."""
    error = float(recalls.std() / np.sqrt(len(recalls)))
    careful = np.append(recalls, 0.0)
    low = float(careful.mean() - _ONE_SIDED * careful.std() / np.sqrt(len(careful)))
    return Point(bits, oversampling, float(recalls.mean()), error, max(1 - misses * (1 - low), 0.0))


def _milliseconds(view: View, logits: Any, metric: str, queries: Float32, chosen: Point, k: int) -> float:
    """The median time of one query, alone."""
    taken = []
    for query in range(min(_TIMED, len(queries))):
        one = slice(query, query + 1)
        floats = None if chosen.oversampling is None else queries[one]
        started = time.perf_counter()
        view.search(logits[one], k, metric=metric, bits=chosen.bits, embeddings=floats, rescore=chosen.oversampling)
        taken.append(time.perf_counter() - started)
    return 1000 * float(np.median(taken))


def _advice(target: float, curve: list[Point], view: View, kept: Originals | None) -> str:
    """What would reach the target."""
    if kept is None:
        return "Keep embeddings to order the candidates by: 'crovca index refit --keep int8 --embeddings FILE'"
    best = max(point.recall for point in curve)
    if kept.arrays[0].dtype == np.int8 and best > target - 0.02 and best == curve[-1].recall:
        return "float16 embeddings may ('crovca index refit --keep float16 --embeddings FILE')"
    return f"Longer codes may: 'crovca index refit --bits {2 * view.bits}'"
