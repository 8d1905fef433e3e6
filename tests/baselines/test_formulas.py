"""Every rebuilt objective and projection against its formula, written again in plain numpy."""

import itertools
import math

import faiss
import numpy as np
import pytest
import torch
from scipy.stats import beta

from crovca.baselines.ddbh import boundary_preserving_loss, ddbh_terms
from crovca.baselines.fppq import FPPQ, FPPQLoss, class_codes
from crovca.baselines.head import LabeledBatch, sign_straight_through
from crovca.baselines.learned import (
    BiHalfLoss,
    CIBHashLoss,
    CSQLoss,
    GreedyHashLoss,
    GreedyHashSupervisedLoss,
    OrthoHashLoss,
    SDCLoss,
    SimilarityDistillationLoss,
    bihalf_codes,
    hash_centers,
)
from crovca.baselines.linear import ITQ, LSH, PCA, CenteredSign, FaissITQ, HashingBaseline, SpectralHashing
from crovca.baselines.quantizers import (
    ASH1,
    ASH2,
    ASH8,
    OPQ,
    PQ,
    SQ4,
    SQ8,
    FloatCentered,
    FloatNormalized,
    FloatRaw,
    RaBitQ,
    RaBitQ2,
    RaBitQ4,
    TurboQuant1,
    TurboQuant2,
    TurboQuant4,
    beta_codebook,
)
from crovca.errors import InvalidInputError

RANDOM = np.random.default_rng(0)
X = (RANDOM.normal(size=(600, 24)) * np.linspace(3, 0.5, 24) + 1).astype(np.float32)


def batch(views=1, items=8, bits=6, width=5, labels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(views, items, bits, generator=generator, dtype=torch.float64)
    inputs = torch.randn(items, width, generator=generator, dtype=torch.float64)
    return LabeledBatch(logits, inputs, labels)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def signs(values):
    return np.where(values > 0, 1.0, -1.0)


def parallel(found, expected):
    """Equal up to one positive factor."""
    factor = float((found * expected).sum() / (expected**2).sum())
    assert factor > 0
    assert np.allclose(found, factor * expected, atol=2e-3 * np.abs(found).max())


# --- without training -------------------------------------------------------------------------------


def test_centered_sign():
    parallel(CenteredSign(10).fit(X).logits(X), (X - X.mean(axis=0))[:, :10])


def test_lsh():
    weights = np.random.default_rng(3).normal(size=(24, 40))
    parallel(LSH(40, seed=3).fit(X).logits(X), (X - X.mean(axis=0)) @ weights)


def test_pca_is_the_singular_vectors():
    centered = X - X.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    found = PCA(8).fit(X).logits(X)
    expected = centered @ vectors[:8].T
    parallel(found, expected * np.sign((found * expected).sum(axis=0)))


def test_hashing_baseline_is_a_rotation_of_pca():
    found = HashingBaseline(8, seed=5).fit(X).logits(X)
    centered = X - X.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    projected = centered @ vectors[:8].T
    rotation = np.linalg.lstsq(projected, found, rcond=None)[0]
    assert np.allclose(projected @ rotation, found, atol=1e-4)
    gram = rotation.T @ rotation
    assert np.allclose(gram, gram[0, 0] * np.eye(8), atol=1e-4 * gram[0, 0])
    assert not np.array_equal(found > 0, HashingBaseline(8, seed=6).fit(X).logits(X) > 0)


def itq_inputs():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    centered = (unit - unit.mean(axis=0)).astype(np.float64)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    return centered @ vectors[:8].T


def itq_loss(projected, rotation):
    return np.square(signs(projected @ rotation) - projected @ rotation).sum()


def test_itq_is_where_the_alternation_ends():
    projected = itq_inputs()
    found = ITQ(8).fit(X).logits(X)
    rotation = np.linalg.lstsq(projected, found, rcond=None)[0]
    rotation /= np.sqrt(np.trace(rotation.T @ rotation) / 8)
    assert np.allclose(rotation.T @ rotation, np.eye(8), atol=1e-3)
    losses = [itq_loss(projected, rotation)]
    for start in range(5):
        other = np.linalg.qr(np.random.default_rng(start).normal(size=(8, 8)))[0]
        first = itq_loss(projected, other)
        for _ in range(50):
            left, _, right = np.linalg.svd(projected.T @ signs(projected @ other))
            other = left @ right
        losses.append(itq_loss(projected, other))
        assert losses[-1] < first
    assert losses[0] == pytest.approx(np.mean(losses[1:]), rel=0.02)  # starts differ, ends hardly
    left, _, right = np.linalg.svd(projected.T @ signs(projected @ rotation))
    assert itq_loss(projected, left @ right) > 0.999 * losses[0]  # nothing left to improve


def test_faiss_s_itq_is_a_rotation_of_principal_components():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    unit = unit - unit.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centered = unit - unit.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    projected = centered @ vectors[:8].T
    rotation = np.linalg.lstsq(projected, FaissITQ(8).fit(X).logits(X), rcond=None)[0]
    gram = rotation.T @ rotation
    assert np.allclose(gram, gram[0, 0] * np.eye(8), atol=1e-2 * gram[0, 0])


def test_spectral_hashing():
    bits = 12
    centered = X.astype(np.float64) - X.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    found = SpectralHashing(bits).fit(X).logits(X)
    functions = []
    for component in range(bits):
        v = centered @ vectors[component]
        a, b = v.min(), v.max()
        for k in range(1, bits + 1):
            eigenvalue = 1 - math.exp(-0.5 * 1e-4 * (k * math.pi / (b - a)) ** 2)
            functions.append((eigenvalue, np.sin(math.pi / 2 + k * math.pi / (b - a) * (v - a))))
    functions.sort(key=lambda pair: pair[0])
    for column, (_, values) in enumerate(functions[:bits]):
        # an eigenvector's direction is free: reversed, v - a becomes b - v, and odd modes change their sign
        straight = np.abs(found[:, column] - values).max()
        assert min(straight, np.abs(found[:, column] + values).max()) < 1e-2


@pytest.mark.parametrize(("method", "prepare"), [
    (FloatRaw, lambda x: x),
    (FloatNormalized, lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)),
    (FloatCentered, lambda x: (x - X.mean(axis=0)) / np.linalg.norm(x - X.mean(axis=0), axis=1, keepdims=True)),
])  # fmt: skip
def test_float_scores(method, prepare):
    found = method(8).fit(X)
    assert np.allclose(found.scores(X[:5], X), prepare(X[:5]) @ prepare(X).T, atol=1e-3)
    assert found.bytes_per_item == 96


