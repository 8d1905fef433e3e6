"""HashCoder, the hashing network (paper, section 3.2 and Figure 2), and what may stand beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from crovca.data.embeddings import Rows, evenly_spaced
from crovca.hashing.base import Base, FittedBase
from crovca.hashing.config import HashCoderSize
from crovca.hashing.gate import Gate
from crovca.hashing.inputs import Coordinates, Scaling


class HashCoder(nn.Module):
    """Embeddings (B, d) to logits (B, bits): paper, Eq. 2.

    * small: Linear(d, d), ReLU, Linear(d, bits), BatchNorm(bits);
    * large: two layers of max(2 d, 2048) with GELU, Linear(bits), BatchNorm(bits).

    The final batch normalization balances the bits. Linear weights are drawn from a truncated normal
    distribution of standard deviation 0.02, biases are 0 (the reference implementation's choice).

    Before the layers the embeddings go through ``inputs``, a step in closed form, so that the same learning rate
    suits encoders whose numbers are large or small. It is saved with the weights.

    With a base and a gate, logits = BatchNorm(base(c) + gate(c) layers(c)), c the coordinates that ``inputs`` gives:
    where nothing was learned the gate is closed, and the code is that of the base. Few bits tell what was learned, and
    the weak ones of a long code only blur it: for a query whose gate is open they count less (``gate_power``), which
    changes logits, and no code.

    Args:
        width: d, numbers in an embedding.
        bits: length of the code.
        size: "small" or "large".
        inputs: what is done to embeddings first; None: nothing.
        base, gate: both, or neither.
        hidden: units of the first layer of a small network; None: as many as inputs.
        logit_scale: initial weights of the batch normalization, one or (bits,).
        gate_power: once it has learned, logits are times (the bit's deviation / the largest) ** (gate_power gate(c)).
        generator: of the initial weights; None: torch's global one.
    """

    def __init__(
        self,
        width: int,
        bits: int,
        size: HashCoderSize = "small",
        *,
        inputs: Scaling | Coordinates | None = None,
        base: Base | None = None,
        gate: Gate | None = None,
        hidden: int | None = None,
        logit_scale: float | Tensor = 1.0,
        gate_power: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.bits = bits
        self.inputs = inputs or Scaling.blank(width)
        self.base, self.gate, self.gate_power = base, gate, gate_power
        taken = self.inputs.outputs
        if size == "small":
            hidden = hidden or taken
            layers: list[nn.Module] = [nn.Linear(taken, hidden), nn.ReLU(), nn.Linear(hidden, bits)]
        else:
            hidden = max(2 * taken, 2048)
            layers = [
                nn.Linear(taken, hidden),
                nn.GELU(),
                nn.Linear(hidden, hidden),
                nn.GELU(),
                nn.Linear(hidden, bits),
            ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm1d(bits)
        with torch.no_grad():
            self.norm.weight.copy_(torch.as_tensor(logit_scale))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings."""
        features = self.features(embeddings)
        logits: Tensor = self.norm(self.learned(features))
        if self.gate is None:
            return logits
        deviations = self.norm.weight.abs()
        strengths = (deviations / deviations.max()).clamp(min=1e-6)
        return logits * strengths ** (self.gate_power * features[:, -1:])

    def raw(self, embeddings: Tensor) -> Tensor:
        """What the batch normalization is given."""
        return self.learned(self.features(embeddings))

    def features(self, embeddings: Tensor) -> Tensor:
        """What does not change while the network learns: its inputs (B, k), with a gate in a last column (B, k + 1)."""
        inputs: Tensor = self.inputs(embeddings)
        return inputs if self.gate is None else torch.cat([inputs, self.gate(inputs)], dim=1)

    def learned(self, features: Tensor) -> Tensor:
        """What the batch normalization is given, from ``features``."""
        if self.base is None:
            outputs: Tensor = self.layers(features)
            return outputs
        inputs, gate = features[:, :-1], features[:, -1:]
        return self.base(inputs) + gate * self.layers(inputs)


def new_coders(
    inputs: Iterable[Scaling], bits: int, size: HashCoderSize = "small", *, logit_scale: float = 1.0, seed: int = 0
) -> list[HashCoder]:
    """New networks, one for each kind of input, with weights from the seed; torch's own random stream is left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw weights from it before they get these
        return [
            HashCoder(part.width, bits, size, inputs=part, logit_scale=logit_scale, generator=generator)
            for part in inputs
        ]


def coder_on_base(
    inputs: Coordinates,
    fitted: FittedBase,
    gate: Gate,
    size: HashCoderSize = "small",
    *,
    hidden: int,
    logit_scale: float = 1.0,
    gate_power: float = 0.0,
    seed: int = 0,
) -> HashCoder:
    """A new network beside a base, with weights from the seed; every bit's logits have the scale of its components."""
    with torch.random.fork_rng(devices=[]):
        return HashCoder(
            inputs.width,
            len(fitted.scales),
            size,
            inputs=inputs,
            base=fitted.base,
            gate=gate,
            hidden=hidden,
            logit_scale=logit_scale * fitted.scales,
            gate_power=gate_power,
            generator=torch.Generator().manual_seed(seed),
        )


def calibrate(coder: HashCoder, values: Rows, *, most: int = 65536) -> None:
    """Set the statistics of the batch normalization to those of the embeddings themselves.

    Running averages lag behind the weights, and in a short run hardly leave their initial values, which
    would leave bits stuck. At most ``most`` evenly spaced items are read.
    """
    rows = evenly_spaced(len(values), most)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, len(rows), 4096):
            block = np.array(values[rows[start : start + 4096]], np.float32)
            yield torch.from_numpy(block.reshape(-1, coder.width))

    if coder.base is not None:
        _center_layers(coder, blocks())
    set_statistics(coder, blocks())


@torch.no_grad()
def _center_layers(coder: HashCoder, blocks: Iterable[Tensor]) -> None:
    """Take the layers' mean out, so that the bits of items whose gate is closed stay in balance, too."""
    last, total, count = coder.layers[-1], torch.zeros(()), 0
    assert isinstance(last, nn.Linear)
    for block in blocks:
        total = total.to(last.bias.device) + coder.layers(coder.inputs(block.to(last.bias.device))).sum(dim=0)
        count += len(block)
    last.bias.sub_(total / count)


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
