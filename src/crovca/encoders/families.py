"""What differs between foundation models, in one table: output, width, preprocessing, LoRA targets.

A model's family is found by the ``model_type`` of its config.json. Nothing here imports transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from crovca.errors import ConfigError, EncoderError

# Names of modules, matched to their end. transformers 4.x calls a query projection ``query``, 5.x ``q_proj``.
_QUERY_VALUE = (r"query|value|q_proj|v_proj",)
_POINTWISE = (r"pointwise_conv[12]|pwconv[12]",)
_POINTWISE_MOBILENET = (r"(expand_1x1|reduce_1x1|conv_1x1)\.convolution",)


@dataclass(frozen=True)
class TextTower:
    """How texts are embedded.

    Attributes:
        name: what messages call it.
        model_types: ``model_type`` of config.json, of the pair of towers or of this one alone.
        model_class: class of transformers that holds this tower and nothing else.
        output: field of the model's output that is the embedding, or "mean": the mean over the tokens.
        padding: "longest" of the batch, or "max_length" where the model was trained so.
        lower_case: whether the model was trained on lower-case text.
        masked: whether the model is told which tokens are padding.
        lora: patterns of names of modules, as in ``Family``.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    output: str
    padding: str = "longest"
    lower_case: bool = False
    masked: bool = True
    lora: tuple[str, ...] = _QUERY_VALUE


