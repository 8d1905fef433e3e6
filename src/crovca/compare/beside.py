"""A model beside ITQ and the floats in every situation: what ``crovca evaluate`` adds to its own scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from crovca.baselines.linear import ITQ
from crovca.data.embeddings import Embeddings, Rows, chunks, evenly_spaced
from crovca.errors import InvalidInputError
from crovca.evaluation.situations import FiveMeasures, Learn, five_measures, make_situations
from crovca.hasher import Hasher

MODEL = "model"
_ITQ_ITEMS = 100_000  # that ITQ learns from at most

Float32 = npt.NDArray[np.float32]


def learn_itq(lengths: Sequence[int], seed: int = 0) -> Learn:
    """ITQ of each length, learned from at most 100,000 of the items; lengths beyond an embedding's are left out."""

    def learn(items: Embeddings) -> Callable[[Rows], Mapping[int, Float32]]:
        sample = items.values[evenly_spaced(len(items), _ITQ_ITEMS)]
        models = {bits: ITQ(bits, seed=seed).fit(sample) for bits in lengths if bits <= items.width}

        def encode(values: Rows) -> Mapping[int, Float32]:
            return {
                bits: np.concatenate([model.logits(part) for _, part in chunks(values)])
                for bits, model in models.items()
            }

        return encode

    return learn


def learn_like(hasher: Hasher, lengths: Sequence[int]) -> Learn:
    """A fresh hasher with the parameters of a fitted one, with labels where that one learned from them."""

    def learn(items: Embeddings) -> Callable[[Rows], Mapping[int, Float32]]:
        if hasher.classes_ is not None and items.labels is None:
            raise InvalidInputError(
                "the model learned from labels, and there are not labels on both sides to do so again"
            )
        fresh = clone(hasher).fit(items.values, None if hasher.classes_ is None else items.labels)

        def encode(values: Rows) -> Mapping[int, Float32]:
            logits = fresh.logits(values)
            return {bits: logits[:, :bits] for bits in lengths}

        return encode

    return learn


def measure_beside(
    database: Embeddings,
    query: Embeddings,
    logits: tuple[Float32, Float32],
    lengths: Sequence[int],
    *,
    relearn: Learn | None = None,
    hold_out: float | None = None,
    seed: int = 0,
    k: int = 1000,
    advance: Callable[[str], None] = lambda what: None,
) -> FiveMeasures:
    """The five measures of a model as it is (*seen*), and of its like learned from half of the classes.

    Args:
        database, query: the items; of two modalities their widths differ, and there are neither floats nor ITQ.
        logits: of the query and of the database, by the model as it is.
        lengths: to measure.
        relearn: learns a model like it; needed for ``hold_out``.
        hold_out, seed: as for ``make_situations``.
        k: cut-off rank of mAP@k.
        advance: is told what comes next.
    """
    comparable = database.width == query.width
    if hold_out and (relearn is None or not comparable):
        raise InvalidInputError("classes can be held out for models of one kind of embeddings only")
    situations = make_situations(database, query, hold_out=hold_out, seed=seed)

    def model(items: Embeddings) -> Callable[[Rows], Mapping[int, Float32]]:
        if items is situations[0].learned:  # the model as it is
            return lambda values: {
                bits: (logits[1] if values is database.values else logits[0])[:, :bits] for bits in lengths
            }
        assert relearn is not None
        return relearn(items)

    methods = {MODEL: model, **({"ITQ": learn_itq(lengths)} if comparable else {})}
    return five_measures(situations, methods, k=k, floats=comparable, advance=advance)
