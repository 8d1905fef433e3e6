"""Learning from embeddings of one kind, or of two: what is handed to the training loop."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca._version import __version__
from crovca.data.embeddings import Embeddings, Rows, as_embeddings, chunks, evenly_spaced
from crovca.data.labels import ClassMembership, to_membership
from crovca.errors import ConfigError, CrovcaWarning, InvalidInputError, StorageError, TrainingError
from crovca.hashing.base import fit_base, fit_common_base
from crovca.hashing.config import SETTLE_SHARE, SHORT_RUN, TrainingConfig
from crovca.hashing.features import coordinates_of, features_of
from crovca.hashing.gate import fit_gate
from crovca.hashing.inputs import Coordinates, Scaling, fit_coordinates, input_statistics
from crovca.hashing.neighbors import find_shared_neighbors
from crovca.hashing.network import HashCoder, calibrate, coder_on_base, new_coders
from crovca.hashing.objective import HashObjective
from crovca.hashing.process_group import ALONE, ProcessGroup
from crovca.hashing.start import start_from_classes, start_from_clusters
from crovca.hashing.state import Checkpoint, fingerprint
from crovca.hashing.targets import ClassPrototypes, CrossView
from crovca.hashing.towers import Tower, Towers
from crovca.hashing.train import Observer, Silent, train
from crovca.hashing.views import (
    Augment,
    CoordinateNoise,
    Copies,
    FeatureDropout,
    Mixed,
    Modalities,
    NeighborViews,
    StoredViews,
    ViewSource,
)

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

_MOST_READ = 65536
_GIANT = 1000  # times the median length
_ALONE = 0.999  # of the variance
_PAIRINGS = ("views", "neighbors", "classes")


@dataclass(frozen=True)
class Fitted:
    """What training gives.

    Attributes:
        towers: the network, in evaluation mode.
        config: what it was trained with.
        pairing: where the second views came from.
        history: the log.
        classes: names of the classes, or None.
        neighbor_recall: share of true neighbors that the search found, or None without one.
        left_out: how many items could not be read, by reason.
    """

    towers: Towers
    config: TrainingConfig
    pairing: tuple[str, ...]
    history: list[dict[str, Any]] = field(default_factory=list)
    classes: npt.NDArray[Any] | None = None
    neighbor_recall: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)


class Run(NamedTuple):
    """How a run is watched and kept: where its state is written, if anywhere, and every how many seconds."""

    observer: Observer
    checkpoint: str | Path | None = None
    seconds: float = 15.0
    process_group: ProcessGroup = ALONE


def fit_embeddings(hasher: Hasher, X: Any, y: Any, texts: Any, run: Run) -> Fitted:
    """Train on embeddings, or on rows of two kinds that are pairs; takes and raises what ``Hasher.fit`` does."""
    parts = _checked(hasher, X, y, texts)
    data = parts[0]
    labels = data.labels if y is not None else None
    pairing = ("modalities",) if len(parts) > 1 else resolve_pairing(hasher.pairing, data, labels, run.observer)
    values = [part.values for part in parts]
    config = hasher._config(len(data), pairing, run.observer)
    start = _resolve_start(hasher, pairing, config, len(data))
    classes = to_membership(labels) if "classes" in pairing and labels is not None else None
    for rows, name in zip(values, hasher.modalities, strict=True):
        _require_difference(rows, name)
        _warn_of_giants(rows, name)
    with kept_run(hasher, run, config, partial(fingerprint, *values, labels)) as kept:
        towers = _towers(hasher, values, config, run.observer)
        coder = towers.coders[0]
        towers.on_features = coder.base is not None
        taken, where = values, data.values
        if towers.on_features:
            taken = [
                features_of(*pair, partial(run.observer.advance, "coordinates"))
                for pair in zip(towers.coders, values, strict=True)
            ]
            where = coordinates_of(coder, data.values, taken[0])
        source, recall = _source(hasher, data, taken, where, pairing, coder, run.observer, kept)
        teacher = teacher_of(hasher, classes, config, len(data))
        points = partial(_points, where) if towers.on_features else None
        if kept is None or not kept.has_state:
            if start == "classes":
                assert isinstance(teacher, ClassPrototypes)
                start_from_classes(towers.coders[0], teacher, data.values)
            elif start == "clusters":
                start_from_clusters(towers.coders[0], data.values, seed=hasher.seed)
        history = train(
            towers,
            source,
            HashObjective(teacher, config, points),
            config,
            device=hasher._device(),
            observer=run.observer,
            checkpoint=kept,
        )
        towers.on_features = False
        for learned, rows in zip(towers.coders, values, strict=True):
            calibrate(learned, rows)
    return Fitted(towers, config, pairing, history, None if classes is None else classes.names, recall)


def initialize(hasher: Hasher, X: Any, texts: Any) -> Fitted:
    """Random weights, with the statistics of these embeddings; takes and raises what ``fit_embeddings`` does."""
    parts = _checked(hasher, X, None, texts)
    pairing = ("modalities",) if len(parts) > 1 else ()
    config = hasher._config(len(parts[0]), pairing, Silent())
    towers = _towers(hasher, [part.values for part in parts], config, Silent())
    towers.to(hasher._device()).eval()
    for coder, part in zip(towers.coders, parts, strict=True):
        calibrate(coder, part.values)
    return Fitted(towers, config, pairing)


@contextmanager
def kept_run(
    hasher: Hasher, run: Run, config: TrainingConfig, data: Callable[[], str], **more: Any
) -> Iterator[Checkpoint | None]:
    """The folder of an unfinished run; it stays only where going on could end better.

    Besides the parameters and the configuration, a fingerprint of the data and ``more`` decide the result.
    """
    if run.checkpoint is None:
        yield None
        return
    described = {**hasher.get_params(), **config.to_dict(), "device": str(hasher._device())}
    if hasher.fine_tuning is not None:
        del described["fine_tuning"]
        described |= asdict(hasher.fine_tuning)
    settings = {"crovca_version": __version__, **json.loads(json.dumps(described, default=plain))}
    settings |= {"data": data(), **more}
    kept = Checkpoint(Path(run.checkpoint), settings, every_seconds=run.seconds, process_group=run.process_group)
    try:
        yield kept
    except (InvalidInputError, ConfigError, TrainingError):
        kept.remove()
        raise
    except StorageError:
        if not kept.has_state:
            kept.remove()
        raise


def teacher_of(
    hasher: Hasher, classes: ClassMembership | None, config: TrainingConfig, items: int
) -> CrossView | ClassPrototypes:
    """The other view, or prototypes of the classes."""
    if classes is None:
        return CrossView()
    index = torch.from_numpy(classes.index)
    if hasher.prototypes == "batch":
        return ClassPrototypes(index, classes.count, config.bits, momentum=0.0)
    return ClassPrototypes(
        index,
        classes.count,
        config.bits,
        settle_after=max(1, round(SETTLE_SHARE * config.steps(items))),
        apart=config.lengths[0],
    )


def resolve_pairing(
    wanted: Any, data: Embeddings, labels: npt.NDArray[Any] | None, observer: Observer
) -> tuple[str, ...]:
    """Where second views come from: what "auto" stands for is said."""
    if wanted == "auto":
        if labels is not None:
            found, why = "classes", "there are labels"
        elif data.views > 1:
            found, why = "views", f"there are {data.views} stored views of each item and no labels"
        else:
            found, why = "neighbors", "there are embeddings alone"
        observer.message(f"pairing: {found}, because {why}")
        return (found,)
    named = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    unknown = [name for name in named if name not in _PAIRINGS]
    if unknown or not named or len(set(named)) < len(named):
        raise ConfigError(f"pairing must be 'auto' or some of {list(_PAIRINGS)}, got {wanted!r}")
    if "classes" in named and labels is None:
        raise InvalidInputError("pairing 'classes' needs labels; give them as y, or leave 'classes' out")
    return named


def plain(value: Any) -> Any:
    """numpy numbers, paths and other sequences as JSON knows them."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else list(value)


