"""The scores: one table, which scoring, index, servers, evaluation, comparison and the command line iterate.

Every score is a distance (smaller is better) and, but for constants of the query and of the item, one inner product
of the query's float weights with the item's bits (``index.scoring`` computes it):

    distance = offset - sum over {j: y_j = 1} of w_j,    z: query logits, y: item bits in {0, 1}

So a score is a function from logits to weights and offset. To add one, write that function here and a ``Metric``
into ``METRICS``, with a test of its formula; nothing else names scores.
Equations and sections are those of arXiv 2510.27584; its BCE, in section 3.3, has no number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crovca.errors import InvalidInputError

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ItemTerm:
    """What a score adds where the stored items' logits are known: item offset - <query weights, item logits>.

    Attributes:
        weights: query logits float64 (q, b) to weights float64 (q, b).
        offsets: item logits float64 (n, b) to offsets float64 (n,).
    """

    weights: Callable[[Float64], Float64]
    offsets: Callable[[Float64], Float64]


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        name: in arguments, options and JSON.
        title: in tables.
        formula: the distance, and where it comes from.
        weights: query logits float64 (q, b), finite, to the weights (q, b) and the offsets (q,), float64. Weights are
            rounded to float32 before they are used.
        item_term: for a score that needs the items' logits as well; an index and servers hold bits alone.
        whole: all weights are 1 or -1 and the offsets whole numbers: so are all distances.
    """

    name: str
    title: str
    formula: str
    weights: Callable[[Float64], tuple[Float64, Float64]]
    item_term: ItemTerm | None = None
    whole: bool = False

    @property
    def needs_item_logits(self) -> bool:
        """Whether the stored items' logits are needed beside their bits."""
        return self.item_term is not None


def _hamming(logits: Float64) -> tuple[Float64, Float64]:
    bits = logits > 0
    return np.where(bits, 1.0, -1.0), bits.sum(axis=1, dtype=np.float64)


def _asymmetric_hamming(logits: Float64) -> tuple[Float64, Float64]:
    # |p - y| = p for y = 0 and 1 - p for y = 1; p - (1 - p) = tanh(z / 2).
    weights = np.tanh(logits / 2).astype(np.float32).astype(np.float64)  # the offset fits what is used
    return weights, ((1 + weights) / 2).sum(axis=1)


def _bce(logits: Float64) -> tuple[Float64, Float64]:
    return logits, _softplus(logits)


def _softplus(logits: Float64) -> Float64:
    return np.logaddexp(0, logits).sum(axis=1)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "hamming", "Hamming", "sum_j [z_j > 0] != y_j: differing bits of the codes of Eq. 4", _hamming, whole=True
        ),
        Metric(
            "asymmetric_hamming",
            "asymmetric",
            "sum_j |sigmoid(z_j) - y_j|: the query's bit probabilities of Eq. 3 against codes",
            _asymmetric_hamming,
        ),
        Metric("bce", "BCE", "BCE(y, sigmoid(z)) of section 3.3, summed over bits, in nats", _bce),
        Metric(
            "symmetric_bce",
            "sym. BCE",
            "BCE(y, sigmoid(z)) + BCE([z > 0], sigmoid(z_item)): both terms of the alignment loss, appendix A.1",
            _bce,
            ItemTerm(weights=lambda logits: (logits > 0).astype(np.float64), offsets=_softplus),
        ),
    )
}
"""By name, in the order of tables."""

REPORTED = "asymmetric_hamming"
"""Where one score stands for all: curves, pictures and the recall of float neighbors."""


def of_codes() -> tuple[str, ...]:
    """Names of the scores that need nothing of the stored items but their codes."""
    return tuple(name for name, metric in METRICS.items() if not metric.needs_item_logits)


def get_metric(name: str, *, stored: bool = False) -> Metric:
    """A score by its name.

    ``stored``: only codes are, so a score that needs the items' logits is refused.
    """
    names = of_codes() if stored else tuple(METRICS)
    if not isinstance(name, str) or name not in names:
        known = isinstance(name, str) and name in METRICS
        why = "needs the items' logits, and only codes are stored" if known else "is not known"
        raise InvalidInputError(f"the metric {name!r} {why}; expected one of {', '.join(names)}")
    return METRICS[name]
