import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.data.encoded import Encoded
from crovca.errors import CrovcaWarning, InvalidInputError, StorageError
from crovca.evaluation import metrics, page
from crovca.evaluation.evaluate import Measure, evaluate
from crovca.evaluation.report import Subject, class_names, image_folder, write_report
from crovca.index.scoring import BitScorer
from crovca.metrics import METRICS


def items(count, bits=12, classes=3, seed=0, prefix="i"):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    logits = (random.normal(size=(classes, bits))[labels] + random.normal(size=(count, bits))).astype(np.float32)
    ids = np.array([f"{prefix}{number}" for number in range(count)])
    return Encoded(Codes.from_logits(logits), ids, labels, logits)


def naive_map(query, database, k, left_out=None):
    """Asymmetric Hamming, ties in expectation left aside: full sort in float64, one query at a time."""
    values = []
    bits = database.codes.unpack()
    for number, logits in enumerate(query.logits.astype(np.float64)):
        distance = np.abs(1 / (1 + np.exp(-logits)) - bits).sum(axis=1)
        keep = np.arange(len(bits)) if left_out is None else np.flatnonzero(np.arange(len(bits)) != left_out[number])
        order = keep[np.argsort(distance[keep], kind="stable")][:k]
        flags = (database.labels[order] == query.labels[number])[None]
        values.append(metrics.average_precision_hits(flags)[0])
    return np.mean(values)


def test_map_equals_a_naive_evaluation_where_nothing_ties():
    random = np.random.default_rng(0)
    bits = np.unique(random.random((60, 30)) < 0.5, axis=0)
    database = Encoded(Codes.from_bits(bits), labels=random.integers(3, size=len(bits)))
    logits = random.normal(size=(7, 30)).astype(np.float32)
    query = Encoded(Codes.from_logits(logits), labels=random.integers(3, size=7), logits=logits)
    for k in (5, 1000):
        found = evaluate(query, database, k=k).lengths[0].scores["asymmetric_hamming"]
        assert found.map == pytest.approx(naive_map(query, database, k))
        assert found.tied == 0
        assert found.expected_map == pytest.approx(found.map)


def test_curves_end_in_the_numbers_and_few_rows_may_be_kept():
    query, database = items(150, prefix="q"), items(90, seed=1)  # three blocks of queries
    scorer = BitScorer.of("bce", query.logits, database.codes)
    found = Measure(query, database, 20, kept=5)(scorer)
    assert found.rows.shape == (150, 5)
    assert found.curve[-1] == pytest.approx(found.map)
    assert found.curve_min_k_r[-1] == pytest.approx(found.map_min_k_r)
    assert found.hit_curve[0] == pytest.approx(found.hit_at_1)
    relevant = query.labels[:, None] == database.labels[found.rows]
    assert found.hit_curve[:5] == pytest.approx(metrics.hit_curve(relevant))
    for k in (1, 5):
        shorter = Measure(query, database, k)(scorer)
        assert (found.curve[k - 1], found.curve_min_k_r[k - 1]) == pytest.approx((shorter.map, shorter.map_min_k_r))


def test_the_object_has_the_documented_form():
    query, database = items(6, prefix="q"), items(40, seed=1)
    floats = np.random.default_rng(2).normal(size=(46, 5)).astype(np.float32)
    result = evaluate(
        query, database, k=10, lengths=(4, 12), query_embeddings=floats[:6], database_embeddings=floats[6:]
    )
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (found["k"], found["queries"], found["database"]) == (10, 6, 40)
    assert set(found["float"]) == {"cosine", "cosine_centred"}
    assert 0 < found["chance_map"] < 1
    assert [length["bits"] for length in found["lengths"]] == [4, 12]
    for length in found["lengths"]:
        for name in ("map", "map_min_k_r"):
            assert list(length[name]) == list(METRICS)
            assert all(0 <= value <= 1 for value in length[name].values())
        recalls = length["float_neighbour_recall"]
        assert {name for name, value in recalls.items() if value is not None} == {"1@10", "10@10"}
        assert set(recalls) == {"1@10", "10@10", "10@100", "100@1000"}  # 100 and 1000 exceed the database
        assert set(length["ties"]["expected_map"]) == set(METRICS)
        assert length["codes"]["balance_min"] <= length["codes"]["balance_max"]
        assert 0 < length["codes"]["distinct"] <= 40


