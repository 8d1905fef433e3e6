import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from crovca.codes import Codes
from crovca.errors import CrovcaWarning, InvalidInputError, NotFittedError
from crovca.hasher import Hasher

X = np.random.default_rng(0).normal(size=(80, 10)).astype(np.float32)
Y = np.array(["left", "right"])[(X[:, 0] > 0).astype(int)]


@pytest.fixture(scope="module")
def hasher():
    return Hasher(bits=40, epochs=2, batch_size=32).fit(X, Y)


def test_scikit_learn_manners(hasher):
    assert hasher.get_params()["bits"] == 40
    twin = clone(hasher)
    assert twin.get_params() == hasher.get_params()
    assert not hasattr(twin, "towers_")
    assert twin.set_params(bits=8).fit(X) is twin
    assert repr(Hasher(bits=8)) == "Hasher(bits=8)"
    assert clone(Hasher.for_pairs(bits=9)).modalities == ("images", "texts")
    assert (hasher.n_features_in_, hasher.lengths_, hasher.classes_.tolist()) == (10, (16, 32, 40), ["left", "right"])


def test_constructors_store_what_they_are_given():
    import inspect

    defaults = {name: parameter.default for name, parameter in inspect.signature(Hasher).parameters.items()}
    assert Hasher().get_params() == defaults


def test_codes_are_the_signs_of_the_logits(hasher):
    logits = hasher.logits(X)
    assert logits.dtype == np.float32
    assert logits.shape == (80, 40)
    assert hasher.encode(X) == Codes.from_logits(logits)
    assert hasher.encode(X, bits=16) == Codes.from_logits(logits).prefix(16)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda x: x.astype(np.float16)])
def test_any_array_is_taken(hasher, make):
    assert np.allclose(hasher.logits(make(X)), hasher.logits(X), atol=0.05)


