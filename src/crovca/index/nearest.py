"""Pairs of items whose kept embeddings are near, without comparing all pairs of many.

Embeddings are seen by their 128 leading components, the larger ones made less so: 64, or all alike, find fewer edits of
pictures. Of many items k-means makes lists, and an item is compared with those of the lists that are nearest to it
(FAISS's inverted file). Codes do not tell enough here: among a million pictures the 100 nearest by a code of 64 bits
hold 85 % of the edits of a picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crovca.data.embeddings import evenly_spaced, unit_rows
from crovca.index.memo import imported
from crovca.index.originals import Originals
from crovca.index.scoring import Float32, Int64

_LEADING, _SAMPLE = 128, 4096  # components, and the items that they are found on
_ALL = 1 << 32  # comparisons, up to which nothing is left out
_PROBED = 4  # lists
_BLOCK = 1 << 14


def nearest_pairs(
    embeddings: Originals, asked: Int64, k: int, advance: Callable[[float], object] = lambda share: None
) -> tuple[Int64, Int64]:
    """Each asked item with the k others that are nearest to it by cosine, of the leading components.

    Args:
        embeddings: (n, d).
        asked: their row numbers (q,).
        k: at least 1.
        advance: is told which share is done.

    Returns:
        Pairs (i, j), i < j, sorted and each once: two int64 arrays. All are found while q * n is at most 4 billion;
        of more, nearly all (``benchmarks/duplicates.py``).
    """
    count = len(embeddings)
    if count < 2 or not len(asked):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    leading = _leading(embeddings)
    faiss = imported("faiss")
    found = faiss.IndexFlatIP(leading.shape[1])
    if len(asked) * count > _ALL:
        lists = int(2 * np.sqrt(count))
        found = faiss.IndexIVFFlat(found, leading.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        found.cp.niter, found.cp.max_points_per_centroid, found.nprobe = 6, 64, _PROBED
        found.train(leading)
    found.add(leading)
    keys = []
    for start in range(0, len(asked), _BLOCK):
        advance(start / len(asked))
        block = asked[start : start + _BLOCK]
        _, others = found.search(leading[block], min(k + 1, count))
        first, second = np.repeat(block, others.shape[1]), others.ravel()
        real = (second >= 0) & (second != first)  # -1: the lists hold fewer
        keys.append(np.unique(np.minimum(first, second)[real] * count + np.maximum(first, second)[real]))
    pairs = np.unique(np.concatenate(keys))
    return pairs // count, pairs % count


def _leading(embeddings: Originals) -> Float32:
    """The leading components (n, at most 128) of all rows, of length 1."""
    sample = unit_rows(embeddings[evenly_spaced(len(embeddings), _SAMPLE)])
    sizes, basis = np.linalg.eigh(sample.T @ sample)
    sizes, basis = np.maximum(sizes, 1e-6 * max(sizes[-1], 1e-6))[-_LEADING:], basis[:, -_LEADING:]
    basis = (basis / sizes**0.25).astype(np.float32)
    result = np.empty((len(embeddings), basis.shape[1]), np.float32)
    for start in range(0, len(result), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = unit_rows(embeddings[part] @ basis)
    return result
