"""Which ids an index may have: what makes adding to a large one cost what adding to a small one does.

A Bloom filter whose blocks are words of 64 bits: an id sets five bits of one word. The word's number is the upper bits
of its hash. So hashes that ascend, as those of a segment do, go through the filter from its beginning to its end.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crovca.index.engines.base import Mask

Hashes = npt.NDArray[np.uint64]

_FIRST = 20  # words of the first layer, as a power of 2
_PER_WORD = 4  # ids, so that fewer than one in a hundred that are not there seem to be
_BITS, _BLOCK = 5, 1 << 18


class IdFilter:
    """Takes two to four bytes an id. It grows by layers, each as large as those before it; none is written anew."""

    def __init__(self) -> None:
        self._layers: list[Hashes] = []
        self._room = 0
        self.count = 0

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(layer.nbytes for layer in self._layers)

    def add(self, hashes: Hashes) -> None:
        """Take in ids, by their ascending hashes."""
        if self._room < len(hashes):
            size = max(self.count, len(hashes)) // _PER_WORD
            self._layers.append(np.zeros(1 << max(_FIRST, size.bit_length()), np.uint64))
            self._room = _PER_WORD * len(self._layers[-1])
        layer = self._layers[-1]
        for start in range(0, len(hashes), _BLOCK):
            part = hashes[start : start + _BLOCK]
            words = _words(layer, part)
            first = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))
            layer[words[first]] |= np.bitwise_or.reduceat(_pattern(part), first)
        self._room -= len(hashes)
        self.count += len(hashes)

    def may_have(self, hashes: Hashes) -> Mask:
        """False where an id is certainly not among those taken in: bool (n,)."""
        found = np.zeros(len(hashes), np.bool_)
        pattern = _pattern(hashes)
        for layer in self._layers:
            found |= layer[_words(layer, hashes)] & pattern == pattern
        return found


def _words(layer: Hashes, hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(65 - len(layer).bit_length())


def _pattern(hashes: Hashes) -> Hashes:
    pattern = np.zeros(len(hashes), np.uint64)
    for place in range(_BITS):
        pattern |= np.uint64(1) << (hashes >> np.uint64(6 * place) & np.uint64(63))
    return pattern