def test_memory_maps_are_taken(hasher, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert hasher.encode(mapped) == hasher.encode(X)
    again = Hasher(bits=40, epochs=2, batch_size=32).fit(mapped, Y)
    assert again.encode(X) == hasher.encode(X)


def test_no_items_give_no_codes(hasher):
    assert hasher.logits(X[:0]).shape == (0, 40)
    assert hasher.encode(X[:0], bits=16) == Codes.from_bits(np.zeros((0, 16), bool))


def test_a_length_that_was_not_trained_warns(hasher):
    with pytest.warns(CrovcaWarning, match=r"20 bits is not a length .* \[16, 32, 40\]"):
        assert hasher.encode(X, bits=20).bits == 20
    with pytest.raises(InvalidInputError, match="between 1 and 40, got 41"):
        hasher.encode(X, bits=41)


def test_use_before_fit_is_refused(tmp_path):
    for use in (lambda h: h.encode(X), lambda h: h.logits(X), lambda h: h.save(tmp_path / "m")):
        with pytest.raises(NotFittedError, match="not fitted yet; call fit or load first"):
            use(Hasher())
    assert not (tmp_path / "m").exists()


def test_wrong_data_is_refused(hasher):
    with pytest.raises(InvalidInputError, match=r"shape \(n, 10\), as the hasher was trained with, got \(80, 9\)"):
        hasher.encode(X[:, :9])
    broken = X.copy()
    broken[7, 3] = np.nan
    with pytest.raises(InvalidInputError, match="NaN or infinity in row 7"):
        hasher.logits(broken)


@pytest.mark.parametrize("kind", ["unsupervised", "classes", "several classes"])
def test_a_loaded_hasher_is_the_saved_one(tmp_path, kind):
    labels = {"unsupervised": None, "classes": Y, "several classes": X[:, :3] > 0}[kind]
    hasher = Hasher(bits=24, epochs=1, nested=(8, 24)).fit(X, labels)
    hasher.save(tmp_path / "model")
    found = Hasher.load(tmp_path / "model")
    assert np.array_equal(found.logits(X), hasher.logits(X))
    assert found.get_params() == hasher.get_params()
    assert (found.lengths_, found.pairing_, found.history_) == (hasher.lengths_, hasher.pairing_, hasher.history_)
    assert (found.classes_ is None) == (hasher.classes_ is None)
    found.save(tmp_path / "again")
    for name in ("model.safetensors", "config.json", "log.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("shared", [False, True])
def test_a_loaded_hasher_of_pairs_is_the_saved_one(tmp_path, shared):
    texts = X if shared else X[:, :6]
    hasher = Hasher.for_pairs(bits=24, epochs=1, shared=shared).fit(X, texts=texts)
    hasher.save(tmp_path / "model")
    found = Hasher.load(tmp_path / "model")
    assert found.modalities == ("images", "texts")
    assert np.array_equal(found.logits(X, modality="images"), hasher.logits(X, modality="images"))
    assert found.encode(texts, 16, modality="texts") == hasher.encode(texts, modality="texts").prefix(16)
    for wrong in (None, "embeddings", "sounds"):
        with pytest.raises(InvalidInputError, match=r"takes images and texts: say which these are \(modality=\)"):
            found.encode(X, modality=wrong)


@pytest.mark.parametrize("shared", [False, True])
def test_a_random_hasher_of_pairs_is_where_training_begins(tmp_path, shared):
    """Weights of the seed, bits that are in balance, and a model like any other."""
    texts = 3 + 2 * np.random.default_rng(1).normal(size=(80, 2, 10)).astype(np.float32)
    make = lambda **more: Hasher.for_pairs(bits=24, shared=shared, **more)  # noqa: E731
    found = make().initialize(X, texts)
    fitted = make(epochs=1, learning_rate=1e-30, weight_decay=0.0, device="cpu").fit(X, texts=texts)
    for ours, theirs in zip(found.towers_.coders, fitted.towers_.coders, strict=True):
        for one, other in zip(ours.layers.parameters(), theirs.layers.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    ours = found.logits(X, modality="images")
    np.testing.assert_allclose(ours, fitted.logits(X, modality="images"), atol=1e-4)
    plain = make().initialize(X, texts)
    plain.towers_.coders[1].gate_power = 0.0  # it weighs bits of queries, and no signs
    flat = plain.logits(texts.reshape(160, 10), modality="texts")
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-4)
    assert not np.array_equal(ours, make(seed=1).initialize(X, texts).logits(X, modality="images"))
    found.save(tmp_path / "model")
    np.testing.assert_array_equal(Hasher.load(tmp_path / "model").logits(X, modality="images"), ours)
    with pytest.raises(InvalidInputError, match="as many rows each"):
        make().initialize(X, texts[:-1])


def test_hashers_serve_in_pipelines_and_grids():
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    hasher = Hasher(bits=16, epochs=2, batch_size=32, device="cpu")
    bits = hasher.fit_transform(X, Y)
    assert bits.dtype == np.uint8
    assert np.array_equal(bits, hasher.encode(X).unpack())
    pipeline = make_pipeline(clone(hasher), KNeighborsClassifier(metric="hamming")).fit(X, Y)
    assert (pipeline.predict(X) == Y).mean() > 0.8
    grid = GridSearchCV(hasher, {"bits": [1, 16]}, cv=2).fit(np.tile(X, (3, 1)))
    assert grid.best_params_ == {"bits": 16}
    assert 0 < grid.best_score_ <= 1


def test_a_score_is_the_order_of_the_codes():
    """Labels that the codes tell apart give 1; without labels it is the share of the floats' neighbors."""
    clear = np.repeat(np.eye(2, 8, dtype=np.float32), 30, axis=0) + 0.01 * X[:60, :8]
    hasher = Hasher(bits=16, epochs=5, device="cpu").fit(clear)
    assert hasher.score(clear, np.repeat([0, 1], 30)) == 1.0
    assert hasher.score(clear) == 1.0  # 59 others, of which the first 100 are all
    with pytest.raises(InvalidInputError, match="at least 2 items"):
        hasher.score(clear[:1])


EXPECTED = dict.fromkeys(  # each is refused, by an InvalidInputError (a ValueError) in our own words
    [
        "check_n_features_in_after_fitting",
        "check_complex_data",
        "check_dtype_object",
        "check_estimators_empty_data_messages",
        "check_fit2d_1sample",
        "check_fit2d_predict1d",
    ],
    "the check asks for the wording of scikit-learn's message",
)


def test_scikit_learns_own_checks():
    """All of its checks of a transformer; what is refused on purpose stands in EXPECTED with its reason."""
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            Hasher(bits=8, epochs=1, device="cpu"), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
        )
    failed = {result["check_name"]: result["exception"] for result in found if result["status"] == "failed"}
    assert failed == {}


def test_a_model_in_bfloat16_has_a_fingerprint():
    values = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    hasher = Hasher(bits=8, epochs=1, device="cpu").fit(values)
    before = hasher.fingerprint
    hasher.towers_.to(torch.bfloat16)  # as encoders are loaded where the processor computes in it
    assert len(hasher.fingerprint) == 64 and hasher.fingerprint != before
