"""SimDINOv2's ``teacher`` checkpoint as a DINOv2 (with registers) of transformers.

The layout is that of github.com/facebookresearch/dinov2, which SimDINOv2 extends: fused query, key and value,
blocks in chunks (``blocks.CHUNK.INDEX``, the index counting through all chunks). Image size 224, position embeddings
on class token and patches before registers are inserted: as in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from crovca.encoders.converters.checkpoints import Converted, Tensors, grid_side, heads_of, processor_config
from crovca.errors import FileFormatError

_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.norm1\.weight")
_HEADS = ("dino_head.", "ibot_head.", "head.")


def convert(checkpoint: Mapping[str, Any], *, heads: int | None = None) -> Converted:
    """Convert what the file holds: ``{"teacher": {...}}``, or the dictionary of the teacher or of its backbone."""
    state = checkpoint.get("teacher", checkpoint)
    if not isinstance(state, Mapping):
        raise FileFormatError(f"'teacher' is a {type(state).__name__}, expected a dictionary of tensors")
    backbone = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith("backbone.") for name in backbone):
        backbone = {name: value for name, value in backbone.items() if not name.startswith(_HEADS)}
        backbone = {name.removeprefix("backbone."): value for name, value in backbone.items()}
    source = Tensors(backbone, "SimDINOv2")
    token = source.take("cls_token", 1, 1, None)
    hidden = token.shape[-1]
    patches = source.take("patch_embed.proj.weight", hidden, 3, None, None)
    positions = source.take("pos_embed", 1, None, hidden)
    patch = patches.shape[-1]
    tensors: dict[str, Tensor] = {
        "embeddings.cls_token": token,
        "embeddings.mask_token": source.take("mask_token", 1, hidden),
        "embeddings.position_embeddings": positions,
        "embeddings.patch_embeddings.projection.weight": patches,
        "embeddings.patch_embeddings.projection.bias": source.take("patch_embed.proj.bias", hidden),
    }
    config: dict[str, Any] = {"architectures": ["Dinov2Model"], "model_type": "dinov2"}
    if "register_tokens" in source:
        registers = source.take("register_tokens", 1, None, hidden)
        tensors["embeddings.register_tokens"] = registers
        config = {
            "architectures": ["Dinov2WithRegistersModel"],
            "model_type": "dinov2_with_registers",
            "num_register_tokens": registers.shape[1],
        }
    blocks = _blocks(source)
    inner = 0
    for index, block in enumerate(blocks):
        tensors |= _layer(source, block, f"encoder.layer.{index}", hidden)
        inner = tensors[f"encoder.layer.{index}.mlp.fc1.weight"].shape[0]
    for part in ("weight", "bias"):
        tensors[f"layernorm.{part}"] = source.take(f"norm.{part}", hidden)
    source.finish()
    size = grid_side(positions.shape[1]) * patch
    config |= {
        "hidden_size": hidden,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": heads_of(hidden, heads),
        "mlp_ratio": inner // hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": size,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        "dtype": "float32",
    }
    # The authors' evaluation transform, by torchvision: 256 bicubic, crop 224, ImageNet statistics.
    return Converted(config, processor_config(size * 256 // 224, size), tensors)


def _blocks(source: Tensors) -> list[str]:
    """Prefixes of the blocks, in order: "blocks.2.7." is the eighth, in the third chunk."""
    found = {int(match[1]): name for name in source.names if (match := _BLOCK.fullmatch(name))}
    if not found or sorted(found) != list(range(len(found))):
        raise FileFormatError(
            f"this is no checkpoint of SimDINOv2: its blocks are numbered {sorted(found)}, expected 0, 1, 2, ..."
        )
    return [found[index].removesuffix("norm1.weight") for index in sorted(found)]


def _layer(source: Tensors, block: str, target: str, hidden: int) -> dict[str, Tensor]:
    attention = [f"{target}.attention.attention.{name}" for name in ("query", "key", "value")]
    renamed = {f"{block}attn.proj": f"{target}.attention.output.dense"}
    renamed |= {f"{block}{name}": f"{target}.{name}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
    tensors = source.take_block(hidden, f"{block}attn.qkv.", attention, renamed)
    for scale in ("1", "2"):
        tensors[f"{target}.layer_scale{scale}.lambda1"] = source.take(f"{block}ls{scale}.gamma", hidden)
    return tensors
