"""The paper's tables and figures as data: every printed number, and what would have to be measured for it.

The paper is arXiv 2510.27584, version 2. The numbers lie beside this file in ``tables/``, a CSV for each table
and figure with one line for each printed number. Two cells that stand for the same number (the same encoder, model,
dataset and score) share one ``Measurement``, in whichever tables they are printed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from crovca.errors import ConfigError, FileFormatError

Setting = Literal["unsupervised", "supervised", "pairs", "random"]
Fitting = Literal["lora", "probing"]
Task = Literal["image-image", "text-image", "image-text"]
Score = Literal["cosine", "hamming", "asymmetric_hamming", "bce", "symmetric_bce"]
Metric = Literal["map", "recall"]
Kind = Literal["table", "curves", "pictures"]

_COLUMNS = (
    "experiment", "row", "column", "value", "encoder", "dataset", "task", "score", "metric", "k",
    "trained_on", "setting", "fitting", "bits", "published_by", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Which model stands behind a cell.

    Attributes:
        encoder: a name of ``encoders.families.ALIASES``.
        dataset: the protocol that it is trained on.
        setting: "unsupervised" (augmented views), "supervised" (classes), "pairs" (image and text), or "random":
            a HashCoder at its random weights, with the BatchNorm statistics of the training set.
        fitting: "lora" adapts the encoder, "probing" leaves it as it is.
        bits: length of the codes.
    """

    encoder: str
    dataset: str
    setting: Setting
    fitting: Fitting
    bits: int

    @property
    def preset(self) -> str:
        """The column of the paper's Table 8, a name of ``config.PRESETS``."""
        if self.dataset in ("imagenet1k", "cc3m"):
            return self.dataset
        return "text-small" if self.setting == "pairs" else "small"

    @property
    def key(self) -> str:
        """Readable and stable, fit for a folder's name: ``dinov2-cifar10-unsupervised-lora-16``."""
        return f"{self.encoder}-{self.dataset}-{self.setting}-{self.fitting}-{self.bits}"


@dataclass(frozen=True)
class Measurement:
    """What a number is a measurement of.

    Attributes:
        encoder: a name of ``encoders.families.ALIASES``.
        training: the model that makes the codes; None: the float embedding itself.
        dataset: the protocol whose queries search its database.
        task: what asks, and what is found.
        score: how items are ranked.
        metric: "map" or "recall".
        k: its cut-off; None: all of the database. For an experiment of kind "curves" the last k of the curve, which
            starts at 1.
    """

    encoder: str
    training: Training | None
    dataset: str
    task: Task
    score: Score
    metric: Metric
    k: int | None

    @property
    def key(self) -> str:
        """Readable and stable: ``TRAINING/cifar10/image-image/asymmetric_hamming/map@1000``."""
        model = f"{self.encoder}-float" if self.training is None else self.training.key
        cut = "all" if self.k is None else self.k
        return f"{model}/{self.dataset}/{self.task}/{self.score}/{self.metric}@{cut}"


@dataclass(frozen=True)
class Cell:
    """A printed number.

    Attributes:
        experiment: "table1", "figure6".
        row, column: as printed ("DINOv2 ViT-B", "CIFAR10 16").
        value: percent as printed; None where the paper prints a curve or a picture, or where the number cannot be
            read with certainty (the note says so).
        measurement: what to measure for it; None for numbers that the paper takes from other publications, and for
            pictures of Hashing-Baseline, which are made from the embedding.
        dataset: the protocol that is searched.
        bits: length of the codes; None for the float embedding.
        published_by: the method of another publication (a name of ``methods``), or "".
        note: what one should know of this number, among others where the paper contradicts itself.
    """

    experiment: str
    row: str
    column: str
    value: float | None
    measurement: Measurement | None
    note: str = ""
    dataset: str = ""
    bits: int | None = None
    published_by: str = ""


@dataclass(frozen=True)
class Method:
    """A method of other authors whose published numbers the paper prints.

    Attributes:
        name: as the paper calls it.
        publication: where its numbers come from, and after how many epochs as far as the paper says.
        rebuilt: its name in ``baselines.registry``, or "": it is not among the baselines.
        why: what of it can be rebuilt from what is published.
    """

    name: str
    publication: str
    rebuilt: str
    why: str