@dataclass(frozen=True)
class Family:
    """Image encoders that are handled alike.

    Attributes:
        name: what messages and stores call it.
        model_types: ``model_type`` of config.json, of the pair of towers or of the image tower alone.
        model_class: class of transformers that holds the image tower and nothing else.
        output: field of the model's output that is the embedding, or "cls": the first token after the last
            layer norm.
        width: where the embedding's width is found, as a path from the model; None: by running it once.
        processor: image processor whose defaults fill in what preprocessor_config.json does not say.
        fixed_size: the images must have ``image_size`` of config.json (position embeddings that are not
            interpolated); the others take what preprocessor_config.json says.
        options: keyword arguments of the class.
        convolutional: made of convolutions, which run faster with channels last.
        lora: patterns of names of modules for ``lora_targets``: each must match the end of a name.
        adjust: done once to a loaded model; its embeddings stay the same.
        text: the text tower that belongs to it.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    output: str
    width: str | None
    processor: str | None
    fixed_size: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    convolutional: bool = False
    lora: tuple[str, ...] = _QUERY_VALUE
    adjust: Callable[[nn.Module], None] | None = None
    text: TextTower | None = None

    def select(self, output: Any) -> Tensor:
        """The embedding (B, width) in what the model returned."""
        if self.output == "cls":
            return output.last_hidden_state[:, 0]
        found = output.get(self.output) if hasattr(output, "get") else None
        if not isinstance(found, Tensor):
            raise EncoderError(
                f"this model has no {self.output}, so it does not say which of its outputs is the embedding; "
                "use a model that pools its output (DINOv2, CLIP, SigLIP, ViT, ConvNeXt, ...)"
            )
        return found.flatten(1)  # convolutional models give (B, width, 1, 1)


def _without_padding(model: nn.Module) -> None:
    # TensorFlow's padding is worked out from the convolution's stride, which LoRA's wrapper does not have.
    # A convolution of one pixel and stride 1 needs none, so there the padding is switched off.
    for module in model.modules():
        convolution = getattr(module, "convolution", None)
        if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == convolution.stride == (1, 1):
            unpadded = copy(module.config)
            unpadded.tf_padding = False  # type: ignore[union-attr]
            module.config = unpadded


_CLIP_TEXT = TextTower("CLIP text", ("clip", "clip_text_model"), "CLIPTextModelWithProjection", "text_embeds")
_SIGLIP_TEXT = TextTower(
    "SigLIP text", ("siglip", "siglip_text_model"), "SiglipTextModel", "pooler_output",
    padding="max_length", lower_case=True, masked=False,
)  # fmt: skip
MEAN_POOLED_TEXT = TextTower(
    "mean-pooled text", (), "AutoModel", "mean", lora=(r"query|value|q_proj|v_proj|q_lin|v_lin|q|v|qkv|Wqkv",)
)
"""Any ``AutoModel`` of text: mean of the last hidden states over the tokens that are not padding."""

_NO_POOLER = {"add_pooling_layer": False}
_HIDDEN, _LAST_STAGE = "config.hidden_size", "config.hidden_sizes.-1"
FAMILIES: tuple[Family, ...] = (
    #      name, model types
    #      class of transformers, output, width, processor, what is not as usual
    Family("DINOv2", ("dinov2",),
           "Dinov2Model", "pooler_output", _HIDDEN, "Bit"),
    Family("DINOv2 with registers", ("dinov2_with_registers",),
           "Dinov2WithRegistersModel", "pooler_output", _HIDDEN, "Bit"),
    Family("DINOv3 ViT", ("dinov3_vit",),
           "DINOv3ViTModel", "pooler_output", _HIDDEN, "DINOv3ViT"),
    Family("DINOv3 ConvNeXt", ("dinov3_convnext",),
           "DINOv3ConvNextModel", "pooler_output", _LAST_STAGE, "DINOv3ViT", convolutional=True, lora=_POINTWISE),
    Family("CLIP", ("clip", "clip_vision_model"),
           "CLIPVisionModelWithProjection", "image_embeds", "visual_projection.out_features", "CLIP",
           fixed_size=True, text=_CLIP_TEXT),
    Family("SigLIP", ("siglip", "siglip_vision_model"),
           "SiglipVisionModel", "pooler_output", _HIDDEN, "Siglip", fixed_size=True, text=_SIGLIP_TEXT),
    Family("DeiT", ("deit",),
           "DeiTModel", "cls", _HIDDEN, "DeiT", fixed_size=True, options=_NO_POOLER),
    Family("ViT", ("vit",),
           "ViTModel", "cls", _HIDDEN, "ViT", fixed_size=True, options=_NO_POOLER),
    Family("MobileNetV2", ("mobilenet_v2",),
           "MobileNetV2Model", "pooler_output", "conv_1x1.convolution.out_channels", "MobileNetV2",
           convolutional=True, lora=_POINTWISE_MOBILENET, adjust=_without_padding),
)  # fmt: skip

_OTHER = Family(
    "other", (),
    "AutoModel", "pooler_output", None, None, lora=(*_QUERY_VALUE, *_POINTWISE, r"q_lin|v_lin|qkv|q|v"),
)  # fmt: skip

# What has two towers, or takes other things than pixels of one size, and is not in the table.
_REFUSED: Mapping[str, str] = {
    "siglip2": "NaFlex models take patches of images of any shape, which crovca does not; "
    "use a model of fixed size, as google/siglip2-base-patch16-224"
}


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family of the image encoder that a config.json describes."""
    model_type = _model_type(config, source)
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
        if family.text and model_type in family.text.model_types:
            raise EncoderError(f"{source} is the text tower of {family.name}; images need the image tower")
    _refuse_pairs(model_type, config, source)
    return _OTHER


def text_tower_of(config: Mapping[str, Any], source: str) -> TextTower:
    """The text tower that a config.json describes; a model outside the table is mean-pooled."""
    model_type = _model_type(config, source)
    for family in FAMILIES:
        if family.text and model_type in family.text.model_types:
            return family.text
        if model_type in family.model_types:
            raise EncoderError(
                f"{source} is a {family.name}, which takes images; texts need a text encoder, such as that of siglip2"
            )
    _refuse_pairs(model_type, config, source)
    return MEAN_POOLED_TEXT


def _refuse_pairs(model_type: str, config: Mapping[str, Any], source: str) -> None:
    if model_type in _REFUSED:
        raise EncoderError(f"{source}: {_REFUSED[model_type]}")
    if "vision_config" in config:
        raise EncoderError(
            f"{source} has several towers in a way that crovca does not know (model type {model_type!r}); "
            "of such models it takes CLIP and SigLIP"
        )


