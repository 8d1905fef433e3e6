"""Foundation models that turn images and texts into embeddings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from crovca.encoders import library
from crovca.encoders.families import Family, TextTower, family_of, text_tower_of
from crovca.encoders.hub import ModelFiles, locate, weight_files, weights_sha256
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import ConfigError, CrovcaError, EncoderError, FileFormatError, InvalidInputError, one_line

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What ``dtype`` may be, besides "auto"."""

# Weights that no embedding depends on: they may be missing.
_logger = logging.getLogger(__name__)

_UNUSED = ("mask_token", "position_ids")
# Tokenizers that do not know their limit say 1e30; then the model's own limit counts.
_NO_LIMIT = 10**9
_DEFAULT_TOKENS = 512
# These count positions from 2 on.
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "ibert")


@dataclass
class _Tower:
    """What image and text encoders have in common.

    Attributes:
        model: the tower alone, in evaluation mode, its weights frozen.
        width: of the embeddings.
        device, dtype: where the model is, and what its weights are in and it computes in.
        identity: "source", "revision" (commit on the hub, or None), "family", "output", "weights_sha256".
    """

    model: nn.Module
    width: int
    device: torch.device
    dtype: torch.dtype
    identity: dict[str, str | None]

    def _checked(self, embeddings: Tensor) -> Tensor:
        embeddings = embeddings.float()
        if not bool(torch.isfinite(embeddings).all()):
            hint = "; use bfloat16 or float32" if self.dtype == torch.float16 else ""
            raise EncoderError(
                f"{self.identity['source']} gave an embedding that is not finite in {_name(self.dtype)}{hint}"
            )
        return embeddings


@dataclass
class Encoder(_Tower):
    """A foundation model of images. Load one with ``Encoder.load``.

    Attributes:
        family: its row in the table of families.
        preprocessing: how an image becomes its input; may be replaced by another of the same size.
    """

    family: Family
    preprocessing: Preprocessing

    @classmethod
    def load(
        cls, source: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> Self:
        """Load a model.

        Args:
            source: a local folder, a hub id, or a short name ("dinov2", "dinov3-b", "dfn-b", ...).
            revision: branch, tag or commit on the hub.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
            dtype: what its weights are in and it computes in: "float32", "bfloat16", "float16", or "auto":
                bfloat16 where the processor has it, else float32. For fine-tuning take "float32", and autocast.

        Raises:
            ConfigError: unknown device or dtype; neither a folder nor an id.
            EncoderError: it cannot be fetched, or is not a model of images.
            FileFormatError: a file of it is missing or damaged, or its parts do not fit together.
            MissingDependencyError: transformers is not installed.
        """
        where = choose_device(device)
        computed = choose_dtype(dtype, where)
        found = locate(source, revision)
        family = family_of(found.config, found.name)
        preprocessing = Preprocessing.read(found.folder, family.processor)
        weights = weight_files(found)
        config = _read_config(found, "vision_config")
        _check_input(found, family, preprocessing, config)
        model = _load_model(family.model_class, found, config, dict(family.options))
        if family.adjust is not None:
            family.adjust(model)
        model = _placed(model, where, computed, channels_last=family.convolutional)
        identity = _identity(found, family, weights)
        encoder = cls(model, 0, where, computed, identity, family, preprocessing)
        encoder.width = _width(encoder)
        return encoder

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed a batch, without gradients.

        Args:
            pixels: float (B, 3, H, W) as ``preprocessing.normalize`` gives them, on any device.

        Returns:
            float32 (B, width) on the encoder's device.

        Raises:
            InvalidInputError: not floats, or not of the size of ``preprocessing``.
            EncoderError: the model gave numbers that are not finite.
        """
        with torch.no_grad():
            return self._checked(self.forward(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """As ``embed``, but with gradients and in the dtype of the model's output; for fine-tuning."""
        height, width = self.preprocessing.size
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, height, width) or not pixels.is_floating_point():
            raise InvalidInputError(
                f"{self.identity['source']} takes floats (B, 3, {height}, {width}), got {_name(pixels.dtype)} "
                f"{tuple(pixels.shape)}; prepare images with encoder.preprocessing"
            )
        if len(pixels) == 0:
            return torch.zeros(0, self.width, device=self.device)
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        if self.family.convolutional:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.family.select(self.model(pixel_values=pixels))


