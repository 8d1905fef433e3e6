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
_SAMPLE, _ASKED, _K = 1 << 16, 32, 100  # codes, queries and neighbors by which ``pays`` judges
_PAYS = 0.5  # share of the codes that must be left out, as a piece is read more slowly than all in a row


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
        for start in range(0, len(weights), _QUERIES):
            yield from self._best(weights[start : start + _QUERIES], min(count, len(self.entries)))

    def _best(self, weights: Float32, count: int) -> Iterator[Candidates]:
        ordered, peak, error = kernel_weights(weights)
        lowest = np.minimum(ordered, 0).sum(1, dtype=np.float64)  # FAISS leaves out what scores no more than this
        bounds, pieces = self._bounded(ordered, lowest)
        scores, entries = self._scan(ordered, pieces[:, : _FIRST + count // 256], count)
        known = np.where(entries[:, -1] >= 0, scores[:, -1] - error, -np.inf)
        reach = (bounds >= known[:, None]).sum(1)  # at least 1: the first bound is above all that is known
        queries = np.arange(len(weights))
        every = (reach == bounds.shape[1]) | (pieces[queries, reach - 1] < 0)
        unread = np.where(every, -np.inf, bounds[queries, np.minimum(reach, bounds.shape[1] - 1)])
        asked = min(64 + 3 * count, len(self.entries))  # more than ``count``: scores are rounded, and many may tie
        scores, entries = np.empty((len(weights), asked), np.float32), np.empty((len(weights), asked), np.int64)
        some = np.flatnonzero(~every)
        if len(some):
            most = int(reach[some].max())
            chosen = np.where(np.arange(most) < reach[some, None], pieces[some, :most], -1)
            scores[some], entries[some] = self._scan(ordered[some], chosen, asked)
        for query in np.flatnonzero(every):
            one = slice(query, query + 1)
            scores[one], entries[one] = self._scan(ordered[one], np.arange(len(self._sizes))[None], asked)
        self._held += len(weights) * len(self.entries)
        for number, found in enumerate(entries):
            if found[count - 1] < 0 or not weights[number].any():
                yield Candidates(found[found >= 0], np.inf)
                continue
            # What scores less than this is, rounding or not, behind ``count`` others.
            near = int((scores[number] >= scores[number, count - 1] - 2.001 * error[number]).sum())
            left = scores[number, min(near, asked - 1)] if found[min(near, asked - 1)] >= 0 else lowest[number]
            yield Candidates(found[:near], float(peak[number] * max(left + error[number], unread[number])))

    def _bounded(self, ordered: Float32, lowest: Float64) -> tuple[Float64, Int64]:
        """The bounds of the pieces, the highest first (an eighth of many), and their numbers; -1: of the lowest bound
        there can be."""
        both = np.hstack([ordered, np.maximum(ordered, 0)])
        bounds, pieces = self._bounds.search(both, min(len(self._sizes), max(256, len(self._sizes) // 8)))
        return np.maximum(bounds, lowest[:, None]) + quantization_error(both)[:, None], pieces

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


def pays(codes: Codes) -> bool:
    """Whether queries like the codes themselves would leave out half of what there is, judged by the first codes (of
    many, in an order that says nothing): a smaller set with smaller pieces, asked for fewer neighbors."""
    share = _SAMPLE / len(codes)
    sample = PrunedEngine(codes[:_SAMPLE], max(_BLOCK, int(_PIECE * share)))
    rng = np.random.default_rng(0)
    bits = codes[_SAMPLE : _SAMPLE + _ASKED].unpack()
    logits = (2.0 * bits - 1) * np.abs(rng.normal(size=bits.shape))
    scorer = BitScorer.of("asymmetric_hamming", logits, sample.entries)
    list(sample.best(scorer.weights, max(1, int(_K * share))))
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
