"""An inverted file, for sets so large that scanning all of it takes too long: approximate, and it says how much.

Codes are put in cells by k-means; a query looks into the cells whose mean code it scores highest. Within a cell the
scores are those of ``scan``. The share of true neighbors that is found is measured when the engine is built, on
stored codes with a tenth of their bits flipped as queries: better than nothing, but your queries may fare
otherwise (``HashIndex.search(..., engine="exact")`` tells).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import faiss
import numpy as np

from crovca.codes import Codes
from crovca.index.engines.base import CandidateEngine, Candidates
from crovca.index.engines.scan import nibble_index, nibble_weights
from crovca.index.scoring import BitScorer, Float32, Int64

_PROBED = 32  # cells that a query looks into
_SAMPLE_PER_CELL = 64
_MEASURED_QUERIES = 64
_MEASURED_K = 100


class InvertedEngine(CandidateEngine):
    """See the module.

    Attributes:
        recall: share of the true 100 nearest (by distance) that was found when it was measured.
    """

    name: ClassVar[str] = "inverted"
    exact: ClassVar[bool] = False

    def __init__(self, codes: Codes) -> None:
        super().__init__(codes)
        self.cells = max(1, int(len(codes) ** 0.5))
        self._index, *self._kept = _build(codes, self.cells)
        self.recall = self._measure(codes)

    @property
    def nbytes(self) -> int:
        """Codes in cells, a row number each, and the cells' means."""
        return len(self.entries) * (self.entries.bytes_per_item + 8) + self.cells * self._index.d * 4

    def first_count(self, k: int, *, whole: bool) -> int:
        """As in ``scan``: the exact scores put the rounded ones right."""
        return 32 + 2 * k

    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """See ``CandidateEngine``; where too few are found, more cells are looked into."""
        padded = nibble_weights(weights)
        probed = min(_PROBED, self.cells)
        while True:
            parameters = faiss.SearchParametersIVF(nprobe=probed)
            _, entries = self._index.search(padded, count, params=parameters)
            if probed == self.cells or (entries[:, -1] >= 0).all():
                break
            probed = min(4 * probed, self.cells)
        for found in entries:
            yield Candidates(found[found >= 0], -np.inf)

    def _measure(self, codes: Codes) -> float:
        rng = np.random.default_rng(0)
        rows = rng.choice(len(codes), min(_MEASURED_QUERIES, len(codes)), replace=False)
        bits = codes[rows].unpack() ^ (rng.random((len(rows), codes.bits)) < 0.1)
        queries = Codes.from_bits(bits)
        k = min(_MEASURED_K, len(codes))
        truth, _ = faiss.knn_hamming(queries.packed, np.ascontiguousarray(codes.packed), k)
        answers = self.nearest(BitScorer.of("hamming", bits.astype(np.float32) - 0.5, codes), k)
        found = [np.sum(answer.distances <= worst) for answer, worst in zip(answers, truth[:, -1], strict=True)]
        return float(np.minimum(found, k).mean() / k)


def _build(codes: Codes, cells: int) -> tuple[faiss.IndexIVFPQFastScan, faiss.Index, faiss.Index]:
    """The index, and two more that it points into: they must live as long."""
    flat = nibble_index(codes[:0])
    width = flat.d
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(len(codes), min(len(codes), cells * _SAMPLE_PER_CELL), replace=False))
    means = _means(_floats(codes[sample], width), cells)
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(means)
    index = faiss.IndexIVFPQ(quantizer, width, cells, width // 4, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    index.pq.centroids = flat.pq.centroids
    index.is_trained = True
    owner = _owners(codes, means)
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(cells + 1))
    for cell in range(cells):
        rows: Int64 = order[ends[cell] : ends[cell + 1]].astype(np.int64)
        if len(rows):
            packed = np.ascontiguousarray(codes.packed[rows])
            index.invlists.add_entries(cell, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(packed))
    index.ntotal = len(codes)
    return faiss.IndexIVFPQFastScan(index), index, quantizer


def _means(sample: Float32, cells: int) -> Float32:
    """Mean codes of cells (cells, width), by k-means."""
    clustering = faiss.Kmeans(
        sample.shape[1], cells, niter=8, seed=0, min_points_per_centroid=1, max_points_per_centroid=_SAMPLE_PER_CELL
    )
    clustering.train(sample)
    return clustering.centroids


def _owners(codes: Codes, means: Float32) -> Int64:
    """The nearest cell of each code, by Euclidean distance."""
    search = faiss.IndexFlatL2(means.shape[1])
    search.add(means)
    owner = np.empty(len(codes), np.int64)
    for start in range(0, len(codes), 1 << 16):
        chunk = slice(start, start + (1 << 16))
        owner[chunk] = search.search(_floats(codes[chunk], means.shape[1]), 1)[1][:, 0]
    return owner


def _floats(codes: Codes, width: int) -> Float32:
    """Bits as 0.0 and 1.0 in the kernel's order: float32 (n, width)."""
    return nibble_weights(codes.unpack().astype(np.float32)).reshape(len(codes), width)
