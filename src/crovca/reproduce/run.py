"""The paper's numbers measured again, one after the other: what ``crovca reproduce`` runs.

Every distinct measurement is made once for each seed, whichever cells of whichever tables it stands behind, and kept:
what is kept is not made again. One that fails is noted with its reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import crovca
from crovca.errors import ConfigError, CrovcaError, FileFormatError, StorageError, reason_of
from crovca.files import locked, read_json, write_json
from crovca.reproduce.crossmodal import measure_pairs
from crovca.reproduce.paper import Cell, Measurement
from crovca.reproduce.retrieval import measure_images
from crovca.reproduce.workspace import Workspace

RESULTS = "results.json"
_FORMAT = 1

Kept = dict[str, dict[str, dict[str, Any]]]
"""What was measured: by the key of the measurement (and how the run differs from the paper's), then by seed."""


@dataclass(frozen=True)
class Row:
    """A cell of the paper beside ours: what was found, by seed, of how many, and why those that are missing failed."""

    cell: Cell
    found: Mapping[str, Mapping[str, Any]]
    asked: int
    reasons: Mapping[int, str]

    @property
    def failed(self) -> str | None:
        """Why a seed is missing: the first reason; or None."""
        return next(iter(self.reasons.values()), None)

    @property
    def values(self) -> list[float]:
        """Ours in percent, one for each seed."""
        return [100 * float(entry["value"]) for entry in self.found.values()]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None where nothing was measured."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (divided by n - 1) over two or more seeds; None of fewer."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in points."""
        if self.mean is None or self.cell.value is None:
            return None
        return self.mean - self.cell.value

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        cell = self.cell
        return {
            "row": cell.row,
            "column": cell.column,
            "dataset": cell.dataset,
            "bits": cell.bits,
            "paper": cell.value,
            "ours": self.mean,
            "spread": self.spread,
            "difference": self.difference,
            "values": self.values,
            "measurement": None if cell.measurement is None else cell.measurement.key,
            "published_by": cell.published_by,
            "seeds_asked": self.asked,
            "failed": self.failed,
            "failed_seeds": {str(seed): why for seed, why in self.reasons.items()},
            "note": cell.note,
            "seeds": {seed: dict(entry) for seed, entry in self.found.items()},
        }


@dataclass
class Results:
    """What was measured of some cells, in this run and before.

    ``failed`` has reasons by measurement and seed, ``keys`` where in ``kept`` a measurement stands; ``measured_now``
    counts seed by seed.
    """

    cells: Sequence[Cell]
    seeds: Sequence[int]
    kept: Kept
    failed: dict[tuple[Measurement, int], str] = field(default_factory=dict)
    keys: dict[Measurement, str] = field(default_factory=dict)
    measured_now: int = 0

    def rows(self) -> list[Row]:
        """A row for each cell, in the order of the cells."""
        return [self._row(cell) for cell in self.cells]

    def measured(self) -> dict[Measurement, list[dict[str, Any]]]:
        """What was found of each measurement, seed by seed; those of which nothing was found are left out."""
        found = {of: [self.kept[key][str(seed)] for seed in self._of(of)] for of, key in self.keys.items()}
        return {of: entries for of, entries in found.items() if entries}

    @property
    def kept_before(self) -> int:
        """How many of the numbers, counted seed by seed, are of earlier runs."""
        return sum(map(len, self.measured().values())) - self.measured_now

    @property
    def hopeless(self) -> bool:
        """Whether something was to be measured, and every measurement failed."""
        return bool(self.keys) and not self.measured()

    def _of(self, measurement: Measurement) -> list[int]:
        entries = self.kept.get(self.keys[measurement], {})
        done = [seed for seed in seeds_of(measurement, self.seeds) if str(seed) in entries]
        return [seed for seed in done if (measurement, seed) not in self.failed]

    def _row(self, cell: Cell) -> Row:
        if cell.measurement is None:
            return Row(cell, {}, 0, {})
        entries = self.kept.get(self.keys[cell.measurement], {})
        reasons = {seed: why for (which, seed), why in self.failed.items() if which == cell.measurement}
        found = {str(seed): entries[str(seed)] for seed in self._of(cell.measurement)}
        return Row(cell, found, len(seeds_of(cell.measurement, self.seeds)), reasons)


def reproduce(
    workspace: Workspace,
    cells: Sequence[Cell],
    seeds: Sequence[int] = (0,),
    *,
    kept: Kept | None = None,
    save: Callable[[Kept], None] = lambda kept: None,
    advance: Callable[[str], None] = lambda what: None,
) -> Results:
    """Measure what stands behind some of the paper's cells.

    Args:
        workspace: where datasets, models and codes are, and come to be.
        cells: of any tables; those that the paper took from other publications are not run.
        seeds: of the models; a float embedding is measured once.
        kept: what earlier runs measured; it is added to.
        save: is given all of it after each measurement.
        advance: is told what is measured next.

    Raises:
        ConfigError: no seeds, or not whole numbers of at least 0.
    """
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ConfigError(f"seeds must be whole numbers of at least 0, got {list(seeds)}")
    results = Results(cells, seeds, {} if kept is None else kept)
    wanted = dict.fromkeys(cell.measurement for cell in cells if cell.measurement is not None)
    results.keys = {of: f"{of.key}{variant_of(workspace, of)}" for of in wanted}
    for group, seed in _groups(list(wanted), seeds):
        missing = [of for of in group if not _is_kept(workspace, results.kept.get(results.keys[of], {}), of, seed)]
        if not missing:
            continue
        advance(f"{missing[0].key}, seed {seed}" if missing[0].training else missing[0].key)
        try:
            found = _measure(workspace, missing, seed)
        except Exception as error:  # whatever one cannot do here, the others go on
            results.failed |= {(of, seed): reason_of(error) for of in missing}
            continue
        for of in missing:
            made_with = {
                "encoder": workspace.encoder(of.encoder),
                "weights_sha256": workspace.weights_of_work(of.encoder),
                "version": crovca.__version__,
            }
            results.kept.setdefault(results.keys[of], {})[str(seed)] = {**found[of], **made_with}
            results.measured_now += 1
        save(results.kept)
    return results


def variant_of(workspace: Workspace, measurement: Measurement) -> str:
    """How a run differs from the paper's, where that changes the measurement: ``" [nested, epochs=1]"``, or ``""``."""
    training = measurement.training
    if training is None or training.setting == "random":
        return ""
    changes = ["nested"] if workspace.nested else []
    changes += [f"{name}={value}" for name, value in sorted(workspace.training.items())]
    return f" [{', '.join(changes)}]" if changes else ""


def seeds_of(measurement: Measurement, seeds: Sequence[int]) -> Sequence[int]:
    """The seeds that a measurement is made with: one, where there is no model."""
    return (0,) if measurement.training is None else seeds


@contextmanager
def opened(work: Path) -> Iterator[tuple[Kept, Callable[[Kept], None]]]:
    """What ``WORK/results.json`` holds, and how to write it; nobody else works there meanwhile."""
    path = work / RESULTS
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {work}: {error.strerror or error}") from error
    with locked(path, elsewhere="another --work"):
        yield _read(path), lambda kept: write_json(path, {"format_version": _FORMAT, "results": kept})


def _read(path: Path) -> Kept:
    if not path.exists():
        return {}
    content = read_json(path, "kept results")
    found, version = content.get("results"), content.get("format_version")
    if version != _FORMAT:
        raise FileFormatError(
            f"{path}: results of format version {version!r}, this crovca reads {_FORMAT}; give another --work"
        )
    if not isinstance(found, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("value"), int | float)
        for entries in found.values()
        for entry in (entries.values() if isinstance(entries, dict) else [None])
    ):
        raise FileFormatError(f"{path} is damaged; remove it (models and codes stay), and give the command again")
    return found


