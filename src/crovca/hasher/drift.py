"""How far items lie from what a model has learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betainc

from crovca.errors import ConfigError, InvalidInputError
from crovca.hashing.network import HashCoder

_MUCH = 0.2
_DOUBT = 0.05


@dataclass(frozen=True)
class Drift:
    """How far items lie from the cells of what was learned.

    Attributes:
        distances: float32 (n,), 1 - cosine to the nearest cell.
        threshold: of the gate; what about 8 % (7 % with labels) of held-out items are beyond.
    """

    distances: npt.NDArray[np.float32]
    threshold: float

    @property
    def outside(self) -> float:
        """Share of the items beyond the threshold: 0.05 to 0.1 of items like the learned ones."""
        return float((self.distances > self.threshold).mean())

    @property
    def much(self) -> bool:
        """Whether more than a fifth is outside, beyond doubt: by an exact binomial test at 5 %, so one item is never
        enough."""
        count = len(self.distances)
        outside = round(self.outside * count)
        return outside > _MUCH * count and bool(betainc(outside, count - outside + 1, _MUCH) < _DOUBT)

    def joined(self, other: Drift) -> Drift:
        """With more items that the same model was asked about."""
        return Drift(np.concatenate([self.distances, other.distances]), self.threshold)

    def sentence(self, what: str = "of these items") -> str:
        """For people."""
        return f"{self.outside:.0%} {what} lie outside of what the model has learned (5 to 10 % is usual)"


def drift(coder: HashCoder, blocks: Iterable[npt.NDArray[Any]]) -> Drift:
    """By the gate of a network; see ``Hasher.drift``."""
    if coder.gate is None:
        raise ConfigError(
            "this model keeps nothing of what it has learned from, so nothing is known of what lies outside of it; "
            "train one of embeddings with faithfulness='balanced' or 'order'"
        )
    found = [np.empty(0, np.float32)]
    device = coder.norm.weight.device
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != coder.width or not np.isfinite(block).all():
            raise InvalidInputError(
                f"X must be finite numbers of shape (n, {coder.width}), got {block.dtype} {block.shape}"
            )
        with torch.no_grad():
            nearest = coder.gate.nearest(coder.inputs(torch.from_numpy(np.array(block, np.float32)).to(device)))
        found.append(1 - nearest.flatten().cpu().numpy())
    if len(found) == 1:
        raise InvalidInputError("there are no items")
    return Drift(np.concatenate(found), 1 - float(coder.gate.threshold))
