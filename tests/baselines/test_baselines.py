"""What all baselines have in common, and what the families reach on real embeddings."""

from pathlib import Path

import numpy as np
import pytest

from crovca.baselines.base import BinaryBaseline, as_matrix
from crovca.baselines.ddbh import DDBH
from crovca.baselines.learned import OrthoHash
from crovca.baselines.linear import ITQ
from crovca.baselines.registry import BASELINES, baseline
from crovca.codes import Codes
from crovca.data.embeddings import as_embeddings, load_embeddings
from crovca.data.labels import share_a_label
from crovca.errors import ConfigError, InvalidInputError, NotFittedError
from crovca.evaluation.metrics import average_precision_hits
from crovca.index.scoring import BitScorer, top_k

RANDOM = np.random.default_rng(0)
CENTERS = RANDOM.normal(size=(4, 40)) * 3
Y = np.arange(400) % 4
X = (CENTERS[Y] + RANDOM.normal(size=(400, 40)) + 2).astype(np.float32)
BITS = 16


def made(found, seed=0):
    bits = {"asked": BITS, "width": 40, "float": 32 * 40}[found.method.size]
    if found.name.startswith("rabitq"):  # takes some bytes an item beside the bits
        bits = 8 * (found.method.corrections + 6)
    method = found.method(bits, seed=seed)
    if hasattr(method, "epochs"):
        method.epochs = 40  # of one step each
    return method


@pytest.mark.parametrize("found", BASELINES, ids=lambda found: found.name)
def test_every_method_finds_clusters_and_repeats_itself(found):
    method = made(found)
    with pytest.raises(NotFittedError, match="call fit first"):
        method.logits(X) if isinstance(method, BinaryBaseline) else method.store(X)
    assert method.fit(X, Y) is method
    again = made(found).fit(X, Y)
    if isinstance(method, BinaryBaseline):
        logits = method.logits(X)
        assert logits.dtype == np.float32
        assert logits.shape == (400, method.bits)
        assert np.array_equal(logits, again.logits(X))
        assert method.encode(X) == Codes.from_logits(logits)
        with pytest.raises(InvalidInputError, match="fit another"):
            method.encode(X, bits=8)
        similarities = logits @ np.sign(logits).T
    else:
        similarities = method.scores(X, X)
        assert similarities.dtype == np.float32
        assert np.array_equal(similarities, again.scores(X, X))
        assert np.allclose(similarities[:3], method.compare(X[:3], method.store(X)), atol=1e-4)
    near = np.argsort(-similarities, axis=1)[:, :20]
    assert (Y[near] == Y[:, None]).mean() > 0.6  # chance is 0.25
    with pytest.raises(InvalidInputError, match="must have shape"):
        method.logits(X[:, :5]) if isinstance(method, BinaryBaseline) else method.store(X[:, :5])


@pytest.mark.parametrize("found", [r for r in BASELINES if r.method.supervised], ids=lambda found: found.name)
def test_supervised_methods_need_labels(found):
    with pytest.raises(InvalidInputError, match="give labels as y"):
        made(found).fit(X)


@pytest.mark.parametrize("found", [r for r in BASELINES if r.method.seeds is None], ids=lambda found: found.name)
def test_seeds_differ(found):
    one, other = (made(found, seed).fit(X, Y) for seed in (0, 1))
    if isinstance(one, BinaryBaseline):
        assert not np.array_equal(one.logits(X), other.logits(X))
    else:
        assert not np.array_equal(one.scores(X[:9], X), other.scores(X[:9], X))


def test_several_labels_and_views():
    labels = np.stack([Y < 2, Y % 2 == 0, np.ones(400, bool)], axis=1)
    for name in ("orthohash", "csq", "greedyhash_supervised"):
        assert len(baseline(name).method(8, epochs=2).fit(X, labels).encode(X)) == 400
    views = np.stack([X - 1, X + 1], axis=1)
    assert np.allclose(as_matrix(views, "X"), X, atol=1e-5)
    assert len(ITQ(8).fit(views).encode(X)) == 400


def test_names():
    assert len({found.name for found in BASELINES}) == len(BASELINES)
    with pytest.raises(ConfigError, match="unknown method 'itk'"):
        baseline("itk")


def test_ddbh_codes_of_two_modalities_meet():
    texts = (X @ RANDOM.normal(size=(40, 30)) / 6).astype(np.float32)
    found = DDBH(16, epochs=8).fit(X, texts, Y)
    ours, theirs = found.logits(X, modality="images"), found.encode(texts, modality="texts")
    rows = top_k(BitScorer.of("bce", ours, theirs), 20).rows
    assert (Y[rows] == Y[:, None]).mean() > 0.9
    with pytest.raises(InvalidInputError, match="'images' or 'texts'"):
        found.logits(X, modality="sounds")
    with pytest.raises(InvalidInputError, match="as many rows"):
        DDBH(16).fit(X, texts[:9], Y)


# --- on the shared embeddings -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def caltech100():
    folder = Path(__file__).parents[3] / "shared" / "data" / "caltech100"
    if not folder.is_dir():
        pytest.skip("the shared Caltech-100 embeddings are not here")
    return [load_embeddings(folder / f"mobilenet_v2_{part}.npz") for part in ("database", "query")]


def mean_average_precision(method, database, query):
    method.fit(database.values, database.labels)
    scorer = BitScorer.of("asymmetric_hamming", method.logits(query.values), method.encode(database.values))
    relevance = share_a_label(query.labels, database.labels, top_k(scorer, 1000).rows)
    return float(average_precision_hits(relevance).mean())


def test_families_on_real_embeddings(caltech100):
    """At 16 bits: LSH < PCA and a rotation of it, about equal, < ITQ; a supervised head is far above them at once."""
    database, query = caltech100
    found = {
        name: mean_average_precision(baseline(name).method(16), database, query)
        for name in ("lsh", "pca", "hashing_baseline", "itq")
    }
    assert found["lsh"] < 0.15 < found["hashing_baseline"]
    assert found["hashing_baseline"] == pytest.approx(found["pca"], abs=0.03)
    assert max(found["pca"], found["hashing_baseline"]) < found["itq"], found
    assert found["itq"] < 0.35


def test_a_head_on_some_real_embeddings(caltech100):
    database, query = caltech100
    kept, asked = database.labels < 10, query.labels < 10
    part = as_embeddings(database.values[kept], database.labels[kept])
    questions = as_embeddings(query.values[asked], query.labels[asked])
    assert mean_average_precision(OrthoHash(16, epochs=5), part, questions) > 0.9