@dataclass(frozen=True)
class Experiment:
    """A table or figure: of its kind are "table" (numbers), "curves" (a number for each k) and "pictures"."""

    name: str
    title: str
    section: str
    kind: Kind
    shows: str


EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("table1", "Unsupervised hashing, LoRA", "4.1.1", "table",
                   "7 encoders x 5 datasets at 16, 32, 64 bits, beside the float embedding"),
        Experiment("table2", "Supervised hashing, LoRA", "4.1.3", "table",
                   "DINOv2 on ImageNet100 and ImageNet-1k"),
        Experiment("table3", "Transfer of LoRA fine-tuning on ImageNet-1k", "4.2.1", "table",
                   "trained on ImageNet-1k, with and without labels, searched on 5 other datasets"),
        Experiment("table4", "Code length, probing on ImageNet-1k", "4.3.1a", "table",
                   "DINOv3 ConvNeXt-S frozen, 16 to 256 bits"),
        Experiment("table5", "Transfer of probing on ImageNet-1k", "4.3.1b", "table",
                   "three frozen DINOv3 at 256 bits, beside a random HashCoder"),
        Experiment("table6", "Text and image, LoRA, 16 bits", "A.1.1", "table",
                   "DFN on Flickr25K and NUS-WIDE, in both directions"),
        Experiment("table7", "Text to image, probing on CC3M, 256 bits", "A.1.2", "table",
                   "DFN on ImageNet-1k: cosine, asymmetric Hamming, BCE, symmetric BCE"),
        Experiment("table11", "Unsupervised hashing against other methods, in full", "A.5", "table",
                   "Table 1 without the float embedding, with each other method's numbers"),
        Experiment("table12", "Supervised hashing against other methods, in full", "A.5", "table",
                   "Table 2 with each other method's numbers"),
        Experiment("figure3", "t-SNE of CIFAR-10", "4.1.2", "pictures",
                   "SimDINOv2's embedding beside the logits of 16 bits"),
        Experiment("figure4", "Neighbors of a zebra", "4.1.2", "pictures",
                   "SimDINOv2's embedding against 16 bits, on ImageNet100"),
        Experiment("figure5", "Neighbors of an indigo bird and of a gray langur", "4.1.4", "pictures",
                   "embedding, Hashing-Baseline and HashCoder at 16 bits, on ImageNet100"),
        Experiment("figure6", "COCO, text and image", "A.1.2", "curves",
                   "DFN-L: trained and random HashCoders against the embedding"),
        Experiment("figure7", "ImageNet-1k, text to image", "A.1.2", "curves",
                   "DFN-L: mAP@k for k from 1 to 50, all scores"),
        Experiment("figure8", "Flickr30K, text and image", "A.1.2", "curves",
                   "DFN-L: all scores"),
        Experiment("figure9", "The fifth neighbor of the indigo bird", "A.6", "pictures",
                   "a zoom into Figure 5"),
    )
}  # fmt: skip
"""What can be reproduced, in the order of the paper."""

SETTINGS: Mapping[str, str] = {
    "table8": "the settings of training: crovca.hashing.config.PRESETS, 'crovca finetune --preset'",
    "table9": "the datasets: 'crovca datasets'",
    "table10": "the encoders: crovca.encoders.families.ALIASES, 'crovca embed --encoder'",
    "figure1": "a drawing of the method",
    "figure2": "a drawing of HashCoder",
}
"""Tables and figures without results, and where their content stands here."""


def experiment_of(name: str) -> Experiment:
    """The table or figure of that name."""
    if name in SETTINGS:
        raise ConfigError(f"{name} of the paper holds no results to reproduce; it is {SETTINGS[name]}")
    if name not in EXPERIMENTS:
        raise ConfigError(f"the paper has no {name!r} to reproduce; known are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def cells(
    experiment: str,
    *,
    dataset: str | Collection[str] | None = None,
    encoder: str | Collection[str] | None = None,
    bits: int | Collection[int] | None = None,
    rows: str | Collection[str] | None = None,
) -> list[Cell]:
    """The cells of a table or figure, in the order of the paper, or some of them.

    A cell stays where it is one of each kind that is named. The float embedding has no bits, and numbers of other
    publications have no encoder: naming bits or encoders leaves those out.

    Args:
        experiment: a name of ``EXPERIMENTS``.
        dataset: protocols that are searched, or a name alone.
        encoder: names of encoders.
        bits: code lengths.
        rows: rows as printed; upper and lower case are the same.
    """
    experiment_of(experiment)
    everything = all_cells(experiment)
    found: list[Cell] = list(everything)
    asked = {"dataset": dataset, "encoder": encoder, "bits": bits, "row": rows}
    for option, wanted in asked.items():
        if wanted is None:
            continue
        of = _OF_CELL[option]
        names = [wanted] if isinstance(wanted, str | int) else list(wanted)
        chosen = {str(name).casefold() for name in names}
        known = list(dict.fromkeys(name for cell in everything if (name := of(cell))))
        unknown = [str(name) for name in names if str(name).casefold() not in map(str.casefold, known)]
        if unknown:
            raise ConfigError(
                f"{experiment} has no {option} {unknown[0]!r}; it has {', '.join(known) or 'none at all'}"
            )
        found = [cell for cell in found if of(cell).casefold() in chosen]
    if not found:
        raise ConfigError(f"{experiment} has no cell that is all of what was asked for; {_what(everything)}")
    return found


