"""FPPQ: supervised product quantization towards precomputed class codes.

Liang et al., "Unleashing the full potential of product quantization for large-scale image retrieval", NeurIPS
2023; their code (yuleung/FPPQ) is for faces. An embedding is cut into M parts; a part's code is the nearest of
256 learned centroids by cosine. Loss: theta_1 CosFace on the classes + theta_2 CosFace on the M code words of
the item's class, theta = 1, scale 64, margins 0.4 and 0.2 (the authors' configuration). The codes of the
classes come from product quantization of the class means of frozen features, and are moved apart where classes
share one. One byte a part, embedding of 512 numbers; an item takes bits / 8 bytes, and the score is the sum of
the query's cosines with the item's centroids.

With at most 256 classes the quantizer of the class means is trivial: each mean is a centroid of its own. Items
of several classes are not what the method is for. Authors' training: SGD 0.1, momentum 0.9, weight decay 1e-4,
20 epochs on faces.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import faiss
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.baselines.base import Float32, ScoreBaseline
from crovca.baselines.head import SUPERVISED, LabeledBatch, Setup, embed_with, train_head
from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError

_CENTROIDS = 256
_EMBEDDING = 512


class FPPQ(ScoreBaseline):
    """Codes of ``bits / 8`` bytes, scored by tables of cosines."""

    supervised: ClassVar[bool] = True
    learned: ClassVar[bool] = True

    def __init__(self, bits: int = 64, *, seed: int = 0, epochs: int | Literal["auto"] = "auto") -> None:
        super().__init__(bits, seed=seed)
        self.epochs = epochs

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        assert classes is not None
        parts = self._whole_bytes()
        if classes.multi_label:
            raise InvalidInputError("FPPQ is for one class an item; these labels are multi-hot")
        part_width = max(1, _EMBEDDING // parts)

        def objective(setup: Setup) -> nn.Module:
            assert setup.classes is not None
            codes = class_codes(_class_means(setup.values, setup.classes), parts)
            return FPPQLoss(torch.from_numpy(codes), part_width)

        self.coder_, loss = train_head(
            values, classes, parts * part_width, objective, SUPERVISED, self.seed, self.epochs
        )
        assert isinstance(loss, FPPQLoss)
        self.centroids_ = F.normalize(loss.centroids.detach(), dim=2).cpu().numpy()  # (M, 256, part)

    @property
    def bytes_per_item(self) -> int:
        """M."""
        return len(self.centroids_)

    def _store(self, values: Float32) -> npt.NDArray[np.uint8]:
        return self._tables(values).argmax(axis=2).astype(np.uint8)

    def _compare(self, values: Float32, stored: npt.NDArray[np.uint8]) -> Float32:
        tables = self._tables(values)  # (q, M, 256)
        total = np.zeros((len(values), len(stored)), np.float32)
        for part in range(stored.shape[1]):
            total += tables[:, part, stored[:, part]]
        return total

    def _tables(self, values: Float32) -> Float32:
        """Cosines (n, M, 256) of every part with its centroids."""
        parts = embed_with(self.coder_, values).reshape(len(values), len(self.centroids_), -1)
        unit = F.normalize(torch.from_numpy(parts), dim=2).numpy()
        return np.asarray(np.einsum("nmd,mkd->nmk", unit, self.centroids_, optimize=True), np.float32)


class FPPQLoss(nn.Module):
    """CosFace on classes and on code words; ``codes`` (C, M)."""

    codes: Tensor
    scale, margins = 64.0, (0.4, 0.2)

    def __init__(self, codes: Tensor, part_width: int) -> None:
        super().__init__()
        classes, parts = codes.shape
        self.register_buffer("codes", codes.long())
        self.classifier = nn.Parameter(torch.randn(classes, parts * part_width) * 0.01)
        self.centroids = nn.Parameter(torch.randn(parts, _CENTROIDS, part_width))

    def forward(self, batch: LabeledBatch) -> Tensor:
        """The loss."""
        assert batch.labels is not None
        outputs = batch.logits[0]
        cosines = F.normalize(outputs, dim=1) @ F.normalize(self.classifier, dim=1).T
        parts = outputs.reshape(len(outputs), len(self.centroids), -1)
        words = torch.einsum(
            "bmd,mkd->bmk", F.normalize(parts, dim=2), F.normalize(self.centroids, dim=2)
        )  # (B, M, 256)
        of_classes = _cosface(cosines, batch.labels, self.scale, self.margins[0])
        of_words = _cosface(words.flatten(0, 1), self.codes[batch.labels].flatten(), self.scale, self.margins[1])
        return of_classes + of_words


def class_codes(means: Float32, parts: int) -> npt.NDArray[np.int64]:
    """Codes (C, parts) of class means (C, d), all different."""
    classes, width = means.shape
    if classes <= _CENTROIDS:
        return np.repeat(np.arange(classes)[:, None], parts, axis=1)
    padded = np.pad(means, ((0, 0), (0, -width % parts))).astype(np.float32)
    quantizer = faiss.ProductQuantizer(padded.shape[1], parts, 8)
    quantizer.cp.min_points_per_centroid = 1
    quantizer.train(padded)
    codes = quantizer.compute_codes(padded).astype(np.int64)
    centroids = faiss.vector_to_array(quantizer.centroids).reshape(parts, _CENTROIDS, -1)
    return _moved_apart(codes, padded.reshape(classes, parts, -1), centroids)


def _moved_apart(codes: npt.NDArray[np.int64], means: Float32, centroids: Float32) -> npt.NDArray[np.int64]:
    """Where a code was taken already, change the word whose change costs least until it is free."""
    taken: set[tuple[int, ...]] = set()
    for number, code in enumerate(codes):
        if tuple(code) in taken:
            distances = np.square(centroids - means[number][:, None]).sum(axis=2)  # (M, 256)
            for word in np.argsort(distances, axis=None, kind="stable"):
                part, value = np.unravel_index(word, distances.shape)
                if (*code[:part], int(value), *code[part + 1 :]) not in taken:
                    code[part] = value
                    break
            else:
                raise InvalidInputError(f"FPPQ found no free code near that of class number {number}; use more bits")
        taken.add(tuple(code))
    return codes


def _class_means(values: Float32, classes: ClassMembership) -> Float32:
    sums = np.zeros((classes.count, values.shape[1]), np.float64)
    np.add.at(sums, classes.index, values)
    return (sums / np.bincount(classes.index, minlength=classes.count)[:, None]).astype(np.float32)


def _cosface(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(labels, cosines.shape[1])), labels)
