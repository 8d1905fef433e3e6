"""DDBH's loss, for codes that two modalities share.

Qin et al., "Deep discriminative boundary hashing for cross-modal retrieval", TCSVT 2025
(10.1109/TCSVT.2025.3570128), from the abstract and the authors' code (QinLab-WFU/DDBH, ``BPLoss`` and the
training loop). Of codes u = tanh z of length b and a row's pairs with inner products x, U = b/4:

* base points: of the similar pairs, s - (U - s)/U |s - D|, s their mean clamped to [0, U], D the mean of the
  largest tenth of the dissimilar ones; of the dissimilar pairs, t - t/U |t - S|, t their mean, clamped
  likewise, S the mean of the smallest tenth of the similar ones;
* a pair's likelihood of being similar is sigmoid(log(99) / w (x - base point)): 99 % at a distance of w; w =
  b/6 for the easy pairs on the right side of the base point, b/12 for the hard ones;
* boundary-preserving loss: for each row the mean -log likelihood of its similar pairs plus that of its
  dissimilar pairs, averaged over the rows that have both. Summed over image-image, text-text and image-text
  pairs;
* class-wise quantization, weight 0.1: the mean of S (u - sign u)^2 of each modality, S_ij = 1 where items share
  a class.

A network for each modality, trained by our loop's settings for supervised heads. Authors' training: fine-tuned
CLIP, BertAdam 1e-3 (CLIP 1e-5), batches of 64, 100 epochs. ``crovca compare`` has one kind of embeddings and
leaves this method out.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.base import Float32, as_matrix
from crovca.baselines.head import SUPERVISED, embed_with, head_config
from crovca.codes import Codes, check_bits
from crovca.data.embeddings import as_embeddings
from crovca.data.labels import to_membership
from crovca.encoders.encoder import choose_device
from crovca.errors import InvalidInputError, NotFittedError
from crovca.hashing.inputs import input_statistics
from crovca.hashing.network import calibrate, new_coders
from crovca.hashing.towers import Tower, Towers
from crovca.hashing.train import Silent, train
from crovca.hashing.views import FeatureDropout, Modalities

_QUANTIZATION = 0.1
_TENTH = 0.9


class DDBH:
    """Codes of two modalities; a method's ``logits`` and ``encode`` are told which one they are given.

    Args:
        bits: length of the code.
        seed: of everything random.
        epochs: passes over the data; "auto": ours with labels.
    """

    def __init__(self, bits: int = 64, *, seed: int = 0, epochs: int | Literal["auto"] = "auto") -> None:
        self.bits, self.seed, self.epochs = check_bits(bits), seed, epochs

    def fit(self, images: Any, texts: Any, y: Any) -> Self:
        """Learn from paired embeddings (n, d_images) and (n, d_texts) with labels (n,) or (n, C)."""
        parts = [as_matrix(images, "images"), as_matrix(texts, "texts")]
        if len(parts[0]) != len(parts[1]):
            raise InvalidInputError(
                f"paired modalities need as many rows each, got {len(parts[0])} and {len(parts[1])}"
            )
        labels = as_embeddings(parts[0], y, what="images").labels
        if labels is None:
            raise InvalidInputError("DDBH is supervised: give labels as y")
        inputs = [input_statistics(part, center=SUPERVISED.center) for part in parts]
        coders = new_coders(inputs, self.bits, seed=self.seed)
        source = Modalities(parts, [FeatureDropout(SUPERVISED.dropout, scaling.center) for scaling in inputs])
        train(
            Towers([Tower(coders[0], "images"), Tower(coders[1], "texts")]),
            source,
            DDBHLoss(torch.from_numpy(to_membership(labels).index)),
            head_config(len(parts[0]), self.bits, SUPERVISED, self.seed, self.epochs),
            device=choose_device("auto"),
            observer=Silent(),
        )
        for coder, part in zip(coders, parts, strict=True):
            calibrate(coder, part)
        self.coders_ = dict(zip(("images", "texts"), coders, strict=True))
        return self

    def logits(self, X: Any, *, modality: Literal["images", "texts"]) -> Float32:
        """Logits float32 (n, bits) of one modality's embeddings."""
        if not hasattr(self, "coders_"):
            raise NotFittedError("this DDBH is not fitted yet; call fit first")
        if modality not in self.coders_:
            raise InvalidInputError(f"modality must be 'images' or 'texts', got {modality!r}")
        coder, values = self.coders_[modality], as_matrix(X, modality)
        if values.shape[1] != coder.width:
            raise InvalidInputError(f"{modality} must have shape (n, {coder.width}), got {values.shape}")
        return embed_with(coder, values)

    def encode(self, X: Any, *, modality: Literal["images", "texts"]) -> Codes:
        """Codes of one modality's embeddings."""
        return Codes.from_logits(self.logits(X, modality=modality))


