"""Scalar quantization, FAISS's: each number by itself to 8 or 4 bits, of as many principal components as fit.

The int8 and int4 of vector databases at a code's size: 16 bits hold 2 numbers of 8 bits, or 4 of 4 bits.
"""

from __future__ import annotations

from typing import Any, ClassVar

import faiss

from crovca.baselines.base import Float32
from crovca.baselines.quantizers import FaissQuantizer

__all__ = ["SQ4", "SQ8"]


class SQ8(FaissQuantizer):
    """``faiss.IndexScalarQuantizer`` with 8 bits a number."""

    seeds: ClassVar[int | None] = 1
    bits_a_number: ClassVar[int] = 8

    def _components(self, width: int, budget: int) -> int:
        return min(width, 8 * budget // self.bits_a_number)

    def _index(self, prepared: Float32, budget: int) -> Any:
        kind = {8: faiss.ScalarQuantizer.QT_8bit, 4: faiss.ScalarQuantizer.QT_4bit}[self.bits_a_number]
        index = faiss.IndexScalarQuantizer(prepared.shape[1], kind, faiss.METRIC_L2)
        index.train(prepared)
        return index


class SQ4(SQ8):
    """The same with 4 bits a number."""

    bits_a_number: ClassVar[int] = 4
