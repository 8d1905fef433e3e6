"""LoRA: a small part of an encoder learns, the rest stays as it is, to the bit.

peft puts a pair of narrow layers beside each layer that is named in the table of families (``Family.lora``). They are
the only parameters of an encoder that get a gradient. The encoder itself stays in evaluation mode: its weights and the
statistics of its batch normalizations stay what they are, and it has no dropout but LoRA's.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.families import lora_targets
from crovca.errors import ConfigError, needed

_NAME = "default"  # of the one adapter, as peft calls it


@dataclass(frozen=True)
class Adapter:
    """What LoRA added to an encoder.

    Attributes:
        parameters: the learned parameters, under the names of the encoder's layers
            ("encoder.layer.0.attention.q_proj.lora_A.weight"): to train, to save and to load.
        targets: names of the layers that are adapted.
        rank, dropout: of LoRA; its alpha is the rank.
        model: the encoder's model, which holds the same parameters.
    """

    parameters: nn.Module
    targets: tuple[str, ...]
    rank: int
    dropout: float
    model: nn.Module

    def train(self, mode: bool = True) -> None:
        """Switch the dropout of LoRA, and nothing else of the encoder."""
        for name, module in self.model.named_modules():
            if name.endswith(f"lora_dropout.{_NAME}"):
                module.train(mode)


def adapt(
    encoder: Encoder | TextEncoder,
    *,
    rank: int = 16,
    dropout: float = 0.1,
    seed: int = 0,
    targets: Sequence[str] | None = None,
) -> Adapter:
    """Add LoRA to an encoder, in place; its embeddings are the same until the adapter has learned something.

    Args:
        encoder: it is changed; must not be adapted already.
        rank: of LoRA, and its alpha.
        dropout: of the input of LoRA's layers.
        seed: of the initial weights.
        targets: names of the layers to adapt; None: those of the encoder's family. Where the encoder has no layers of
            these names but as many of its family, these are the names that another version of transformers gave them:
            they stay the names of the parameters.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"lora_rank must be a whole number of at least 1, got {rank!r}")
    if not 0 <= dropout < 1:
        raise ConfigError(f"lora_dropout must lie in [0, 1), got {dropout!r}")
    model = encoder.model
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ConfigError(f"{encoder.identity['source']} has LoRA layers already; load it anew")
    patterns = encoder.family.lora if isinstance(encoder, Encoder) else encoder.tower.lora
    chosen = tuple(lora_targets(model, patterns)) if targets is None else tuple(targets)
    called = chosen
    if targets is not None and not set(chosen) <= {name for name, _ in model.named_modules()}:
        chosen = tuple(lora_targets(model, patterns))  # the same layers, as this transformers calls them
        if len(chosen) != len(called):
            raise ConfigError(
                f"{encoder.identity['source']} cannot be adapted: it has {len(chosen)} layers for LoRA, and the "
                f"adapter is of {len(called)} others, such as {called[0]!r}"
            )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = needed("peft", "images", "LoRA")
        settings = peft.LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=dropout, bias="none", target_modules=list(chosen)
        )
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(settings, model)
        except ValueError as error:  # names that the model does not have, layers of other kinds
            raise ConfigError(f"{encoder.identity['source']} cannot be adapted: {error}") from error
    model.eval().to(encoder.device)
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    wrong = [name for name in learned if ".lora_" not in name]
    assert not wrong, f"peft left frozen parameters trainable: {wrong[:3]}"
    layers = dict(zip(chosen, called, strict=True))
    parameters = {}
    for name, value in learned.items():
        layer, rest = name.split(".lora_", 1)
        parameters[f"{layers[layer]}.lora_{rest.replace(f'.{_NAME}.', '.')}"] = value
    return Adapter(_named(parameters), called, rank, dropout, model)


@contextmanager
def checkpoint_gradients(encoder: Encoder | TextEncoder) -> Iterator[None]:
    """Within the block, compute activations twice instead of keeping them: less memory, a third more time."""
    kind = importlib.import_module("transformers.modeling_layers").GradientCheckpointingLayer
    layers = [module for module in encoder.model.modules() if isinstance(module, kind)]
    if not layers:
        raise ConfigError(
            f"{encoder.identity['source']} ({type(encoder.model).__name__}) has no layers that gradient checkpointing "
            "knows; leave it out"
        )
    # By ourselves: transformers does it only in models that are in training mode, and calls it differently by version.
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _named(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """A module whose parameters have these dotted names."""
    root = nn.Module()
    for name, value in parameters.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, value)
    return root
