"""The situations and the five measures, against brute force."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crovca.baselines.linear import ITQ
from crovca.codes import Codes
from crovca.data.clusters import k_means
from crovca.data.embeddings import as_embeddings
from crovca.errors import ConfigError, InvalidInputError
from crovca.evaluation.situations import COLUMNS, Judge, Situation, column_value, five_measures, make_situations

RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.normal(size=(8, 12)) * 2


def items(count, first=0, names="abcdefgh"):
    number = np.arange(count) % 8
    values = (CENTERS[number] + RANDOM.normal(size=(count, 12))).astype(np.float32)
    return as_embeddings(values, np.array(list(names))[number], np.arange(first, first + count))


DATABASE, QUERY = items(240), items(40, 1000)


def test_new_and_mixed_share_no_class_with_what_is_learned():
    seen, new, mixed = make_situations(DATABASE, QUERY, seed=3)
    assert (seen.learned, seen.searched, seen.asked) == (DATABASE, DATABASE, QUERY)
    known = set(new.learned.labels)
    assert len(known) == 4
    assert set(new.searched.labels) == set(new.asked.labels) == set("abcdefgh") - known
    assert len(new.learned) + len(new.searched) == len(DATABASE)
    assert mixed.learned is new.learned
    assert mixed.asked is new.asked
    assert mixed.searched.ids.tolist() == DATABASE.ids.tolist()
    row = DATABASE.ids.tolist().index(new.searched.ids[5])
    assert np.array_equal(new.searched.values[5], DATABASE.values[row])
    again, other = (make_situations(DATABASE, QUERY, seed=seed)[1].learned.ids for seed in (3, 4))
    assert np.array_equal(again, new.learned.ids)
    assert not np.array_equal(other, new.learned.ids)


def test_shares_and_names_of_classes():
    assert len(make_situations(DATABASE, QUERY, hold_out=None)) == 1
    _, new, _ = make_situations(DATABASE, QUERY, hold_out=0.25)
    assert len(set(new.learned.labels)) == 6
    _, new, _ = make_situations(DATABASE, QUERY, learned_classes=["a", "h", "c"])
    assert set(new.learned.labels) == set("ahc")
    with pytest.raises(ConfigError, match="no item has the class 'z'"):
        make_situations(DATABASE, QUERY, learned_classes=["z"])
    with pytest.raises(ConfigError, match="between 0 and 1, got 2"):
        make_situations(DATABASE, QUERY, hold_out=2)
    with pytest.raises(InvalidInputError, match=r"holding out 0\.1 of 8 classes leaves 7 to learn and 1 to search"):
        make_situations(DATABASE, QUERY, hold_out=0.1)
    with pytest.raises(InvalidInputError, match="queries 0"):
        make_situations(DATABASE, replace(QUERY, labels=np.array(["x"] * 40)))
    with pytest.raises(ConfigError, match="no labels"):
        make_situations(DATABASE, replace(QUERY, labels=None), learned_classes=["a"])


def test_of_several_classes_only_those_held_out_make_relevant():
    hot = RANDOM.random((280, 6)) < 0.3
    database = replace(DATABASE, labels=hot[:240])
    _, new, mixed = make_situations(database, replace(QUERY, labels=hot[240:]), seed=1)
    held = new.searched.labels.any(axis=0)
    assert held.sum() == 3
    assert not (new.learned.labels & held).any()
    assert new.searched.labels.any(axis=1).all()
    assert new.asked.labels.any(axis=1).all()
    assert not mixed.searched.labels[:, ~held].any()
    assert len(new.learned) + len(new.searched) == 240


def test_without_labels_cells_are_held_out_and_order_judges():
    bare = replace(QUERY, labels=None)
    situations = make_situations(DATABASE, bare, seed=2)
    new = situations[1]
    assert new.searched.labels is None
    assert 20 < len(new.learned) < 220
    centers = [part.values.mean(axis=0) for part in (new.learned, new.searched)]
    assert np.linalg.norm(centers[0] - centers[1]) > 0.5  # halves of a random split lie together

    def learn(part):
        model = ITQ(8).fit(part.values)
        return lambda values: {8: model.logits(values)}

    found = five_measures(situations, {"ITQ": learn})
    assert not found.labeled
    assert found.methods["ITQ"][8]["new"].map is None
    assert column_value(found.methods["ITQ"][8], "new", labeled=False) == found.methods["ITQ"][8]["new"].order


def brute_force(queries, stored, floats_of, labels, k):
    """The definitions of the issue, one query at a time, ties by the ids' order left to the caller."""
    bits = np.where(stored > 0, 1.0, 0.0)
    result = []
    for z, label, true in zip(queries.astype(np.float64), labels[0], floats_of, strict=True):
        distance = np.abs(1 / (1 + np.exp(-z)) - bits).sum(axis=1)
        order = np.argsort(distance, kind="stable")
        relevant = (labels[1][order] == label)[:k]
        precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        ap = (precision * relevant).sum() / max(1, relevant.sum())
        found = order.tolist()
        result.append((ap, len({*true} & {*found[:100]}) / 10, len({*true} & {*found[:10]}) / 10))
    return np.mean(result, axis=0)