def unit(values):
    centered = values - X.mean(axis=0)
    return centered / np.linalg.norm(centered, axis=1, keepdims=True)


@pytest.mark.parametrize("method", [PQ, OPQ])
def test_product_quantizers_order_by_the_distance_to_the_nearest_centroids(method):
    found = method(16).fit(X)
    assert found.bytes_per_item == 2
    stored = found.store(X)
    assert stored.shape == (600, 2)
    if method is PQ:
        centroids = faiss.vector_to_array(found.index_.pq.centroids).reshape(2, 256, 12)
        parts = unit(X).reshape(600, 2, 12)
        nearest = np.square(parts[:, :, None] - centroids[None]).sum(axis=3).argmin(axis=2)
        assert (nearest == stored).mean() > 0.999
        restored = np.concatenate([centroids[0, stored[:, 0]], centroids[1, stored[:, 1]]], axis=1)
        expected = -np.square(unit(X[:4])[:, None] - restored[None]).sum(axis=2) + 1
        assert np.allclose(found.compare(X[:4], stored), expected, atol=1e-4)
    true = FloatCentered(8).fit(X).scores(X, X)
    assert np.corrcoef(found.scores(X, X).ravel(), true.ravel())[0, 1] > 0.7


@pytest.mark.parametrize(("method", "numbers"), [(SQ8, 2), (SQ4, 4)])
def test_scalar_quantizers_keep_what_fits(method, numbers):
    found = method(16).fit(X)
    assert found.bytes_per_item == 2
    points = unit(X)
    centered = points - points.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    reduced = centered @ vectors[:numbers].T
    expected = -np.square(reduced[:5, None] - reduced[None]).sum(axis=2)
    scores = found.scores(X[:5], X) - np.square(reduced[:5]).sum(axis=1)[:, None]
    assert np.abs(scores - expected).max() < (0.02 if method is SQ8 else 0.3)


