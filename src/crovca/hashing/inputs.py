"""How embeddings are made comparable before the network: one closed-form step, kept in the model."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crovca.data.embeddings import Rows, evenly_spaced, mean_embedding, root_mean_square

_COMPONENTS, _MOST_READ, _BLOCK = 256, 65536, 8192
_NO_VARIANCE = 1e-6  # of the strongest component's: float32 cannot tell less from none
_SMALLEST = 2.0**-126  # above 0 in float32; what is smaller may be taken for 0


def unit_length(rows: Tensor) -> Tensor:
    """Rows (B, d) of length 1, whatever their scale was; rows of zeros stay."""
    return F.normalize(_of_one_scale(rows), dim=1)


def _of_one_scale(rows: Tensor) -> Tensor:
    # The squares of great and of small numbers are beyond float32. Powers of 2 leave all digits what they are.
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST)
    return rows / torch.exp2(torch.log2(largest).floor())


class Scaling(nn.Module):
    """(x - center) * scale: embeddings (B, d), shifted and scaled.

    Args:
        center: (d,).
        scale: (), one factor for all features, so that their proportions stay.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, center: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.width = self.outputs = len(center)

    @classmethod
    def blank(cls, width: int) -> Scaling:
        """Embeddings are taken as they are."""
        return cls(torch.zeros(width), torch.ones(()))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, d) to what the first layer is given."""
        return (embeddings - self.center) * self.scale


def input_statistics(values: Rows, *, center: bool) -> Scaling:
    """One over the root mean square of all numbers, after subtracting the mean embedding if ``center``."""
    mean = mean_embedding(values) if center else np.zeros(values.shape[-1], np.float32)
    spread = root_mean_square(values, mean)
    return Scaling(torch.from_numpy(mean), torch.tensor(1 / spread if spread > 0 else 1.0))


class Coordinates(nn.Module):
    """components (x / |x| - mean): embeddings (B, d) to their strongest coordinates (B, k).

    Computed as components (x - |x| mean) / |x|, which loses the fewest digits where all embeddings have a great part
    in common. Rows of any length count alike.

    Args:
        mean: (d,) of the unit vectors.
        components: (k, d), orthogonal, strongest first, of lengths that make the coordinates' root mean square 1.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)
        self.outputs, self.width = components.shape

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, d) to (B, k)."""
        length = embeddings.norm(dim=1, keepdim=True)
        if torch.compiler.is_compiling() or not bool(((length > 1e-15) & (length < 1e15)).all()):
            embeddings = _of_one_scale(embeddings)
            length = embeddings.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return F.linear(torch.addcmul(embeddings, length, self.mean, value=-1), self.components) / length


def fit_coordinates(values: Rows) -> Coordinates:
    """The at most 256 leading principal components of the unit vectors of (n, d) or (n, v, d).

    At most 65,536 evenly spaced items are read.
    """
    rows, width = evenly_spaced(len(values), _MOST_READ), int(values.shape[-1])
    few = len(rows) * (values.shape[1] if len(values.shape) == 3 else 1) < width
    total, count = torch.zeros(width, dtype=torch.float64), 0
    parts, products = list[Tensor](), torch.zeros(0 if few else width, 0 if few else width)
    origin: Tensor | None = None  # near the mean, so that little cancels
    for start in range(0, len(rows), _BLOCK):
        block = torch.from_numpy(np.array(values[rows[start : start + _BLOCK]], np.float64)).reshape(-1, width)
        unit = F.normalize(block, dim=1, eps=_SMALLEST)
        origin = unit.mean(dim=0) if origin is None else origin
        unit -= origin
        total += unit.sum(dim=0)
        part = unit.float()  # small numbers by now: float32 holds them
        if few:
            parts.append(part)
        else:
            products.addmm_(part.T, part)
        count += len(unit)
    assert origin is not None
    mean = total / count
    if few:  # the products of the items are the smaller matrix
        centered = torch.cat(parts) - mean.float()
        spread, vectors = torch.linalg.eigh(centered @ centered.T / count)
    else:
        spread, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean).float())
    there = int((spread > _NO_VARIANCE * spread[-1]).sum())  # the others are rounding errors
    kept = min(_COMPONENTS, max(1, there), max(1, count - 1))
    spread, components = spread.flip(0)[:kept].clamp(min=1e-24), vectors.flip(1)[:, :kept].T
    if few:
        components = F.normalize(components @ centered, dim=1)
    return Coordinates((origin + mean).float(), (components * spread.mean().rsqrt()).float().contiguous())
