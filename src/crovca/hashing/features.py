"""What a network is given of embeddings, computed once before a training where there is room for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crovca.data.embeddings import Rows, chunks
from crovca.hashing.network import HashCoder

_ROOM = 1 << 30  # bytes of features that are kept in memory
_BLOCK = 8192


class Features:
    """``HashCoder.features`` of embeddings (n, d) or (n, v, d), computed whenever rows are asked for, on the CPU.

    ``gated``: with the gate's column, where there is a gate.
    """

    def __init__(self, coder: HashCoder, values: Rows, *, gated: bool = True) -> None:
        self._coder, self._values, self._gated = coder, values, gated
        width = coder.inputs.outputs + (gated and coder.gate is not None)
        self.shape = (*values.shape[:-1], width)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float32]:
        values = torch.from_numpy(np.array(self._values[rows], np.float32))
        compute = self._coder.features if self._gated else self._coder.inputs
        with torch.no_grad():
            found = compute(values.reshape(-1, values.shape[-1]))
        return found.reshape(*values.shape[:-1], self.shape[-1]).numpy()


def features_of(coder: HashCoder, values: Rows, advance: Callable[[float], None] = lambda share: None) -> Rows:
    """Features float32 (n, k + 1) or (n, v, k + 1): in memory up to 1 GiB, else computed as they are read."""
    lazy = Features(coder, values)
    if 4 * int(np.prod(lazy.shape)) > _ROOM:
        return lazy
    found = np.empty(lazy.shape, np.float32)
    for part, _ in chunks(values, _BLOCK):
        found[part] = lazy[part]
        advance(part.stop / len(values))
    return found


def coordinates_of(coder: HashCoder, values: Rows, features: Rows) -> Rows:
    """Of ``features_of(coder, values)`` the coordinates float32 (n, k) or (n, v, k) alone."""
    if isinstance(features, np.ndarray):
        return features[..., : coder.inputs.outputs]
    return Features(coder, values, gated=False)