def nearest_floats(queries, values):
    center = values.mean(axis=0)
    ours, theirs = ((x - center) / np.linalg.norm(x - center, axis=1, keepdims=True) for x in (queries, values))
    return np.argsort(-(ours @ theirs.T), axis=1)[:, :10]


def test_measures_equal_brute_force_where_nothing_ties():
    stored = RANDOM.normal(size=(240, 40)).astype(np.float32)
    asked = RANDOM.normal(size=(40, 40)).astype(np.float32)
    judge = Judge(Situation("seen", DATABASE, DATABASE, QUERY), k=50)
    found = judge.of_codes(asked, Codes.from_logits(stored))
    true = nearest_floats(QUERY.values, DATABASE.values)
    expected = brute_force(asked, stored, true, (QUERY.labels, DATABASE.labels), 50)
    assert (found.map, found.order, found.order_10) == pytest.approx(tuple(expected))
    assert (found.distinct, found.shared, found.tied, found.tie_cost) == (1, 0, 0, 0)
    assert (judge.floats.order, judge.floats.order_10, judge.floats.distinct) == (1, 1, 1)


def test_what_ties_cost():
    """With one bit everything ties: the best order within ties would have all of the floats' top 10."""
    judge = Judge(Situation("seen", DATABASE, DATABASE, QUERY), k=50)
    all_alike = judge.of_codes(np.ones((40, 8), np.float32), Codes.from_bits(np.ones((240, 8), bool)))
    assert all_alike.tied == 1
    assert all_alike.order_10 + all_alike.tie_cost == pytest.approx(1)
    assert (all_alike.distinct, all_alike.shared) == (1 / 240, 1)
    # two codes: the nearer half ties, and holds the first five of the true ten of query 0
    true = nearest_floats(QUERY.values[:1], DATABASE.values)[0]
    bits = np.zeros((240, 1), bool)
    bits[true[:5]] = True
    bits[np.setdiff1d(np.arange(240), true)[:15]] = True
    one = Judge(Situation("seen", DATABASE, DATABASE, as_embeddings(QUERY.values[:1], QUERY.labels[:1])), k=50)
    found = one.of_codes(np.ones((1, 1), np.float32), Codes.from_bits(bits))
    assert found.order_10 + found.tie_cost == pytest.approx(0.5)
    assert found.shared == 1


def test_a_query_s_own_item_is_left_out():
    judge = Judge(Situation("seen", DATABASE, DATABASE, DATABASE), k=50)
    codes = Codes.from_logits(RANDOM.normal(size=(240, 60)))
    found = judge.of_codes(codes.unpack().astype(np.float32) - 0.5, codes)
    assert found.order_10 < 0.3  # its own item would be one of ten


def test_a_method_is_learned_once_for_new_and_mixed():
    learned = []

    def learn(part):
        learned.append(len(part))
        model = ITQ(8).fit(part.values)
        return lambda values: {4: model.logits(values)[:, :4], 8: model.logits(values)}

    found = five_measures(make_situations(DATABASE, QUERY), {"ITQ": learn}, k=20)
    assert len(learned) == 2
    assert [(name, bits) for name, bits, _ in found.lines()] == [("ITQ", 4), ("ITQ", 8), ("float, centered", None)]
    assert found.counts["new"] == {"learned": learned[1], "searched": 240 - learned[1], "asked": 20}
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["methods"]["ITQ"]["8"]["mixed"]["map"] == found.methods["ITQ"][8]["mixed"].map
    measured = written["methods"]["ITQ"]["8"]
    values = [column_value(measured, column.name, labeled=True) for column in COLUMNS]
    assert values[:4] == [measured[s]["map"] for s in ("seen", "new", "mixed")] + [measured["seen"]["order"]]
    assert column_value({}, "new", labeled=True) is None


def test_k_means_finds_clusters_and_repeats_itself():
    centroids = k_means(DATABASE.values, 8, seed=1)
    assert centroids.shape == (8, 12)
    assert np.array_equal(centroids, k_means(DATABASE.values, 8, seed=1))
    spherical = k_means(DATABASE.values, 8, seed=1, spherical=True)
    assert np.linalg.norm(spherical, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    with pytest.raises(InvalidInputError, match="1 to 240 centroids"):
        k_means(DATABASE.values, 241)
