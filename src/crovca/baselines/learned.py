"""Methods that train our network with a loss of their own, as their authors published it.

Each is a loss (a module on a ``LabeledBatch``) and a class that says what it is made of; ``head`` trains them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from scipy.stats import beta
from torch import Tensor, nn

from crovca.baselines.head import (
    LabeledBatch,
    LearnedBaseline,
    Setup,
    class_weights,
    cosines_of_halves,
    cosines_of_pairs,
    sign_straight_through,
)

_GAMMA = 6.0


class BiHalfLoss(nn.Module):
    """Cosines of half-and-half codes to cosines of embeddings."""

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        codes = cosines_of_halves(bihalf_codes(batch.logits[0]))
        return F.mse_loss(codes, cosines_of_halves(batch.inputs))


def bihalf_codes(logits: Tensor) -> Tensor:
    """Codes (B, b) of -1 and 1, half of each column 1."""
    return _HalfAndHalf.apply(logits)  # type: ignore[no-untyped-call]


class _HalfAndHalf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        places = logits.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        codes = torch.where(places < len(logits) // 2, 1.0, -1.0)
        ctx.save_for_backward(logits, codes)
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        logits, codes = ctx.saved_tensors
        return gradients[0] + _GAMMA * (logits - codes) / codes.numel()


class BiHalf(LearnedBaseline):
    """Bi-half: every bit is 1 for exactly half of a batch.

    Li and van Gemert, "Deep unsupervised image hashing by maximizing bit entropy", AAAI 2021 (arXiv 2012.12334).
    Forward: in each bit the upper half of the batch becomes 1 and the rest -1, the code nearest to the logits U in
    optimal transport. Backward: the code's gradient plus gamma (U - B) / numel. Loss: squared difference of the
    cosines of two items' codes and of their embeddings, on random pairs. gamma = 6.

    Authors' training: a linear layer on VGG fc7 features, SGD 1e-4, momentum 0.9, weight decay 5e-4, batches of 32,
    300 epochs.
    """

    loss = BiHalfLoss


_ALPHA = 0.1


class GreedyHashLoss(nn.Module):
    """Cosines of codes to cosines of embeddings."""

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        codes = cosines_of_halves(sign_straight_through(logits))
        return F.mse_loss(codes, cosines_of_halves(batch.inputs)) + _ALPHA * _penalty(logits)


class GreedyHashSupervisedLoss(nn.Module):
    """Cross-entropy of a classifier on codes."""

    def __init__(self, bits: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(bits, classes)

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        logits = batch.logits[0]
        scores = self.classifier(sign_straight_through(logits))
        target = class_weights(batch.labels, self.classifier.out_features)
        return F.cross_entropy(scores, target) + _ALPHA * _penalty(logits)


def _penalty(logits: Tensor) -> Tensor:
    return (logits.abs() - 1).abs().pow(3).mean()


class GreedyHash(LearnedBaseline):
    """GreedyHash: the sign in the forward pass, its gradient passed straight through.

    Su et al., "Greedy hash: towards fast optimization for accurate hash coding in CNN", NeurIPS 2018, (forward
    sign, backward identity) and the penalty alpha | |z| - 1 |^3 (in the form of the authors' code: the mean of ||z|
    - 1|^3). Supervised: cross-entropy of a linear classifier on the code ; an item of several classes shares its
    target equally, which is our extension. Unsupervised: squared difference of the cosines of two items' codes and
    of their embeddings, on random pairs. alpha = 0.1.

    Authors' training: supervised, fine-tuned AlexNet, SGD 1e-3, x 0.1 every 30 epochs; unsupervised, VGG fc7
    features, SGD 1e-4, 60 epochs (300 at 16 bits).
    """

    loss = GreedyHashLoss


class GreedyHashSupervised(LearnedBaseline):
    """The supervised form."""

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """A linear classifier on codes."""
        assert setup.classes is not None
        return GreedyHashSupervisedLoss(setup.outputs, setup.classes.count)


class CIBHashLoss(nn.Module):
    """Contrast between codes, divergence between the views' probabilities."""

    temperature, divergence = 0.3, 1e-3

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        one, other = batch.logits
        codes = sign_straight_through(torch.sigmoid(torch.cat([one, other])) - 0.5)
        items = len(one)
        similarity = cosines_of_pairs(codes) / self.temperature
        itself = torch.eye(2 * items, dtype=torch.bool, device=codes.device)
        partner = torch.arange(2 * items, device=codes.device).roll(items)
        contrast = F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)
        divergence = (_bernoulli_divergence(one, other.detach()) + _bernoulli_divergence(other, one.detach())) / 2
        return contrast + self.divergence * divergence