class DDBHLoss(nn.Module):
    """``ddbh_loss`` as the objective of the training loop; ``classes`` (n,) or bool (n, C) of the items."""

    classes: Tensor

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        self.weights = {"boundary": 1.0, "quantization": _QUANTIZATION}
        self.register_buffer("classes", classes, persistent=False)

    def forward(self, logits: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """The terms of logits (2, B, b) of images and texts."""
        images, texts = logits.float().tanh()
        return ddbh_terms(images, texts, _share_a_class(self.classes[rows]))


def ddbh_terms(images: Tensor, texts: Tensor, similar: Tensor) -> dict[str, Tensor]:
    """Boundary and quantization of relaxed codes (B, b) in [-1, 1]; ``similar`` (B, B) bool."""
    pairs = ((images, images), (texts, texts), (images, texts))
    boundary = torch.stack([boundary_preserving_loss(u, v, similar) for u, v in pairs]).sum()
    shared = similar.to(images.dtype)
    gaps = [(shared @ (codes - codes.sign()).square()).mean() for codes in (images, texts)]
    return {"boundary": boundary, "quantization": gaps[0] + gaps[1]}


def boundary_preserving_loss(u: Tensor, v: Tensor, similar: Tensor) -> Tensor:
    """-log likelihood of similar and dissimilar pairs around base points that every row chooses."""
    bits = u.shape[1]
    upper, wide, narrow = bits / 4, bits / 6, bits / 12
    inner = u @ v.T
    both = similar.any(dim=1) & (~similar).any(dim=1)
    if not both.any():
        return inner.sum() * 0
    inner, alike = inner[both], similar[both]
    with torch.no_grad():
        mean_alike = _mean(inner, alike).clamp(0, upper)
        mean_unlike = _mean(inner, ~alike).clamp(0, upper)
        nearest_unlike = -_mean_of_last_tenth(-inner, ~alike, descending=True)
        farthest_alike = _mean_of_last_tenth(inner, alike, descending=True)
        base = mean_alike - (upper - mean_alike) / upper * (mean_alike - nearest_unlike).abs()
        base_unlike = mean_unlike - mean_unlike / upper * (mean_unlike - farthest_alike).abs()
    steep = math.log(99)
    beyond = inner - base[:, None]
    alike_loss = F.softplus(-steep * beyond / torch.where(beyond > 0, wide, narrow))
    beyond = inner - base_unlike[:, None]
    unlike_loss = F.softplus(steep * beyond / torch.where(beyond < 0, wide, narrow))
    return (_mean(alike_loss, alike) + _mean(unlike_loss, ~alike)).mean()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the masked entries of each row."""
    return (values * mask).sum(dim=1) / mask.sum(dim=1)


def _mean_of_last_tenth(values: Tensor, mask: Tensor, *, descending: bool) -> Tensor:
    """Of each row's masked entries in order, the mean of those from place floor(0.9 count) on."""
    filler = -torch.inf if descending else torch.inf
    ordered = values.masked_fill(~mask, filler).sort(dim=1, descending=descending).values
    count = mask.sum(dim=1, keepdim=True)
    places = torch.arange(values.shape[1], device=values.device)
    chosen = (places >= (count * _TENTH).floor()) & (places < count)
    return ordered.masked_fill(~chosen, 0).sum(dim=1) / chosen.sum(dim=1)


def _share_a_class(labels: Tensor) -> Tensor:
    if labels.ndim == 1:
        return labels[:, None] == labels[None, :]
    active = labels.float()
    return active @ active.T > 0
