"""FAISS's SIMD scan: all codes scored against float weights at the speed of Hamming distance.

A packed code is a product-quantization code: each nibble is the number of one of 16 bit patterns, so with these
patterns as codebook FAISS's 4-bit kernels give the inner product of float weights with the bits. They add up
tables that are rounded to 8 bits; how far that can be off is known, which makes the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import faiss
import numpy as np

from crovca.codes import Codes
from crovca.index.engines.base import CandidateEngine, Candidates, Groups, few_distinct
from crovca.index.scoring import Float32, Float64


class ScanEngine(CandidateEngine):
    """See the module. Distinct codes are scanned where they are at most half as many as the rows.

    It takes codes of 8 to 512 bits: the kernel adds at most 255 a nibble into 16 bits, and beyond 1,028 bits that could
    overflow.
    """

    name: ClassVar[str] = "scan"

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes, groups_if_fewer(codes))
        # Blocks of 64 codes are faster for one query, of 32 for long codes (measured).
        self._index = faiss.IndexPQFastScan(nibble_index(self.entries), 64 if codes.bits <= 64 else 32)

    @property
    def nbytes(self) -> int:
        """The kernel's copy of the codes, blocked for SIMD, and the groups."""
        groups = 0 if self.groups is None else self.groups.nbytes
        return -(-len(self.entries) // 64) * 64 * self.entries.bytes_per_item + groups

    def first_count(self, k: int, *, whole: bool) -> int:
        """Longer codes are rounded more roughly (measured on random codes, the worst case)."""
        return 64 + 3 * k if whole else 32 + k + k * (64 + self.entries.bits) // 512

    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """See ``CandidateEngine``."""
        count = min(count, len(self.entries))
        ordered, peak, error = kernel_weights(weights)
        scores, entries = self._index.search(ordered, count)
        beyond = peak * (scores[:, -1] + error)
        for weight, found, bound in zip(weights, entries, beyond.tolist(), strict=True):
            if found[-1] < 0 or not weight.any():
                # FAISS returns -1 in place of codes that have the lowest score there can be.
                found, bound = found[found >= 0], np.inf
            yield Candidates(found, bound)


def nibble_index(codes: Codes) -> faiss.IndexPQ:
    """A FAISS product quantizer whose codebook is the 16 patterns of 4 bits, filled with these codes."""
    width = codes.bytes_per_item * 8
    index = faiss.IndexPQ(width, width // 4, 4, faiss.METRIC_INNER_PRODUCT)
    numbers = np.arange(16, dtype=np.uint8)[:, None]
    patterns = np.unpackbits(numbers, axis=1, bitorder="little")[:, :4].astype(np.float32)
    faiss.copy_array_to_vector(np.tile(patterns.ravel(), width // 4), index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(np.ascontiguousarray(codes.packed))
    return index


def nibble_weights(weights: Float32) -> Float32:
    """Weights (q, b) in FAISS's order of bits, (q, b up to whole bytes): it takes a byte's low nibble first."""
    queries, bits = weights.shape
    padded = np.zeros((queries, -(-bits // 8) * 8), np.float32)
    padded[:, :bits] = weights
    return np.ascontiguousarray(padded.reshape(queries, -1, 8)[:, :, ::-1]).reshape(queries, -1)


def kernel_weights(weights: Float32) -> tuple[Float32, Float64, Float64]:
    """Weights (q, b) as the kernel takes them, what they were divided by, and ``quantization_error``."""
    ordered = nibble_weights(weights)
    error = quantization_error(ordered)
    peak = np.ones(len(weights))
    if not (error.min() > 1e-20 and error.max() < 1e20):  # weights that float32 cannot add, or all 0
        peak = np.abs(ordered).max(axis=1).astype(np.float64)
        peak[peak == 0] = 1
        ordered = (ordered / peak[:, None]).astype(np.float32)
        ordered[error == 0] = 1  # everything ties, which the kernel cannot take
        error = quantization_error(ordered)
    return ordered, peak, error


def quantization_error(weights: Float32) -> Float64:
    """How much less than the exact inner product the kernel's can be, at most: float64 (q,).

    FAISS rounds each nibble's table to whole multiples of 1/a, a = 255 / (the largest span of a table): half of
    that a nibble. The span of a nibble's table is sum |w_j|. The rest is for float32 arithmetic.

    Args:
        weights: as ``nibble_weights`` gives them.
    """
    spans = np.abs(weights).reshape(len(weights), -1, 4).sum(2)
    return spans.max(1).astype(np.float64) * ((0.5 / 255 + 1e-5) * spans.shape[1])


def groups_if_fewer(codes: Codes) -> Groups | None:
    """The distinct codes, where they are at most half as many as the rows."""
    # Some tell whether grouping can pay at all: sorting everything for nothing takes longer than a scan.
    if not few_distinct(codes):
        return None
    groups = Groups.of(codes)
    return groups if 2 * len(groups.codes) <= len(codes) else None