def _bernoulli_divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(Bern(sigma(logits)) || Bern(sigma(others))), summed over bits, averaged over items."""
    probability = torch.sigmoid(logits)
    ones = F.logsigmoid(logits) - F.logsigmoid(others)
    zeros = F.logsigmoid(-logits) - F.logsigmoid(-others)
    return (probability * ones + (1 - probability) * zeros).sum(dim=1).mean()


class CIBHash(LearnedBaseline):
    """CIBHash: contrastive learning of stochastic codes with an information bottleneck.

    Qiu et al., "Unsupervised hashing with contrastive information bottleneck", IJCAI 2021 (arXiv 2105.06138):
    contrast (NT-Xent on codes of two views, gradient straight through the sign of sigma(z) - 1/2) and bottleneck
    (the Kullback-Leibler divergence of the two views' Bernoulli distributions, each in turn the target).
    Temperature 0.3, beta = 1e-3, as in the authors' code.

    Two views: the authors augment images; here there are embeddings, and the second view is one of an item's 5
    nearest neighbors with feature dropout, as for our unsupervised codes. Authors' training: Linear, ReLU, Linear
    on VGG fc7 features, Adam 1e-3.
    """

    views: ClassVar[Literal["one", "neighbors"]] = "neighbors"

    loss = CIBHashLoss


class SDCLoss(nn.Module):
    """Sorted cosines to Beta quantiles."""

    shape = 5.0

    def __init__(self) -> None:
        super().__init__()
        self._quantiles: dict[int, Tensor] = {}

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        found = cosines_of_halves(logits)[cosines_of_halves(batch.inputs).argsort(stable=True)]
        return F.l1_loss(found, self._targets(len(found)).to(found.device)) + quantization_gap(logits)

    def _targets(self, pairs: int) -> Tensor:
        if pairs not in self._quantiles:
            shares = (2 * np.arange(1, pairs + 1) - 1) / (2 * pairs)
            stretched = 2 * beta.ppf(shares, self.shape, self.shape) - 1
            self._quantiles[pairs] = torch.from_numpy(np.maximum(stretched, 0)).float()
        return self._quantiles[pairs]


def quantization_gap(logits: Tensor) -> Tensor:
    """Mean of 1 - cos(z, sign z)."""
    return (1 - F.cosine_similarity(logits, logits.sign())).mean()


class SDC(LearnedBaseline):
    """SDC: similarities of codes follow a set distribution in the order of the embeddings' similarities.

    Ng et al., "Unsupervised hashing with similarity distribution calibration", BMVC 2023 (arXiv 2302.07669): the
    cosines of random pairs of embeddings are sorted; the codes' cosines, in that order, are drawn (L1) to the
    quantiles (2 i - 1) / (2 n) of a Beta(a, a) distribution stretched to [-1, 1], negative ones raised to 0
    ("ortho"); plus the mean of 1 - cos(z, sign z). a = 5, weights 1.

    Authors' training: a linear layer on frozen features; settings per data set.
    """

    loss = SDCLoss


class SimilarityDistillationLoss(nn.Module):
    """Divergence of similarity distributions, quantization, decorrelation."""

    temperature, decorrelation = 0.1, 0.005

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        logits = batch.logits[0]
        divergence = F.kl_div(
            self._log_shares(logits), self._log_shares(batch.inputs), reduction="batchmean", log_target=True
        )
        standard = (logits - logits.mean(dim=0)) / logits.std(dim=0, correction=0).clamp(min=1e-6)
        correlation = standard.T @ standard / len(standard)
        off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
        return divergence + quantization_gap(logits) + self.decorrelation * off_diagonal / logits.shape[1]

    def _log_shares(self, rows: Tensor) -> Tensor:
        others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        similarity = cosines_of_pairs(rows)[others].reshape(len(rows), len(rows) - 1)
        return F.log_softmax(similarity / self.temperature, dim=1)


class SimilarityDistillation(LearnedBaseline):
    """A similarity-distillation head: what can be rebuilt of IPHASH and HARR on frozen embeddings.

    IPHASH (Gong et al., "ViT2Hash: unsupervised information-preserving hashing", arXiv 2201.05541) trains its
    second stage by the Kullback-Leibler divergence between the distributions of similarities of features and of
    codes, with a quantization term; its first stage reconstructs masked patches and needs the vision transformer.
    HARR (Ma et al., TOMM 2024) adds the decorrelation of bits in the manner of Barlow Twins; its similarity from
    winner-take-all hashes is left out. There is no public code of either. So this head is neither: it is

        mean_i KL(softmax_j cos(x_i, x_j) / tau || softmax_j cos(z_i, z_j) / tau) + mean_i (1 - cos(z_i, sign z_i))
        + 0.005 sum_{k != l} corr(z_k, z_l)^2 / b,

    with tau = 0.1 and j over the rest of the batch. tau and 0.005 (Barlow Twins' weight) are our choice, as neither
    paper's settings can be transferred.
    """

    loss = SimilarityDistillationLoss


class OrthoHashLoss(nn.Module):
    """Cross-entropy to class codes (C, b) with scale and margin."""

    codes: Tensor
    scale, margin = 8.0, 0.2

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", F.normalize(codes, dim=1))

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        target = class_weights(batch.labels, len(self.codes))
        cosines = F.normalize(batch.logits[0], dim=1) @ self.codes.T
        return F.cross_entropy(self.scale * (cosines - self.margin * (target > 0)), target)


class OrthoHash(LearnedBaseline):
    """OrthoHash: one loss that pulls codes to fixed, nearly orthogonal class codes.

    Hoe et al., "One loss for all: deep hashing with a single cosine similarity based learning objective", NeurIPS
    2021 (arXiv 2109.14449), section 3.2: cross-entropy of s (cos(z, c_j) - m [j = y]), c_j random codes of -1 and 1;
    for several labels, by label smoothing, the target is shared equally by an item's classes. s = 8, m = 0.2.

    Authors' training: Linear and BatchNorm on a fine-tuned network, Adam 1e-4, weight decay 5e-4, batches of 256,
    100 epochs, learning rate x 0.1 at 80 %.
    """

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """Random codes, one a class."""
        assert setup.classes is not None
        signs = setup.random.integers(2, size=(setup.classes.count, setup.outputs)) * 2 - 1
        return OrthoHashLoss(torch.from_numpy(signs).float())


class CSQLoss(nn.Module):
    """Distance to hash centers (C, b) of -1 and 1; ``ties`` (b,) are the bits where an item's centers cancel out."""

    centers: Tensor
    ties: Tensor
    quantization = 1e-4

    def __init__(self, centers: Tensor, ties: Tensor) -> None:
        super().__init__()
        self.register_buffer("centers", centers)
        self.register_buffer("ties", ties)

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        sums = (class_weights(batch.labels, len(self.centers)) > 0).to(self.centers.dtype) @ self.centers
        target = torch.where(sums == 0, self.ties, sums.sign())
        relaxed = batch.logits[0].tanh()
        central = F.binary_cross_entropy_with_logits(2 * batch.logits[0], (target + 1) / 2)
        # (tanh z + 1) / 2 = sigmoid(2 z): the same cross-entropy, without logarithms of 0
        return central + self.quantization * (relaxed.abs() - 1).square().mean()


def hash_centers(classes: int, bits: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Hash centers (classes, bits) of -1 and 1."""
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        matrix = hadamard(bits)
        return np.concatenate([matrix, -matrix])[:classes].astype(np.int64)
    return random.integers(2, size=(classes, bits)) * 2 - 1


class CSQ(LearnedBaseline):
    """Central similarity quantization.

    Yuan et al., "Central similarity quantization for efficient image and video retrieval", CVPR 2020 (arXiv
    1908.00347): central similarity (binary cross-entropy of the relaxed bits to the class's hash center) and
    quantization (in the form of the authors' code: the squared distance of |tanh z| from 1), weight lambda = 1e-4.
    Centers: rows of a Hadamard matrix H and of -H where the length is a power of 2 and the classes are at most 2 b,
    else random bits (both as in their generation of hash centers); of several classes the sign of the sum, ties at
    random.

    Authors' training: a fine-tuned ResNet, RMSprop 1e-5.
    """

    supervised: ClassVar[bool] = True

    def objective(self, setup: Setup) -> nn.Module:
        """Centers, one a class."""
        assert setup.classes is not None
        centers = hash_centers(setup.classes.count, setup.outputs, setup.random)
        ties = setup.random.integers(2, size=setup.outputs) * 2 - 1
        return CSQLoss(torch.from_numpy(centers).float(), torch.from_numpy(ties).float())
