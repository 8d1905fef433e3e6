"""Searching images with images: one number of the paper, and what explains it where ours is another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.data.embeddings import Embeddings, Rows, chunks
from crovca.data.encoded import Encoded
from crovca.errors import ConfigError, InvalidInputError
from crovca.evaluation.evaluate import Items, Measure, Ranked
from crovca.index.scoring import BitScorer, CosineScorer, Float32, Scorer

if TYPE_CHECKING:
    from crovca.reproduce.paper import Measurement, Score
    from crovca.reproduce.workspace import Workspace

Side = Encoded | Embeddings

_CHUNK = 8192  # items compared at a time


class FeatureWiseScorer:
    """Negative inner product with each feature of the database divided by its norm over all items.

    The first release of the authors' code normalized the database so, feature by feature, instead of item by item. It
    may be behind some of the paper's numbers of float embeddings.
    """

    def __init__(self, query: Rows, database: Rows) -> None:
        squares = np.zeros(database.shape[1])
        for _, part in chunks(database):
            squares += np.square(part.astype(np.float64)).sum(axis=0)
        values = np.asarray(query[:], np.float32)
        lengths = np.linalg.norm(values, axis=1, keepdims=True) * np.sqrt(squares)
        # A feature that is 0 in every item adds nothing to any score.
        self._weights: Float32 = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
        self._database = database

    @property
    def shape(self) -> tuple[int, int]:
        """(queries, items)."""
        return len(self._weights), len(self._database)

    def distances(self, queries: slice) -> Float32:
        """Float32 (len(queries), items)."""
        weights = self._weights[queries]
        result = np.empty((len(weights), len(self._database)), np.float32)
        for start in range(0, len(self._database), _CHUNK):
            part = slice(start, start + _CHUNK)
            result[:, part] = -(weights @ np.asarray(self._database[part], np.float32).T)
        return result


def measure_images(workspace: Workspace, measurement: Measurement, seed: int) -> dict[str, Any]:
    """Rank a dataset's database for its queries, and measure.

    Returns:
        For JSON, fractions of 1: "value", the number that the paper prints; "map" and "map_min_k_r" (the form divided
        by min(k, R)), "expected_map" (over the orders within ties), "hamming" (mAP by symmetric Hamming) or
        "feature_wise" (mAP of a float embedding by ``FeatureWiseScorer``), "chance" (mAP of a random order); "k",
        "queries", "database" (items), "left_out" (unreadable images, by split and reason), "seconds".
    """
    if (measurement.task, measurement.metric) != ("image-image", "map"):
        raise ConfigError(f"{measurement.key} is not a mAP of searching images with images")
    started = time.perf_counter()
    more: dict[str, Any] = {}
    name = measurement.dataset
    query, database = (images_of(workspace, measurement, seed, split) for split in ("query", "database"))
    measure = _measure(query, database, measurement)
    ranked = measure(scorer_of(measurement.score, query, database))
    if isinstance(query, Embeddings) and isinstance(database, Embeddings):
        more["feature_wise"] = measure(FeatureWiseScorer(query.values, database.values)).map
    else:
        more["hamming"] = measure(scorer_of("hamming", query, database)).map
    return {
        **_described(ranked),
        **more,
        "chance": measure.chance(),
        "k": measure.k,
        "queries": len(measure.own_row),
        "database": len(measure.ties),
        "left_out": {where: found for where, found in workspace.left_out.items() if where.startswith(f"{name}/")},
        "seconds": round(time.perf_counter() - started, 3),
    }


def images_of(workspace: Workspace, measurement: Measurement, seed: int, split: str) -> Side:
    """What ranks the images of a split: embeddings, or a model's codes."""
    if measurement.training is None:
        return workspace.embeddings(measurement.encoder, measurement.dataset, split)
    return workspace.encoded(measurement.training, seed, measurement.dataset, split)


def scorer_of(score: Score, query: Side, database: Side) -> Scorer:
    """The distances of two sides by a score."""
    if isinstance(query, Embeddings) and isinstance(database, Embeddings):
        if score != "cosine":
            raise ConfigError(f"embeddings are ranked by cosine, not by {score}")
        return CosineScorer(query.values, database.values)
    assert isinstance(query, Encoded)
    assert isinstance(database, Encoded)
    assert query.logits is not None
    if score == "cosine":
        raise ConfigError("codes have no cosine; embeddings do")
    return BitScorer.of(score, query.logits, database.codes, database.logits)


def _measure(query: Items, database: Items, measurement: Measurement) -> Measure:
    if query.labels is None or database.labels is None:
        raise InvalidInputError(f"{measurement.dataset} has no labels, which say what answers a query")
    k = len(database) if measurement.k is None else min(measurement.k, len(database))
    return Measure(query, database, k, kept=1)


def _described(ranked: Ranked) -> dict[str, Any]:
    names = ("map", "map_min_k_r", "expected_map", "expected_map_min_k_r")
    return {"value": ranked.map, **{name: getattr(ranked, name) for name in names}}
