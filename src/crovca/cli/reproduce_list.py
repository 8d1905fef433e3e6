"""What ``crovca reproduce --list`` and ``crovca reproduce`` alone print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from crovca.cli.output import emit_json, print_plain, say
from crovca.reproduce.paper import EXPERIMENTS, Cell, Measurement, Training, all_cells

_FITTINGS = {"lora": "LoRA", "probing": "probing"}
_SCORES = {
    "cosine": "cosine",
    "hamming": "Hamming",
    "asymmetric_hamming": "AH",
    "bce": "BCE",
    "symmetric_bce": "symBCE",
}
_RIGHT = ("cells", "to measure", "models", "paper")


def print_experiments(json: bool) -> None:
    """Every table and figure that can be reproduced, with what it takes."""
    models = {name: len(_models(all_cells(name))) for name in EXPERIMENTS}
    measured = {name: len({cell.measurement for cell in all_cells(name) if cell.measurement}) for name in EXPERIMENTS}
    if json:
        rows = [
            {
                **asdict(experiment),
                "cells": len(all_cells(name)),
                "measurements": measured[name],
                "models": models[name],
            }
            for name, experiment in EXPERIMENTS.items()
        ]
        emit_json({"experiments": rows})
        return
    lines = []
    for name, experiment in EXPERIMENTS.items():
        what = f"{experiment.title}: {experiment.shows}"
        counts = (len(all_cells(name)), measured[name], models[name])
        lines.append((name, what, experiment.section, *counts))
    print_plain(("name", "what", "section", "cells", "to measure", "models"), lines, right=_RIGHT)
    say("crovca reproduce --list NAME shows every cell; crovca reproduce NAME --data DIR measures them.")


def print_cells(cells: Sequence[Cell], seeds: int, json: bool, *, nested: bool = False) -> None:
    """Every cell with the paper's number, and what has to be there to measure it."""
    count = seeds * len(_models(cells, nested=nested))
    if json:
        emit_json(_json(cells, seeds, count))
        return
    notes = list(dict.fromkeys(note for cell in cells for note in _notes(cell)))
    lines = [
        (one.row, one.column, _value(one), *_needs(one), ", ".join(str(notes.index(n) + 1) for n in _notes(one)))
        for one in cells
    ]
    head = ("row", "column", "paper", "encoder", "trained on > searched", "model", "score", "notes")
    print_plain(head, lines, right=_RIGHT)
    needed = [cell.measurement for cell in cells if cell.measurement]
    say(*(f"{number}: {note}" for number, note in enumerate(notes, start=1)))
    say(
        f"datasets needed: {', '.join(_datasets(needed)) or 'none'} (crovca datasets NAME says where to get them); "
        f"encoders: {', '.join(dict.fromkeys(one.encoder for one in needed)) or 'none'}",
        "score: cosine of embeddings; of codes AH (asymmetric Hamming), BCE, symBCE (BCE both ways)",
        f"{count} model{'s' * (count != 1)} to train ({seeds} seed{'s' * (seeds > 1)})",
    )


def _models(cells: Sequence[Cell], *, nested: bool = False) -> set[Training]:
    """The models that are trained for these cells, each once."""
    trainings = {cell.measurement.training for cell in cells if cell.measurement}
    trained = {training for training in trainings if training is not None and training.setting != "random"}
    return {replace(training, bits=0) for training in trained} if nested else trained


def _json(cells: Sequence[Cell], seeds: int, models: int) -> dict[str, Any]:
    return {
        "cells": [
            {
                **{name: getattr(cell, name) for name in ("experiment", "row", "column", "dataset", "bits")},
                "paper": cell.value,
                "published_by": cell.published_by or None,
                "measurement": _facts(cell.measurement),
                "note": cell.note or None,
            }
            for cell in cells
        ],
        "seeds": seeds,
        "models": models,
    }


def _facts(measurement: Measurement | None) -> dict[str, Any] | None:
    if measurement is None:
        return None
    names = ("key", "encoder", "task", "score", "metric", "k")
    one = measurement.training
    training = None if one is None else {**asdict(one), "preset": one.preset}
    if training is not None:
        training.pop("encoder")  # the measurement's
    return {**{name: getattr(measurement, name) for name in names}, "training": training}


def _needs(cell: Cell) -> tuple[str, ...]:
    """Encoder, datasets, model, score."""
    measurement = cell.measurement
    if measurement is None:
        model = f"{cell.published_by}, published" if cell.published_by else "-"
        return "-", cell.dataset, model, "-"
    training, datasets, model = measurement.training, measurement.dataset, "float"
    if training is not None:
        if training.dataset != datasets:
            datasets = f"{training.dataset} > {datasets}"
        model = f"{training.setting} {_FITTINGS[training.fitting]}"
        if training.setting == "random":
            model = "random HashCoder"
    return measurement.encoder, datasets, model, _SCORES[measurement.score]


def _value(cell: Cell) -> str:
    if cell.value is not None:
        return f"{cell.value:.1f}"
    kind = EXPERIMENTS[cell.experiment].kind
    return {"curves": "curve", "pictures": "picture", "table": "?"}[kind]


def _notes(cell: Cell) -> list[str]:
    return [part for part in cell.note.split("; ") if part]


def _datasets(needed: Sequence[Measurement]) -> list[str]:
    """Protocols that are trained on or searched, in the order of the cells."""
    pairs = [(one.training.dataset if one.training else one.dataset, one.dataset) for one in needed]
    return list(dict.fromkeys(name for pair in pairs for name in pair))
