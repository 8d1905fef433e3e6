"""Order: the codes' asymmetric scores follow the items' inner products, near pairs first."""

from __future__ import annotations

import torch
from torch import Tensor

from crovca.errors import ConfigError
from crovca.hashing.terms.batch import Batch


def order(batch: Batch) -> Tensor:
    """How badly <tanh(z / 2), sign z'> of the first view reproduces the inner products of the items' coordinates.

    The squared error over pairs of different items, as a share of the squares, both weighted by exp(product / standard
    deviation of the products); the codes' scale is free. The sign's gradient is that of a tanh. Of every pair one item
    is of the first half of the batch and one of the second. Averaged over the code lengths, by their square roots.
    """
    if batch.points is None:
        raise ConfigError("the term 'order' needs a closed-form base: faithfulness must not be 'kinds'")
    logits, half = batch.logits[0], len(batch.points) // 2
    products = batch.points[:half] @ batch.points[half:].T
    weight = (products / products.std(correction=0).clamp(min=1e-12)).clamp(max=4).exp()
    squares = (weight * products.square()).sum().clamp(min=1e-12)
    soft = torch.tanh(logits[:half] / 2)
    smooth = torch.tanh(logits[half:] / logits.detach().square().mean(dim=0).sqrt().clamp(min=1e-12))
    hard = smooth + (torch.where(logits[half:] > 0, 1.0, -1.0) - smooth).detach()

    def error(length: int) -> Tensor:
        found = soft[:, :length] @ hard[:, :length].T
        with torch.no_grad():
            scale = (weight * found * products).sum() / (weight * found.square()).sum().clamp(min=1e-12)
        return (weight * (products - scale * found).square()).sum() / squares

    weights = torch.tensor([length**0.5 for length in batch.lengths], device=logits.device)  # long codes keep more
    return (weights * torch.stack([error(length) for length in batch.lengths])).sum() / weights.sum()
