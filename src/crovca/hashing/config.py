"""Settings of training, and the paper's presets.

Every class here is frozen and refuses contradictions when it is made, so that a run either starts with
settings that fit together or does not start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal, Self

from crovca.codes import check_bits
from crovca.errors import ConfigError, InvalidInputError

HashCoderSize = Literal["small", "large"]

DEFAULT_LENGTHS = (16, 32, 64, 128)
UNSUPERVISED_STEPS = 560
SUPERVISED_STEPS = 1400
HELD_STEPS, HELD_ITEMS = 560, 7000
"""Steps beside a closed-form base for so many items; with labels half as many again."""
HELD_EPOCHS, HELD_SUPERVISED_EPOCHS = 25, 30
"""At most."""
TRUSTED_ITEMS = 4000
FEWEST_EPOCHS, MOST_EPOCHS = 5, 100


@dataclass(frozen=True)
class TrainingConfig:
    """How a HashCoder is trained (paper, Table 8).

    Attributes:
        lengths: code lengths trained together, ascending; every one is a prefix of the last.
        hashcoder: "small" (2 linear layers) or "large" (3).
        epochs: passes over the data.
        batch_size: items in a step; a smaller data set makes a smaller batch.
        learning_rate: of AdamW at the first step; it falls along a cosine to ``final_learning_rate``.
        final_learning_rate: at the last step.
        weight_decay: of AdamW, on every parameter.
        diversity_weight: lambda, the weight of the coding rate.
        faithfulness: weight of the order of the floats; None: the network has no closed-form base, as in the paper.
        base_weight: of the base beside the network; a smaller one lets the network learn faster.
        base_power: a bit's logits have the scale of its components' deviation, raised to this.
        gate_quantile: share of what was learned for which the gate is less than half open.
        gate_softness: how softly it opens, of the deviation of what decides it.
        gate_power: how much less weak bits count for queries of what was learned (``network.HashCoder``).
        hidden: units of a small network beside a base.
        terms: more terms of the objective (``hashing.objective.TERMS``) and their weights.
        coding_rate_epsilon: eps of the coding rate.
        center: whether the mean embedding is subtracted before the network.
        logit_scale: the last batch normalization's weights at the first step.
        seed: of weights, batches, pairs and dropout.
    """

    lengths: tuple[int, ...]
    epochs: int
    hashcoder: HashCoderSize = "small"
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-2
    diversity_weight: float = 0.1
    faithfulness: float | None = None
    base_weight: float = 0.4
    base_power: float = 1.75
    gate_quantile: float = 0.1
    gate_softness: float = 0.75
    gate_power: float = 0.0
    hidden: int = 1024
    terms: tuple[tuple[str, float], ...] = ()
    coding_rate_epsilon: float = 0.05
    center: bool = False
    logit_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)):
            raise ConfigError(f"lengths must be ascending and different, got {list(self.lengths)}")
        for length in self.lengths:
            try:
                check_bits(length)
            except InvalidInputError as error:
                raise ConfigError(str(error)) from error
        if self.hashcoder not in ("small", "large"):
            raise ConfigError(f"hashcoder must be 'small' or 'large', got {self.hashcoder!r}")
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 2)
        _at_least("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2 ** 63, got {self.seed}")
        for name in ("learning_rate", "coding_rate_epsilon", "logit_scale", "base_weight", "gate_softness"):
            _positive(name, getattr(self, name))
        at_least_0 = ("base_power", "gate_quantile", "gate_power", "final_learning_rate", "weight_decay")
        for name in (*at_least_0, "diversity_weight", *(() if self.faithfulness is None else ("faithfulness",))):
            _not_negative(name, getattr(self, name))
        if self.gate_quantile > 1:
            raise ConfigError(f"gate_quantile must lie in [0, 1], got {self.gate_quantile!r}")
        _at_least("hidden", self.hidden, 1)
        if not isinstance(self.center, bool):
            raise ConfigError(f"center must be True or False, got {self.center!r}")
        for name, weight in self.terms:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ConfigError(f"the weight of the term {name!r} must be a number, got {weight!r}")

    @property
    def bits(self) -> int:
        """The longest code length."""
        return self.lengths[-1]

    @property
    def weights(self) -> dict[str, float]:
        """The objective's terms and what each counts; those that are maximized have negative weights."""
        paper = {"alignment": 1.0, "diversity": -self.diversity_weight}
        faithful = {} if not self.faithfulness else {"order": float(self.faithfulness)}
        return {**paper, **faithful, **dict(self.terms)}

    def steps(self, items: int) -> int:
        """Training steps on ``items`` items: whole batches only."""
        return self.epochs * (items // min(self.batch_size, items))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "lengths": list(self.lengths), "terms": dict(self.terms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote; an unknown or missing key raises ConfigError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown configuration key {unknown[0]!r}; expected some of {sorted(known)}")
        try:
            terms = tuple(dict(values["terms"]).items())
            return cls(**{**values, "lengths": tuple(values["lengths"]), "terms": terms})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"incomplete configuration: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """What "auto" stands for, as in ``TrainingConfig``; of ``faithfulness`` it is what "balanced" stands for."""

    learning_rate: float
    weight_decay: float
    diversity_weight: float
    center: bool
    logit_scale: float = 1.0
    faithfulness: float = 0.0
    base_weight: float = 0.4
    base_power: float = 1.75
    gate_quantile: float = 0.1
    gate_power: float = 0.0


def recipe(pairing: Sequence[str], items: int = TRUSTED_ITEMS, *, base: bool = False) -> Recipe:
    """The settings for a pairing; those for classes, neighbors and stored views were tuned on splits of training data.

    Neighbors are noisy teachers: a strong decay keeps the network from remembering them (docs/reproducing.md). It
    helps stored views as well. Images that are augmented anew in each step, and pairs of modalities, have the
    paper's settings. Beside a closed-form base the network has less to do: a weak decay is enough. Below 4,000 items
    neighbors say less of kinds: the base and the floats' order count for more. With labels the strong bits of what was
    learned are sure, and the weak ones count least.
    """
    beside = Recipe(
        learning_rate=1e-3, weight_decay=1e-2, diversity_weight=0.3, center=True, logit_scale=1.5, gate_power=0.3
    )
    if base and "classes" in pairing:
        return replace(
            beside,
            learning_rate=2e-3,
            logit_scale=2.0,
            faithfulness=0.2,
            base_weight=0.6,
            base_power=0.5,
            gate_quantile=0.07,
            gate_power=2.0,
        )
    if base and "modalities" in pairing:
        return replace(beside, base_weight=1.0)
    if base:
        trust = min(1.0, max(0.16, items / TRUSTED_ITEMS))
        return replace(
            beside,
            faithfulness=0.3 / trust,
            gate_quantile=0.08,
            base_weight=0.5 / trust**0.5,  # up to 1.25
        )
    if "classes" in pairing:
        return Recipe(learning_rate=3e-3, weight_decay=0.1, diversity_weight=0.3, center=True, logit_scale=2.0)
    if "neighbors" in pairing:
        return Recipe(learning_rate=1e-3, weight_decay=5.0, diversity_weight=0.1, center=False)
    if "views" in pairing:
        return Recipe(learning_rate=3e-3, weight_decay=5.0, diversity_weight=0.1, center=False)
    return Recipe(learning_rate=1e-3, weight_decay=1e-2, diversity_weight=0.1, center=False)


FAITHFULNESS: Mapping[str, float] = {"balanced": 1.0, "order": 4.0}
"""What the named points of the dial stand for: how many times the recipe's weight the floats' order has."""

SETTLE_SHARE = 0.05
"""Running class prototypes settle after this share of the steps."""

SHORT_RUN = 400
"""Steps below which a run with labels starts from the classes."""


@dataclass(frozen=True)
class Preset:
    """One column of the paper's Table 8. Image and LoRA settings are None where the paper has none.

    Attributes:
        hashcoder: number of linear layers: 2 is "small", 3 is "large".
        crop_scale: smallest share of the image's area that a random crop keeps.
        views: augmented views of an item in a step, the text included.
    """

    batch_size: int
    learning_rate: float
    weight_decay: float
    diversity_weight: float
    image_size: int
    crop_scale: float | None
    views: int
    hashcoder: HashCoderSize
    epochs: int
    lora_rank: int | None
    lora_dropout: float | None


PRESETS: Mapping[str, Preset] = {
    #                      batch  lr    decay  lambda size crop  views hashcoder epochs rank dropout
    "small": Preset(        256, 1e-3, 1e-2,  0.1,   224, 0.4,  2,    "small",   5,     16,   0.1),
    "imagenet1k": Preset(   256, 1e-4, 1e-4,  0.1,   224, 0.4,  2,    "large",   5,     16,   0.1),
    "text-small": Preset(   256, 1e-3, 1e-2,  0.1,   224, 0.4,  2,    "small",   5,     16,   0.1),
    "cc3m": Preset(         256, 1e-4, 1e-4,  1.0,   224, None, 2,    "large",   1,     None, None),
}  # fmt: skip


def nested_lengths(bits: int, nested: object) -> tuple[int, ...]:
    """The code lengths to train for a hasher of ``bits`` bits.

    ``nested`` is "auto" (16, 32, 64, 128 as far as they are below ``bits``), False (``bits`` alone), or
    a sequence of lengths up to ``bits``; ``bits`` itself is always the last.
    """
    if nested is False:
        return (bits,)
    if isinstance(nested, str):
        if nested != "auto":
            raise ConfigError(f"nested must be 'auto', False or a sequence of lengths, got {nested!r}")
        lengths: tuple[Any, ...] = DEFAULT_LENGTHS
        return (*(length for length in lengths if length < bits), bits)
    try:
        lengths = tuple(nested)  # type: ignore[arg-type]
        checked = sorted({check_bits(length, at_most=bits) for length in lengths} | {bits})
    except (TypeError, InvalidInputError) as error:
        raise ConfigError(
            f"nested must be 'auto', False or lengths from 1 to bits ({bits}), got {nested!r}: {error}"
        ) from error
    return tuple(checked)


def default_epochs(items: int, batch_size: int, *, supervised: bool, base: bool = False) -> int:
    """Epochs that spend a budget of steps: 560 unsupervised, 1,400 supervised, but 5 to 100 epochs.

    At 7,000 items that is about 20 and 50 epochs; from about 30,000 (unsupervised) or 70,000 (supervised)
    items on it is 5, as in the paper. Beside a closed-form base the budget is 560 steps for 7,000 items and twice that
    for 16 times as many, with labels half as much again: what is learned longer keeps less of the floats' order. It is
    2 to 25 epochs there, with labels 2 to 30.
    """
    _at_least("batch_size", batch_size, 2)
    steps = max(1, items // min(batch_size, items))
    if base:
        held = HELD_STEPS * (1.5 if supervised else 1.0) * (items / HELD_ITEMS) ** 0.25
        return min(HELD_SUPERVISED_EPOCHS if supervised else HELD_EPOCHS, max(2, round(held / steps)))
    budget = SUPERVISED_STEPS if supervised else UNSUPERVISED_STEPS
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(budget / steps)))


def _at_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be greater than 0, got {value!r}")


def _not_negative(name: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} must be 0 or more, got {value!r}")