def _groups(wanted: Sequence[Measurement], seeds: Sequence[int]) -> Iterator[tuple[list[Measurement], int]]:
    """Measurements that are made together, with a seed; what has an encoder or a model in common follows on itself."""
    together: dict[Any, list[Measurement]] = {}
    encoders = list(dict.fromkeys(of.encoder for of in wanted))
    trainings = list(dict.fromkeys(of.training for of in wanted))
    for of in sorted(wanted, key=lambda of: (encoders.index(of.encoder), trainings.index(of.training))):
        same = of if of.task == "image-image" else of.task  # directions of text and image are ranked together
        together.setdefault((of.encoder, of.training, of.dataset, same), []).append(of)
    of_model: dict[Any, list[list[Measurement]]] = {}
    for group in together.values():
        of_model.setdefault((group[0].encoder, group[0].training), []).append(group)
    for groups in of_model.values():
        for seed in seeds_of(groups[0][0], seeds):
            yield from ((group, seed) for group in groups)


def _is_kept(workspace: Workspace, entries: Mapping[str, Mapping[str, Any]], of: Measurement, seed: int) -> bool:
    """Whether a measurement was made, with the weights that are asked for now as far as that can be told.

    What was made with others is measured again, and the workspace refuses to do so in the same folder.
    """
    if str(seed) not in entries:
        return False
    entry = entries[str(seed)]
    try:
        place = workspace.encoder(of.encoder)
    except ConfigError:  # converted weights, which this command does not name
        return True
    same_place = bool(entry.get("encoder") == place)
    if not Path(place).is_dir():
        return same_place
    try:
        return bool(entry.get("weights_sha256") == workspace.checksum(of.encoder))
    except CrovcaError:  # measuring says why
        return False


def _measure(workspace: Workspace, group: list[Measurement], seed: int) -> dict[Measurement, dict[str, Any]]:
    if group[0].task == "image-image":
        return {of: measure_images(workspace, of, seed) for of in group}
    return measure_pairs(workspace, group, seed)
