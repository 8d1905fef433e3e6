"""Who takes part in a comparison: every baseline, the paper's own settings, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from crovca.baselines.base import BinaryBaseline, ScoreBaseline
from crovca.baselines.registry import BASELINES
from crovca.errors import ConfigError
from crovca.hasher import Hasher
from crovca.hashing.config import DEFAULT_LENGTHS

OUR_LENGTHS = (*DEFAULT_LENGTHS, 256)
"""Bits that one nested model of ours serves."""

Ours = Callable[[Sequence[int], int], Hasher]
"""Makes a hasher of ours for these lengths, with this seed."""


@dataclass(frozen=True)
class Method:
    """A method in the comparison.

    Attributes:
        name, title: how one asks for it, and what a table calls it.
        supervised: whether it learns from labels.
        seeds: how many seeds there are to run; None: as many as are asked for.
        size: as in ``baselines.base``.
        binary: whether its codes can stand in a Hamming index.
        learned: whether it passes over the data as often as ``epochs`` says.
        ours: makes it, where it is ours; None for a baseline.
        nested: one model serves all lengths.
        baseline: its class, or None for ours.
    """

    name: str
    title: str
    supervised: bool
    seeds: int | None
    size: str
    binary: bool
    learned: bool
    ours: Ours | None = None
    nested: bool = False
    baseline: type[BinaryBaseline | ScoreBaseline] | None = None


def _defaults(
    lengths: Sequence[int], seed: int, faithfulness: Literal["kinds", "balanced", "order"] = "balanced"
) -> Hasher:
    """What a user gets: one nested model."""
    nested = sorted({*OUR_LENGTHS, *lengths})
    return Hasher(bits=nested[-1], nested=nested, seed=seed, faithfulness=faithfulness)


def _published(lengths: Sequence[int], seed: int) -> Hasher:
    """The paper's settings (Table 8, small data sets): one length, 5 epochs, prototypes of the batch.

    The paper's views are augmented images. Of embeddings alone there are none: neighbors take their place, and with
    labels copies of the item with some features dropped.
    """
    (bits,) = lengths
    return Hasher.from_preset("small", bits=bits, seed=seed)


def _all_methods() -> tuple[Method, ...]:
    kinds, order = partial(_defaults, faithfulness="kinds"), partial(_defaults, faithfulness="order")
    ours = (
        ("crovca_paper", "CroVCA, Table 8, neighbors as views", False, _published, False),
        ("crovca_paper_supervised", "CroVCA, Table 8, supervised", True, _published, False),
        ("crovca_kinds", "crovca, for kinds", False, kinds, True),
        ("crovca_order", "crovca, for order", False, order, True),
        ("crovca", "crovca", False, _defaults, True),
        ("crovca_kinds_supervised", "crovca, for kinds, supervised", True, kinds, True),
        ("crovca_order_supervised", "crovca, for order, supervised", True, order, True),
        ("crovca_supervised", "crovca, supervised", True, _defaults, True),
    )
    baselines = (
        Method(
            found.name,
            found.title,
            found.method.supervised,
            found.method.seeds,
            found.method.size,
            issubclass(found.method, BinaryBaseline),
            found.method.learned,
            baseline=found.method,
        )
        for found in BASELINES
    )
    return (
        *baselines,
        *(
            Method(name, title, supervised, None, "asked", True, nested, make, nested)
            for name, title, supervised, make, nested in ours
        ),
    )


METHODS = _all_methods()
"""Every method, ours last."""


def choose_methods(names: Sequence[str] | None, *, labeled: bool) -> list[Method]:
    """The methods of these names; None: all that can be run, without labels to learn from the unsupervised ones."""
    if names is None:
        return [method for method in METHODS if labeled or not method.supervised]
    known = {method.name: method for method in METHODS}
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown method {name!r}; expected 'all' or some of {', '.join(known)}")
        if known[name].supervised and not labeled:
            raise ConfigError(
                f"method {name!r} learns from labels, and there are none in use; leave it out, or give "
                "embeddings with labels"
            )
    return [method for method in METHODS if method.name in names]