def _checked(hasher: Hasher, X: Any, y: Any, texts: Any) -> list[Embeddings]:
    """The embeddings of each modality, as many rows each."""
    if len(hasher.modalities) == 1:
        if texts is not None:
            raise InvalidInputError("this hasher takes one kind of embeddings; make one with Hasher.for_pairs(...)")
        return [as_embeddings(X, y, what="X")]
    if texts is None or y is not None:
        got = "no texts" if texts is None else "labels"
        raise InvalidInputError(
            f"a hasher of pairs learns from fit(images, texts=texts), whose rows are pairs; got {got}"
        )
    parts = [as_embeddings(X, what="images"), as_embeddings(texts, what="texts")]
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise InvalidInputError(f"paired modalities need as many rows each, got {lengths}")
    return parts


def _towers(hasher: Hasher, values: Sequence[Rows], config: TrainingConfig, observer: Observer) -> Towers:
    """The network as training begins: beside a base where the configuration has one, else the paper's."""
    require_one_width(hasher, [part.shape[-1] for part in values])
    if config.faithfulness is not None:
        coders = _on_base(values, config, partial(observer.advance, "base"))
    else:
        inputs = [input_statistics(part, center=config.center) for part in values]
        coders = new_coders(inputs, config.bits, config.hashcoder, logit_scale=config.logit_scale, seed=config.seed)
    towers = [Tower(coder, name) for coder, name in zip(coders, hasher.modalities, strict=True)]
    return Towers(towers, shared=hasher.shared)


