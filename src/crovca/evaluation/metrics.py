"""Retrieval metrics. They take relevance, never a model or a score.

Throughout, ``relevance`` is a boolean array (q, k) whose column i says whether the item at rank i + 1 is
relevant, and ``total_relevant`` an int array (q,) with R, the number of relevant items in the whole
database. A function returns one float64 per query, as a fraction of 1; average them for the mean. A
query with nothing relevant to find scores 0.

Two forms of average precision are in use, and they differ widely (0.70 against 0.35 on one ranking):

* ``..._hits``: divided by the relevant items inside the top k, the habit of the hashing literature;
* ``..._min_k_r``: divided by min(k, R), which also asks that they be found.

Both average over queries to a mAP@k. Ties are met by ``expected_average_precision``: the mean over all
orders within groups of equal distance.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crovca.errors import InvalidInputError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Relevance = npt.NDArray[np.bool_]


def average_precision_hits(relevance: Relevance) -> Float64:
    """AP@k = sum_i P@i rel_i / (relevant items inside the top k); 0 where there are none.

    >>> average_precision_hits(np.array([[True, False, True, False]]))
    array([0.83333333])
    """
    hits = _checked(relevance).sum(axis=1)
    return _divide(_precision_sum(relevance), hits)


def average_precision_min_k_r(relevance: Relevance, total_relevant: npt.ArrayLike) -> Float64:
    """AP@k = sum_i P@i rel_i / min(k, R); 0 where R is 0.

    >>> average_precision_min_k_r(np.array([[True, False, True, False]]), [10])
    array([0.41666667])
    """
    total = _total(relevance, total_relevant)
    return _divide(_precision_sum(relevance), np.minimum(relevance.shape[1], total))


def map_curve_hits(relevance: Relevance) -> Float64:
    """mAP@i for every i from 1 to k, in the form divided by hits: float64 (k,), averaged over queries."""
    hits = np.cumsum(_checked(relevance), axis=1)
    return _divide(np.cumsum(_precisions(relevance) * relevance, axis=1), hits).mean(axis=0)


def map_curve_min_k_r(relevance: Relevance, total_relevant: npt.ArrayLike) -> Float64:
    """mAP@i for every i from 1 to k, in the form divided by min(i, R): float64 (k,), averaged over queries."""
    total = _total(relevance, total_relevant)
    ranks = np.arange(1, relevance.shape[1] + 1)
    sums = np.cumsum(_precisions(relevance) * relevance, axis=1)
    return _divide(sums, np.minimum(ranks[None, :], total[:, None])).mean(axis=0)


def precision(relevance: Relevance) -> Float64:
    """Share of the top k that is relevant."""
    return _divide(_checked(relevance).sum(axis=1), np.asarray(relevance.shape[1]))


def recall(relevance: Relevance, total_relevant: npt.ArrayLike) -> Float64:
    """Share of the R relevant items that stand in the top k; 0 where R is 0."""
    total = _total(relevance, total_relevant)
    return _divide(relevance.sum(axis=1), total)


def hit(relevance: Relevance) -> Float64:
    """1 where anything relevant stands in the top k (the paper's Recall@1 is this with k = 1)."""
    return np.asarray(_checked(relevance).any(axis=1), np.float64)


def hit_curve(relevance: Relevance) -> Float64:
    """Share of queries with anything relevant in the top i, for every i from 1 to k: float64 (k,).

    >>> hit_curve(np.array([[False, True, False], [False, False, False]]))
    array([0. , 0.5, 0.5])
    """
    return np.asarray(np.logical_or.accumulate(_checked(relevance), axis=1).mean(axis=0), np.float64)


def neighbor_recall(true_rows: npt.NDArray[Any], found_rows: npt.NDArray[Any]) -> Float64:
    """Share of the true nearest rows (q, m) that stand among the found rows (q, k). Rows are unique in a line.

    >>> neighbor_recall(np.array([[3, 5]]), np.array([[5, 1, 2]]))
    array([0.5])
    """
    if true_rows.ndim != 2 or found_rows.ndim != 2 or len(true_rows) != len(found_rows):
        raise InvalidInputError(
            f"expected rows of shape (q, m) and (q, k), got {true_rows.shape} and {found_rows.shape}"
        )
    both = np.sort(np.concatenate([true_rows, found_rows], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / true_rows.shape[1]


class ExpectedAveragePrecision(NamedTuple):
    """Expected AP@k over all orders within ties, in both forms (see the module's docstring)."""

    hits: float
    min_k_r: float


def expected_average_precision(
    sizes: npt.ArrayLike, relevant: npt.ArrayLike, k: int, total_relevant: int
) -> ExpectedAveragePrecision:
    """Expected AP@k of one query when every order within a group of ties is equally likely.

    An item at place m of a group of t items, r of them relevant, behind c items of which R_c are
    relevant, contributes (r/t) (R_c + 1 + (m-1)(r-1)/(t-1)) / (c+m) (McSherry and Najork, 2008). A
    group cut by rank k shows h of its relevant items with hypergeometric probability; given h, the cut
    part is itself such a group, which makes the form divided by hits exact as well.

    Args:
        sizes: (g,) sizes of the groups in rank order; they must reach to rank k or to the last item.
        relevant: (g,) how many of each group are relevant.
        k: cut-off rank.
        total_relevant: R, relevant items in the whole database.

    >>> expected_average_precision([1, 1, 1, 1], [1, 0, 1, 0], 4, 2).hits  # no ties: plain AP
    0.8333333333333333
    >>> expected_average_precision([2], [1], 1, 1)  # first place: a coin
    ExpectedAveragePrecision(hits=0.5, min_k_r=0.5)
    """
    t, r = np.asarray(sizes, np.int64), np.asarray(relevant, np.int64)
    if t.shape != r.shape or t.ndim != 1 or (t < 1).any() or (r < 0).any() or (r > t).any():
        raise InvalidInputError("each tie group needs a size of at least 1 and 0 to size relevant items")
    if total_relevant < r.sum():
        raise InvalidInputError(f"R is {total_relevant}, but the groups hold {r.sum()} relevant items")
    starts = np.cumsum(t) - t
    inside = starts < k
    t, r, starts = t[inside], r[inside], starts[inside]
    if not len(t):
        return ExpectedAveragePrecision(0.0, 0.0)
    relevant_before = np.cumsum(r) - r
    last_size = min(k - int(starts[-1]), int(t[-1]))

    whole = slice(0, -1)
    fixed = float(_group_sum(t[whole], r[whole], starts[whole], relevant_before[whole]).sum())
    found, chance = _hypergeometric(int(t[-1]), int(r[-1]), last_size)
    cut = _group_sum(
        np.full(len(found), last_size), found, np.full(len(found), starts[-1]), np.full(len(found), relevant_before[-1])
    )
    sums = fixed + cut
    hits = _divide(sums, relevant_before[-1] + found)
    min_k_r = min(k, total_relevant)
    return ExpectedAveragePrecision(float(chance @ hits), float(chance @ sums) / min_k_r if min_k_r else 0.0)


def tied_items(sizes: npt.ArrayLike, k: int) -> int:
    """How many of the top k items are at the same distance as another item.

    Args:
        sizes: (g,) sizes of the groups of equal distance in rank order, reaching to rank k or to the last item.
        k: cut-off rank.

    >>> tied_items([1, 3, 1], 3)  # the group of three is cut after two
    2
    """
    sizes = np.asarray(sizes, np.int64)
    inside = np.clip(k - (np.cumsum(sizes) - sizes), 0, sizes)
    return int(inside[sizes > 1].sum())


def chance_average_precision(total_relevant: npt.ArrayLike, items: int, k: int) -> Float64:
    """Expected AP@k (divided by hits) of a random order of ``items``, R of them relevant: what guessing scores."""
    totals = np.asarray(total_relevant, np.int64)
    distinct, inverse = np.unique(totals, return_inverse=True)
    values = [expected_average_precision([items], [total], k, int(total)).hits for total in distinct]
    return np.asarray(values, np.float64)[inverse]


def chance_hit(total_relevant: npt.ArrayLike, items: int, k: int) -> Float64:
    """Chance that the top k of a random order of ``items`` holds any of the R relevant ones (``hit``).

    >>> chance_hit([1, 2, 0], 4, 2)
    array([0.5       , 0.83333333, 0.        ])
    """
    totals = np.asarray(total_relevant, np.float64)
    drawn = np.arange(min(k, items))
    # none of the first i is relevant: the product of (items - R - i) / (items - i)
    none = np.clip(items - totals[:, None] - drawn, 0, None) / (items - drawn)
    return np.asarray(1 - none.prod(axis=1), np.float64)


def _group_sum(t: Int64, r: Int64, start: Int64, before: Int64) -> Float64:
    """Expected sum of P@i rel_i over whole groups: sum over m of the term in expected_average_precision."""
    # sum 1/(c+m) and sum (m-1)/(c+m) over m = 1..t, by harmonic numbers.
    harmonic = _harmonic_numbers(int((start + t).max(initial=0)).bit_length())
    inverse = harmonic[start + t] - harmonic[start]
    rising = t - (start + 1) * inverse
    slope = np.where(t > 1, (r - 1) / np.maximum(t - 1, 1), 0.0)
    return np.asarray((r / t) * ((before + 1) * inverse + slope * rising), np.float64)


@lru_cache(maxsize=4)
def _harmonic_numbers(exponent: int) -> Float64:
    """H_0 to H_(2^exponent - 1)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 2**exponent))])


def _hypergeometric(size: int, relevant: int, drawn: int) -> tuple[Int64, Float64]:
    """Possible numbers of relevant items among ``drawn`` of ``size``, and their probabilities."""
    found = np.arange(max(0, drawn - (size - relevant)), min(relevant, drawn) + 1)
    if len(found) == 1:
        return found, np.ones(1)
    # P(h+1)/P(h) = (r-h)(s-h) / ((h+1)(t-r-s+h+1)), in logarithms from the smallest h on.
    h = found[:-1].astype(np.float64)
    ratio = (relevant - h) * (drawn - h) / ((h + 1) * (size - relevant - drawn + h + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratio))])
    weights = np.exp(logs - logs.max())
    return found, weights / weights.sum()


def _precisions(relevance: Relevance) -> Float64:
    ranks = np.arange(1, relevance.shape[1] + 1)
    return np.asarray(np.cumsum(relevance, axis=1) / ranks, np.float64)


def _precision_sum(relevance: Relevance) -> Float64:
    return np.asarray((_precisions(relevance) * relevance).sum(axis=1), np.float64)


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Float64:
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    zero = np.zeros(numerator.shape, np.float64)
    return np.divide(numerator, denominator, out=zero, where=denominator > 0)


def _checked(relevance: Relevance) -> Relevance:
    if relevance.ndim != 2 or relevance.dtype != np.bool_ or relevance.shape[1] < 1:
        raise InvalidInputError(
            f"relevance must be a boolean array (q, k) with k >= 1, got {relevance.dtype} {relevance.shape}"
        )
    return relevance


def _total(relevance: Relevance, total_relevant: npt.ArrayLike) -> Int64:
    total = np.asarray(total_relevant, np.int64)
    if total.shape != (len(_checked(relevance)),):
        raise InvalidInputError(f"total_relevant must have shape ({len(relevance)},), got {total.shape}")
    if (total < relevance.sum(axis=1)).any():
        raise InvalidInputError("total_relevant is smaller than the relevant items in the top k")
    return total
