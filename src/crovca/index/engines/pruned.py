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
from crovca.errors import FileFormatError
from crovca.index.engines.base import BLOCK, CandidateEngine, Candidates, KeptPieces
from crovca.index.engines.pieces import PIECE, Pieces
from crovca.index.engines.scan import groups_if_fewer, kernel_weights, nibble_index, quantization_error
from crovca.index.scoring import BitScorer, Float32, Float64, Int64

_FIRST = 8  # pieces that tell how well the k-th scores
_QUERIES = 256  # at a time
_SAMPLE, _ASKED, _K, _NEAR = 1 << 18, 64, 100, 10  # codes, queries and neighbors by which ``pays`` judges
_LEAST = 4  # neighbors of the sample: with fewer, what a metric with many ties has to read is underrated (measured)
_PAYS = 0.25  # share of the codes that may be read, as pieces are read more slowly than all in a row (measured)


class PrunedEngine(CandidateEngine):
    """See the module. Random codes gain nothing (``pays``); where at most half are distinct, those are searched.

    Args:
        codes: (n,), in tie order.
        piece: how many codes a piece may hold.
        kept: their pieces, where these lie in files.
    """

    name: ClassVar[str] = "pruned"

    def __init__(self, codes: Codes, piece: int = PIECE, kept: KeptPieces | None = None) -> None:
        pieces = None if kept is None else Pieces.kept(codes, kept)
        super().__init__(codes, groups_if_fewer(codes) if pieces is None else None)
        self._pieces = pieces or Pieces.of(self.entries, piece)
        self._bounds = faiss.IndexPQFastScan(nibble_index(self._pieces.bounds), BLOCK)
        self._read = self._held = 0

    @property
    def nbytes(self) -> int:
        """Of the pieces, and of the groups."""
        return self._pieces.nbytes + (0 if self.groups is None else self.groups.nbytes)

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
        pending, pieces = np.arange(len(ordered)), len(self._pieces.sizes)
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
        self._pieces.lists.search_preassigned_c(len(ordered), x, count, *others, False, parameters)
        self._read += int(self._pieces.sizes[pieces[pieces >= 0]].sum())
        if entries.max(initial=-1) >= len(self.entries) or entries.min(initial=0) < -1:
            raise FileFormatError("pieces.npy of a segment is damaged; 'crovca index verify' tells which")
        return scores, entries


def pays(codes: Codes, metric: str) -> bool:
    """Whether queries like the codes themselves would leave out most of what there is, judged by the first codes (of
    many, in an order that says nothing): a smaller set with smaller pieces, asked for fewer neighbors. A query is as
    sure of a bit as the codes near it agree; a metric for which all bits count alike leaves out less."""
    share = _SAMPLE / len(codes)
    first, asked = codes[:_SAMPLE], codes[_SAMPLE : _SAMPLE + _ASKED]
    sample = PrunedEngine(first, max(BLOCK, int(PIECE * share)))
    _, near = faiss.knn_hamming(np.ascontiguousarray(asked.packed), np.ascontiguousarray(first.packed), _NEAR)
    ones = asked.unpack() + first[near.ravel()].unpack().reshape(_ASKED, _NEAR, -1).sum(1, dtype=np.int64)
    logits = np.log((ones + 0.5) / (_NEAR + 1.5 - ones))
    scorer = BitScorer.of(metric, logits, sample.entries)
    list(sample.best(scorer.weights, max(_LEAST, int(_K * share))))
    return sample.read <= _PAYS
