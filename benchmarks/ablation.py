"""Where the defaults come from: what each setting is worth, on splits of the training data of several collections.

Of every database file a tenth of the items, at most 600, are queries; the rest, at most ``--most``, is learned from and
searched, in the situations of ``crovca evaluate``: seen, new and mixed. Each line changes one setting of the default,
and is judged by all five measures on all collections. No query file is touched. scikit-learn's digits, whose pixels are
the embedding, and the first file through a random projection to 64 numbers, with noise, are weak embeddings.

    python benchmarks/ablation.py --data A.npz B.npz [--seeds 3] [--jobs 2] [--out docs/results/ablation]
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from crovca import Embeddings, Hasher, load_embeddings
from crovca.compare.beside import learn_itq
from crovca.data.embeddings import as_embeddings
from crovca.evaluation.situations import FiveMeasures, Learn, column_value, five_measures, make_situations
from crovca.hashing.config import TrainingConfig

LENGTHS = (16, 64, 128)
SHOWN = (*((name, bits) for name in ("seen", "new", "mixed") for bits in LENGTHS), ("order", 64),
         ("order", 128), ("distinct", 64))  # fmt: skip
ITQ, DEFAULT = "ITQ", "default"
Change = Callable[[TrainingConfig], dict[str, Any]]


def times(name: str, factor: float) -> Change:
    """A setting of the default, multiplied."""

    def change(config: TrainingConfig) -> dict[str, Any]:
        value = getattr(config, name)
        return {name: type(value)(factor * value)}

    return change


SETTINGS: dict[str, Change] = {
    DEFAULT: lambda config: {},
    "gate that opens at once (a third as soft)": times("gate_softness", 1 / 3),
    "gate stricter (quantile x 2)": times("gate_quantile", 2),
    "weak bits count alike for what was learned": times("gate_power", 0),
    "weak bits count still less": times("gate_power", 2),
    "base of twice the weight": times("base_weight", 2),
    "order does not count": times("faithfulness", 0),
    "order counts twice": times("faithfulness", 2),
    "diversity 0.1, as in the paper": lambda config: {"diversity_weight": 0.1},
    "twice as many epochs": times("epochs", 2),
}
MODES = {"without labels": False, "with labels": True}


def learn(change: Change, seed: int, *, supervised: bool) -> Learn:
    """The default, with one setting changed."""

    def learned(items: Embeddings) -> Callable[[Any], Mapping[int, Any]]:
        hasher = Hasher(seed=seed)
        plain = hasher._config
        hasher._config = lambda *about: replace(plain(*about), **change(plain(*about)))  # type: ignore[method-assign]
        hasher.fit(items.values, items.labels if supervised else None)

        def encode(values: Any) -> Mapping[int, Any]:
            logits = hasher.logits(values)
            return {bits: logits[:, :bits] for bits in LENGTHS}

        return encode

    return learned


def weakened(items: Embeddings) -> Embeddings:
    """Through a random projection to 64 numbers, with noise."""
    values = np.asarray(items.values[:], np.float32)
    random = np.random.default_rng(7)
    projected = values @ random.normal(size=(values.shape[1], 64)).astype(np.float32) / np.sqrt(values.shape[1])
    noise = random.normal(size=projected.shape) * (0.3 * projected.std(axis=0).mean())
    return replace(items, values=(projected + noise).astype(np.float32))


@cache
def collections(files: tuple[Path, ...], most: int) -> dict[str, tuple[Embeddings, Embeddings]]:
    """Items and queries of every collection."""
    pixels, digits = load_digits(return_X_y=True)
    loaded = {path.parent.name: load_embeddings(path) for path in files}
    first, *_ = loaded
    loaded |= {
        f"{first}, weakened": weakened(loaded[first]),
        "digits": as_embeddings(pixels.astype(np.float32), digits),
    }
    return {name: split(items, most) for name, items in loaded.items()}


def split(items: Embeddings, most: int) -> tuple[Embeddings, Embeddings]:
    """Items, at most so many, and queries, of the same file."""
    assert items.labels is not None
    order = np.random.default_rng(0).permutation(len(items))
    count = min(600, len(items) // 10)
    parts = []
    for rows in (order[count : count + most], order[:count]):
        rows.sort()
        parts.append(as_embeddings(np.asarray(items.values[rows], np.float32), items.labels[rows]))
    return parts[0], parts[1]


def run(files: tuple[Path, ...], most: int, collection: str, mode: str, name: str, seed: int) -> FiveMeasures:
    """One setting on one collection, with one seed; it says which classes are held out as well."""
    warnings.simplefilter("ignore")
    items, queries = collections(files, most)[collection]
    method = learn_itq(LENGTHS, seed) if name == ITQ else learn(SETTINGS[name], seed, supervised=MODES[mode])
    return five_measures(make_situations(items, queries, seed=seed), {name: method})


def values_of(found: FiveMeasures, name: str) -> list[float]:
    """In %, in the order of SHOWN; what a method has no codes for is NaN."""
    lengths = found.methods[name]
    return [
        100 * (column_value(lengths[bits], measure, labeled=True) or 0.0) if bits in lengths else float("nan")
        for measure, bits in SHOWN
    ]


def table(head: str, rows: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"| {head} | " + " | ".join(f"{name} {bits}" for name, bits in SHOWN) + " |"
    yield "|---|" + "---|" * len(SHOWN)
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


def signed(values: npt.NDArray[np.float64]) -> list[str]:
    return [f"{value:+.1f}" for value in values]


def page(found: Mapping[str, Mapping[str, Mapping[str, list[list[float]]]]], command: str, seeds: int) -> str:
    """``found`` by mode, collection and setting: the values of every seed."""
    lines = [
        "# Where the defaults come from\n\nMade by\n\n```\n" + command + "\n```\n",
        "In %: mAP@1000 by asymmetric Hamming seen, new and mixed, order and distinct as everywhere, at the length in "
        f"the head; mean of {seeds} seeds, which also say which half of the classes is held out. Queries are items "
        "taken out of the database files, never the query files. Each line changes one setting of the default.",
    ]
    for mode, collections_ in found.items():
        names = list(next(iter(collections_.values())))
        means = {
            place: {name: np.mean(seeds_, axis=0) for name, seeds_ in settings.items()}
            for place, settings in collections_.items()
        }
        lines += ["", f"## {mode}", "", "Against the default, the mean over the collections:", ""]
        changes = {name: [means[place][name] - means[place][DEFAULT] for place in means] for name in names[1:]}
        del changes[DEFAULT]
        lines += table("", {name: signed(np.nanmean(change, axis=0)) for name, change in changes.items()})
        lines += ["", "The collection on which it does worst:", ""]
        lines += table("", {name: signed(np.nanmin(change, axis=0)) for name, change in changes.items()})
        for place, settings in collections_.items():
            spread = np.std(settings[DEFAULT], axis=0, ddof=1) if seeds > 1 else np.zeros(len(SHOWN))
            rows = {name: [f"{v:.1f}" for v in means[place][name]] for name in names}
            rows["spread of the default"] = [f"{v:.1f}" for v in spread]
            lines += ["", f"{place}:", "", *table("", rows)]
    return "\n".join(lines).replace("nan", "-") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="database files, in folders of other names")
    parser.add_argument("--most", type=int, default=1200, help="items of a file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--settings", help="these alone, with commas")
    parser.add_argument("--modes", help="'without labels', 'with labels', or both with a comma")
    parser.add_argument("--out", type=Path, help="path without suffix: writes .json and .md")
    arguments = parser.parse_args()
    files = tuple(arguments.data)
    chosen = [ITQ, *(SETTINGS if arguments.settings is None else arguments.settings.split(","))]
    modes = list(MODES) if arguments.modes is None else arguments.modes.split(",")
    places = list(collections(files, arguments.most))
    tasks = [(place, mode, name, seed) for place in places for mode in modes for name in chosen
             for seed in range(arguments.seeds)]  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes that are started
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = {mode: {} for mode in modes}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run, files, arguments.most, *task) for task in tasks]
        for (place, mode, name, seed), future in zip(tasks, runs, strict=True):
            values = values_of(future.result(), name)
            found[mode].setdefault(place, {}).setdefault(name, []).append(values)
            print(place, mode, name, seed, " ".join(f"{value:.1f}" for value in values), flush=True)
    command = (
        f"python benchmarks/ablation.py --data {' '.join(f'{path.parent.name}/{path.name}' for path in files)} "
        f"--most {arguments.most} --seeds {arguments.seeds} --jobs {arguments.jobs}"
    )
    for name in ("settings", "modes"):
        if getattr(arguments, name) is not None:
            command += f' --{name} "{getattr(arguments, name)}"'
    if arguments.out:
        command += f" --out docs/results/{arguments.out.name}"
        arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(page(found, command, arguments.seeds))
    else:
        print(page(found, command, arguments.seeds))


if __name__ == "__main__":
    main()
