"""PyTorch: codes on an accelerator, scored by matrix products in blocks. Loaded only when asked for.

Float32 products of weights with bits; how far their sums can be off is the bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Lock
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from crovca.codes import Codes
from crovca.errors import ConfigError
from crovca.index.engines.base import CandidateEngine, Candidates
from crovca.index.scoring import Float32

_BLOCK_BYTES = 1 << 28  # of unpacked bits
_precision = Lock()  # PyTorch has one setting for all threads


class AcceleratorEngine(CandidateEngine):
    """See the module. On the first accelerator of this machine, or the processor if there is none."""

    name: ClassVar[str] = "accelerator"

    def __init__(self, codes: Codes, device: str | None = None) -> None:
        super().__init__(codes)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self._process = os.getpid()
        try:
            self._packed = torch.from_numpy(np.array(codes.packed)).to(self.device)
        except RuntimeError as error:  # what it says where this process was forked from one that used the device
            raise ConfigError(f"the engine 'accelerator' cannot be used: {error}") from error
        self._shifts = torch.arange(7, -1, -1, device=self.device, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """The copy of the codes on the device."""
        return self._packed.numel()

    def first_count(self, k: int, *, whole: bool) -> int:
        """Float32 sums are nearly right: a few more than k prove the answer, but for ties."""
        return 64 + 3 * k if whole else k + 32

    @torch.inference_mode()
    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """See ``CandidateEngine``."""
        if self.device.type != "cpu" and os.getpid() != self._process:
            raise ConfigError(
                "the engine 'accelerator' does not work in a forked process; take another engine, or start the process "
                "by 'spawn' and open the index there"
            )
        count = min(count, len(self.entries))
        queries = torch.from_numpy(np.ascontiguousarray(weights)).to(self.device)
        block = max(count, _BLOCK_BYTES // (4 * self.entries.bits))
        scores = torch.empty((len(queries), 0), device=self.device)
        entries = torch.empty((len(queries), 0), dtype=torch.int64, device=self.device)
        for start in range(0, len(self.entries), block):
            part = _full_precision(queries, self._bits(slice(start, start + block)))
            top, rows = torch.topk(part, min(count, part.shape[1]), dim=1)
            scores, entries = torch.cat([scores, top], 1), torch.cat([entries, rows + start], 1)
            scores, kept = torch.topk(scores, min(count, scores.shape[1]), dim=1)
            entries = entries.gather(1, kept)
        # A float32 sum of b terms in any order is off by at most b * 2^-24 * sum |w_j|; doubled to be safe.
        error = weights.shape[1] * 2.0**-23 * np.abs(weights).sum(1, dtype=np.float64)
        beyond = scores[:, -1].double().cpu().numpy() + error
        if count == len(self.entries):
            beyond[:] = -np.inf
        for found, bound in zip(entries.cpu().numpy(), beyond, strict=True):
            yield Candidates(found, float(bound))

    def _bits(self, rows: slice) -> Tensor:
        packed = self._packed[rows]
        bits = (packed[:, :, None] >> self._shifts) & 1
        return bits.reshape(len(packed), -1)[:, : self.entries.bits].float()


def _full_precision(queries: Tensor, bits: Tensor) -> Tensor:
    """queries @ bits.T in float32 proper: TF32 keeps 10 bits of the weights only."""
    with _precision:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            return queries @ bits.T
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
