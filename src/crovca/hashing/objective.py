"""The objective: named terms with weights, which the training loop adds up and logs.

Paper, section 3.3: L_hash = L_align + lambda L_div, L_div = -R. The displayed formulas of the paper sum the
cross-entropy over bits and have no eps in the coding rate; taken literally the second term would vanish
beside the first. What is written here is the reference implementation's form, on whose scale the
paper's lambda = 0.1 makes sense: the cross-entropy is a mean over bits, and the coding rate has an eps and a
balancing factor. See docs/architecture.md.

All of it is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol

import torch
from torch import Tensor, nn

from crovca.errors import ConfigError
from crovca.hashing import terms as _terms
from crovca.hashing.config import TrainingConfig
from crovca.hashing.terms.batch import Batch

Term = Callable[[Batch], Tensor]


def _find_terms() -> dict[str, Term]:
    """The function of each file of ``terms`` that has its file's name."""
    names = [module.name for module in iter_modules(_terms.__path__)]
    found = {name: getattr(import_module(f"{_terms.__name__}.{name}"), name, None) for name in names}
    return {name: term for name, term in found.items() if term is not None}


TERMS: Mapping[str, Term] = _find_terms()
"""Every term that a configuration can give a weight. A new one is a file in ``terms``, with a function of its name."""


class Objective(Protocol):
    """What the loop minimizes: the weighted sum of named terms. An ``nn.Module``, whose parameters are trained too."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Of each term."""

    def __call__(self, logits: Tensor, rows: Tensor) -> Mapping[str, Tensor]:
        """The terms, scalars, for logits (v, B, b) of the items ``rows`` (B,)."""


def hash_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """L_hash: the weighted sum of the terms (paper, section 3.3)."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


class HashObjective(nn.Module):
    """The paper's objective, averaged over nested code lengths, with whatever terms the configuration adds.

    ``lengths=(b,)`` is the paper's own.

    Args:
        teacher: (logits, rows) to targets (v, B, b).
        config: its code lengths, epsilon and weights.
        points: gives coordinates (B, k) of the items of rows (B,), for terms that compare with them; or None.

    Raises:
        ConfigError: the weight of a term that there is not.
    """

    def __init__(
        self, teacher: nn.Module, config: TrainingConfig, points: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self._points = points
        self.teacher = teacher
        self.weights = config.weights
        self._lengths, self._epsilon = config.lengths, config.coding_rate_epsilon
        unknown = sorted(set(self.weights) - set(TERMS))
        if unknown:
            raise ConfigError(f"there is no term {unknown[0]!r} of the objective; expected some of {sorted(TERMS)}")

    def forward(self, logits: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The terms for logits (v, B, b) of the items ``rows`` (B,)."""
        points = None if self._points is None else self._points(rows)
        batch = Batch(logits.float(), self.teacher(logits, rows), self._lengths, self._epsilon, points)
        return {name: TERMS[name](batch) for name in self.weights}
