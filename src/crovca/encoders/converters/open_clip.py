"""open_clip's ViT CLIP (DFN-B) as a CLIPModel of transformers, both towers.

Whether a checkpoint was trained with GELU or with OpenAI's quicker approximation of it stands in no tensor. For
DFN's ViT-B/16 sources disagree: open_clip's table of pretrained weights says ``quick_gelu`` for "dfn2b", the
open_clip_config.json that Apple published beside the weights does not (so open_clip's own ``hf-hub:`` loading takes
GELU), and timm has no QuickGELU for it. "auto" follows open_clip_config.json, which is what the authors' call does;
76.2 % zero-shot accuracy on ImageNet-1k would settle it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from crovca import files
from crovca.encoders.converters.checkpoints import Converted, Tensors, grid_side, heads_of, processor_config
from crovca.encoders.preprocessing import CLIP
from crovca.errors import ConfigError, FileFormatError

ACTIVATIONS = ("auto", "gelu", "quick_gelu")
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_RESAMPLES = {"bicubic": 3, "bilinear": 2}


def find_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """The weights, and the folder they came with, of a folder from the hub or a file."""
    if not path.is_dir():
        return path, path.parent if (path.parent / "open_clip_config.json").exists() else None
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name, path
    raise FileFormatError(f"{path} has no weights of open_clip: expected {' or '.join(_WEIGHTS)}")


def convert(
    checkpoint: Mapping[str, Any], folder: Path | None = None, *, activation: str = "auto", heads: int | None = None
) -> Converted:
    """Convert a state dictionary of ``open_clip.CLIP`` with a ViT.

    Args:
        checkpoint: what ``read_checkpoint`` gave.
        folder: where open_clip_config.json and the tokenizer's files are; None: sizes are read from the tensors,
            preprocessing is CLIP's, and there is no tokenizer.
        activation: "gelu", "quick_gelu", or "auto": as open_clip_config.json says, whose silence is GELU.
        heads: attention heads of both towers; None: as open_clip_config.json says, else one for every 64 channels.
    """
    described = _described(folder)
    model = described.get("model_cfg", {})
    function, notes = _activation(activation, model, known=folder is not None)
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        raise FileFormatError(f"'state_dict' is a {type(state).__name__}, expected a dictionary of tensors")
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    # Both ways in which open_clip keeps a text tower get the names of the older one.
    source = Tensors({name.removeprefix("text."): value for name, value in plain.items()}, "open_clip's ViT")
    source.drop("attn_mask")
    vision, tensors = _vision(source, heads, model.get("vision_cfg", {}))
    text, text_tensors = _text(source, heads, model.get("text_cfg", {}))
    tensors |= text_tensors
    tensors["logit_scale"] = source.take("logit_scale").reshape(())
    source.finish()
    shared = {"hidden_act": function, "layer_norm_eps": 1e-5, "projection_dim": vision.pop("projection")}
    if text.pop("projection") != shared["projection_dim"]:
        raise FileFormatError("the towers project to different widths; this is no checkpoint of open_clip's CLIP")
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": shared["projection_dim"],
        "vision_config": {**vision, **shared, "model_type": "clip_vision_model"},
        "text_config": {**text, **shared, "model_type": "clip_text_model"},
        "dtype": "float32",
    }
    copied = [folder / name for name in _FILES if (folder / name).is_file()] if folder else []
    preprocessor = _preprocessor(vision["image_size"], described.get("preprocess_cfg", {}))
    return Converted(config, preprocessor, tensors, copied, notes)


def _described(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    if not (folder / "open_clip_config.json").is_file():
        raise FileFormatError(f"{folder} has no open_clip_config.json, which belongs to the weights")
    return files.read_json(folder / "open_clip_config.json", "open_clip's configuration")


def _activation(activation: str, model: Mapping[str, Any], *, known: bool) -> tuple[str, list[str]]:
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
    if activation != "auto":
        return activation, []
    if "quick_gelu" in model:
        return ("quick_gelu" if model["quick_gelu"] else "gelu"), []
    why = "open_clip_config.json does not ask for quick_gelu" if known else "there is no open_clip_config.json"
    return "gelu", [
        f"activation: gelu, as {why}; for DFN ViT-B/16 open_clip's own table says quick_gelu: "
        "--activation quick_gelu takes that"
    ]


def _vision(source: Tensors, heads: int | None, says: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    token = source.take("visual.class_embedding", None)
    width = token.shape[0]
    patches = source.take("visual.conv1.weight", width, 3, None, None)
    positions = source.take("visual.positional_embedding", None, width)
    projection = source.take("visual.proj", width, None)
    tensors = {
        "vision_model.embeddings.class_embedding": token,
        "vision_model.embeddings.patch_embedding.weight": patches,
        "vision_model.embeddings.position_embedding.weight": positions,
        "visual_projection.weight": projection.T,
    }
    for part in ("weight", "bias"):
        tensors[f"vision_model.pre_layrnorm.{part}"] = source.take(f"visual.ln_pre.{part}", width)
        tensors[f"vision_model.post_layernorm.{part}"] = source.take(f"visual.ln_post.{part}", width)
    layers, inner = _layers(source, "visual.transformer", "vision_model.encoder", width, tensors)
    size = grid_side(positions.shape[0]) * patches.shape[-1]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_of(width, heads, of=int(says.get("head_width", 64))),
        "intermediate_size": inner,
        "image_size": size,
        "patch_size": patches.shape[-1],
        "num_channels": 3,
        "projection": projection.shape[1],
    }, tensors


def _text(source: Tensors, heads: int | None, says: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    words = source.take("token_embedding.weight", None, None)
    vocabulary, width = words.shape
    positions = source.take("positional_embedding", None, width)
    projection = source.take("text_projection", width, None)
    tensors = {
        "text_model.embeddings.token_embedding.weight": words,
        "text_model.embeddings.position_embedding.weight": positions,
        "text_projection.weight": projection.T,
    }
    for part in ("weight", "bias"):
        tensors[f"text_model.final_layer_norm.{part}"] = source.take(f"ln_final.{part}", width)
    layers, inner = _layers(source, "transformer", "text_model.encoder", width, tensors)
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads_of(width, heads if heads is not None else says.get("heads")),
        "intermediate_size": inner,
        "max_position_embeddings": positions.shape[0],
        "vocab_size": vocabulary,
        # open_clip takes the text's embedding where the number of a token is highest: at the end of the text, the
        # last of the vocabulary.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "projection": projection.shape[1],
    }, tensors


def _layers(source: Tensors, old: str, new: str, width: int, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Move the blocks of a tower; returns how many, and the width of their hidden layer."""
    layers, inner = 0, 0
    while f"{old}.resblocks.{layers}.ln_1.weight" in source:
        block, target = f"{old}.resblocks.{layers}", f"{new}.layers.{layers}"
        attention = [f"{target}.self_attn.{name}_proj" for name in "qkv"]
        renamed = {
            f"{block}.attn.out_proj": f"{target}.self_attn.out_proj",
            f"{block}.ln_1": f"{target}.layer_norm1",
            f"{block}.ln_2": f"{target}.layer_norm2",
            f"{block}.mlp.c_fc": f"{target}.mlp.fc1",
            f"{block}.mlp.c_proj": f"{target}.mlp.fc2",
        }
        tensors |= source.take_block(width, f"{block}.attn.in_proj_", attention, renamed)
        inner = tensors[f"{target}.mlp.fc1.weight"].shape[0]
        layers += 1
    return layers, inner


def _preprocessor(size: int, says: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip resizes and crops with torchvision: the crop's offset is rounded as there."""
    interpolation, mode = says.get("interpolation", "bicubic"), says.get("resize_mode", "shortest")
    if interpolation not in _RESAMPLES or mode not in ("shortest", "squash"):
        raise FileFormatError(
            f"open_clip_config.json asks for interpolation {interpolation!r} and resize_mode {mode!r}; "
            f"these can be converted: {list(_RESAMPLES)}, and 'shortest' or 'squash'"
        )
    return processor_config(
        size if mode == "shortest" else None,
        size,
        kind="CLIP",
        resample=_RESAMPLES[interpolation],
        mean=says.get("mean", CLIP[0]),
        std=says.get("std", CLIP[1]),
    )
