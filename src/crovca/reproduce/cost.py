"""How long cells take, ESTIMATED from the arithmetic of the encoders. Nothing here was measured.

Counted are the passes of images and texts through encoders, and each of them once for all the cells that need it:

* an embedding is one forward pass of an item;
* a training view is three (forward, and backward at twice that; LoRA needs less of it), one while the HashCoder
  learns alone: the first epoch of LoRA (``FineTuning.head_epochs``), and all of probing;
* pairs without augmentation (CC3M) and the BatchNorm statistics of a random HashCoder are one pass over the
  training set;
* frozen encoders share embeddings over all models and seeds; a model with LoRA embeds queries and database anew, and
  every seed trains anew.

For scale: the paper says "under 2 minutes" for COCO at 16 bits, on a GPU and with an encoder that it does not name; by
this count training alone is 3 minutes with a ViT-B/16 (and embedding the 122,218 images of queries and database 1.5).

Not counted: reading and decoding images, which may well be what a machine waits for; the HashCoder; the search.

Multiply-adds of an item follow from a tower's shape: per layer 12 n w^2 for the projections and 2 n^2 w for attention,
for n tokens of width w. That gives what is published at 224 pixels: 4.6 G (ViT-S/16) and 17.6 G (ViT-B/16; Touvron et
al., DeiT, 2021), 61.6 G (ViT-L/16), 55.5 G (ViT-B/16 at 384 pixels; timm's tables). ConvNeXt-S: 8.7 G (Liu et al., "A
ConvNet for the 2020s", 2022, Table 1). A multiply-add is two floating-point operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from crovca.datasets.registry import PROTOCOLS
from crovca.datasets.structure import Protocol
from crovca.errors import ConfigError
from crovca.hashing.config import PRESETS
from crovca.reproduce.paper import Cell, Measurement, Training

__all__ = ["THROUGHPUT", "Estimate", "estimate", "multiply_adds"]

THROUGHPUT = 50e12
"""Floating-point operations a second that an encoder is assumed to keep up: about what one data-center GPU does with
16-bit numbers on models of this size. An assumption, not a measurement."""

_FORWARD, _FORWARD_AND_BACKWARD = 1, 3
_HEAD_EPOCHS = 1
_CLIP_TOKENS = 77

Modality = Literal["image", "text"]

_ASSUMED: Mapping[tuple[str, str], int] = {
    ("flickr25k-ddbh", "database"): 24_581 - 5_000,
    ("nuswide21-ddbh", "database"): 195_834 - 5_000,
    ("coco-ddbh", "database"): 122_218 - 5_000,
    ("cc3m", "train"): 3_318_333,
}
"""Sizes that a protocol leaves open. DDBH's are those of the files usually used, less the queries; CC3M's is the
length of the published list, of which a part can no longer be fetched."""


@dataclass(frozen=True)
class _Transformer:
    layers: int
    width: int
    tokens: int
    patch: int = 0

    @property
    def multiply_adds(self) -> float:
        per_layer = 12 * self.tokens * self.width**2 + 2 * self.tokens**2 * self.width
        return self.layers * per_layer + self.tokens * 3 * self.patch**2 * self.width


_VIT_B16 = _Transformer(
    12, 768, 197, 16
)  # 196 patches and the class token; DINOv3 and SimDINOv2 add 4 registers
_VIT_B16_REGISTERS = replace(_VIT_B16, tokens=201)
_CONVNEXT_S = 8.7e9

_IMAGE: Mapping[str, float] = {
    "dinov2": _Transformer(12, 768, 261, 14).multiply_adds,
    "dinov2-no-registers": _Transformer(12, 768, 257, 14).multiply_adds,
    "simdinov2": _VIT_B16_REGISTERS.multiply_adds,
    "dinov3-s": _Transformer(12, 384, 201, 16).multiply_adds,
    "dinov3-b": _VIT_B16_REGISTERS.multiply_adds,
    "dinov3-l": _Transformer(24, 1024, 201, 16).multiply_adds,
    "dinov3-convnext-s": _CONVNEXT_S,
    "dfn-b": _VIT_B16.multiply_adds,
    "dfn-l": _Transformer(24, 1024, 257, 14).multiply_adds,
    "siglip2": replace(_VIT_B16, tokens=196).multiply_adds,
    "swag": replace(_VIT_B16, tokens=577).multiply_adds,  # 384 pixels, the only size its weights take
    "swag-linear": _VIT_B16.multiply_adds,
    "deit": _VIT_B16.multiply_adds,
}
_TEXT: Mapping[str, float] = {
    "dfn-b": _Transformer(12, 512, _CLIP_TOKENS).multiply_adds,
    "dfn-l": _Transformer(12, 768, _CLIP_TOKENS).multiply_adds,
    "siglip2": _Transformer(12, 768, 64).multiply_adds,
}


@dataclass(frozen=True)
class Estimate:
    """What cells take together, estimated.

    Attributes:
        minutes: of all of it, on the assumed machine.
        models: how many models are trained.
        throughput: floating-point operations a second that were assumed.
    """

    minutes: float
    models: int
    throughput: float

    @property
    def says(self) -> str:
        """What a person must know of the number, in one line."""
        return (
            f"estimated, not measured: what passes through the encoders, at an assumed {self.throughput / 1e12:g} "
            "TFLOP/s of one GPU; reading images and searching come on top"
        )


@dataclass(frozen=True)
class _Pass:
    """A set of items that goes through one tower; equal passes are made once."""

    encoder: str
    modality: Modality
    dataset: str
    split: str
    of: tuple[Training, int] | None  # the model and seed whose LoRA the tower has; None: frozen


@dataclass(frozen=True)
class _Fit:
    """A model that is trained with its encoder at work."""

    training: Training
    seed: int


def multiply_adds(encoder: str, modality: Modality = "image") -> float:
    """Multiply-adds of one image or text in an encoder.

    Raises:
        ConfigError: it is not known of this encoder.
    """
    known = _IMAGE if modality == "image" else _TEXT
    if encoder not in known:
        raise ConfigError(
            f"the cost of a {modality} in {encoder!r} is not known; known are {', '.join(known)}"
        )
    return known[encoder]


def estimate(
    cells: Iterable[Cell],
    seeds: int = 1,
    *,
    throughput: float = THROUGHPUT,
    nested: bool = False,
    epochs: int | None = None,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
) -> Estimate:
    """What these cells take together; what several of them need is counted once.

    Args:
        cells: of any experiments; those without a measurement cost nothing.
        seeds: how many seeds each model is trained with.
        throughput: floating-point operations a second.
        nested: whether one model serves all lengths instead of one each.
        epochs: instead of the paper's.
        protocols: whose counts are taken.

    Raises:
        ConfigError: seeds, throughput or epochs below 1, or an encoder whose cost is not known.
    """
    if min(seeds, throughput, 1 if epochs is None else epochs) < 1:
        raise ConfigError(
            f"seeds, throughput and epochs must be 1 or more, got {seeds}, {throughput:g} and {epochs}"
        )
    jobs: set[_Pass | _Fit] = set()
    models: set[tuple[Training, int]] = set()
    for measurement in dict.fromkeys(cell.measurement for cell in cells if cell.measurement):
        for seed in range(seeds):
            training = measurement.training
            if training is not None and nested:
                training = replace(training, bits=0)
            jobs.update(_jobs(measurement, training, seed, protocols))
            if training is not None and training.setting != "random":
                models.add((training, seed))
    work = sum(_work(job, epochs, protocols) for job in jobs)
    return Estimate(2 * work / throughput / 60, len(models), throughput)


def _jobs(
    measurement: Measurement, training: Training | None, seed: int, protocols: Mapping[str, Protocol]
) -> Iterator[_Pass | _Fit]:
    adapted = None
    if training is not None:
        augmented = PRESETS[training.preset].crop_scale is not None
        if augmented and training.setting != "random":
            yield _Fit(training, seed)
        else:  # the training set as it is, once for every length and seed
            yield _Pass(training.encoder, "image", training.dataset, "train", None)
            if not augmented:
                yield _Pass(training.encoder, "text", training.dataset, "train", None)
        if training.fitting == "lora":
            adapted = (training, seed)
    asked, found = measurement.task.split("-")
    splits = protocols[measurement.dataset].counts
    searched = "database" if "database" in splits else "query"
    for modality, split in ((asked, "query"), (found, searched)):
        yield _Pass(measurement.encoder, _modality(modality), measurement.dataset, split, adapted)


def _work(job: _Pass | _Fit, epochs: int | None, protocols: Mapping[str, Protocol]) -> float:
    """Multiply-adds."""
    if isinstance(job, _Pass):
        items = _items(protocols[job.dataset], job.split, job.modality)
        return items * multiply_adds(job.encoder, job.modality)
    training, preset = job.training, PRESETS[job.training.preset]
    epochs = preset.epochs if epochs is None else epochs
    passes = epochs * _FORWARD
    if training.fitting == "lora":
        head = min(epochs, _HEAD_EPOCHS)
        passes = head * _FORWARD + (epochs - head) * _FORWARD_AND_BACKWARD
    image = multiply_adds(training.encoder)
    views = preset.views * image
    if training.setting == "pairs":  # one of the views is the text
        views = (preset.views - 1) * image + multiply_adds(training.encoder, "text")
    return passes * views * _items(protocols[training.dataset], "train", "image")


def _items(protocol: Protocol, split: str, modality: Modality) -> int:
    if modality == "text" and split in protocol.captions:
        return protocol.captions[split]
    count = protocol.counts[split]
    return _ASSUMED[protocol.name, split] if count is None else count


def _modality(name: str) -> Modality:
    return "image" if name == "image" else "text"
