"""Text to image and image to text: what the paper's Tables 6 and 7 and Figures 6 to 8 measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import ConfigError
from crovca.evaluation import metrics
from crovca.evaluation.evaluate import Measure, Ranked
from crovca.evaluation.figures import curves_figure
from crovca.files import atomic_file, write_json
from crovca.reproduce.pairs import image_labels, labels_of, text_embeddings
from crovca.reproduce.paper import Measurement, Score, all_cells
from crovca.reproduce.retrieval import Side, images_of, scorer_of
from crovca.reproduce.workspace import Workspace

_LONGEST_CURVE = 1000
_TASKS = {"text-image": ("texts", "images"), "image-text": ("images", "texts")}
_WORDS = {"text-image": "text to image", "image-text": "image to text"}


def together(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """Measurements in groups that rank the same items: ``measure_pairs`` has the least work with one of these."""
    groups: dict[Any, list[Measurement]] = {}
    for wanted in measurements:
        key = (wanted.encoder, wanted.training, wanted.dataset, wanted.task)
        groups.setdefault(key, []).append(wanted)
    return list(groups.values())


def measure_pairs(
    workspace: Workspace, measurements: Iterable[Measurement], seed: int
) -> dict[Measurement, dict[str, Any]]:
    """Measure how texts find images, or images texts.

    What is right follows from the protocol: items that share a label, or an image and its own captions. Texts and
    images that could not be read are left out.

    Returns:
        For each, as fractions of 1 and fit for JSON: ``value``, the metric asked for; ``map`` and ``map_min_k_r``
        in the top k; ``hit``, the share of queries with anything right there (the papers' Recall@k); ``hamming``, the
        metric asked for by symmetric Hamming distance (None for floats); ``chance``, that of a random order;
        ``queries`` and ``database``, how many; ``curve``, the metric for 1 to k (None beyond 1,000).
    """
    found: dict[Measurement, dict[str, Any]] = {}
    for group in together(measurements):
        found |= _measure_group(workspace, group, seed)
    return found


def draw_curves(
    name: str, workspace: Workspace, measured: Mapping[Measurement, Sequence[Mapping[str, Any]]]
) -> list[Path]:
    """Draw the curves of a figure, a PNG for each direction and metric, and write their numbers as JSON.

    The files stand in WORK/NAME: ``NAME-TASK-METRIC.png``, and ``NAME.json`` with the numbers, and those of each seed.
    ``measured`` has what ``measure_pairs`` found with each seed, of which the mean is drawn; curves that are missing
    are left out.
    """
    folder = workspace.work / name
    folder.mkdir(parents=True, exist_ok=True)
    panels: dict[tuple[str, str], _Panel] = {}
    for cell in all_cells(name):
        wanted = cell.measurement
        runs = [run for run in measured.get(wanted, ()) if run["curve"]] if wanted is not None else []
        if wanted is not None and runs:
            panel = panels.setdefault((wanted.task, wanted.metric), _Panel({}, {}))
            panel.lines[cell.row] = np.mean([run["curve"] for run in runs], axis=0)
            panel.runs[cell.row] = [list(run["curve"]) for run in runs]
    files = []
    for (task, metric), panel in panels.items():
        path = folder / f"{name}-{task}-{metric}.png"
        what = f"{'Recall' if metric == 'recall' else 'mAP'}@k, {_WORDS[task]}"
        with atomic_file(path) as temporary:
            temporary.write_bytes(curves_figure(panel.lines, what))
        files.append(path)
    named = {f"{task} {metric}": panel for (task, metric), panel in panels.items()}
    content = {
        "figure": name,
        "curves": {key: {line: mean.tolist() for line, mean in panel.lines.items()} for key, panel in named.items()},
        "curves_of_each_seed": {key: panel.runs for key, panel in named.items()},
    }
    write_json(folder / f"{name}.json", content)
    return [*files, folder / f"{name}.json"]


@dataclass(frozen=True)
class _Panel:
    lines: dict[str, npt.NDArray[np.float64]]
    runs: dict[str, list[list[float]]]


def _measure_group(workspace: Workspace, group: list[Measurement], seed: int) -> dict[Measurement, dict[str, Any]]:
    query, database = _sides(workspace, group[0], seed)
    depth = max(_depth(wanted, len(database)) for wanted in group)
    measure = Measure(query, database, depth, kept=1)
    rankings: dict[str, Ranked] = {}

    def ranked(score: Score) -> Ranked:
        if score not in rankings:
            workspace.observer.message(f"{group[0].dataset}, {_WORDS[group[0].task]}: ranking by {score}")
            rankings[score] = measure(scorer_of(score, query, database))
        return rankings[score]

    found = {}
    chances = {"map": metrics.chance_average_precision, "recall": metrics.chance_hit}
    for wanted in group:
        k = _depth(wanted, len(database))
        ranking = ranked(wanted.score)
        curve = _curve(ranking, wanted.metric)
        hamming = None if wanted.training is None else float(_curve(ranked("hamming"), wanted.metric)[k - 1])
        found[wanted] = {
            "value": float(curve[k - 1]),
            "map": float(_curve(ranking, "map")[k - 1]),
            "map_min_k_r": float(_curve(ranking, "map_min_k_r")[k - 1]),
            "hit": float(_curve(ranking, "recall")[k - 1]),
            "hamming": hamming,
            "chance": measure.chance(chances[wanted.metric], k),
            "queries": len(query),
            "database": len(database),
            "curve": curve[:k].tolist() if k <= _LONGEST_CURVE else None,
        }
    return found


def _sides(workspace: Workspace, wanted: Measurement, seed: int) -> tuple[Side, Side]:
    """What asks, and what is searched. A dataset without a database is searched with itself: image with text."""
    protocol, splits = workspace.dataset(wanted.dataset).protocol, workspace.dataset(wanted.dataset).splits
    if wanted.task not in _TASKS or _WORDS[wanted.task] not in protocol.task:
        raise ConfigError(f"{wanted.dataset} is for {protocol.task}, not for {wanted.task}")
    asks, answers = _TASKS[wanted.task]
    searched = "database" if "database" in splits else "query"
    return _side(workspace, wanted, seed, "query", asks), _side(workspace, wanted, seed, searched, answers)


def _side(workspace: Workspace, wanted: Measurement, seed: int, split: str, modality: str) -> Side:
    name, training = wanted.dataset, wanted.training
    if modality == "texts":
        if training is None:
            return text_embeddings(workspace, wanted.encoder, name, split)
        return workspace.encoded_texts(training, seed, name, split)
    items = images_of(workspace, wanted, seed, split)
    paths = workspace.dataset(name).splits[split].paths
    assert items.ids is not None
    assert paths is not None
    return replace(items, labels=labels_of(items.ids, paths, image_labels(workspace.dataset(name), split)))


def _depth(wanted: Measurement, database: int) -> int:
    return database if wanted.k is None else min(wanted.k, database)


def _curve(ranking: Ranked, metric: str) -> npt.NDArray[np.float64]:
    curves = {"map": ranking.curve, "map_min_k_r": ranking.curve_min_k_r, "recall": ranking.hit_curve}
    found = curves[metric]
    assert found is not None
    return found
