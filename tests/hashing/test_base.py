"""The closed-form base, the gate and the order of the floats: what each promises, and what they are worth together."""

import warnings

import numpy as np
import pytest
import torch

from crovca.codes import Codes
from crovca.errors import ConfigError, CrovcaWarning, InvalidInputError
from crovca.hasher import Hasher
from crovca.hashing.base import fit_base, fit_common_base
from crovca.hashing.config import recipe
from crovca.hashing.gate import fit_gate
from crovca.hashing.inputs import fit_coordinates
from crovca.hashing.terms.batch import Batch
from crovca.hashing.terms.order import order


def made(items=600, width=24, classes=6, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=items)
    centers = 1.5 * random.normal(size=(classes, width))
    return (centers[labels] + random.normal(size=(items, width))).astype(np.float32), labels


def test_coordinates_are_the_principal_components_of_unit_vectors():
    values, _ = made()
    unit = values.astype(np.float64) / np.linalg.norm(values, axis=1, keepdims=True)
    centered = unit - unit.mean(axis=0)
    inputs = fit_coordinates(values)
    found = inputs(torch.from_numpy(values)).double().numpy()
    assert np.square(found).mean() == pytest.approx(1, rel=1e-4)
    ours, theirs = found @ found.T, centered @ centered.T  # 24 components: no product is lost
    np.testing.assert_allclose(ours / ours.std(), theirs / theirs.std(), atol=1e-3)
    spread = found.std(axis=0)
    assert (spread[:-1] >= spread[1:] - 1e-6).all()
    for factor in (1e-20, 1e6, 1e30):  # rows of any length count alike
        np.testing.assert_allclose(inputs(torch.from_numpy(values * np.float32(factor))), found, atol=1e-3)


def test_few_wide_rows_take_no_matrix_of_all_columns(monkeypatch):
    values, _ = made(items=60, width=400)
    solve, sizes = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or solve(matrix))
    found = fit_coordinates(values)(torch.from_numpy(values)).double().numpy()
    assert sizes == [60]
    unit = values.astype(np.float64) / np.linalg.norm(values, axis=1, keepdims=True)
    centered = unit - unit.mean(axis=0)
    ours, theirs = found @ found.T, centered @ centered.T  # 59 components: no product is lost
    np.testing.assert_allclose(ours / ours.std(), theirs / theirs.std(), atol=1e-3)


def test_coordinates_of_a_row_do_not_depend_on_the_rows_beside_it():
    values, _ = made(items=64)
    inputs = fit_coordinates(values)
    beside = values.copy()
    beside[40] *= np.float32(1e30)
    beside[41] *= np.float32(1e-42)
    alone, together = inputs(torch.from_numpy(values)), inputs(torch.from_numpy(beside))
    others = np.setdiff1d(np.arange(64), [40, 41])
    assert torch.equal(alone[others], together[others])
    torch.testing.assert_close(alone[40], together[40])
    assert torch.isfinite(together).all()


def test_a_common_base_gives_pairs_the_same_bits():
    random = np.random.default_rng(0)
    shared = random.normal(size=(800, 6)).astype(np.float32)
    sides = [
        shared @ random.normal(size=(6, width)).astype(np.float32)
        + 0.3 * random.normal(size=(800, width)).astype(np.float32)
        for width in (30, 20)
    ]
    points = [fit_coordinates(side)(torch.from_numpy(side)) for side in sides]
    one, other = (
        base(part[400:]) > 0
        for (base, _), part in zip(fit_common_base([part[:400] for part in points], (6, 8)), points, strict=True)
    )
    assert (one == other)[:, :6].float().mean() > 0.85
    hasher = Hasher.for_pairs(8, epochs=2, device="cpu").fit(sides[0], texts=sides[1])
    assert [coder.base is not None for coder in hasher.towers_.coders] == [True, True]
    assert "order" not in hasher.history_[-1]


def test_with_few_items_base_and_order_count_for_more():
    few, many = (recipe(("neighbors",), items, base=True) for items in (1000, 50_000))
    assert (many.base_weight, many.faithfulness) == (0.5, 0.3)
    assert (few.base_weight, few.faithfulness) == (1.0, 1.2)
    assert recipe(("neighbors",), 2, base=True).base_weight == pytest.approx(1.25)