def _on_base(values: Sequence[Rows], config: TrainingConfig, advance: Callable[[float], None]) -> list[HashCoder]:
    """New networks beside bases and gates that are fitted to at most 65,536 evenly spaced items."""
    inputs = [fit_coordinates(part) for part in values]
    advance(0.5)
    points = [_sampled(part, coordinates) for part, coordinates in zip(values, inputs, strict=True)]
    advance(0.7)
    how: dict[str, Any] = {"weight": config.base_weight, "power": config.base_power, "seed": config.seed}
    if len(points) == 1:
        bases = [fit_base(points[0].flatten(0, 1), config.lengths, **how)]
    else:
        bases = fit_common_base([part.mean(dim=1) for part in points], config.lengths, **how)
    advance(0.8)
    gates = [
        fit_gate(part.flatten(0, 1), quantile=config.gate_quantile, softness=config.gate_softness, seed=config.seed)
        for part in points
    ]
    advance(1.0)
    return [
        coder_on_base(
            *parts,
            config.hashcoder,
            hidden=config.hidden,
            logit_scale=config.logit_scale,
            gate_power=config.gate_power,
            seed=config.seed + number,
        )
        for number, parts in enumerate(zip(inputs, bases, gates, strict=True))
    ]


def _sampled(values: Rows, inputs: Coordinates) -> Tensor:
    """Coordinates (m, v, k) of evenly spaced items."""
    rows = evenly_spaced(len(values), _MOST_READ)
    blocks = [np.array(values[rows[start : start + 8192]], np.float32) for start in range(0, len(rows), 8192)]
    points = torch.cat([inputs(torch.from_numpy(block.reshape(-1, inputs.width))) for block in blocks])
    return points.reshape(len(rows), -1, inputs.outputs)


def _points(coordinates: Rows, rows: Tensor) -> Tensor:
    """Coordinates (B, k) of items, the mean over their views."""
    points = torch.from_numpy(np.asarray(coordinates[rows.cpu().numpy()])).to(rows.device)
    return points if points.ndim == 2 else points.mean(dim=1)


def _require_difference(values: Rows, name: str) -> None:
    """Refuse items that are all the same; say which column is so much larger than the others that it alone counts."""
    first = np.asarray(values[:1])[0]
    if all((part == first).all() for _, part in chunks(values)):
        raise InvalidInputError(
            f"all {len(values):,} {name} are the same, so there is nothing to learn; are they right?"
        )
    sample = np.array(values[evenly_spaced(len(values), 8192)], np.float64).reshape(-1, values.shape[-1])
    spread = (sample / max(float(np.abs(sample).max()), 1e-300)).var(axis=0)
    largest, share = int(spread.argmax()), float(spread.max() / max(spread.sum(), 1e-300))
    if len(spread) > 2 and share > _ALONE:
        warnings.warn(
            f"{name}: column {largest} has {100 * share:.2f} % of the variance, so items are told apart by it alone; "
            "is it no part of the embedding, or of another scale?",
            CrovcaWarning,
            stacklevel=4,
        )


