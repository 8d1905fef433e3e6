"""A start from classes or clusters: the regressions against a reference, what the layers then say, what it is worth."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from crovca.errors import ConfigError
from crovca.hasher import Hasher
from crovca.hashing.config import SHORT_RUN
from crovca.hashing.inputs import input_statistics
from crovca.hashing.network import HashCoder
from crovca.hashing.start import ridge_regression, start_from_classes, start_from_clusters
from crovca.hashing.targets import ClassPrototypes


def made(items=600, width=24, classes=12, seed=0, apart=1.0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=items)
    centers = apart * random.normal(size=(classes, width))
    return (centers[labels] + random.normal(size=(items, width)) + 3).astype(np.float32), labels


def new(values, bits=16, size="small"):
    generator = torch.Generator().manual_seed(0)
    return HashCoder(values.shape[-1], bits, size, inputs=input_statistics(values, center=True), generator=generator)


def prototypes(labels, bits=16):
    classes = torch.from_numpy(labels)
    count = classes.shape[1] if classes.ndim == 2 else int(classes.max()) + 1
    return ClassPrototypes(classes, count, bits, apart=bits)


def test_ridge_regression_is_that_of_scikit_learn():
    values, labels = made()
    targets = np.eye(12, dtype=np.float32)[labels]
    blocks = [
        (torch.from_numpy(values[part]), torch.from_numpy(targets[part])) for part in (slice(250), slice(250, None))
    ]
    found = ridge_regression(blocks, 0.3)
    strength = 0.3 * values.var(axis=0).mean() * len(values)
    reference = Ridge(alpha=strength).fit(values.astype(np.float64), targets)
    ours = (torch.from_numpy(values) - found.center) @ found.weights.T + found.means
    np.testing.assert_allclose(found.weights, reference.coef_, atol=1e-5)
    np.testing.assert_allclose(ours, reference.predict(values), atol=1e-5)
    np.testing.assert_allclose(found.variance, ours.var(dim=0, correction=0), atol=1e-5)
    covariance = ((ours - ours.mean(dim=0)) * (torch.from_numpy(targets) - found.means)).mean(dim=0)
    np.testing.assert_allclose(found.explained, covariance, atol=1e-5)


def test_a_unit_is_off_at_the_mean_of_the_others_and_on_at_that_of_its_class():
    values, labels = made()
    coder = new(values)
    start_from_classes(coder, prototypes(labels), values)
    with torch.no_grad():
        answers = coder.layers[0](coder.inputs(torch.from_numpy(values)))[:, :12]
    for number in range(12):
        unit = answers[:, coder_unit(coder, labels, number)]
        inside, outside = unit[labels == number], unit[labels != number]
        between = inside.mean() - outside.mean()
        assert float(outside.mean() + 0.3 * between) == pytest.approx(0, abs=0.02)
        spread = torch.cat([inside - inside.mean(), outside - outside.mean()]).std()
        assert float(spread) == pytest.approx(0.5, rel=0.05)


def coder_unit(coder, labels, number):
    """Units stand in the order of the classes' sizes."""
    sizes = np.bincount(labels)
    return int(np.flatnonzero(np.argsort(-sizes, kind="stable") == number)[0])


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_network_starts_near_the_codes_of_the_classes(size):
    values, labels = made(apart=2.0)
    coder, teacher = new(values, size=size), prototypes(labels)
    start_from_classes(coder, teacher, values)
    codes = (teacher.prototypes > 0)[torch.from_numpy(labels)]
    assert teacher.settled.all()
    with torch.no_grad():  # batch statistics, as at the first step
        agree = ((coder(torch.from_numpy(values)) > 0) == codes).float().mean()
        random = ((new(values, size=size)(torch.from_numpy(values)) > 0) == codes).float().mean()
    assert agree > 0.97
    assert agree > random + 0.1
    assert float(coder.layers[-1].weight.detach().std()) == pytest.approx(0.02, rel=1e-3)


def test_more_classes_than_units_and_several_classes_an_item():
    values, labels = made(items=900, width=8, classes=40, apart=3.0)
    hot = np.eye(40, dtype=bool)[labels]
    hot[::7] |= np.eye(40, dtype=bool)[labels[::-1]][::7]
    hot[::11] = False  # items of no class
    for classes in (labels, hot):
        coder = new(values)
        start_from_classes(coder, prototypes(classes), values)
        assert all(torch.isfinite(part).all() for part in coder.parameters())


