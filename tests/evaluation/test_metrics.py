import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crovca.errors import InvalidInputError
from crovca.evaluation import metrics

rankings = hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 12)))


def naive_average_precision(flags, normalizer):
    hits, total = 0, 0.0
    for place, flag in enumerate(flags, start=1):
        if flag:
            hits += 1
            total += hits / place
    return total / normalizer if normalizer else 0.0


@given(relevance=rankings, missed=st.integers(0, 5))
def test_both_forms_equal_naive_references(relevance, missed):
    k = relevance.shape[1]
    total = relevance.sum(axis=1) + missed
    hits = [naive_average_precision(row, row.sum()) for row in relevance]
    strict = [naive_average_precision(row, min(k, r)) for row, r in zip(relevance, total, strict=True)]
    assert metrics.average_precision_hits(relevance) == pytest.approx(hits)
    assert metrics.average_precision_min_k_r(relevance, total) == pytest.approx(strict)
    assert (metrics.average_precision_min_k_r(relevance, total) <= np.array(hits) + 1e-12).all()


def test_the_forms_differ_as_the_literature_says():
    relevance = np.array([[True, False, True, False, True]])
    assert metrics.average_precision_hits(relevance)[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert metrics.average_precision_min_k_r(relevance, [50])[0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 5)


@given(relevance=rankings)
def test_average_precision_agrees_with_scikit_learn_on_whole_rankings(relevance):
    from sklearn.metrics import average_precision_score

    scores = -np.arange(relevance.shape[1])
    for row, found in zip(relevance, metrics.average_precision_hits(relevance), strict=True):
        if row.any():
            assert found == pytest.approx(average_precision_score(row, scores))
        else:
            assert found == 0


@given(relevance=rankings, missed=st.integers(0, 3))
def test_curves_are_the_metrics_at_every_k(relevance, missed):
    total = relevance.sum(axis=1) + missed
    for k in range(1, relevance.shape[1] + 1):
        top = relevance[:, :k]
        assert metrics.map_curve_hits(relevance)[k - 1] == pytest.approx(metrics.average_precision_hits(top).mean())
        assert metrics.map_curve_min_k_r(relevance, total)[k - 1] == pytest.approx(
            metrics.average_precision_min_k_r(top, total).mean()
        )
        assert metrics.hit_curve(relevance)[k - 1] == pytest.approx(metrics.hit(top).mean())


def test_precision_recall_and_hit():
    relevance = np.array([[True, False], [False, False]])
    assert metrics.precision(relevance).tolist() == [0.5, 0.0]
    assert metrics.recall(relevance, [4, 0]).tolist() == [0.25, 0.0]
    assert metrics.hit(relevance).tolist() == [1.0, 0.0]


@given(st.integers(0, 1000))
def test_neighbor_recall_equals_set_intersection(seed):
    random = np.random.default_rng(seed)
    true = np.stack([random.permutation(30)[:4] for _ in range(3)])
    found = np.stack([random.permutation(30)[:9] for _ in range(3)])
    expected = [len(set(a) & set(b)) / 4 for a, b in zip(true.tolist(), found.tolist(), strict=True)]
    assert metrics.neighbor_recall(true, found) == pytest.approx(expected)


def all_orders(groups, k, total):
    """Mean of both forms over every order of the items within each group."""
    orders = [list(set(itertools.permutations(group))) for group in groups]
    hits, strict = [], []
    for order in itertools.product(*orders):
        top = np.array([[flag for group in order for flag in group][:k]], np.bool_)
        hits.append(metrics.average_precision_hits(top)[0])
        strict.append(metrics.average_precision_min_k_r(top, [total])[0] if total else 0.0)
    return np.mean(hits), np.mean(strict)


@settings(max_examples=200)
@given(
    groups=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=3),
    k=st.integers(1, 12),
    more=st.integers(0, 3),
)
def test_expected_average_precision_equals_the_mean_over_all_orders(groups, k, more):
    total = sum(map(sum, groups)) + more
    sizes, relevant = [len(group) for group in groups], [sum(group) for group in groups]
    k = min(k, sum(sizes))
    found = metrics.expected_average_precision(sizes, relevant, k, total)
    assert found == pytest.approx(all_orders(groups, k, total))


@given(relevance=hnp.arrays(np.bool_, st.tuples(st.just(1), st.integers(1, 12))), k=st.integers(1, 12))
def test_without_ties_the_expectation_is_the_value(relevance, k):
    flags, total = relevance[0].astype(int), int(relevance.sum())
    k = min(k, len(flags))
    found = metrics.expected_average_precision(np.ones(len(flags), int), flags, k, total)
    top = relevance[:, :k]
    expected = metrics.average_precision_hits(top)[0], metrics.average_precision_min_k_r(top, [total])[0]
    assert found == pytest.approx(expected)


def test_chance_is_what_random_orders_score_on_average():
    random = np.random.default_rng(0)
    flags = np.arange(200) < 20
    tops = np.stack([random.permutation(flags)[:50] for _ in range(20_000)])
    simulated = metrics.average_precision_hits(tops).mean()
    assert metrics.chance_average_precision([20], 200, 50)[0] == pytest.approx(simulated, rel=0.02)


@given(relevant=st.integers(0, 6), items=st.integers(1, 6), k=st.integers(1, 6))
def test_chance_of_a_hit_is_its_share_of_all_orders(relevant, items, k):
    relevant, k = min(relevant, items), min(k, items)
    flags = np.arange(items) < relevant
    orders = np.array(list(itertools.combinations(flags, k)))  # every top k is as likely
    expected = metrics.hit(orders).mean()
    assert metrics.chance_hit([relevant], items, k)[0] == pytest.approx(expected)


def test_large_tie_groups_do_not_overflow():
    found = metrics.expected_average_precision([193_734], [90_000], 5000, 90_000)
    assert found.hits == pytest.approx(90_000 / 193_734, rel=1e-2)


def test_misuse_is_refused():
    with pytest.raises(InvalidInputError, match=r"boolean array \(q, k\)"):
        metrics.precision(np.array([[1, 0]]))
    with pytest.raises(InvalidInputError, match=r"boolean array \(q, k\)"):
        metrics.average_precision_hits(np.zeros(3, np.bool_))
    with pytest.raises(InvalidInputError, match=r"shape \(1,\), got \(2,\)"):
        metrics.recall(np.array([[True]]), [1, 2])
    with pytest.raises(InvalidInputError, match="smaller than the relevant items"):
        metrics.recall(np.array([[True, True]]), [1])
    with pytest.raises(InvalidInputError, match="0 to size relevant"):
        metrics.expected_average_precision([1], [2], 1, 2)
    with pytest.raises(InvalidInputError, match="R is 1"):
        metrics.expected_average_precision([3], [2], 1, 1)