def test_without_labels_only_float_neighbors_are_measured():
    query, database = items(4), items(30, seed=1)
    floats = np.random.default_rng(2).normal(size=(34, 5))
    bare = [Encoded(part.codes, logits=part.logits) for part in (query, database)]
    found = evaluate(*bare, query_embeddings=floats[:4], database_embeddings=floats[4:]).to_dict()
    assert found["chance_map"] is None
    assert found["float"] == {"cosine": None, "cosine_centred": None}
    assert set(found["lengths"][0]["map"].values()) == {None}
    assert found["lengths"][0]["float_neighbour_recall"]["10@10"] > 0
    assert found["lengths"][0]["ties"]["tied"]["hamming"] > 0


def test_symmetric_bce_needs_the_database_logits():
    database = items(30, seed=1)
    found = evaluate(items(4), Encoded(database.codes, database.ids, database.labels)).to_dict()
    assert found["lengths"][0]["map"]["symmetric_bce"] is None
    assert found["lengths"][0]["map"]["bce"] is not None


def test_a_querys_own_item_is_left_out():
    everything = items(50)
    query = Encoded(everything.codes[:8], everything.ids[:8], everything.labels[:8], everything.logits[:8])
    result = evaluate(query, everything, k=None)
    assert result.left_out == 8
    for metric in ("hamming", "bce"):
        rows = result.lengths[0].scores[metric].rows
        assert (rows[:, -1] == np.arange(8)).all()  # the last of all
    # the same as a database without it, one query at a time
    for number in range(8):
        others = np.delete(np.arange(50), number)
        one = slice(number, number + 1)
        alone = evaluate(
            Encoded(query.codes[one], query.ids[one], query.labels[one], query.logits[one]),
            Encoded(everything.codes[others], everything.ids[others], everything.labels[others]),
            k=None,
        )
        together = evaluate(
            Encoded(query.codes[one], query.ids[one], query.labels[one], query.logits[one]), everything, k=None
        )
        ours, theirs = (part.lengths[0].scores["bce"] for part in (together, alone))
        assert ours.map == pytest.approx(theirs.map)
        assert ours.map_min_k_r == pytest.approx(theirs.map_min_k_r)
        assert ours.expected_map == pytest.approx(theirs.expected_map)
        assert ours.recall == theirs.recall == 1


def test_row_numbers_are_no_ids():
    logits = items(10).logits
    bare = Encoded(Codes.from_logits(logits), labels=np.arange(10) % 2, logits=logits)
    assert evaluate(bare, bare).left_out == 0


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), bits=st.integers(1, 6), k=st.sampled_from([3, 10, None]))
def test_expected_map_is_the_mean_over_tie_orders(seed, bits, k):
    """Many tie orders (by renaming the items) average to the tie-aware value; it does not move itself."""
    query, database = items(3, bits, seed=seed), items(25, bits, seed=seed + 1)
    values, expected = [], set()
    for shift in range(60):
        ids = np.array([f"{shift}/{number}" for number in range(25)])
        found = evaluate(query, Encoded(database.codes, ids, database.labels), k=k, metrics_=["hamming"])
        ranked = found.lengths[0].scores["hamming"]
        values.append(ranked.map)
        expected.add(round(ranked.expected_map, 9))
    assert len(expected) == 1
    assert np.mean(values) == pytest.approx(expected.pop(), abs=0.01 + 5 * np.std(values) / 60**0.5)


def test_the_order_of_the_database_does_not_matter():
    query, database = items(5, prefix="q"), items(60, bits=4, seed=3)
    order = np.random.default_rng(0).permutation(60)
    mixed = Encoded(database.codes[order], database.ids[order], database.labels[order], database.logits[order])
    ours, theirs = (evaluate(query, part, k=7).to_dict() for part in (database, mixed))
    ours.pop("seconds"), theirs.pop("seconds")
    assert ours["lengths"][0]["map"] == theirs["lengths"][0]["map"]


def test_shared_labels_of_several_classes_are_relevant():
    query, database = items(5), items(30, seed=1)
    hot = np.random.default_rng(0).random((35, 4)) < 0.4
    several = evaluate(
        Encoded(query.codes, labels=hot[:5], logits=query.logits), Encoded(database.codes, labels=hot[5:])
    )
    assert several.lengths[0].scores["bce"].map is not None


def test_misuse_is_refused():
    query, database = items(4), items(9)
    with pytest.raises(InvalidInputError, match="needs the queries' logits"):
        evaluate(Encoded(query.codes), database)
    with pytest.raises(InvalidInputError, match="0 queries, 9 database items"):
        evaluate(Encoded(query.codes[:0], logits=query.logits[:0]), database)
    text = Encoded(query.codes, labels=np.array(["a"] * 4), logits=query.logits)
    with pytest.raises(InvalidInputError, match="cannot be compared"):
        evaluate(text, database)


