"""HashCoder, the hashing network (paper, section 3.2 and Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crovca.data.embeddings import Rows, evenly_spaced, mean_embedding, root_mean_square
from crovca.hashing.config import HashCoderSize
from crovca.hashing.process_group import ALONE, ProcessGroup

__all__ = ["HashCoder", "InputStatistics", "Towers", "calibrate", "input_statistics", "set_statistics"]


class InputStatistics(NamedTuple):
    """How embeddings are made comparable: (x - center) * scale.

    Attributes:
        center: (d,).
        scale: (), one factor for all features, so that their proportions stay.
    """

    center: Tensor
    scale: Tensor


def input_statistics(values: Rows, *, center: bool) -> InputStatistics:
    """One over the root mean square of all numbers, after subtracting the mean embedding if ``center``."""
    mean = mean_embedding(values) if center else np.zeros(values.shape[-1], np.float32)
    spread = root_mean_square(values, mean)
    return InputStatistics(torch.from_numpy(mean), torch.tensor(1 / spread if spread > 0 else 1.0))


class HashCoder(nn.Module):
    """Embeddings (B, d) to logits (B, bits): paper, Eq. 2.

    * small: Linear(d, d), ReLU, Linear(d, bits), BatchNorm(bits);
    * large: two layers of max(2 d, 2048) with GELU, Linear(bits), BatchNorm(bits).

    The final batch normalization balances the bits. Linear weights are drawn from a truncated normal
    distribution of standard deviation 0.02, biases are 0 (the reference implementation's choice).

    Embeddings are first shifted and scaled, (x - center) * scale, so that the same learning rate suits
    encoders whose numbers are large or small. Both are saved with the weights.

    Args:
        width: d, numbers in an embedding.
        bits: length of the code.
        size: "small" or "large".
        inputs: the shift and the scale; None: embeddings are taken as they are.
        logit_scale: initial weights of the batch normalization.
        generator: of the initial weights; None: torch's global one.
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int,
        bits: int,
        size: HashCoderSize = "small",
        *,
        inputs: InputStatistics | None = None,
        logit_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.bits = bits
        self.register_buffer("center", torch.zeros(width) if inputs is None else inputs.center)
        self.register_buffer("scale", torch.ones(()) if inputs is None else inputs.scale)
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
        outputs: Tensor = self.layers(self.shifted(embeddings))
        return outputs

    def shifted(self, embeddings: Tensor) -> Tensor:
        """What the first layer is given."""
        return (embeddings - self.center) * self.scale


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


class Towers(nn.Module):
    """One HashCoder for every view, or one for each modality.

    Args:
        coders: a single HashCoder that all views go through, or as many as there are views.
        shared: several coders have the layers of the first; each keeps its own statistics.
        process_group: processes that each have a part of the batch.
    """

    def __init__(
        self, coders: Sequence[HashCoder], *, shared: bool = False, process_group: ProcessGroup = ALONE
    ) -> None:
        super().__init__()
        if shared:
            for coder in coders[1:]:
                coder.layers = coders[0].layers
        self.coders = nn.ModuleList(coders)
        self.process_group = process_group

    def begin_step(self, epoch: int, seed: int) -> None:
        """Be told of a training step; there is nothing here that depends on it.

        Args:
            epoch: from 0 on.
            seed: for what is random in the network at this step, in this process.
        """

    def forward(self, views: Sequence[Any]) -> Tensor:
        """Views [(B, d_1), ..., (B, d_v)] to logits (v, B, bits) of the whole batch.

        Each view is normalized by itself.
        """
        if len(self.coders) == 1:
            coder = self.coders[0]
            assert isinstance(coder, HashCoder)
            outputs = torch.stack(coder.raw(torch.cat(list(views))).chunk(len(views)))  # one product
            return torch.stack([coder.norm(part) for part in self.process_group.gather(outputs, dim=1)])
        logits = []
        for coder, view in zip(self.coders, views, strict=True):
            assert isinstance(coder, HashCoder)
            logits.append(coder.norm(self.process_group.gather(coder.raw(view))))
        return torch.stack(logits)
