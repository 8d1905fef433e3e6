"""Sublinear and exact: codes in the order of their bits, in pieces with a bound each; most pieces are never read.

A piece holds the codes that begin alike. Of any query, no code of a piece scores more than its bound: the weights of
the bits that all of them have, and the positive weights of those that some have. That is an inner product with bits as
well, so the bounds of all pieces are one small scan. The pieces of the best bounds tell how well the k-th scores at
least; then every piece is scanned whose bound reaches that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import faiss
import numpy as np

from crovca.codes import Codes
from crovca.index.engines.base import CandidateEngine, Candidates
from crovca.index.engines.scan import groups_if_fewer, kernel_weights, nibble_index, quantization_error
from crovca.index.scoring import BitScorer, Float32, Float64, Int64

_PIECE = 4096  # codes of a piece at most: smaller ones leave out more and are slower to read (measured)
_FIRST = 8  # pieces that tell how well the k-th scores
_BLOCK = 32  # codes that FAISS lays side by side
_PACKED = 1 << 20  # codes packed at a time
_QUERIES = 256  # at a time
_SAMPLE, _ASKED, _K, _NEAR = 1 << 18, 64, 100, 10  # codes, queries and neighbors by which ``pays`` judges
_LEAST = 4  # neighbors of the sample: with fewer, what a metric with many ties has to read is underrated (measured)
_PAYS = 0.25  # share of the codes that may be read, as pieces are read more slowly than all in a row (measured)


class PrunedEngine(CandidateEngine):
    """See the module. Random codes gain nothing (``pays``); where at most half are distinct, those are searched.

    Args:
        codes: (n,), in tie order.
        piece: how many codes a piece may hold.
    """

    name: ClassVar[str] = "pruned"

    def __init__(self, codes: Codes, piece: int = _PIECE) -> None:
        super().__init__(codes, groups_if_fewer(codes))
        words = self.entries.words()
        order = np.lexsort(words.T[::-1]) if words.shape[1] > 1 else np.argsort(words[:, 0])
        edges = _edges(words[order, 0], piece)
        del words
        self._sizes = np.diff(edges)
        self._quantizer = faiss.IndexFlatIP(self.entries.bytes_per_item * 8)  # never asked; the lists point to it
        self._lists, bounds = _lists(self.entries, order, edges, self._quantizer)
        self._bounds = faiss.IndexPQFastScan(nibble_index(bounds), _BLOCK)
        self._read = self._held = 0

    @property
    def nbytes(self) -> int:
        """The kernel's copy of the codes, a row number each, two codes a piece, and the groups."""
        width = self.entries.bytes_per_item
        blocks = int((-(-self._sizes // _BLOCK)).sum()) * _BLOCK
        groups = 0 if self.groups is None else self.groups.nbytes
        return blocks * width + 8 * len(self.entries) + (2 * width + 8) * len(self._sizes) + groups

    @property
    def read(self) -> float:
        """The share of the codes that queries so far had to read (0 before the first); threads may miss a count."""
        return self._read / max(1, self._held)

    def best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        """See ``CandidateEngine``."""
        count = min(count, len(self.entries))
        for start in range(0, len(weights), _QUERIES):
            part = weights[start : start + _QUERIES]
            ordered, peak, error = kernel_weights(part)
            lowest = np.minimum(ordered, 0).sum(1, dtype=np.float64)  # FAISS leaves out what scores no more than this
            scores, entries, unread = self._nearest_pieces(ordered, error, lowest, count)
            for number, found in enumerate(entries):
                if found[count - 1] < 0 or not part[number].any():
                    yield Candidates(found[found >= 0], np.inf)
                    continue
                # What scores less than this is behind ``count`` others, whatever was rounded.
                near = int((scores[number] >= scores[number, count - 1] - 2.001 * error[number]).sum())
                last = min(near, len(found) - 1)
                left = scores[number, last] if found[last] >= 0 else lowest[number]
                yield Candidates(found[:near], float(peak[number] * max(left + error[number], unread[number])))

    def _nearest_pieces(
        self, ordered: Float32, error: Float64, lowest: Float64, count: int
    ) -> tuple[Float32, Int64, Float64]:
        """The best entries in the pieces that can hold one of the best ``count``: scores and entries (q, more than
        ``count``, as scores are rounded and many may tie); and the best bound of a piece that was left out (q,)."""
        shape = len(ordered), min(64 + 3 * count, len(self.entries))
        scores, entries = np.empty(shape, np.float32), np.empty(shape, np.int64)
        unread, known = np.full(len(ordered), -np.inf), np.full(len(ordered), -np.inf)
        both = np.hstack([ordered, np.maximum(ordered, 0)])
        slack = quantization_error(both)
        self._held += len(ordered) * len(self.entries)
        pending, pieces = np.arange(len(ordered)), len(self._sizes)
        for most in dict.fromkeys((min(pieces, max(256, pieces // 8)), pieces)):  # it takes long to sort all bounds
            bounds, numbers = self._bounds.search(both[pending], most)
            bounds = np.maximum(bounds, lowest[pending, None]) + slack[pending, None]
            if most < pieces or pieces <= 256:  # the first time
                first, found = self._scan(ordered, numbers[:, : _FIRST + count // 256], count)
                known = np.where(found[:, -1] >= 0, first[:, -1] - error, -np.inf)
            reach = (bounds >= known[pending, None]).sum(1)  # at least 1: no score is above the best bound
            own = np.arange(len(pending))
            whole = (reach == most) | (numbers[own, reach - 1] < 0)  # perhaps more than was asked for
            some = np.flatnonzero(~whole)
            if len(some):
                chosen = np.where(
                    np.arange(reach[some].max()) < reach[some, None], numbers[some, : reach[some].max()], -1
                )
                scores[pending[some]], entries[pending[some]] = self._scan(ordered[pending[some]], chosen, shape[1])
                unread[pending[some]] = bounds[some, reach[some]]
            pending = pending[whole]
            if not len(pending):
                return scores, entries, unread
        everything = np.tile(np.arange(pieces), (len(pending), 1))
        scores[pending], entries[pending] = self._scan(ordered[pending], everything, shape[1])
        return scores, entries, unread

    def _scan(self, ordered: Float32, pieces: Int64, count: int) -> tuple[Float32, Int64]:
        """The best entries in some pieces (q, p), -1 for none: scores and entries (q, count)."""
        pieces = np.ascontiguousarray(pieces)
        scores, entries = np.empty((len(ordered), count), np.float32), np.empty((len(ordered), count), np.int64)
        arrays = (ordered, pieces, np.zeros(pieces.shape, np.float32), scores, entries)
        x, *others = (faiss.swig_ptr(array) for array in arrays)
        parameters = faiss.SearchParametersIVF(nprobe=pieces.shape[1])
        self._lists.search_preassigned_c(len(ordered), x, count, *others, False, parameters)
        self._read += int(self._sizes[pieces[pieces >= 0]].sum())
        return scores, entries


def pays(codes: Codes, metric: str) -> bool:
    """Whether queries like the codes themselves would leave out most of what there is, judged by the first codes (of
    many, in an order that says nothing): a smaller set with smaller pieces, asked for fewer neighbors. A query is as
    sure of a bit as the codes near it agree; a metric for which all bits count alike leaves out less."""
    share = _SAMPLE / len(codes)
    first, asked = codes[:_SAMPLE], codes[_SAMPLE : _SAMPLE + _ASKED]
    sample = PrunedEngine(first, max(_BLOCK, int(_PIECE * share)))
    _, near = faiss.knn_hamming(np.ascontiguousarray(asked.packed), np.ascontiguousarray(first.packed), _NEAR)
    ones = asked.unpack() + first[near.ravel()].unpack().reshape(_ASKED, _NEAR, -1).sum(1, dtype=np.int64)
    logits = np.log((ones + 0.5) / (_NEAR + 1.5 - ones))
    scorer = BitScorer.of(metric, logits, sample.entries)
    list(sample.best(scorer.weights, max(_LEAST, int(_K * share))))
    return sample.read <= _PAYS


def _edges(first: Int64, piece: int) -> Int64:
    """Where pieces begin in ascending numbers of 64 bits, and their end: the longest runs of at most ``piece`` that
    begin alike; longer only where all 64 bits are equal."""
    edges, pending = [len(first)], [(0, len(first), 63)]
    while pending:
        start, stop, bit = pending.pop()
        if stop - start <= piece or bit < 0:
            edges.append(start)
            continue
        ones = (int(first[start]) >> bit | 1) << bit
        middle = start + int(np.searchsorted(first[start:stop], np.uint64(ones)))
        pending += [(a, b, bit - 1) for a, b in ((start, middle), (middle, stop)) if a < b]
    return np.sort(edges)


def _lists(codes: Codes, order: Int64, edges: Int64, quantizer: faiss.Index) -> tuple[faiss.IndexIVFPQFastScan, Codes]:
    """The pieces as FAISS's inverted lists, and of each the bits that all its codes have and that only some have."""
    width = quantizer.d
    lists = faiss.IndexIVFPQFastScan(
        quantizer, width, len(edges) - 1, width // 4, 4, faiss.METRIC_INNER_PRODUCT, _BLOCK
    )
    lists.by_residual = False
    patterns = nibble_index(codes[:0])  # by name: what it lends is gone with it
    lists.pq.centroids = patterns.pq.centroids
    lists.is_trained, lists.ntotal = True, len(codes)
    stored = faiss.downcast_InvertedLists(lists.invlists)
    bounds = np.empty((len(edges) - 1, 2 * codes.bytes_per_item), np.uint8)
    begin = 0
    while begin < len(edges) - 1:
        end = max(begin + 1, int(np.searchsorted(edges, edges[begin] + _PACKED, side="right")) - 1)
        own = edges[begin : end + 1] - edges[begin]
        rows = order[edges[begin] : edges[end]].astype(np.int64)
        packed = codes.packed[rows]
        every = np.bitwise_and.reduceat(packed, own[:-1], axis=0)
        bounds[begin:end] = np.hstack([every, np.bitwise_or.reduceat(packed, own[:-1], axis=0) & ~every])
        # Each piece fills whole blocks, and FAISS puts the codes of a block side by side.
        sizes = np.diff(own)
        blocks = np.concatenate([[0], np.cumsum(-(-sizes // _BLOCK))]) * _BLOCK
        filled = np.zeros((int(blocks[-1]), codes.bytes_per_item), np.uint8)
        filled[np.arange(len(rows)) + np.repeat(blocks[:-1] - own[:-1], sizes)] = packed
        kernel = faiss.IndexPQFastScan(nibble_index(Codes(filled, width)), _BLOCK)
        laid = faiss.rev_swig_ptr(kernel.codes.get(), filled.nbytes)
        for number in range(begin, end):
            at = number - begin
            stored.add_entries(
                number,
                int(sizes[at]),
                faiss.swig_ptr(rows[own[at] :]),
                faiss.swig_ptr(laid[blocks[at] * codes.bytes_per_item :]),
            )
        begin = end
    return lists, Codes(bounds, 2 * width)