def _warn_of_giants(values: Rows, name: str) -> None:
    """Say which rows are so much longer than the others that they are probably a mistake."""
    lengths = np.concatenate(
        [np.linalg.norm(part.reshape(len(part), -1).astype(np.float64), axis=1) for _, part in chunks(values)]
    )
    usual = float(np.median(lengths))
    giants = np.flatnonzero(lengths > _GIANT * usual) if usual > 0 else np.empty(0, np.int64)
    if len(giants):
        more = f", and {len(giants) - 1:,} more such rows" if len(giants) > 1 else ""
        warnings.warn(
            f"{name}: row {giants[0]} is {lengths[giants[0]] / usual:,.0f} times as long as the median row{more}; "
            "is it a mistake?",
            CrovcaWarning,
            stacklevel=4,
        )


def require_one_width(hasher: Hasher, widths: Sequence[int]) -> None:
    """Raise ConfigError where layers are shared by embeddings of different widths."""
    if hasher.shared and len(set(widths)) > 1:
        raise ConfigError(
            f"one network for both modalities needs one width, got images of {widths[0]} and texts "
            f"of {widths[1]}; use shared=False"
        )


def _source(
    hasher: Hasher,
    data: Embeddings,
    taken: Sequence[Rows],
    where: Rows,
    pairing: Sequence[str],
    coder: HashCoder,
    observer: Observer,
    kept: Checkpoint | None,
) -> tuple[ViewSource, float | None]:
    """The views of the items, and the recall of the search for neighbors where there was one."""
    if "modalities" in pairing:
        return Modalities(taken), None
    values = taken[0]
    augment: Augment
    if isinstance(coder.inputs, Scaling):
        augment = FeatureDropout(hasher.feature_dropout, coder.inputs.center)
    else:
        augment = CoordinateNoise(hasher.feature_dropout, coder.width, coder.inputs.outputs)
    sources: list[ViewSource] = []
    recall = None
    if "views" in pairing:
        if hasher.views > 2 and "neighbors" in pairing:
            raise ConfigError("views and neighbors together make pairs: views must be 2")
        sources.append(StoredViews(values, hasher.views))
    if "neighbors" in pairing:
        rows, recall = _neighbor_rows(hasher, data, where, observer, kept)
        sources.append(NeighborViews(values, rows, augment))
    if not sources:
        return Copies(values, augment), None
    return sources[0] if len(sources) == 1 else Mixed(sources), recall


def _neighbor_rows(
    hasher: Hasher, data: Embeddings, where: Rows, observer: Observer, kept: Checkpoint | None
) -> tuple[npt.NDArray[np.int64], float | None]:
    if kept is not None and (rows := kept.load_array("neighbors")) is not None:
        recall = kept.load_array("neighbor_recall")
        return rows, None if recall is None else float(recall)
    found = find_shared_neighbors(
        where,
        hasher.neighbors,
        degenerate=data.degenerate,
        device=hasher._device(),
        seed=hasher.seed,
        advance=lambda share: observer.advance("neighbors", share),
    )
    if found.cells is not None:
        observer.message(
            f"neighbors: {len(data):,} items in {found.cells:,} cells; "
            f"{100 * found.recall:.1f} % of the true neighbors found (measured on a sample)"
        )
    if kept is not None:
        kept.save_array("neighbor_recall", np.asarray(found.recall))
        kept.save_array("neighbors", found.rows)
    return found.rows, found.recall


def _resolve_start(hasher: Hasher, pairing: Sequence[str], config: TrainingConfig, items: int) -> str:
    if config.faithfulness is not None:
        if hasher.start not in ("auto", "random"):
            raise ConfigError(f"start={hasher.start!r} goes with faithfulness='kinds': a base needs no other start")
        return "random"
    steps = config.steps(items)
    taught = "classes" in pairing and hasher.prototypes == "running"
    if hasher.start == "auto":
        if "classes" in pairing:
            return "classes" if taught and steps < SHORT_RUN else "random"
        return "clusters" if "neighbors" in pairing else "random"
    if hasher.start == "classes" and not taught:
        raise ConfigError("start='classes' needs labels and prototypes='running'; use another start")
    return hasher.start
