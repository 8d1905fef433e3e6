"""Small random models of every family, in folders as the hub has them."""

import json
from pathlib import Path

import torch

SIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64,
    "max_position_embeddings": 12, "bos_token_id": 62, "eos_token_id": 63, "pad_token_id": 63,
}  # fmt: skip

PREPROCESSORS = {
    "Bit": {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}},
    "CLIP": {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    "Siglip": {"size": {"height": 28, "width": 28}},
    "ViT": {"size": {"height": 28, "width": 28}},
    "DeiT": {"size": {"height": 32, "width": 32}, "crop_size": {"height": 28, "width": 28}},
    "DINOv3ViT": {"size": {"height": 32, "width": 32}},
    "MobileNetV2": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "ConvNext": {"size": {"shortest_edge": 32}},
}


def models():
    """Name of a family -> (model as transformers makes it, name of the processor, width of the embedding)."""
    import transformers as t

    torch.manual_seed(0)
    small = dict(SIDE, image_size=28, patch_size=14)
    vision = dict(small, intermediate_size=64)
    stages = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
    clip = t.CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=8)
    siglip = t.SiglipConfig(vision_config=vision, text_config=dict(TEXT, projection_size=32))
    return {
        "DINOv2": (t.Dinov2Model(t.Dinov2Config(**small)), "Bit", 32),
        "DINOv2 with registers": (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**small)), "Bit", 32,
        ),
        "DINOv3 ViT": (
            t.DINOv3ViTModel(t.DINOv3ViTConfig(**SIDE, intermediate_size=64, image_size=32, patch_size=16)),
            "DINOv3ViT", 32,
        ),
        "DINOv3 ConvNeXt": (t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**stages)), "DINOv3ViT", 16),
        "CLIP": (t.CLIPModel(clip), "CLIP", 8),
        "SigLIP": (t.SiglipModel(siglip), "Siglip", 32),
        "DeiT": (t.DeiTModel(t.DeiTConfig(**vision)), "DeiT", 32),
        "ViT": (t.ViTModel(t.ViTConfig(**vision)), "ViT", 32),
        "MobileNetV2": (
            t.MobileNetV2Model(t.MobileNetV2Config(depth_multiplier=0.35, image_size=32)), "MobileNetV2", 1280,
        ),
        "other": (t.ConvNextModel(t.ConvNextConfig(**stages)), "ConvNext", 16),
    }  # fmt: skip


def save(model, folder: Path, processor: str | None = None, **options) -> Path:
    """A model's folder, quietly."""
    from crovca.encoders.library import quiet

    with torch.no_grad():  # initial weights are too alike to tell a wrong one
        for parameter in model.parameters():
            if parameter.ndim == 4:  # convolutions: else deep ones forget their input
                torch.nn.init.kaiming_normal_(parameter)
            elif parameter.ndim > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
    with quiet():
        model.save_pretrained(folder, **options)
    if processor is not None:
        settings = {"image_processor_type": f"{processor}ImageProcessor", **PREPROCESSORS[processor]}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def clip_tokenizer(folder: Path) -> None:
    """The files of a tokenizer of 64 tokens, which knows single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<{number}>" for number in range(len(words), 62)] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        })
    )  # fmt: skip


def word_tokenizer(folder: Path, *, name: str = "PreTrainedTokenizerFast", limit: int | None = 12) -> None:
    """The files of a tokenizer of whole words: "one" to "five"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "five"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, str | int] = {"tokenizer_class": name, "pad_token": "[PAD]", "unk_token": "[UNK]"}
    if limit is not None:
        settings["model_max_length"] = limit
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