@dataclass
class TextEncoder(_Tower):
    """A foundation model of texts. Load one with ``TextEncoder.load``.

    Attributes:
        tower: its row in the table of text towers.
        tokenizer: of transformers.
        max_tokens: texts are cut to this many.
    """

    tower: TextTower
    tokenizer: Any
    max_tokens: int

    @classmethod
    def load(
        cls, source: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> Self:
        """Load the text tower of CLIP or SigLIP, or any ``AutoModel`` of text, which is then mean-pooled.

        Takes and raises what ``Encoder.load`` does.
        """
        where = choose_device(device)
        computed = choose_dtype(dtype, where)
        found = locate(source, revision)
        tower = text_tower_of(found.config, found.name)
        weights = weight_files(found)
        config = _read_config(found, "text_config")
        tokenizer = _load_tokenizer(found)
        model = _load_model(tower.model_class, found, config, {})
        if getattr(config, "is_encoder_decoder", False):
            model = model.get_encoder()  # type: ignore[operator]
        identity = _identity(found, tower, weights)
        limit = _max_tokens(tokenizer, config)
        encoder = cls(_placed(model, where, computed), 0, where, computed, identity, tower, tokenizer, limit)
        encoder.width = int(encoder.embed(["a"]).shape[1])
        return encoder

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed a batch of texts, without gradients; longer ones are cut to ``max_tokens``.

        Returns:
            float32 (B, width) on the encoder's device.

        Raises:
            InvalidInputError: not a sequence of strings.
            EncoderError: the model gave numbers that are not finite.
        """
        with torch.no_grad():
            return self._checked(self.forward(texts))

    def forward(self, texts: Sequence[str]) -> Tensor:
        """As ``embed``, but with gradients and in the dtype of the model's output; for fine-tuning."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError(f"texts must be a list of strings, got {texts!r:.80}")
        if len(texts) == 0:
            return torch.zeros(0, self.width, device=self.device)
        tokens = self.tokenizer(
            [text.lower() if self.tower.lower_case else text for text in texts],
            padding=self.tower.padding,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        options = {"attention_mask": mask} if self.tower.masked else {}
        output = self.model(input_ids=ids, **options)
        if self.tower.output != "mean":
            return output[self.tower.output]
        hidden = output.last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


Tower = TypeVar("Tower", Encoder, TextEncoder)


def load_once(
    kind: type[Tower], source: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> Tower:
    """As ``kind.load``, but what was loaded last of each kind is kept for who asks for the same again.

    It is shared: who wants another preprocessing takes a copy (``dataclasses.replace``, which copies no weights), and
    who adapts the weights loads an encoder of his own. A local folder whose files changed is loaded anew.
    """
    folder = Path(source).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    where = choose_device(device)
    computed = _name(choose_dtype(dtype, where))
    key = (str(source), revision, str(where), computed, tuple(stamps))
    with _LOADING:  # two threads that ask at once would load it twice
        if kind not in _KEPT or _KEPT[kind][0] != key:
            _KEPT.pop(kind, None)  # two at once may not fit into the memory of a GPU
            _KEPT[kind] = key, kind.load(source, revision=revision, device=str(where), dtype=computed)
        return _KEPT[kind][1]


_LOADING = threading.Lock()
_KEPT: dict[type, tuple[Any, Any]] = {}


def choose_device(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:1"; an unknown or absent one raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}; use 'auto', 'cpu' or 'cuda'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices; use 'auto' or 'cpu'"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called "float32", "bfloat16", "float16" or "auto"; an unknown one raises ConfigError.

    "auto" is bfloat16 on a GPU that has it and on a CPU with instructions for it (AMX, AVX512-BF16, Arm's BF16),
    else float32.
    """
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {name!r}")
    return DTYPES[name]


def _cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def _identity(found: ModelFiles, family: Family | TextTower, weights: list[Path]) -> dict[str, str | None]:
    return {
        "source": found.name,
        "revision": found.revision,
        "family": family.name,
        "output": family.output,
        "weights_sha256": weights_sha256(weights),
    }


def _read_config(found: ModelFiles, tower: str) -> Any:
    """The configuration; of a pair of towers the part that is about this one."""
    auto = library.transformers_class("AutoConfig")
    try:
        with library.quiet():
            config = auto.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # strict dataclasses, KeyErrors, whatever a damaged file brings about
        if "trust_remote_code" in str(error):
            raise EncoderError(
                f"{found.name} brings code of its own (auto_map), which is never run; use a model of a kind that "
                "transformers has"
            ) from error
        known = library.transformers().__version__
        raise EncoderError(
            f"{found.name}: transformers {known} cannot read its config.json ({one_line(error)}); if the model is "
            "newer than that, pip install -U transformers"
        ) from error
    part = getattr(config, tower, None)
    if part is None:
        return config
    if getattr(config, "projection_dim", None) is not None:
        part.projection_dim = config.projection_dim  # the pair's counts; the tower's own may be the default
    return part


def _check_input(found: ModelFiles, family: Family, preprocessing: Preprocessing, config: Any) -> None:
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise EncoderError(f"{found.name} takes images of {channels} channels; crovca gives 3")
    size = getattr(config, "image_size", None)
    if not family.fixed_size or size is None:
        return
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if expected != preprocessing.size:
        raise FileFormatError(
            f"{found.name}: config.json says images of {_times(expected)}, preprocessor_config.json makes them "
            f"{_times(preprocessing.size)}; its position embeddings take only the former: correct size and crop_size"
        )


def _load_model(name: str, found: ModelFiles, config: Any, options: dict[str, Any]) -> nn.Module:
    """The tower with its weights; any that is missing or of another shape is an error, never random numbers."""
    kind = library.transformers_class(name)
    try:
        with library.quiet():
            model, report = kind.from_pretrained(
                found.folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
                weights_only=True,
                **options,
            )
    except Exception as error:
        raise _unloadable(name, found, error) from error
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(_UNUSED))
    if missing or report["mismatched_keys"]:
        wrong = missing or sorted(str(key[0]) for key in report["mismatched_keys"])
        raise FileFormatError(
            f"{found.name}: {len(wrong)} weights of {name} are not in its files, as {wrong[0]!r}; config.json and "
            "weights do not belong together, or these are of another kind of model"
        )
    _logger.info("loaded %s (%s)", found.name, name)
    return model


def _unloadable(name: str, found: ModelFiles, error: Exception) -> CrovcaError:
    reason = library.broken_torchvision()
    if reason is not None and "torchvision" in str(error):
        return EncoderError(
            f"the installed torchvision does not work ({reason}), which breaks transformers; remove it: "
            "pip uninstall torchvision (crovca does not need it)"
        )
    text = str(error)
    if "size mismatch" in text or "ignore_mismatched_sizes" in text:
        return FileFormatError(
            f"{found.name}: its weights are of other shapes than config.json says; they do not belong together"
        )
    if isinstance(error, ValueError) and "AutoModel" in text:
        return EncoderError(f"{found.name} is of a kind that transformers cannot load as {name}: {one_line(error)}")
    return FileFormatError(
        f"{found.name}: its weights cannot be read ({one_line(error)}); they may be truncated: fetch them again"
    )


def _load_tokenizer(found: ModelFiles) -> Any:
    auto = library.transformers_class("AutoTokenizer")
    try:
        with library.quiet():
            tokenizer = auto.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise FileFormatError(
            f"{found.name}: its tokenizer cannot be loaded ({one_line(error)}); a text encoder's folder has "
            "tokenizer.json, or vocab.json and merges.txt"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise FileFormatError(f"{found.name}: its tokenizer has no padding token; set pad_token in its files")
    return tokenizer


def _max_tokens(tokenizer: Any, config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limit = positions - 2 if config.model_type in _SHIFTED else positions
    else:
        limit = _DEFAULT_TOKENS if tokenizer.model_max_length > _NO_LIMIT else tokenizer.model_max_length
    return int(min(limit, tokenizer.model_max_length))


def _placed(model: nn.Module, device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> nn.Module:
    """Frozen, on the device, in the dtype.

    Weights that are cast once compute 1.5 times as fast as weights that autocast casts for every batch (DINOv2-B in
    bfloat16 on two cores). Batch norms are cast whole, as everybody does; other buffers stay as they are: those of
    rotary position embeddings do not bear rounding.
    """
    model = model.eval().requires_grad_(False).to(device)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.to(dtype)
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
    return model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]


def _width(encoder: Encoder) -> int:
    if encoder.family.width is not None:
        found: Any = encoder.model
        for name in encoder.family.width.split("."):
            found = found[int(name)] if name.lstrip("-").isdecimal() else getattr(found, name)
        return int(found)
    black = torch.zeros(1, 3, *encoder.preprocessing.size)
    try:
        return int(encoder.embed(black).shape[1])
    except CrovcaError as error:
        raise EncoderError(f"{encoder.identity['source']}: {error}") from error
    except Exception as error:
        raise EncoderError(
            f"{encoder.identity['source']} ({type(encoder.model).__name__}) does not take images of "
            f"{_times(encoder.preprocessing.size)}: {one_line(error)}"
        ) from error


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
