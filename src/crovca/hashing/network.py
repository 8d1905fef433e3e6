"""HashCoder, the hashing network (paper, section 3.2 and Figure 2), and what may stand beside it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from crovca.data.embeddings import Rows, evenly_spaced
from crovca.hashing.config import HashCoderSize
from crovca.hashing.inputs import Scaling

__all__ = ["HashCoder", "calibrate", "new_coders", "set_statistics"]


class HashCoder(nn.Module):
    """Embeddings (B, d) to logits (B, bits): paper, Eq. 2.

    * small: Linear(d, d), ReLU, Linear(d, bits), BatchNorm(bits);
    * large: two layers of max(2 d, 2048) with GELU, Linear(bits), BatchNorm(bits).

    The final batch normalization balances the bits. Linear weights are drawn from a truncated normal
    distribution of standard deviation 0.02, biases are 0 (the reference implementation's choice).

    Before the layers the embeddings go through ``inputs``, a step in closed form, so that the same learning rate
    suits encoders whose numbers are large or small. It is saved with the weights.

    Args:
        width: d, numbers in an embedding.
        bits: length of the code.
        size: "small" or "large".
        inputs: what is done to embeddings first; None: nothing.
        logit_scale: initial weights of the batch normalization.
        generator: of the initial weights; None: torch's global one.
    """

    def __init__(
        self,
        width: int,
        bits: int,
        size: HashCoderSize = "small",
        *,
        inputs: Scaling | None = None,
        logit_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.bits = bits
        self.inputs = inputs or Scaling.blank(width)
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
        nn.init.constant_(self.norm.weight, logit_scale)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings."""
        logits: Tensor = self.norm(self.raw(embeddings))
        return logits

    def raw(self, embeddings: Tensor) -> Tensor:
        """What the batch normalization is given."""
        outputs: Tensor = self.layers(self.inputs(embeddings))
        return outputs


def new_coders(
    inputs: Iterable[Scaling],
    bits: int,
    size: HashCoderSize = "small",
    *,
    logit_scale: float = 1.0,
    seed: int = 0,
) -> list[HashCoder]:
    """New networks, one for each kind of input, with weights from the seed; torch's own random stream is left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights from it before they get these
        return [
            HashCoder(part.width, bits, size, inputs=part, logit_scale=logit_scale, generator=generator)
            for part in inputs
        ]


def calibrate(coder: HashCoder, values: Rows, *, most: int = 65536) -> None:
    """Set the statistics of the batch normalization to those of the embeddings themselves.

    Running averages lag behind the weights, and in a short run hardly leave their initial values, which
    would leave bits stuck. At most ``most`` evenly spaced items are read.
    """
    rows = evenly_spaced(len(values), most)
    blocks = (
        torch.from_numpy(np.array(values[rows[start : start + 4096]], np.float32).reshape(-1, coder.width))
        for start in range(0, len(rows), 4096)
    )
    set_statistics(coder, blocks)


@torch.no_grad()
def set_statistics(coder: HashCoder, blocks: Iterable[Tensor]) -> None:
    """Set the statistics of the batch normalization to those of these embeddings, blocks of (n, width)."""
    device = coder.norm.weight.device
    total = torch.zeros(2, coder.bits, dtype=torch.float64, device=device)
    count = 0
    for block in blocks:
        outputs = coder.raw(block.to(device)).double()
        total += torch.stack([outputs.sum(dim=0), outputs.square().sum(dim=0)])
        count += len(block)
    mean = total[0] / count
    variance = (total[1] / count - mean.square()).clamp(min=0) * count / max(count - 1, 1)
    assert coder.norm.running_mean is not None
    assert coder.norm.running_var is not None
    coder.norm.running_mean.copy_(mean)
    coder.norm.running_var.copy_(variance)