def test_rabitq_estimates_distances():
    found = RaBitQ(8 * (8 + 2)).fit(X)  # 2 bytes of bits: 16 components
    assert found.bytes_per_item == 10
    points = unit(X)
    centered = points - points.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    reduced = centered @ vectors[:16].T
    true = -np.square(reduced[:50, None] - reduced[None]).sum(axis=2)
    estimate = found.scores(X[:50], X)
    assert np.corrcoef(true.ravel(), estimate.ravel())[0, 1] > 0.8
    assert abs(float((estimate - true).mean())) < 0.1  # unbiased
    assert RaBitQ(72).fit(X).bytes_per_item == 9
    with pytest.raises(InvalidInputError, match=r"8 bytes of .* at least 72 bits.* meant for 128 or more.* 64 were"):
        RaBitQ(64).fit(X)


def reduced(numbers):
    points = unit(X)
    centered = points - points.mean(axis=0)
    _, _, vectors = np.linalg.svd(centered, full_matrices=False)
    return centered @ vectors[:numbers].T


@pytest.mark.parametrize(("method", "bits"), [(RaBitQ2, 2), (RaBitQ4, 4)])
def test_multi_bit_rabitq_s_estimate_is_that_of_a_vector_of_the_grid(method, bits):
    """|o|^2 <y, q> / <y, o> for <o, q>, where y is a vector of the centered grid in o's orthant."""
    found = method(8 * (20 + 4)).fit(X)  # 4 bytes of numbers
    assert found.bytes_per_item == 24
    estimate, rotated = found.scores(X[:100], X), found._prepare(X)
    asked, center = rotated[:100], rotated.mean(axis=0)
    assert rotated.shape == (600, 32 // bits)
    true = -np.square(asked[:, None] - rotated[None]).sum(axis=2)
    assert np.corrcoef(true.ravel(), estimate.ravel())[0, 1] > {2: 0.95, 4: 0.99}[bits]
    for row in range(100, 110):
        q, o = asked - center, rotated[row] - center
        products = (estimate[:, row] + o @ o + np.square(q).sum(axis=1)) / 2
        y = np.linalg.lstsq(q, products, rcond=None)[0]  # |o|^2 y / <y, o>
        assert y @ o == pytest.approx(o @ o, abs=1e-5)
        assert np.array_equal(np.sign(y), np.sign(o))
        levels = np.arange(2 ** (bits - 1)) + 0.5
        scaled = np.abs(y)[None] * levels[:, None] / np.abs(y).max()  # for each level that the largest may have
        assert np.abs(scaled[:, :, None] - levels).min(axis=2).max(axis=1).min() < 1e-4
    with pytest.raises(InvalidInputError, match=r"20 bytes of corrections .* at least 176 bits"):
        method(128).fit(X)


def test_turboquant_s_codebook_is_optimal_for_the_sphere():
    """The paper's centroids and errors for many dimensions (section 3.1), and Lloyd's condition on real points."""
    root = 1000**0.5
    assert beta_codebook(1000, 1) * root == pytest.approx([-0.798, 0.798], abs=2e-3)
    assert beta_codebook(1000, 2) * root == pytest.approx([-1.51, -0.453, 0.453, 1.51], abs=4e-3)
    points = RANDOM.normal(size=(200_000, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    for bits, error in ((1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)):
        gauss = RANDOM.normal(size=200_000) / root
        found = beta_codebook(1000, bits)
        nearest = found[np.abs(gauss[:, None] - found).argmin(axis=1)]
        assert 1000 * np.square(gauss - nearest).mean() == pytest.approx(error, rel=0.17)
        found = beta_codebook(6, bits)
        owner = np.abs(points[:, :1] - found).argmin(axis=1)
        assert [points[owner == j, 0].mean() for j in range(2**bits)] == pytest.approx(found, abs=0.01)
    assert beta_codebook(1, 2).tolist() == [-1, -1, 1, 1]
    assert np.abs(beta_codebook(2, 1)).tolist() == pytest.approx([2 / math.pi] * 2)


@pytest.mark.parametrize(("method", "bits"), [(TurboQuant1, 1), (TurboQuant2, 2), (TurboQuant4, 4)])
def test_turboquant_restores_by_centroids_of_rotated_unit_vectors(method, bits):
    found = method(16, seed=3).fit(X)
    numbers = 16 // bits
    assert found.bytes_per_item == 2
    rotation = found.rotation_
    assert np.allclose(rotation @ rotation.T, np.eye(numbers), atol=1e-5)
    kept = found._prepare(X) @ rotation.T
    assert np.allclose(np.abs(kept), np.abs(reduced(numbers)), atol=1e-4)
    on_sphere = kept @ rotation / np.linalg.norm(kept, axis=1, keepdims=True)
    book = beta_codebook(numbers, bits)
    index = np.abs(on_sphere[:, :, None] - book).argmin(axis=2)
    restored = book[index] @ rotation.T  # their DeQuant
    assert np.allclose(found.scores(X[:9], X), kept[:9] @ restored.T, atol=1e-4)


def test_ash_alternates_whole_numbers_and_rotations():
    found = ASH2(16).fit(X)
    assert found.bytes_per_item == 2
    assert np.allclose(found.rotation_ @ found.rotation_.T, np.eye(8), atol=1e-4)
    losses = np.array(found.losses_)
    assert losses[-1] < 0.95 * losses[0]
    assert (np.diff(losses) < 1e-3 * losses[0]).all()
    rotated = found._prepare(X)
    assert np.allclose(np.square(rotated).sum(axis=1), np.square(reduced(8)).sum(axis=1), atol=1e-4)
    odd = np.array([-3, -1, 1, 3])
    codes = odd[np.abs(rotated[:, :, None] - found.step_ * odd).argmin(axis=2)]
    expected = rotated[:9] @ (codes / np.linalg.norm(codes, axis=1, keepdims=True)).T
    assert np.allclose(found.scores(X[:9], X), expected, atol=1e-4)


def test_ash_s_ends_are_itq_and_the_floats():
    one = ASH1(8).fit(X)
    kept = reduced(8)
    loss = itq_loss(kept, np.linalg.lstsq(kept, one._prepare(X), rcond=None)[0] / one.step_)
    other = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    for _ in range(50):
        left, _, right = np.linalg.svd(kept.T @ signs(kept @ other))
        other = left @ right
    assert loss == pytest.approx(itq_loss(kept, other / one.step_), rel=0.02)
    eight = ASH8(64).fit(X)
    kept = reduced(8)
    true = kept[:20] @ (kept / np.linalg.norm(kept, axis=1, keepdims=True)).T
    assert np.abs(eight.scores(X[:20], X) - true).max() < 0.02


# --- objectives -------------------------------------------------------------------------------------


def halves(values):
    values = np.asarray(values.detach())
    return [cosine(values[i], values[i + len(values) // 2]) for i in range(len(values) // 2)]


def test_sign_passes_the_gradient_straight_through():
    values = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    out = sign_straight_through(values)
    assert out.tolist() == [-1, -1, 1]
    (out * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1, 2, 3]


@pytest.mark.parametrize("several", [False, True])
def test_orthohash(several):
    codes = signs(RANDOM.normal(size=(4, 6)))
    labels = np.array([[1, 0, 1, 0], [0, 0, 0, 1]] * 4, bool) if several else np.array([0, 1, 2, 3] * 2)
    given = batch(labels=torch.from_numpy(labels))
    total = 0.0
    for z, label in zip(given.logits[0].detach().numpy(), labels, strict=True):
        active = np.flatnonzero(label) if several else [int(label)]
        scores = [8 * (cosine(z, codes[j]) - 0.2 * (j in active)) for j in range(4)]
        for j in active:
            total -= (scores[j] - math.log(sum(map(math.exp, scores)))) / len(active)
    loss = OrthoHashLoss(torch.from_numpy(codes))(given)
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)


def test_csq():
    centers = signs(RANDOM.normal(size=(3, 6)))
    labels = np.array([[1, 0, 0], [1, 1, 0]] * 4, bool)
    given = batch(labels=torch.from_numpy(labels))
    ties = signs(RANDOM.normal(size=6))
    central, quantization = [], []
    for z, label in zip(given.logits[0].detach().numpy(), labels, strict=True):
        for k in range(6):
            total = sum(centers[c, k] for c in np.flatnonzero(label))
            center = np.sign(total) if total else ties[k]
            p, y = (math.tanh(z[k]) + 1) / 2, (center + 1) / 2
            central.append(-(y * math.log(p) + (1 - y) * math.log(1 - p)))
            quantization.append((abs(math.tanh(z[k])) - 1) ** 2)
    expected = np.mean(central) + 1e-4 * np.mean(quantization)
    loss = CSQLoss(torch.from_numpy(centers), torch.from_numpy(ties))(given)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_hash_centers_are_hadamard_rows_while_they_last():
    centers = hash_centers(32, 16, np.random.default_rng(0))
    distances = (16 - centers @ centers.T) / 2
    assert set(distances[~np.eye(32, dtype=bool)].tolist()) == {8, 16}
    assert set(np.unique(hash_centers(33, 16, np.random.default_rng(0)))) == {-1, 1}
    assert hash_centers(3, 12, np.random.default_rng(0)).shape == (3, 12)


def penalty(logits):
    return np.mean([abs(abs(z) - 1) ** 3 for z in logits.detach().numpy().ravel()])


def test_greedyhash():
    given = batch()
    codes = torch.from_numpy(signs(given.logits[0].detach().numpy()))
    squares = [(b - x) ** 2 for b, x in zip(halves(codes), halves(given.inputs), strict=True)]
    assert GreedyHashLoss()(given).item() == pytest.approx(np.mean(squares) + 0.1 * penalty(given.logits), rel=1e-6)


def test_greedyhash_supervised():
    labels = np.array([0, 1, 2, 0] * 2)
    given = batch(labels=torch.from_numpy(labels))
    loss = GreedyHashSupervisedLoss(6, 3).double()
    w, c = (p.detach().numpy() for p in (loss.classifier.weight, loss.classifier.bias))
    entropy = []
    for z, y in zip(given.logits[0].detach().numpy(), labels, strict=True):
        scores = w @ signs(z) + c
        entropy.append(math.log(np.exp(scores).sum()) - scores[y])
    assert loss(given).item() == pytest.approx(np.mean(entropy) + 0.1 * penalty(given.logits), rel=1e-6)


def test_bihalf():
    given = batch()
    given.logits.requires_grad_()
    logits = given.logits[0].detach().numpy()
    codes = np.full_like(logits, -1)
    for k in range(6):
        codes[np.argsort(-logits[:, k])[:4], k] = 1
    found = bihalf_codes(given.logits[0])
    assert np.array_equal(found.detach().numpy(), codes)
    assert (codes.sum(axis=0) == 0).all()
    squares = [(b - x) ** 2 for b, x in zip(halves(torch.from_numpy(codes)), halves(given.inputs), strict=True)]
    assert BiHalfLoss()(given).item() == pytest.approx(np.mean(squares), rel=1e-6)
    weights = torch.randn(8, 6, dtype=torch.float64)
    (found * weights).sum().backward()
    expected = weights.numpy() + 6 * (logits - codes) / codes.size
    assert np.allclose(given.logits.grad[0].numpy(), expected)


def test_cibhash():
    given = batch(views=2, items=5)
    one, other = (view.detach().numpy() for view in given.logits)
    codes = signs(np.concatenate([one, other]))
    contrast = 0.0
    for i in range(10):
        others = [math.exp(cosine(codes[i], codes[j]) / 0.3) for j in range(10) if j != i]
        contrast -= math.log(math.exp(cosine(codes[i], codes[(i + 5) % 10]) / 0.3) / sum(others)) / 10

    def divergence(a, b):
        p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean()

    expected = contrast + 1e-3 * (divergence(one, other) + divergence(other, one)) / 2
    assert CIBHashLoss()(given).item() == pytest.approx(expected, rel=1e-6)


def test_sdc():
    given = batch(items=10)
    order = np.argsort(halves(given.inputs))
    found = np.array(halves(given.logits[0]))[order]
    targets = [max(0.0, 2 * beta.ppf((2 * i + 1) / 10, 5, 5) - 1) for i in range(5)]
    gaps = [1 - cosine(z, np.sign(z)) for z in given.logits[0].detach().numpy()]
    expected = np.mean(np.abs(found - targets)) + np.mean(gaps)
    assert SDCLoss()(given).item() == pytest.approx(expected, rel=1e-5)


def test_similarity_distillation():
    given = batch()
    z, x = given.logits[0].detach().numpy(), given.inputs.numpy()

    def shares(rows, i):
        values = np.array([math.exp(cosine(rows[i], rows[j]) / 0.1) for j in range(8) if j != i])
        return values / values.sum()

    divergence = np.mean([(shares(x, i) * np.log(shares(x, i) / shares(z, i))).sum() for i in range(8)])
    gaps = np.mean([1 - cosine(row, np.sign(row)) for row in z])
    correlation = np.corrcoef(z.T)
    pairs = sum(correlation[k, m] ** 2 for k, m in itertools.permutations(range(6), 2))
    expected = divergence + gaps + 0.005 * pairs / 6
    assert SimilarityDistillationLoss()(given).item() == pytest.approx(expected, rel=1e-5)


def test_fppq():
    labels = np.array([0, 1, 2, 1])
    codes = np.array([[3, 200], [17, 5], [255, 0]])
    given = batch(items=4, bits=6, labels=torch.from_numpy(labels))
    torch.manual_seed(0)
    loss = FPPQLoss(torch.from_numpy(codes), 3).double()
    classifier, centroids = loss.classifier.detach().numpy(), loss.centroids.detach().numpy()

    def cosface(cosines, target, margin):
        scores = [64 * (value - margin * (j == target)) for j, value in enumerate(cosines)]
        return math.log(sum(math.exp(s - max(scores)) for s in scores)) + max(scores) - scores[target]

    of_classes, of_words = [], []
    for z, y in zip(given.logits[0].detach().numpy(), labels, strict=True):
        of_classes.append(cosface([cosine(z, w) for w in classifier], y, 0.4))
        of_words += [
            cosface([cosine(z[3 * m : 3 * m + 3], w) for w in centroids[m]], codes[y, m], 0.2) for m in range(2)
        ]
    assert loss(given).item() == pytest.approx(np.mean(of_classes) + np.mean(of_words), rel=1e-5)


def test_fppq_scores_are_sums_over_parts():
    labels = (X[:, 0] > 1).astype(int) + 2 * (X[:, 1] > 1)
    found = FPPQ(16, epochs=3).fit(X, labels)
    stored = found.store(X)
    assert stored.shape == (600, 2)
    tables = found._tables(X[:3])
    expected = [[sum(tables[q, m, stored[i, m]] for m in range(2)) for i in range(600)] for q in range(3)]
    assert np.allclose(found.compare(X[:3], stored), expected, atol=1e-5)
    with pytest.raises(InvalidInputError, match="one class an item"):
        FPPQ(16).fit(X, np.eye(4, dtype=bool)[labels])


@pytest.mark.filterwarnings("ignore")
def test_fppq_class_codes_are_all_different():
    assert len(np.unique(class_codes(X[:100], 2), axis=0)) == 100
    many = np.repeat(X[:300], 2, axis=0)  # every class mean twice
    codes = class_codes(many, 2)
    assert codes.shape == (600, 2)
    assert len(np.unique(codes, axis=0)) == 600


def test_ddbh_boundary_preserving_loss():
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(12, 16, generator=generator, dtype=torch.float64).tanh()
    v = torch.randn(12, 16, generator=generator, dtype=torch.float64).tanh()
    labels = np.array([0, 1, 2] * 4)
    similar = labels[:, None] == labels[None, :]
    upper, right = 16 / 4, 16 / 6
    rows = []
    for row in range(12):
        inner = (u[row] @ v.T).numpy()
        alike, unlike = inner[similar[row]], inner[~similar[row]]
        s, t = np.clip(alike.mean(), 0, upper), np.clip(unlike.mean(), 0, upper)
        largest = np.sort(unlike)[int(len(unlike) * 0.9) :].mean()
        smallest = np.sort(alike)[::-1][int(len(alike) * 0.9) :].mean()
        base = s - (upper - s) / upper * abs(s - largest)
        base_unlike = t - t / upper * abs(t - smallest)

        def likelihood(x, point, easy):
            return 1 / (1 + math.exp(-math.log(99) / (right if easy else right / 2) * (x - point)))

        positive = [-math.log(likelihood(x, base, x > base)) for x in alike]
        negative = [-math.log(1 - likelihood(x, base_unlike, x < base_unlike)) for x in unlike]
        rows.append(np.mean(positive) + np.mean(negative))
    found = boundary_preserving_loss(u, v, torch.from_numpy(similar))
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-6)

    total = sum(boundary_preserving_loss(a, b, torch.from_numpy(similar)).item() for a, b in ((u, u), (v, v), (u, v)))
    for codes in (u.numpy(), v.numpy()):
        gaps = (codes - np.sign(codes)) ** 2
        total += 0.1 * np.mean([gaps[similar[i]].sum(axis=0) for i in range(12)])
    terms = ddbh_terms(u, v, torch.from_numpy(similar))
    found = terms["boundary"] + 0.1 * terms["quantization"]
    assert found.item() == pytest.approx(total, rel=1e-6)
