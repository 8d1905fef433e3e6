"""A start from groups of items, in closed form, in place of random weights: from classes, or from clusters.

The paper starts from random weights, and a run of a hundred steps does not get far from there. Two ridge regressions
over the embeddings bring the network near to where a longer run would, and training goes on from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.data.clusters import k_means, nearest_centroid
from crovca.data.embeddings import Rows, evenly_spaced
from crovca.hashing.inputs import unit_length
from crovca.hashing.network import HashCoder
from crovca.hashing.targets import ClassPrototypes

# Tuned on splits of a database (docs/reproducing.md).
_UNIT_RIDGE, _CODE_RIDGE = 0.3, 0.1
_UNIT_THRESHOLD, _UNIT_GAIN = 0.3, 0.5
_ITEMS_A_CLUSTER = 8
_POINTS_A_CENTROID = 16  # more are sampled down: k-means would cost more than training
_MOST_READ = 65536
_WEIGHT_SPREAD = 0.02  # of the random weights that are replaced: the learning rate suits weights of this size
_BLOCK = 4096

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Blocks of features (m, f) and what is to be predicted from them (m, t)."""


@torch.no_grad()
def start_from_classes(coder: HashCoder, teacher: ClassPrototypes, values: Rows) -> None:
    """Give classes their codes, and a network weights that nearly predict them; both are changed in place.

    1. The code of a class: the signs of the mean of its items' logits under the network as it is, with random
       weights, moved apart. Similar classes have similar codes. They are settled from the first step on.
    2. The first layer: unit c answers to class c, a ridge regression of one class against the others behind a
       threshold; with more classes than units, to the most frequent. The other units stay random.
    3. The last layer: a ridge regression from the features before it to the codes of the items' classes.

    At most 65,536 evenly spaced items are read.

    Args:
        coder: a new network.
        teacher: prototypes of the items' classes; one that no item read here has goes on running.
        values: (n, d) or (n, v, d).
    """
    rows = evenly_spaced(len(values), _MOST_READ)

    def pairs(features: Callable[[Tensor], Tensor]) -> Pairs:
        for chosen, block in _blocks(values, rows):
            members = teacher.members(torch.from_numpy(chosen)).repeat_interleave(block.shape[1], dim=0)
            yield features(block.flatten(0, 1)), members

    def codes() -> Pairs:
        for features, members in pairs(lambda block: coder.layers[:-1](coder.inputs(block))):
            of_some = members.any(dim=1)
            yield features[of_some], 2 * teacher.bits_for(members[of_some]) - 1

    teacher.settle(*_class_means(pairs(coder.raw)))
    _answer_to_groups(coder, ridge_regression(pairs(coder.inputs), _UNIT_RIDGE))
    last = coder.layers[-1]
    assert isinstance(last, nn.Linear)
    weights = ridge_regression(codes(), _CODE_RIDGE).weights
    last.weight.copy_(weights * (_WEIGHT_SPREAD / weights.std().clamp(min=1e-12)))


