"""Codes in pieces that begin alike, as the engine "pruned" reads them: in memory, or in a segment's files.

::

    segments/00000001/pieces.npy          uint8: of each piece its codes as FAISS reads them, in blocks of 32 of which
                                          the last is filled up, and then the row of each, int64, as many
    segments/00000001/piece_sizes.npy     int64 (p,): how many codes a piece has
    segments/00000001/piece_bounds.npy    uint8 (p, 2 * bytes): the bits that all its codes have; what only some have

What lies in files is mapped, so an index of any size is searched at once, and in little memory.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.errors import StorageError
from crovca.index.engines.base import BLOCK, ROW_BYTES, KeptPieces, rooms_of
from crovca.index.engines.scan import nibble_index
from crovca.index.scoring import Int64

PIECE = 4096  # codes of a piece at most: smaller ones leave out more and are slower to read (measured)
_SORTED = 1 << 21  # codes laid out at a time, at least those of one beginning
_READ = 1 << 20  # codes read at a time
_COMPARED = 512  # pieces compared at a time

_logger = logging.getLogger(__name__)


class LaidOut(NamedTuple):
    """Some pieces: ``sizes`` int64 (p,), ``bounds`` uint8 (p, 2 * bytes), and ``content`` as ``pieces.npy`` has it."""

    sizes: Int64
    bounds: npt.NDArray[np.uint8]
    content: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pieces:
    """The pieces of some codes.

    Attributes:
        sizes: int64 (p,): how many codes each has.
        bounds: (p,) codes of twice the length, see the module.
        lists: FAISS's inverted lists of them.
        nbytes: memory held.
        owned: what ``lists`` points to.
    """

    sizes: Int64
    bounds: Codes
    lists: faiss.IndexIVFPQFastScan
    nbytes: int
    owned: tuple[Any, ...]

    @classmethod
    def of(cls, codes: Codes, piece: int = PIECE) -> Pieces:
        """Lay out codes, in memory."""
        parts = list(lay_out(codes, piece))
        sizes = np.concatenate([part.sizes for part in parts])
        width = codes.bytes_per_item
        bounds = Codes(np.concatenate([part.bounds for part in parts]), 16 * width)
        lists, quantizer = _empty(codes, len(sizes))
        stored, number = faiss.downcast_InvertedLists(lists.invlists), 0
        while parts:
            part = parts.pop(0)
            for size, start, room in zip(part.sizes.tolist(), *_places(part.sizes, width), strict=True):
                rows = part.content[start + width * room :][: ROW_BYTES * size].view(np.int64)
                stored.add_entries(number, size, faiss.swig_ptr(rows), faiss.swig_ptr(part.content[start:]))
                number += 1
        held = int(rooms_of(sizes).sum()) * (width + ROW_BYTES) + (2 * width + ROW_BYTES) * len(sizes)
        return cls(sizes, bounds, lists, held, (quantizer,))

    @classmethod
    def kept(cls, codes: Codes, kept: KeptPieces) -> Pieces | None:
        """The pieces of these codes that lie in files; None where this FAISS would lay them out in another way.

        Raises:
            StorageError: they cannot be mapped.
        """
        width = codes.bytes_per_item
        starts, rooms = _places(kept.sizes, width)
        if _rows_of(codes, kept, 0, 1) is None:
            _logger.warning("%s was laid out for another FAISS, or is damaged; it is not used", kept.name)
            return None
        lists, quantizer = _empty(codes, len(kept.sizes))
        try:
            # By the file that is open: whatever stands at its path now.
            stored = faiss.OnDiskInvertedLists(len(kept.sizes), width, f"/dev/fd/{kept.held.file}")
            stored.read_only, stored.prefetch_nthread = True, 0
            stored.totsize = kept.offset + len(kept.content)
            stored.do_mmap()
        except RuntimeError as error:
            raise StorageError(f"cannot map {kept.name}: {error}") from error
        # FAISS's (size, capacity, offset) of each list.
        address = int(stored.lists.data().this)
        entries = np.ctypeslib.as_array((ctypes.c_size_t * (3 * len(kept.sizes))).from_address(address)).reshape(-1, 3)
        entries[:] = np.stack([kept.sizes, rooms, kept.offset + starts], axis=1)
        lists.replace_invlists(stored)
        bounds = Codes(kept.bounds, 16 * width)
        return cls(kept.sizes, bounds, lists, bounds.packed.nbytes + 32 * len(kept.sizes), (quantizer, stored))


def are_of(codes: Codes, kept: KeptPieces) -> bool:
    """Whether pieces in files are these codes, every row once, as this FAISS lays them out."""
    seen = np.zeros(len(codes), np.bool_)
    for start in range(0, len(kept.sizes), _COMPARED):
        rows = _rows_of(codes, kept, start, start + _COMPARED)
        if rows is None:
            return False
        seen[rows] = True
    return bool(seen.all())


def _rows_of(codes: Codes, kept: KeptPieces, start: int, stop: int) -> Int64 | None:
    """The rows of some pieces; None where they are not what these codes make, or have other bounds."""
    width, sizes = codes.bytes_per_item, kept.sizes[start:stop]
    content = kept.content[int(rooms_of(kept.sizes[:start]).sum()) * (width + ROW_BYTES) :]
    parts, laid = [], []
    for size, at, room in zip(sizes, *_places(sizes, width), strict=True):
        laid.append(content[at : at + width * room])
        parts.append(content[at + width * room :][: ROW_BYTES * size].view(np.int64))
    rows = np.concatenate(parts)
    if rows.min() < 0 or rows.max() >= len(codes):
        return None
    own = codes[rows]
    bounds = _bounds(own, np.cumsum(sizes) - sizes)
    same = np.array_equal(bounds, kept.bounds[start:stop]) and np.array_equal(_laid(own, sizes), np.concatenate(laid))
    return rows if same else None


def lay_out(codes: Codes, piece: int = PIECE) -> Iterator[LaidOut]:
    """Codes in the order of their bits, in pieces, some at a time: of any number in little memory."""
    beginnings, counts = _beginnings(codes)
    ends = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + _SORTED, side="right")) - 1)
        rows = np.concatenate(
            [  # a part at a time: of many codes, masks of all would be large
                at + np.flatnonzero((part >= start) & (part < stop))
                for at in range(0, len(beginnings), _READ)
                for part in [beginnings[at : at + _READ]]
            ]
        )
        start = stop
        if not len(rows):
            continue
        own = codes[rows]
        words = own.words()
        order = np.lexsort(words.T[::-1]) if words.shape[1] > 1 else np.argsort(words[:, 0])
        edges, rows = _edges(words[order, 0], piece), rows[order]
        del words
        ordered, sizes = own[order], np.diff(edges)
        laid, width = _laid(ordered, sizes), codes.bytes_per_item
        starts, rooms = _places(sizes, width)
        content = np.zeros(int(rooms.sum()) * (width + ROW_BYTES), np.uint8)
        before = starts // (width + ROW_BYTES) * width
        for begin, end, at, there, room in zip(edges[:-1], edges[1:], starts, before, width * rooms, strict=True):
            content[at : at + room] = laid[there : there + room]
            content[at + room :][: ROW_BYTES * (end - begin)] = rows[begin:end].view(np.uint8)
        yield LaidOut(sizes, _bounds(ordered, edges[:-1]), content)


def _places(sizes: Int64, width: int) -> tuple[Int64, Int64]:
    """Where each piece begins in the content, in bytes, and the codes that it has room for."""
    rooms = rooms_of(sizes)
    return (np.cumsum(rooms) - rooms) * (width + ROW_BYTES), rooms


def _beginnings(codes: Codes) -> tuple[npt.NDArray[np.uint16], Int64]:
    """The first 16 bits of each code as a number, and how many codes have each."""
    found, counts = np.empty(len(codes), np.uint16), np.zeros(1 << 16, np.int64)
    for start in range(0, len(codes), _READ):
        packed = codes.packed[start : start + _READ]
        part = packed[:, 0].astype(np.uint16) << np.uint16(8)
        if packed.shape[1] > 1:
            part |= packed[:, 1]
        found[start : start + _READ] = part
        counts += np.bincount(part, minlength=len(counts))
    return found, counts


def _edges(first: npt.NDArray[np.uint64], piece: int) -> Int64:
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


def _bounds(codes: Codes, starts: Int64) -> npt.NDArray[np.uint8]:
    """Of pieces that begin at these rows, the bits that all codes have, and those that only some have."""
    every = np.bitwise_and.reduceat(codes.packed, starts, axis=0)
    return np.hstack([every, np.bitwise_or.reduceat(codes.packed, starts, axis=0) & ~every])


def _laid(codes: Codes, sizes: Int64) -> npt.NDArray[np.uint8]:
    """Codes piece by piece as the kernel reads them: each piece fills whole blocks, and FAISS puts the codes of a
    block side by side."""
    rooms = rooms_of(sizes)
    moved = np.repeat(np.cumsum(rooms) - rooms - (np.cumsum(sizes) - sizes), sizes)
    filled = np.zeros((int(rooms.sum()), codes.bytes_per_item), np.uint8)
    filled[np.arange(len(codes)) + moved] = codes.packed
    kernel = faiss.IndexPQFastScan(nibble_index(Codes(filled, 8 * codes.bytes_per_item)), BLOCK)
    return faiss.rev_swig_ptr(kernel.codes.get(), filled.nbytes).copy()


def _empty(codes: Codes, pieces: int) -> tuple[faiss.IndexIVFPQFastScan, faiss.Index]:
    """FAISS's inverted lists of pieces, still empty, and the quantizer that they point to and never ask."""
    width = 8 * codes.bytes_per_item
    quantizer = faiss.IndexFlatIP(width)
    lists = faiss.IndexIVFPQFastScan(quantizer, width, pieces, width // 4, 4, faiss.METRIC_INNER_PRODUCT, BLOCK)
    lists.by_residual = False
    patterns = nibble_index(codes[:0])  # by name: what it lends is gone with it
    lists.pq.centroids = patterns.pq.centroids
    lists.is_trained, lists.ntotal = True, len(codes)
    return lists, quantizer