def test_a_class_without_items_goes_on_running():
    values, labels = made()
    teacher = ClassPrototypes(torch.from_numpy(labels), 14, 16, apart=16)
    start_from_classes(new(values), teacher, values)
    assert teacher.settled.tolist() == [True] * 12 + [False] * 2
    assert not teacher.seen[12:].any()


def test_stored_views_are_items_of_their_class():
    values, labels = made()
    single, double = new(values), new(values)
    start_from_classes(single, prototypes(labels), values)
    start_from_classes(double, prototypes(labels), np.stack([values, values], axis=1))
    for one, other in zip(single.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("values", [np.ones((200, 6), np.float32), np.zeros((200, 6), np.float32)])
def test_embeddings_that_tell_nothing_apart(values):
    coder = new(values)
    start_from_classes(coder, prototypes(np.arange(200) % 3), values)
    start_from_clusters(coder, values, seed=0)
    assert all(torch.isfinite(part).all() for part in coder.parameters())


def test_clusters_change_the_network_and_few_items_do_not():
    values, _ = made()
    coder = new(values)
    before = coder.layers[0].weight.detach().clone()
    start_from_clusters(coder, values[:15], seed=0)
    assert torch.equal(coder.layers[0].weight, before)
    start_from_clusters(coder, values, seed=0)
    assert not torch.equal(coder.layers[0].weight, before)


def within(codes, labels):
    """How many of the nearest 20 by Hamming distance are of the item's class."""
    distances = codes.hamming(codes)
    near = np.argsort(distances, axis=1, kind="stable")[:, 1:21]
    return float((labels[near] == labels[:, None]).mean())


def test_a_short_run_gains_by_starting_from_classes():
    values, labels = made(items=1200, width=32, classes=30)
    held, known = slice(0, 400), slice(400, None)
    quality = {
        start: within(
            Hasher(bits=16, epochs=3, faithfulness="kinds", start=start)
            .fit(values[known], labels[known])
            .encode(values[held]),
            labels[held],
        )
        for start in ("random", "classes")
    }
    assert quality["classes"] > 1.3 * quality["random"]


@pytest.mark.parametrize(
    ("arguments", "labeled", "same_as"),
    [
        ({}, False, "clusters"),
        ({"epochs": 2}, True, "classes"),
        ({"epochs": SHORT_RUN}, True, "random"),
        ({"epochs": 2, "prototypes": "batch"}, True, "random"),
        ({"epochs": 2, "pairing": ("neighbors", "classes")}, True, "classes"),
    ],
)
def test_what_auto_stands_for(arguments, labeled, same_as):
    values, labels = made(items=64, width=8, classes=3)
    arguments = {"bits": 8, "epochs": 1, "batch_size": 64, "faithfulness": "kinds", **arguments}
    y = labels if labeled else None
    one = Hasher(**arguments).fit(values, y)
    other = Hasher(**arguments, start=same_as).fit(values, y)
    assert np.array_equal(one.logits(values), other.logits(values))


def test_the_presets_start_as_the_paper_does():
    assert Hasher.from_preset("small").start == "random"


@pytest.mark.parametrize(
    ("arguments", "labeled", "match"),
    [
        ({"start": "classes"}, False, "needs labels"),
        ({"start": "classes", "prototypes": "batch"}, True, "prototypes='running'"),
        ({"start": "zeros"}, True, "start must be"),
    ],
)
def test_starts_that_cannot_be(arguments, labeled, match):
    values, labels = made(items=64, width=8, classes=3)
    with pytest.raises(ConfigError, match=match):
        Hasher(bits=8, epochs=1, faithfulness="kinds", **arguments).fit(values, labels if labeled else None)


def test_a_start_that_cannot_be_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(
        "crovca.hasher.fit.find_shared_neighbors", lambda *_, **__: pytest.fail("searched for neighbors")
    )
    with pytest.raises(ConfigError, match="start must be"):
        Hasher(bits=8, epochs=1, start="zeros").fit(made(items=64)[0])
