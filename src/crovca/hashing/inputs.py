"""How embeddings are made comparable before the network: one closed-form step, kept in the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from crovca.data.embeddings import Rows, mean_embedding, root_mean_square

__all__ = ["Scaling", "input_statistics"]


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