@pytest.mark.parametrize(("width", "lengths"), [(24, (8, 16)), (6, (8, 16)), (24, (40,)), (1, (3,))])
def test_the_base_has_bits_of_one_variance_and_balance(width, lengths):
    values, _ = made(width=width)
    points = fit_coordinates(values)(torch.from_numpy(values))
    base, scales = fit_base(points, lengths, weight=0.6)
    found = base(points)
    assert found.shape == (600, lengths[-1])
    np.testing.assert_allclose(found.std(dim=0)[: min(8, width)].mean(), 0.6, atol=0.1)
    assert scales[0] == 1
    assert (scales <= 1.001).all()
    torch.testing.assert_close(base.weights, fit_base(points, lengths, weight=0.6).base.weights)


def test_the_gate_is_open_where_items_were_and_closed_where_none_were():
    values, labels = made(classes=8)
    known = labels < 4
    points = fit_coordinates(values[known])(torch.from_numpy(values))
    gate = fit_gate(points[torch.from_numpy(known)])(points)[:, 0].numpy()
    assert gate[known].mean() > 0.7
    assert gate[~known].mean() < 0.4
    assert ((gate >= 0) & (gate <= 1)).all()
    sharp, soft = (fit_gate(points[torch.from_numpy(known)], softness=softness) for softness in (0.25, 1.0))
    assert float(soft.width) == pytest.approx(4 * float(sharp.width))
    assert float(soft.threshold) == float(sharp.threshold)
    assert soft(points).std() < sharp(points).std()


def test_weak_bits_count_less_for_what_was_learned_and_no_code_changes():
    values, labels = made(items=400, classes=8)
    known = labels < 4
    hasher = Hasher(32, nested=(8, 16), epochs=2, device="cpu").fit(values[known])
    coder = hasher.towers_.coders[0]
    logits = hasher.logits(values)
    assert coder.gate_power == hasher.config_.gate_power == 0.3
    coder.gate_power = 0.0
    plain = hasher.logits(values)
    with torch.no_grad():
        gate = coder.gate(coder.inputs(torch.from_numpy(values))).numpy()
        deviations = coder.norm.weight.abs().numpy()
    expected = plain * (deviations / deviations.max()) ** (0.3 * gate)
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    assert np.array_equal(logits > 0, plain > 0)
    assert logits[known][:, 16:].std() < plain[known][:, 16:].std()
    assert Hasher.from_preset("small", bits=8).fit(values).config_.gate_power == 0.0


def test_order_is_0_for_perfect_codes_and_punishes_shuffled_ones():
    generator = torch.Generator().manual_seed(0)
    signs = torch.where(torch.randn(64, 32, generator=generator) > 0, 1.0, -1.0)
    logits = (20 * signs)[None]
    perfect = order(Batch(logits, logits, (32,), points=signs))
    shuffled = order(Batch(logits, logits, (32,), points=signs[torch.randperm(64, generator=generator)]))
    assert float(perfect) == pytest.approx(0, abs=1e-4)
    assert float(shuffled) > 0.5
    learned = (0.1 * torch.randn(1, 64, 32, generator=generator)).requires_grad_()
    order(Batch(learned, learned, (8, 32), points=signs)).backward()
    assert learned.grad.abs().max() > 0


