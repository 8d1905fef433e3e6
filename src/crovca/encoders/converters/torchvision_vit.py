"""torchvision's ViT-B/16 (the paper's "DeiT" and "SWAG") as a ViT of transformers.

Layer norms have eps 1e-6 there, 1e-12 in transformers. The three sets of weights differ in their preprocessing, which
no tensor tells, so the variant must be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from crovca.encoders.converters.checkpoints import Converted, Tensors, grid_side, heads_of, processor_config
from crovca.errors import ConfigError, FileFormatError


class Variant(NamedTuple):
    """How torchvision prepares images for a set of weights: resize, crop, Pillow's number of the filter."""

    resize: int
    crop: int
    resample: int


VARIANTS: Mapping[str, Variant] = {
    "imagenet1k_v1": Variant(256, 224, 2),  # ViT_B_16_Weights.IMAGENET1K_V1, the DeiT recipe
    "swag_e2e": Variant(384, 384, 3),  # IMAGENET1K_SWAG_E2E_V1
    "swag_linear": Variant(224, 224, 3),  # IMAGENET1K_SWAG_LINEAR_V1
}


def convert(checkpoint: Mapping[str, Any], *, variant: str | None, heads: int | None = None) -> Converted:
    """Convert a state dictionary of ``torchvision.models.VisionTransformer``."""
    if variant is None or variant not in VARIANTS:
        given = "none was given" if variant is None else f"got {variant!r}"
        raise ConfigError(f"torchvision's weights need a variant, one of {list(VARIANTS)}; {given}")
    source = Tensors(checkpoint, "torchvision's ViT")
    source.drop("heads.")
    token = source.take("class_token", 1, 1, None)
    hidden = token.shape[-1]
    patches = source.take("conv_proj.weight", hidden, 3, None, None)
    positions = source.take("encoder.pos_embedding", 1, None, hidden)
    size, expected = grid_side(positions.shape[1]) * patches.shape[-1], VARIANTS[variant].crop
    if size != expected:
        raise FileFormatError(
            f"this checkpoint takes images of {size} x {size}, the variant {variant!r} of {expected} x {expected}; "
            f"the variants are {list(VARIANTS)}"
        )
    tensors: dict[str, Tensor] = {
        "embeddings.cls_token": token,
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": patches,
        "embeddings.patch_embeddings.projection.bias": source.take("conv_proj.bias", hidden),
    }
    layers, inner = 0, 0
    while f"encoder.layers.encoder_layer_{layers}.ln_1.weight" in source:
        tensors |= _layer(source, layers, hidden)
        inner = tensors[f"encoder.layer.{layers}.intermediate.dense.weight"].shape[0]
        layers += 1
    for part in ("weight", "bias"):
        tensors[f"layernorm.{part}"] = source.take(f"encoder.ln.{part}", hidden)
    source.finish()
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_of(hidden, heads),
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": size,
        "patch_size": patches.shape[-1],
        "num_channels": 3,
        "qkv_bias": True,
        "dtype": "float32",
    }
    return Converted(config, processor_config(*VARIANTS[variant]), tensors)


def _layer(source: Tensors, index: int, hidden: int) -> dict[str, Tensor]:
    block, target = f"encoder.layers.encoder_layer_{index}", f"encoder.layer.{index}"
    older = f"{block}.mlp.0.weight" in source
    first, second = ("0", "3") if older else ("linear_1", "linear_2")
    attention = [f"{target}.attention.attention.{name}" for name in ("query", "key", "value")]
    renamed = {
        f"{block}.self_attention.out_proj": f"{target}.attention.output.dense",
        f"{block}.ln_1": f"{target}.layernorm_before",
        f"{block}.ln_2": f"{target}.layernorm_after",
        f"{block}.mlp.{first}": f"{target}.intermediate.dense",
        f"{block}.mlp.{second}": f"{target}.output.dense",
    }
    return source.take_block(hidden, f"{block}.self_attention.in_proj_", attention, renamed)
