"""How well the codes of some items order those items: one number for model selection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.data.embeddings import as_embeddings, mean_embedding
from crovca.data.labels import check_labels, share_a_label
from crovca.errors import ConfigError, InvalidInputError
from crovca.evaluation.metrics import average_precision_hits, neighbor_recall
from crovca.index.scoring import BitScorer, CosineScorer, Scorer, top_k

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

_TOP_K, _NEIGHBORS, _FOUND = 1000, 10, 100


def quality(hasher: Hasher, X: Any, y: Any) -> float:
    """What ``Hasher.score`` says."""
    logits = hasher.logits(X)
    items = len(logits)
    if items < 2:
        raise InvalidInputError(f"a score needs at least 2 items, got {items}")
    scorer = BitScorer.of("asymmetric_hamming", logits, Codes.from_logits(logits))
    if y is not None:
        labels = check_labels(y, items)
        relevance = share_a_label(labels, labels, _others(scorer, min(_TOP_K, items - 1)))
        return float(average_precision_hits(relevance).mean())
    if hasher.fine_tuning is not None:
        raise ConfigError("without labels a score compares with the embeddings: give labels, or embeddings")
    values = as_embeddings(X, what="X").values
    true = _others(CosineScorer(values, values, mean_embedding(values)), min(_NEIGHBORS, items - 1))
    return float(neighbor_recall(true, _others(scorer, min(_FOUND, items - 1))).mean())


def _others(scorer: Scorer, count: int) -> npt.NDArray[np.int64]:
    """The nearest ``count`` rows (n, count) of each item, itself left out."""
    return top_k(scorer, count, left_out=np.arange(scorer.shape[0])).rows