def _model_type(config: Mapping[str, Any], source: str) -> str:
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        return model_type
    hint = " (a timm model, which crovca does not read)" if "architecture" in config else ""
    raise EncoderError(f"{source}: config.json has no model_type{hint}; expected a model in the format of transformers")


def lora_targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear and convolutional layers that LoRA is to adapt, in the order of the model.

    Args:
        model: the tower; the names are its own, as peft's ``target_modules`` takes them.
        patterns: ``Family.lora``, ``TextTower.lora``, or others: regular expressions, each of which must
            match the last parts of a name.
    """
    try:
        wanted = [re.compile(rf"(?:.*\.)?(?:{pattern})") for pattern in patterns]
    except re.error as error:
        raise ConfigError(f"LoRA targets must be regular expressions, got {list(patterns)}: {error}") from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    found = [name for name in layers if any(pattern.fullmatch(name) for pattern in wanted)]
    if not found:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
        raise ConfigError(
            f"no layer of {type(model).__name__} matches the LoRA targets {list(patterns)}; "
            f"its layers are called {', '.join(kinds)}"
        )
    return found


@dataclass(frozen=True)
class Alias:
    """A short name for an encoder.

    Attributes:
        hub_id: where transformers finds it, or None: it must be converted first.
        how: what to do to get it, where it cannot be loaded by its id alone.
    """

    hub_id: str | None
    how: str = ""


_DINOV3 = "gated: ask for access on its page at huggingface.co, then log in with 'hf auth login'"
_SWAG_E2E = "download.pytorch.org/models/vit_b_16_swag-9ac1b537.pth"
_SWAG_LINEAR = "download.pytorch.org/models/vit_b_16_lc_swag-4e70ced5.pth"
_TORCHVISION = "download https://{url}, then: crovca convert {file} --from torchvision --variant {variant} -o {folder}"


def _torchvision(url: str, variant: str, folder: str) -> Alias:
    file = url.rsplit("/", 1)[-1]
    return Alias(None, _TORCHVISION.format(url=url, file=file, variant=variant, folder=folder))


ALIASES: Mapping[str, Alias] = {
    "dinov2": Alias("facebook/dinov2-with-registers-base"),  # what the paper's code loads
    "dinov2-no-registers": Alias("facebook/dinov2-base"),
    "dinov3-s": Alias("facebook/dinov3-vits16-pretrain-lvd1689m", _DINOV3),
    "dinov3-b": Alias("facebook/dinov3-vitb16-pretrain-lvd1689m", _DINOV3),
    "dinov3-l": Alias("facebook/dinov3-vitl16-pretrain-lvd1689m", _DINOV3),
    "dinov3-convnext-s": Alias("facebook/dinov3-convnext-small-pretrain-lvd1689m", _DINOV3),
    "dfn-l": Alias("apple/DFN2B-CLIP-ViT-L-14"),
    "dfn-b": Alias(
        None,
        "download apple/DFN2B-CLIP-ViT-B-16 ('hf download apple/DFN2B-CLIP-ViT-B-16 --local-dir dfn-b-open_clip'), "
        "then: crovca convert dfn-b-open_clip --from open_clip -o dfn-b",
    ),
    "siglip2": Alias("google/siglip2-base-patch16-224"),
    "swag": _torchvision(_SWAG_E2E, "swag_e2e", "swag"),
    "swag-linear": _torchvision(_SWAG_LINEAR, "swag_linear", "swag-linear"),
    "deit": _torchvision("download.pytorch.org/models/vit_b_16-c867db91.pth", "imagenet1k_v1", "deit"),
    "simdinov2": Alias(
        None,
        "download the ViT-B/16 checkpoint named in the README of github.com/RobinWu218/SimDINO, "
        "then: crovca convert CHECKPOINT --from simdinov2 -o simdinov2",
    ),
}
"""The encoders of the paper's Table 10 (and SigLIP 2) by short names."""
