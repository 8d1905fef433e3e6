"""Near duplicates: all pairs of codes within a Hamming distance, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani and Fleet, 2012): cut codes into m chunks; two codes that differ in at most r bits
agree in at least m - r chunks. So for each choice of m - r chunks the codes are sorted by these bits, and only
neighbors that agree there are compared. More chunks mean more sorts of longer keys, and fewer comparisons; m
is chosen by counting. Equal codes are compared once, however many items have them. Pairs are not kept: memory is that
of a few numbers for each code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from crovca.index.engines.base import Groups
from crovca.index.memo import imported
from crovca.index.scoring import Int64

Words = npt.NDArray[np.uint64]

_SORT, _COMPARE, _COMPARE_ALL = (80.0, 12.0, 1.5)  # nanoseconds: to sort an item, to compare a pair, and in bulk
_MAX_PAIRS = 2_000_000_000
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Duplicates:
    """Items that are near duplicates of each other.

    Attributes:
        groups: ids (size,) of each group, the largest group first: items that are linked by a chain of steps
            of at most ``radius`` bits. Within a group in the order of ties, which is arbitrary but fixed.
        distances: uint16 (size,) for each group, Hamming distances to the group's first item.
        radius: as asked for.
        links: number of pairs of different codes within the radius.
    """

    groups: list[npt.NDArray[Any]]
    distances: list[npt.NDArray[np.uint16]]
    radius: int
    links: int

    @property
    def items(self) -> int:
        """How many items are in a group."""
        return sum(len(group) for group in self.groups)


def find_duplicates(codes: Codes, radius: int, ids: Callable[[Int64], npt.NDArray[Any]]) -> Duplicates:
    """Group the rows of ``codes`` (see ``Duplicates``); ``ids`` tells the ids of some rows."""
    if isinstance(radius, bool) or not isinstance(radius, int | np.integer) or not 0 <= radius <= codes.bits:
        raise InvalidInputError(f"the radius must be a whole number of bits from 0 to {codes.bits}, got {radius!r}")
    if not len(codes):
        return Duplicates([], [], int(radius), 0)
    distinct = Groups.of(codes)
    count = len(distinct.codes)
    component, links = np.arange(count), 0
    for first, second in close_pairs(distinct.codes, int(radius)):
        links += len(first)
        if links > _MAX_PAIRS:
            raise InvalidInputError(
                f"more than {_MAX_PAIRS:,} pairs of codes are within {radius} bits: take a smaller radius or more bits"
            )
        sides = component[first], component[second]
        graph = imported("scipy.sparse").coo_array((np.ones(len(first), np.bool_), sides), shape=(count, count))
        component = imported("scipy.sparse.csgraph").connected_components(graph, directed=False)[1][component]
    member = np.empty(len(codes), np.int64)  # the component of each row
    member[distinct.rows] = np.repeat(component, np.diff(distinct.starts))
    order = np.argsort(member, kind="stable")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(member[order])) + 1, [len(codes)]])
    sizes = np.diff(starts)
    (several,) = np.nonzero(sizes > 1)
    several = several[np.lexsort((order[starts[:-1]][several], -sizes[several]))]
    members = [order[starts[number] : starts[number + 1]] for number in several]
    if not members:
        return Duplicates([], [], int(radius), links)
    rows = np.concatenate(members)
    ends = np.cumsum(sizes[several])
    heads = np.repeat(np.concatenate([[0], ends[:-1]]), sizes[several])  # the place of each one's first
    words = codes[rows].words()
    apart = np.bitwise_count(words ^ words[heads]).sum(1, dtype=np.uint16)
    return Duplicates(np.split(ids(rows), ends[:-1]), np.split(apart, ends[:-1]), int(radius), links)


def close_pairs(codes: Codes, radius: int) -> Iterator[tuple[Int64, Int64]]:
    """All pairs (i, j), i < j, of distinct codes that differ in at most ``radius`` bits, each once, in no order: two
    int64 arrays at a time, of about four million."""
    words = codes.words()
    count = len(codes)
    if radius == 0 or count < 2:
        return
    chunks, cost = _best_chunks(words, codes.bits, radius)
    if cost > _COMPARE_ALL * words.shape[1] * count * count / 2:
        parts = _all_pairs(words, radius)
    else:
        parts = _pairs_by_chunks(words, codes.bits, radius, chunks)
    held: list[tuple[Int64, Int64]] = []
    total = 0
    for part in parts:
        held.append(part)
        total += len(part[0])
        if total > _BLOCK:
            yield _joined(held)
            held, total = [], 0
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    one, other = (np.concatenate(side) for side in zip(*parts, strict=True))
    return np.minimum(one, other), np.maximum(one, other)


def _masks(bits: int, chunks: int) -> list[Words]:
    """The words (w,) with the bits of one chunk set, for each chunk: bit j is in chunk j mod ``chunks``."""
    position = np.arange(bits)
    return [Codes.from_bits((position % chunks == chunk)[None]).words()[0] for chunk in range(chunks)]


def _keys(words: Words, mask: Words) -> Words:
    """A 64-bit key of the masked bits: equal where these are equal (and, beyond 64 bits, very rarely elsewhere)."""
    keys = words[:, 0] & mask[0]
    for column in range(1, words.shape[1]):
        keys = (keys ^ (keys >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + (words[:, column] & mask[column])
    return keys


def _best_chunks(words: Words, bits: int, radius: int) -> tuple[int, float]:
    """The number of chunks that costs least, and its cost in nanoseconds, from a count on these codes."""
    best = (radius + 1, np.inf)
    for chunks in range(radius + 1, min(radius + 6, bits + 1)):
        sorts = comb(chunks, radius)
        if sorts * _SORT * len(words) >= best[1]:
            break
        mask = np.bitwise_or.reduce(_masks(bits, chunks)[: chunks - radius])
        keys = np.sort(_keys(words, mask))
        sizes = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(keys)) + 1, [len(keys)]])).astype(np.float64)
        comparisons = float((sizes * (sizes - 1) / 2).sum())
        best = min(best, (chunks, sorts * (_SORT * len(words) + _COMPARE * comparisons)), key=lambda pair: pair[1])
    return best


def _pairs_by_chunks(words: Words, bits: int, radius: int, chunks: int) -> Iterator[tuple[Int64, Int64]]:
    masks = _masks(bits, chunks)
    for agreeing in combinations(range(chunks), chunks - radius):
        same = np.bitwise_or.reduce([masks[chunk] for chunk in agreeing])
        # A pair that agrees in more chunks is found with the first of these.
        differing = [masks[chunk] for chunk in range(agreeing[-1]) if chunk not in agreeing]
        keys = _keys(words, same)
        order = np.argsort(keys)
        keys = keys[order]
        here = np.arange(len(keys))
        for lag in range(1, len(keys)):
            here = here[: np.searchsorted(here, len(keys) - lag)]
            here = here[keys[here] == keys[here + lag]]
            if not len(here):
                break
            for start in range(0, len(here), _BLOCK):
                block = here[start : start + _BLOCK]
                first, second = _close(words, order[block], order[block + lag], radius)
                bits_apart = words[first] ^ words[second]
                new = ~(bits_apart & same).any(axis=1)
                for mask in differing:
                    new &= (bits_apart & mask).any(axis=1)
                yield first[new], second[new]


def _all_pairs(words: Words, radius: int) -> Iterator[tuple[Int64, Int64]]:
    for lag in range(1, len(words)):
        for start in range(0, len(words) - lag, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(words) - lag))
            yield _close(words, rows, rows + lag, radius)


def _close(words: Words, first: Int64, second: Int64, radius: int) -> tuple[Int64, Int64]:
    """Those of the pairs within the radius."""
    distances = np.zeros(len(first), np.uint16)
    for column in words.T:
        distances += np.bitwise_count(column[first] ^ column[second])
    close = distances <= radius
    return first[close], second[close]
