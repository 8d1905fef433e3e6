"""Learned heads: our training loop, on our network with our inputs; a head is its objective.

All heads have the network (``HashCoder`` small), inputs, batches (256), optimizer (AdamW, cosine schedule) and
number of epochs alike; what is published of a method is its objective with its weights. The settings below were
tuned once for all heads of a kind together, on a split of a database (docs/reproducing.md); what the authors
trained with stands in each file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.base import BinaryBaseline, Float32
from crovca.data.embeddings import as_embeddings
from crovca.data.labels import ClassMembership
from crovca.encoders.encoder import choose_device
from crovca.hashing.config import TrainingConfig, default_epochs
from crovca.hashing.inputs import input_statistics
from crovca.hashing.neighbors import find_shared_neighbors
from crovca.hashing.network import HashCoder, calibrate, new_coders
from crovca.hashing.towers import Tower, Towers
from crovca.hashing.train import Silent, train
from crovca.hashing.views import Copies, FeatureDropout, NeighborViews, ViewSource

_NEIGHBORS = 5
_BLOCK = 8192


@dataclass(frozen=True)
class HeadSettings:
    """How heads are trained.

    Attributes:
        learning_rate: of AdamW at the first step.
        weight_decay: of AdamW.
        dropout: share of the features dropped in a view.
        center: whether the mean embedding is subtracted before the network.
        budget: whose number of epochs: that of our unsupervised or supervised codes (``default_epochs``).
    """

    learning_rate: float
    weight_decay: float
    dropout: float
    center: bool
    budget: Literal["unsupervised", "supervised"]


UNSUPERVISED = HeadSettings(learning_rate=1e-3, weight_decay=5.0, dropout=0.3, center=True, budget="unsupervised")
SUPERVISED = HeadSettings(learning_rate=3e-3, weight_decay=0.01, dropout=0.3, center=True, budget="supervised")


@dataclass(frozen=True)
class Setup:
    """What an objective is made from.

    Attributes:
        outputs: numbers that the network gives: the bits.
        values: (n, d) the embeddings, shifted and scaled as the network sees them.
        classes: the items' classes, or None.
        random: for choices of the objective's own.
    """

    outputs: int
    values: Float32
    classes: ClassMembership | None
    random: np.random.Generator


@dataclass(frozen=True)
class LabeledBatch:
    """What an objective sees of a step.

    Attributes:
        logits: (v, B, outputs), a slice for each view.
        inputs: (B, d) the items' embeddings, shifted and scaled, nothing dropped.
        labels: (B,) class numbers, (B, C) bool, or None.
    """

    logits: Tensor
    inputs: Tensor
    labels: Tensor | None


class LearnedBaseline(BinaryBaseline):
    """A method that trains the network with an objective of its own.

    Args:
        bits: length of the code.
        seed: of weights, batches and dropout.
        epochs: passes over the data; "auto": as many as ours takes.
        settings: of the loop; None: those tuned for the method's kind.
    """

    learned = True
    views: ClassVar[Literal["one", "neighbors"]] = "one"
    loss: ClassVar[type[nn.Module]]  # where it is made of nothing

    def __init__(
        self,
        bits: int = 64,
        *,
        seed: int = 0,
        epochs: int | Literal["auto"] = "auto",
        settings: HeadSettings | None = None,
    ) -> None:
        super().__init__(bits, seed=seed)
        self.epochs = epochs
        self.settings = settings

    def objective(self, setup: Setup) -> nn.Module:
        """The loss of a ``LabeledBatch``: a module, whose parameters are trained as well."""
        return self.loss()

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        settings = self.settings or (SUPERVISED if self.supervised else UNSUPERVISED)
        self.coder_, _ = train_head(
            values, classes, self.bits, self.objective, settings, self.seed, self.epochs, views=self.views
        )

    def _project(self, values: Float32) -> Float32:
        return embed_with(self.coder_, values)


def train_head(
    values: Float32,
    classes: ClassMembership | None,
    outputs: int,
    objective: Callable[[Setup], nn.Module],
    settings: HeadSettings,
    seed: int,
    epochs: int | Literal["auto"] = "auto",
    *,
    views: Literal["one", "neighbors"] = "one",
) -> tuple[HashCoder, nn.Module]:
    """Train a network with an objective; gives both, in evaluation mode.

    ``views``: "one" copy of each item with feature dropout, or the item and one of its 5 neighbors, found as ours.
    """
    config = head_config(len(values), outputs, settings, seed, epochs)
    inputs = input_statistics(values, center=settings.center)
    scaled = inputs(torch.from_numpy(values))
    with torch.random.fork_rng(devices=[]):  # whatever an objective draws from torch's own generator
        torch.default_generator.manual_seed(seed)
        made = objective(Setup(outputs, scaled.numpy(), classes, np.random.default_rng([seed, 3])))
    augment = FeatureDropout(settings.dropout, inputs.center)
    source: ViewSource = Copies(values, augment)
    if views == "neighbors":
        degenerate = as_embeddings(values).degenerate
        near = find_shared_neighbors(values, _NEIGHBORS, degenerate=degenerate, seed=seed).rows
        source = NeighborViews(values, near, augment)
    (coder,) = new_coders([inputs], outputs, seed=seed)
    labels = None if classes is None else torch.from_numpy(classes.index)
    train(
        Towers([Tower(coder)]),
        source,
        _Named(made, scaled, labels),
        config,
        device=choose_device("auto"),
        observer=Silent(),
    )
    calibrate(coder, values)
    return coder, made


def head_config(
    items: int, outputs: int, settings: HeadSettings, seed: int, epochs: int | Literal["auto"]
) -> TrainingConfig:
    """How a head is trained on so many items; ``train_head`` says what the rest is."""
    if epochs == "auto":
        epochs = default_epochs(items, 256, supervised=settings.budget == "supervised")
    return TrainingConfig(
        lengths=(outputs,),
        epochs=epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        seed=seed,
    )


class _Named(nn.Module):
    """A head's loss as the objective of the training loop: one term."""

    inputs: Tensor
    labels: Tensor | None

    def __init__(self, loss: nn.Module, inputs: Tensor, labels: Tensor | None) -> None:
        super().__init__()
        self.loss = loss
        self.weights = {"own": 1.0}
        self.register_buffer("inputs", inputs, persistent=False)
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, logits: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The loss of the batch."""
        labels = None if self.labels is None else self.labels[rows]
        return {"own": self.loss(LabeledBatch(logits.float(), self.inputs[rows], labels))}


@torch.no_grad()
def embed_with(coder: HashCoder, values: Float32) -> Float32:
    """The network's outputs float32 (n, outputs) for embeddings (n, d)."""
    device = coder.norm.weight.device
    blocks = [
        coder(torch.from_numpy(values[start : start + _BLOCK]).to(device)).cpu().numpy()
        for start in range(0, len(values), _BLOCK)
    ]
    return np.concatenate(blocks)


# --- what several objectives use --------------------------------------------------------------------


def sign_straight_through(values: Tensor) -> Tensor:
    """+1 where positive, else -1; the gradient passes as if nothing had happened."""
    signs = torch.where(values > 0, 1.0, -1.0)
    return values + (signs - values).detach()


def cosines_of_halves(rows: Tensor) -> Tensor:
    """Cosine of item i of the first half of a batch and item i of the second: random pairs (B // 2,)."""
    half = len(rows) // 2
    return F.cosine_similarity(rows[:half], rows[half : 2 * half])


def cosines_of_pairs(rows: Tensor) -> Tensor:
    """Cosines between all items of a batch: (B, B)."""
    unit = F.normalize(rows, dim=1)
    return unit @ unit.T


def class_weights(labels: Tensor, count: int) -> Tensor:
    """Labels as rows that add up to 1: one-hot, or 1 / (number of its classes) for each of an item's classes."""
    if labels.ndim == 1:
        return F.one_hot(labels, count).float()
    active = labels.float()
    return active / active.sum(dim=1, keepdim=True).clamp(min=1)