@torch.no_grad()
def start_from_clusters(coder: HashCoder, values: Rows, *, seed: int) -> None:
    """Let units of the first layer answer to clusters of the items; the network is changed in place.

    Clusters of about 8 items (k-means of unit vectors), at most as many as there are units; below 16 items nothing is
    done. The other weights stay random: of clusters nobody knows what their codes should be, or which belong together.
    At most 65,536 evenly spaced items are read.
    """
    rows = evenly_spaced(len(values), _MOST_READ)
    first = coder.layers[0]
    assert isinstance(first, nn.Linear)
    count = min(first.out_features, len(rows) // _ITEMS_A_CLUSTER)
    if count < 2:
        return
    cluster = _clusters(values, rows, count, seed)

    def pairs() -> Pairs:
        for chosen, block in _blocks(values, rows):
            members = F.one_hot(torch.from_numpy(cluster[np.searchsorted(rows, chosen)]), count).float()
            yield coder.inputs(block.flatten(0, 1)), members.repeat_interleave(block.shape[1], dim=0)

    _answer_to_groups(coder, ridge_regression(pairs(), _UNIT_RIDGE))


def _blocks(values: Rows, rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """Row numbers, and their embeddings (m, v, d)."""
    for start in range(0, len(rows), _BLOCK):
        chosen = rows[start : start + _BLOCK]
        block = np.array(values[chosen], np.float32)
        yield chosen, torch.from_numpy(block).reshape(len(chosen), -1, block.shape[-1])


def _clusters(values: Rows, rows: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """A cluster number below ``count`` for each row."""
    unit = torch.cat([unit_length(block.mean(dim=1)) for _, block in _blocks(values, rows)]).numpy()
    centroids = k_means(unit, count, seed=seed, spherical=True, most_points=_POINTS_A_CENTROID)
    return nearest_centroid(unit, centroids)


class Regression(NamedTuple):
    """Predictions weights @ (x - center) of deviations from the mean target.

    Attributes:
        weights: (t, f).
        center: (f,), the mean feature vector.
        means: (t,), the mean targets.
        explained: (t,), the covariance of each target with its prediction.
        variance: (t,), of the predictions.
    """

    weights: Tensor
    center: Tensor
    means: Tensor
    explained: Tensor
    variance: Tensor


def ridge_regression(pairs: Pairs, strength: float) -> Regression:
    """Least squares with ``strength`` times the mean variance of the features added to each feature's variance."""
    count, sums = 0, dict[str, Tensor]()
    for features, targets in pairs:
        count += len(features)
        for name, part in (
            ("features", features.sum(dim=0)),
            ("targets", targets.sum(dim=0)),
            ("squares", features.T @ features),
            ("products", features.T @ targets),
        ):
            sums[name] = sums[name] + part.double() if name in sums else part.double()
    center, means = sums["features"] / count, sums["targets"] / count
    covariance = sums["squares"] / count - torch.outer(center, center)
    products = sums["products"] / count - torch.outer(center, means)
    variance = covariance.diagonal().mean().clamp(min=1e-12)
    weights = torch.linalg.solve(covariance + strength * variance * torch.eye(len(center)), products)
    explained, spread = (weights * products).sum(dim=0), (weights * (covariance @ weights)).sum(dim=0)
    return Regression(*(part.float() for part in (weights.T, center, means, explained, spread)))


def _answer_to_groups(coder: HashCoder, found: Regression) -> None:
    """Replace the first units by predictions of membership, in standard deviations above a threshold.

    The threshold lies between the predictions' mean over the other items and over those of the group.
    """
    layer = coder.layers[0]
    assert isinstance(layer, nn.Linear)
    share = found.means
    # The mean over the group is explained / share, and over the others what brings the mean of all to 0.
    others = -found.explained / (1 - share).clamp(min=1e-12)
    between = found.explained / share.clamp(min=1e-12) - others
    within = (found.variance - found.explained * between).clamp(min=1e-12).sqrt()
    told = torch.nonzero((share > 0) & (share < 1) & (between > 1e-6)).flatten()
    told = told[share[told].argsort(descending=True, stable=True)][: layer.out_features]
    weights = _UNIT_GAIN * found.weights[told] / within[told, None]
    thresholds = _UNIT_GAIN * ((others + _UNIT_THRESHOLD * between) / within)[told]
    layer.weight[: len(told)] = weights
    layer.bias[: len(told)] = -thresholds - weights @ found.center


def _class_means(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Mean logits (C, b) of each class, in standard deviations from the mean class, and whether (C,) it has items."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    sums, sizes = torch.zeros(()), torch.zeros(())
    for outputs, members in pairs:
        count += len(outputs)
        total, squares = total + outputs.sum(dim=0), squares + outputs.square().sum(dim=0)
        sums, sizes = sums + members.T @ outputs, sizes + members.sum(dim=0)
    spread = (squares / count - (total / count).square()).clamp(min=1e-12).sqrt()
    means, present = sums / sizes.clamp(min=1)[:, None], sizes > 0
    return (means - means[present].mean(dim=0)) / spread, present