def test_two_items_can_be_learned():
    """A single product has no spread: the loss was NaN."""
    values, _ = made(items=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = Hasher(16, epochs=2, device="cpu").fit(values).encode(values)
    assert len(np.unique(codes.packed, axis=0)) == 2


@pytest.mark.parametrize("empty", [False, True])
def test_bits_beyond_the_dimensions_that_there_are_are_not_rounding_errors(empty):
    """Of 64 columns 6 dimensions are there: every bit says something, and an item's code is that of the item alone."""
    values, _ = made(width=6)
    random = np.random.default_rng(1)
    mixed = values @ random.normal(size=(6, 64)).astype(np.float32)
    items = np.pad(values, ((0, 0), (0, 58))) if empty else mixed
    hasher = Hasher(64, epochs=2, device="cpu").fit(items)
    bits = hasher.logits(items) > 0
    assert not (bits.all(axis=0) | (~bits).all(axis=0)).any()
    alone = np.concatenate([hasher.logits(items[row : row + 1]) > 0 for row in range(100)])
    assert np.array_equal(alone, bits[:100])


@pytest.mark.parametrize("labeled", [False, True])
def test_codes_hold_for_kinds_that_were_not_learned(labeled):
    """Of new kinds, codes beside a base keep more of the floats' neighbors than those of the plain network."""
    values, labels = made(items=1200, width=40, classes=12)
    known = labels < 6
    scores = {}
    for faithfulness in ("kinds", "balanced", "order"):
        hasher = Hasher(32, faithfulness=faithfulness, epochs=20, device="cpu", nested=(16,))
        scores[faithfulness] = hasher.fit(values[known], labels[known] if labeled else None).score(values[~known])
    assert scores["kinds"] + 0.03 < scores["balanced"]
    assert scores["kinds"] + 0.03 < scores["order"]


def test_the_dial_is_checked_and_kept(tmp_path):
    values, _ = made(items=80)
    for wrong, message in (("some", "or a number"), (-1.0, "a number of at least 0"), (True, "a number of at least 0")):
        with pytest.raises(ConfigError, match=message):
            Hasher(8, faithfulness=wrong, epochs=1).fit(values)
    with pytest.raises(ConfigError, match="goes with faithfulness='kinds'"):
        Hasher(8, start="clusters", epochs=1).fit(values)
    with pytest.raises(ConfigError, match="needs a closed-form base"):
        Hasher(8, faithfulness="kinds", terms={"order": 1.0}, epochs=1).fit(values)
    hasher = Hasher(24, faithfulness=0.05, epochs=2, device="cpu").fit(values)
    assert hasher.config_.faithfulness == pytest.approx(0.05 * 0.3 / 0.16)
    assert "order" in hasher.history_[-1]
    hasher.save(tmp_path / "model")
    loaded = Hasher.load(tmp_path / "model", device="cpu")
    assert np.array_equal(loaded.logits(values), hasher.logits(values))
    assert (loaded.config_, loaded.get_params()) == (hasher.config_, hasher.get_params())
    plain = Hasher.from_preset("small", bits=8, device="cpu").fit(values)
    assert plain.config_.faithfulness is None
    assert plain.towers_.coders[0].base is None


def test_views_and_a_run_too_large_for_memory(monkeypatch):
    """Stored views go the same way; features that are computed as they are read give the same model."""
    from crovca.hashing import features

    values, labels = made(items=120)
    views = np.stack([values, values + 0.1, values - 0.1], axis=1)
    make = lambda: Hasher(16, epochs=3, batch_size=32, device="cpu")  # noqa: E731
    kept = [make().fit(views), make().fit(values, labels)]
    assert kept[0].pairing_ == ("views",)
    monkeypatch.setattr(features, "_ROOM", 0)
    for one, other in zip(kept, [make().fit(views), make().fit(values, labels)], strict=True):
        np.testing.assert_allclose(one.logits(values), other.logits(values), atol=1e-3)


@pytest.mark.parametrize("labeled", [False, True])
def test_one_giant_row_collapses_nothing_and_is_named(labeled):
    values, labels = made()
    y = labels if labeled else None
    usual = Hasher(16, epochs=5, device="cpu").fit(values, y)
    giant = values.copy()
    giant[17] *= 1e6
    with pytest.warns(
        CrovcaWarning, match=r"row 17 is 1,\d\d\d,\d\d\d times|row 17 is \d+,\d+ times as long as the median"
    ):
        found = Hasher(16, epochs=5, device="cpu").fit(giant, y)
    assert len(np.unique(found.encode(values).packed, axis=0)) > 0.8 * len(
        np.unique(usual.encode(values).packed, axis=0)
    )
    assert found.score(values) > usual.score(values) - 0.03


@pytest.mark.parametrize("labeled", [False, True])
def test_a_common_offset_collapses_nothing(labeled):
    values, labels = made()
    y = labels if labeled else None
    moved = values + np.float32(10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Hasher(16, epochs=5, device="cpu").fit(moved, y)
    assert len(np.unique(found.encode(moved).packed, axis=0)) > 50
    assert found.score(moved) > 0.5


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(InvalidInputError, match=r"NaN in 1 of 3 rows, the first 1"):
        Codes.from_logits(np.array([[1.0, 2.0], [np.nan, 0.0], [-1.0, 1.0]]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_embeddings_does_not_matter(scale):
    values, _ = made(items=300)
    scaled = values * np.float32(scale)
    usual, found = (Hasher(16, epochs=3, device="cpu").fit(one) for one in (values, scaled))
    assert found.score(scaled) > usual.score(values) - 0.03


@pytest.mark.parametrize("items", [2, 600])
def test_items_that_are_all_the_same_are_refused(items):
    with pytest.raises(InvalidInputError, match=f"all {items} embeddings are the same"):
        Hasher(16, device="cpu").fit(np.tile(made(items=1)[0], (items, 1)))


def test_a_column_that_alone_counts_is_named():
    values, _ = made()
    values[:, 5] *= 1e6
    with pytest.warns(CrovcaWarning, match=r"column 5 has 100\.00 % of the variance"):
        Hasher(16, epochs=1, device="cpu").fit(values)
