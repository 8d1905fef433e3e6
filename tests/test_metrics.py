"""The table of scores: that it is all there is to a score, and that its formulas are the paper's."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from crovca import Codes, HashIndex, metrics
from crovca.cli.main import main
from crovca.data.encoded import Encoded
from crovca.errors import InvalidInputError
from crovca.evaluation.evaluate import evaluate
from crovca.index.scoring import BitScorer
from crovca.metrics import METRICS, Metric, get_metric, of_codes
from crovca.servers.base import ALL_RETURNED, ServerCandidates, search_by_rescoring

BITS = 16


def _sigmoid(values):
    return 1 / (1 + np.exp(-values))


def _bce(bits, logits):
    p = _sigmoid(logits)
    return -(bits * np.log(p) + (1 - bits) * np.log(1 - p)).sum(-1)


FORMULAS = {
    "hamming": lambda z, y, theirs: ((z > 0) != y).sum(-1),
    "asymmetric_hamming": lambda z, y, theirs: np.abs(_sigmoid(z) - y).sum(-1),
    "bce": lambda z, y, theirs: _bce(y, z),
    "symmetric_bce": lambda z, y, theirs: _bce(y, z) + _bce(z > 0, theirs),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_score_is_its_formula(name):
    rng = np.random.default_rng(0)
    query, theirs = rng.normal(size=(5, BITS)), rng.normal(size=(40, BITS))
    codes = Codes.from_logits(theirs)
    found = BitScorer.of(name, query, codes, theirs).distances(slice(None))
    expected = FORMULAS[name](query[:, None], codes.unpack()[None], theirs[None])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (not METRICS[name].whole) or (found == np.round(found)).all()


@pytest.mark.starts
def test_the_table_is_light():
    """Whoever only wants names loads NumPy and nothing else that is large."""
    seen = (
        "import sys, crovca.metrics, crovca.ids;"
        "print([one for one in ('torch', 'faiss', 'pyarrow', 'duckdb', 'scipy') if one in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.fixture
def tempered(monkeypatch):
    """A score that nobody knows: bits whose logits are large count by the square root of them."""

    def weights(logits):
        found = np.sign(logits) * np.sqrt(np.abs(logits))
        return found, np.abs(found).sum(axis=1)

    monkeypatch.setitem(METRICS, "tempered", Metric("tempered", "tempered", "of this test", weights))
    return "tempered"


def _expected(name, query, codes):
    weights, offsets = METRICS[name].weights(query.astype(np.float64))
    distances = offsets[:, None] - weights.astype(np.float32).astype(np.float64) @ codes.unpack().T
    return distances.astype(np.float32)


def test_a_new_score_is_searched_evaluated_and_offered_with_nothing_but_its_row(tempered, tmp_path, capsys):
    rng = np.random.default_rng(1)
    logits, query = (rng.normal(size=(300, BITS)).astype(np.float32), rng.normal(size=(4, BITS)).astype(np.float32))
    codes = Codes.from_logits(logits)
    expected = np.sort(_expected(tempered, query, codes), axis=1)

    with HashIndex.create(tmp_path / "index", BITS) as index:
        index.add(np.arange(300), codes)
        for engine in ("exact", "scan", "buckets", "auto"):
            found = index.search(query, 10, metric=tempered, engine=engine)
            np.testing.assert_allclose(found.distances, expected[:, :10], rtol=1e-6)
        assert len(index.range_search(query, float(expected[0, 5]), metric=tempered).ids) >= 6

    class Source:
        bits, most_results = BITS, 10**9

        def nearest(self, queries, count, where):
            return [ServerCandidates(np.arange(300), codes, ALL_RETURNED) for _ in queries]

    answer = search_by_rescoring(Source(), query, 10, tempered, None, 300, False)
    np.testing.assert_allclose(answer.distances, expected[:, :10], rtol=1e-6)

    labels = rng.integers(0, 3, 300)
    result = evaluate(Encoded(codes[:4], labels=labels[:4], logits=query), Encoded(codes, labels=labels), k=20)
    assert result.to_dict()["lengths"][0]["map"][tempered] == result.lengths[0].map_of(tempered) > 0
    assert result.to_dict()["lengths"][0]["map"]["symmetric_bce"] is None  # no logits of the items

    with pytest.raises(SystemExit) as ended:
        main(["search", str(tmp_path / "none"), "--id", "5", "--scoring", "cosine"])
    assert ended.value.code == 2
    assert "hamming, asymmetric_hamming, bce, tempered" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SystemExit) as ended:
        main(["search", str(tmp_path / "index"), "--id", "5", "--scoring", tempered])
    assert "--id goes with hamming, not tempered" in " ".join(capsys.readouterr().err.split())


def test_a_score_with_a_term_of_the_items_logits_is_not_searched(monkeypatch):
    assert "symmetric_bce" not in of_codes()
    with pytest.raises(InvalidInputError, match="only codes are stored; expected one of hamming"):
        get_metric("symmetric_bce", stored=True)
    for name in ("dot", None, 3, ["bce"]):
        with pytest.raises(InvalidInputError, match="is not known"):
            get_metric(name)


def test_what_stands_for_all_scores_is_one_of_them():
    assert metrics.REPORTED in of_codes()


def test_search_prints_metadata_that_json_cannot_hold_as_null(tmp_path, capsys):
    with HashIndex.create(tmp_path / "index", BITS) as index:
        codes = Codes.from_logits(np.random.default_rng(0).normal(size=(3, BITS)))
        values = pa.array([1.5, float("nan"), float("inf")])
        index.add(["a", "b", "c"], codes, {"score": values, "list": [[float("nan")], [2.0], []]})
    with pytest.raises(SystemExit) as ended:
        main(["search", str(tmp_path / "index"), "--id", "a", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    rows = {hit["id"]: hit["metadata"] for hit in json.loads(out)["results"][0]["hits"]}
    assert rows["b"]["score"] is None and rows["c"]["score"] is None
    assert "2 numbers" in err and "null" in err
