"""What a hasher with encoders in it is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crovca.errors import ConfigError


@dataclass(frozen=True)
class FineTuning:
    """An encoder, and how it is adapted (paper, section 4.1).

    Attributes:
        encoder: folder of a model, or its id on the hub.
        revision: of the encoder: branch, tag or commit on the hub.
        lora_rank: of LoRA; None: the encoder stays as it is (probing).
        lora_dropout: of LoRA.
        crop_scale: smallest share of an image's area that a view shows; None: images are not augmented, which only
            pairs can do without.
        head_epochs: in so many epochs, the first, the HashCoder learns alone.
        gradient_checkpointing: compute the encoder's activations twice instead of keeping them: less memory.
        compile: whether the encoder is compiled for training, or the backend of torch.compile; "auto": on a GPU, in
            runs of at least 1,000 steps.
        dtype: that the encoder computes in, as for ``Encoder.load``.
    """

    encoder: str | Path
    revision: str | None = None
    lora_rank: int | None = 16
    lora_dropout: float = 0.1
    crop_scale: float | None = 0.4
    head_epochs: int = 1
    gradient_checkpointing: bool = False
    compile: Literal["auto"] | bool | str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, str | Path) or not str(self.encoder):
            raise ConfigError("give an encoder: the folder of a model, or its id on the hub")
        kinds: dict[str, tuple[type, ...]] = {
            "revision": (str, type(None)),
            "lora_rank": (int, type(None)),
            "lora_dropout": (int, float),
            "crop_scale": (int, float, type(None)),
            "head_epochs": (int,),
            "gradient_checkpointing": (bool,),
            "compile": (bool, str),
            "dtype": (str,),
        }
        for name, expected in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
                names = " or ".join(kind.__name__.replace("NoneType", "None") for kind in expected)
                raise ConfigError(f"{name} must be {names}, got {value!r}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ConfigError(f"lora_rank must be a whole number of at least 1, or None; got {self.lora_rank!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora_dropout must lie in [0, 1), got {self.lora_dropout!r}")
        if self.crop_scale is not None and not 0 < self.crop_scale <= 1:
            raise ConfigError(f"crop_scale must lie in (0, 1], or be None for no augmentation; got {self.crop_scale!r}")
        if self.head_epochs < 0:
            raise ConfigError(f"head_epochs must be 0 or more, got {self.head_epochs!r}")
