"""HashCoder, the hashing network (paper, section 3.2 and Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crovca.config import HashCoderSize

__all__ = ["HashCoder", "Towers"]


class HashCoder(nn.Module):
    """Embeddings (B, d) to logits (B, bits): paper, Eq. 2.

    * small: Linear(d, d), ReLU, Linear(d, bits), BatchNorm(bits);
    * large: two layers of max(2 d, 2048) with GELU, Linear(bits), BatchNorm(bits).

    The final batch normalisation balances the bits. Linear weights are drawn from a truncated normal
    distribution of standard deviation 0.02, biases are 0 (the reference implementation's choice).

    Args:
        width: d, numbers in an embedding.
        bits: length of the code.
        size: "small" or "large".
        generator: of the initial weights; None: torch's global one.
    """

    def __init__(
        self,
        width: int,
        bits: int,
        size: HashCoderSize = "small",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.bits = bits
        if size == "small":
            layers: list[nn.Module] = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, bits)]
        else:
            hidden = max(2 * width, 2048)
            layers = [
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Linear(hidden, hidden),
                nn.GELU(),
                nn.Linear(hidden, bits),
            ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(bits)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings."""
        logits: Tensor = self.norm(self.layers(embeddings))
        return logits


class Towers(nn.Module):
    """One HashCoder for every view, or one for each modality.

    Args:
        coders: a single HashCoder that all views go through, or as many as there are views.
    """

    def __init__(self, coders: Sequence[HashCoder]) -> None:
        super().__init__()
        self.coders = nn.ModuleList(coders)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Views [(B, d_1), ..., (B, d_v)] to logits (v, B, bits); each view is normalised by itself."""
        if len(self.coders) == 1:
            return torch.stack([self.coders[0](view) for view in views])
        return torch.stack([coder(view) for coder, view in zip(self.coders, views, strict=True)])