@cache
def all_cells(experiment: str) -> tuple[Cell, ...]:
    """Every cell of a table or figure, as it lies in the package."""
    return tuple(_cell(experiment, number, line) for number, line in _lines(f"{experiment}.csv", _COLUMNS))


@cache
def methods() -> Mapping[str, Method]:
    """The methods of other authors by name."""
    lines = _lines("methods.csv", ("name", "publication", "rebuilt", "why"))
    return {line["name"]: Method(**line) for _, line in lines}


def _lines(file: str, columns: tuple[str, ...]) -> Iterable[tuple[int, dict[str, str]]]:
    text = (resources.files(__package__) / "tables" / file).read_text(encoding="utf-8")
    reader = csv.DictReader(text.splitlines(), strict=True)
    if tuple(reader.fieldnames or ()) != columns:
        raise FileFormatError(f"{file}: its columns are {reader.fieldnames}, expected {list(columns)}")
    for number, line in enumerate(reader, start=2):
        if None in line or None in line.values():
            raise FileFormatError(f"{file}, line {number}: expected {len(columns)} fields")
        yield number, line


def _cell(experiment: str, number: int, line: Mapping[str, str]) -> Cell:
    try:
        if line["experiment"] != experiment:
            raise ValueError(f"it belongs to {line['experiment']!r}")
        method = methods()[line["published_by"]] if line["published_by"] else None
        measurement = _measurement(line) if line["encoder"] else None
        notes = [line["note"], f"{method.publication}: {method.why}" if method else ""]
        return Cell(
            experiment=experiment,
            row=line["row"],
            column=line["column"],
            value=float(line["value"]) if line["value"] else None,
            measurement=measurement,
            note="; ".join(filter(None, notes)),
            dataset=line["dataset"],
            bits=int(line["bits"]) if line["bits"] else None,
            published_by=line["published_by"],
        )
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{experiment}.csv, line {number}: {error}") from error


def _measurement(line: Mapping[str, str]) -> Measurement:
    training = None
    if line["trained_on"]:
        training = Training(
            encoder=line["encoder"],
            dataset=line["trained_on"],
            setting=_one_of(Setting, line["setting"]),
            fitting=_one_of(Fitting, line["fitting"]),
            bits=int(line["bits"]),
        )
    return Measurement(
        encoder=line["encoder"],
        training=training,
        dataset=line["dataset"],
        task=_one_of(Task, line["task"]),
        score=_one_of(Score, line["score"]),
        metric=_one_of(Metric, line["metric"]),
        k=None if line["k"] == "all" else int(line["k"]),
    )


def _one_of(choices: object, value: str) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(choices))}")
    return value


_OF_CELL: Mapping[str, Callable[[Cell], str]] = {
    "dataset": lambda cell: cell.dataset,
    "encoder": lambda cell: cell.measurement.encoder if cell.measurement else "",
    "bits": lambda cell: "" if cell.bits is None else str(cell.bits),
    "row": lambda cell: cell.row,
}
"""By what cells are chosen."""


def _what(everything: Sequence[Cell]) -> str:
    """What could be asked for, for messages."""
    parts = []
    for name, option in (("datasets", "dataset"), ("encoders", "encoder"), ("bits", "bits")):
        values = dict.fromkeys(map(_OF_CELL[option], everything))
        parts.append(f"{name}: {', '.join(filter(None, values))}")
    return "; ".join(parts)