def test_a_report_is_one_page_with_figures_and_pictures(tmp_path):
    pytest.importorskip("openTSNE")
    from PIL import Image

    (tmp_path / "photos").mkdir()
    database = items(40, seed=1)
    for name in database.ids[:39]:  # one picture is missing
        Image.new("RGB", (30, 20), (len(name) * 40, 90, 60)).save(tmp_path / "photos" / name, "PNG")
    query = Encoded(database.codes[:5], database.ids[:5], database.labels[:5], database.logits[:5])
    floats = np.random.default_rng(2).normal(size=(40, 5)).astype(np.float32)
    result = evaluate(query, database, k=10, lengths=(4, 12), query_embeddings=floats[:5], database_embeddings=floats)
    subject = Subject("A <title> & more", result, query, database, floats, image_folder(tmp_path / "photos"))
    write_report(tmp_path / "report", [subject])
    written = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "A &lt;title&gt; &amp; more" in written
    assert written.count("<figure") == 4  # curves, bytes, balance, map
    assert written.count("data:image/jpeg") > 5 * (1 + 3 * 9)  # five queries; floats, 4 and 12 bits
    assert 'class="yes"' in written
    assert written.count("<table") == written.count('<div class="wide"')  # a wide table scrolls, the page does not
    assert "What the words mean" in written
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["A <title> & more"]["k"] == 10


def test_a_page_escapes_all_that_it_is_given():
    nasty = '<script>"&'
    blocks = [
        page.Heading(nasty), page.Conclusion(nasty), page.Text(nasty), page.Bullets([nasty]),
        page.Table(nasty, [nasty], [[nasty, page.Cell(nasty, "best")]]), page.Figure(b"png", nasty),
        page.Grid(page.Picture(nasty), nasty, [page.Line(nasty, [page.Picture(nasty, None, True)])]),
        page.Grid(None, nasty, []), page.Large(nasty, page.Picture(nasty, "data:x")), page.Glossary([(nasty, nasty)]),
    ]  # fmt: skip
    text = page.as_page(nasty, nasty, blocks)
    assert "<script" not in text
    assert text.count("&lt;script&gt;&#34;&amp;") == 23
    assert 'class="best"' in text
    assert 'content="width=device-width' in text


def test_classes_have_the_names_of_their_folders():
    codes = Codes.from_bits(np.ones((4, 8), bool))
    ids = np.array(["photos/ant/1.jpg", "photos/bee/1.jpg", "photos/ant/2.jpg", "photos/bee/3.jpg"])
    labels = np.array([7, 3, 7, 3])
    assert class_names(Encoded(codes, ids, labels)) == {7: "ant", 3: "bee"}
    assert class_names(Encoded(codes, ids, np.array([7, 7, 7, 3]))) == {}  # folders are no classes
    assert class_names(Encoded(codes, ids, np.array([1, 2, 3, 4]))) == {}
    assert class_names(Encoded(codes, np.array(["1", "2", "3", "4"]), labels)) == {}
    assert class_names(Encoded(codes, np.arange(4), labels)) == {}


def test_pictures_outside_the_folder_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    assert image_folder(tmp_path / "photos")("../secret.png") is None
    assert image_folder(tmp_path / "photos")("missing.png") is None
    with pytest.raises(StorageError, match="is not a folder"):
        image_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("classes", [3, 1])
def test_the_own_item_counts_neither_in_chance_nor_in_precision(classes):
    logits = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    items = Encoded(Codes.from_logits(logits), np.arange(6), np.arange(6) % classes, logits)
    if classes == 1:
        found = evaluate(items, items, k=None)
        assert found.chance_map == found.lengths[0].scores["hamming"].precision == 1.0
        return
    orders = np.array(sorted(set(itertools.permutations([1, 0, 0, 0, 0]))))[:, :3].astype(bool)
    assert evaluate(items, items, k=3).chance_map == pytest.approx(metrics.average_precision_hits(orders).mean())


def test_labels_that_never_meet_are_said():
    logits = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    ours, theirs = (
        Encoded(Codes.from_logits(logits), None, np.array(list(text)), logits) for text in ("aabbcc", "xxyyzz")
    )
    with pytest.warns(CrovcaWarning, match=r"queries: 'a', 'b', 'c'; database: 'x', 'y', 'z'.*written alike"):
        assert evaluate(ours, theirs).chance_map == 0
