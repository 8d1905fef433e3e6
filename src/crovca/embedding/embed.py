"""``embed``: items, an encoder and a store in one call; what the command, the index and the recipes use."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy.typing as npt
import torch

from crovca.data.embeddings import Embeddings, load_embeddings
from crovca.data.store import JOB, MANIFEST, ItemError, read_errors
from crovca.embedding import pipeline
from crovca.embedding.items import as_images, as_texts
from crovca.embedding.job import Job, Modality, Origin, Stored, begin_job, check_settings, read_job, refuse_another
from crovca.embedding.pipeline import Summary, make_worker, missing_shards, versions
from crovca.embedding.runners import Rank, Runner, find_rank, run_here, run_processes, run_ray
from crovca.encoders.encoder import Encoder, TextEncoder, choose_device, choose_dtype, load_once
from crovca.errors import ConfigError, FileFormatError, OutputExistsError
from crovca.files import check_output, remove
from crovca.sources.source import Source

_logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Is told how a job goes. Every ``hashing.train.Observer`` is one."""

    def advance(self, stage: str, share: float) -> None:
        """This share of all items has been dealt with."""

    def message(self, text: str) -> None:
        """Something a person should know."""


class _Log:
    """Without an observer, what should be known goes to the log."""

    def advance(self, stage: str, share: float) -> None:
        _logger.debug("%s: %.1f %%", stage, 100 * share)

    def message(self, text: str) -> None:
        _logger.info(text)


@dataclass(frozen=True)
class Embedded:
    """A store after ``embed``.

    Attributes:
        store: its folder.
        job: what it was begun with.
        summary: how many items were embedded and left out, and whether the store is finished. It is not where other
            ranks are still at work.
        items_now: how many items this call dealt with; the others were there.
        seconds: that they took.
    """

    store: Path
    job: Job
    summary: Summary
    items_now: int
    seconds: float

    @property
    def embeddings(self) -> Embeddings:
        """The embeddings (n, d), or (n, v, d) of several views, with ids and labels; memory-mapped.

        Raises:
            FileFormatError: the store is unfinished.
        """
        return load_embeddings(self.store)

    @property
    def left_out(self) -> list[ItemError]:
        """The items that could not be read or embedded, and why."""
        return list(read_errors(self.store))


def embed(
    source: str | Path | Origin | Source[Any] | Sequence[Any],
    encoder: str | Path | Encoder | TextEncoder,
    store: str | Path,
    *,
    modality: Modality = "images",
    revision: str | None = None,
    views: int = 1,
    seed: int = 0,
    stored: Stored = "float16",
    batch_size: int | None = None,
    shard_size: int | None = None,
    threads: int | None = None,
    resize_rounding: Literal["down", "nearest"] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    runner: Runner = "local",
    workers: int = 1,
    resume: bool = True,
    force: bool = False,
    check: Callable[[npt.NDArray[Any]], object] = lambda ids: None,
    observer: Listener | None = None,
) -> Embedded:
    """Turn images or texts into embeddings, kept in a store that is written part by part.

    A run that was interrupted goes on when it is given again, and gives the same bytes as one that was not. Everything
    that can refuse the input is done before weights are loaded.

    Args:
        source: path of a folder, split file, ... (``sources.opening``), an ``Origin`` (which also names columns and
            roots), or a source, or a list of images (paths, bytes, Pillow images, uint8 arrays (H, W, 3)) or of texts.
        encoder: folder of a model, its id on the hub, or one that is loaded already.
        store: the folder; its parent exists.
        modality: what ``source`` holds, where it does not say so itself.
        revision: of the encoder: branch, tag or commit on the hub.
        views: 1: the image as it is; more: so many augmented views, as in the paper.
        seed: of the views.
        stored: what the store holds.
        batch_size, shard_size: items of a batch and of a part; None: as the store was begun, or chosen by the device.
        threads: of the processor within one batch; None: likewise.
        resize_rounding: of a resized image's longer side; None: the encoder's own.
        device, dtype: as for ``Encoder.load``; "auto": as the store was begun.
        runner: "local": here, in ``workers`` processes if more than one; "rank": this process is one of a launcher's
            (torchrun, srun); "ray": ``workers`` actors of Ray.
        workers: as ``runner`` says.
        resume: whether to go on with a store that was begun with the same.
        force: whether a store that is not gone on with is replaced, instead of refused.
        check: sees the ids (n,) before anything is embedded, and raises where they are of no use.
        observer: is told how it goes; None: the log is.

    Raises:
        ConfigError: a setting is out of range, or one does not go with another.
        OutputExistsError: the store, or what stands in its place, is of something else.
        InvalidInputError: not one item could be embedded; numbers beyond float16.
        CrovcaError: what opening the source, loading the encoder and running raise.
    """
    observer, store = observer or _Log(), Path(store)
    origin, opened = _origin(source, modality)
    settings: dict[str, Any] = {"v": views, "seed": seed, "stored": stored}
    settings |= {"batch_size": batch_size, "shard_size": shard_size, "threads": threads}
    check_settings(origin.modality, **settings)
    rank = _rank(runner, workers, force, in_memory=opened is not None)
    if resize_rounding is not None and origin.modality == "texts":
        raise ConfigError("--resize-rounding goes with images")
    _check_store(store, [] if opened is not None else [Path(origin.path)], resume, force)
    begun = _begun(store, force) if resume else None
    items = origin.open() if opened is None else opened
    for text in items.notes:
        observer.message(text)
    check(items.ids)
    if begun is not None:
        begun = _same(store, begun, _asked(begun, origin, items, settings, device, dtype), force, observer)
    where = choose_device(begun.device if begun is not None and device == "auto" else device)
    computed = begun.dtype if begun is not None and dtype == "auto" else dtype
    choose_dtype(computed, where)
    if rank is not None and where.type == "cuda":  # those of one machine take its GPUs in turn
        where = torch.device("cuda", rank.local % torch.cuda.device_count())
    tower = _tower(encoder, origin.modality, revision, where, computed, resize_rounding)
    name = str(encoder) if isinstance(encoder, str | Path) else str(tower.identity["source"])
    plan = partial(pipeline.plan_job, origin, items, tower, name, revision, settings)
    job = plan(begun)
    if begun is not None and force:
        begun = _same(store, begun, job, force, observer)
        job = job if begun is not None else plan()
    if force and begun is None:
        remove(store)  # not before everything else was found to be in order
    job = begin_job(store, job)
    _note_versions(job, observer)
    missing = missing_shards(store, job)
    mine = missing if rank is None else rank.shards(missing)
    before = done = job.items - sum(len(job.rows(shard)) for shard in mine)
    if before and rank is None:
        observer.message(f"{store}: {job.shards - len(missing):,} of {job.shards:,} parts are done already")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        observer.advance(f"embedding {job.items:,} {origin.modality}", done / job.items)

    started = time.perf_counter()
    _logger.info("embedding %d of %d %s into %s", job.items - before, job.items, origin.modality, store)
    if mine and runner == "ray":
        run_ray(job, store, mine, advance, workers)
    elif mine and workers > 1:
        run_processes(job, store, mine, advance, workers)
    elif mine:
        run_here(make_worker(job, items, tower), store, mine, advance)
    seconds = time.perf_counter() - started
    pipeline.finish(store, job)
    _logger.info("embedded into %s in %.1f s", store, seconds)
    return Embedded(store, job, pipeline.summarize(store, job), done - before, seconds)


def _rank(runner: Runner, workers: int, force: bool, *, in_memory: bool) -> Rank | None:
    """This process among a launcher's, or None; refuses what does not go with the runner."""
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    if in_memory and (runner, workers) != ("local", 1):
        raise ConfigError("items that lie in this process are embedded by it alone; other runners need a path")
    rank = find_rank() if runner == "rank" else None
    if rank is not None and (force or workers > 1):
        raise ConfigError(
            "--force and --workers do not go with --runner rank: remove the store first; start more ranks"
        )
    return rank


def _tower(
    encoder: str | Path | Encoder | TextEncoder,
    modality: Modality,
    revision: str | None,
    device: torch.device,
    dtype: str,
    rounding: Literal["down", "nearest"] | None,
) -> Encoder | TextEncoder:
    """The encoder, loaded where it is not yet."""
    tower: Encoder | TextEncoder
    if not isinstance(encoder, str | Path):
        tower = encoder
        if isinstance(tower, TextEncoder) != (modality == "texts"):
            raise ConfigError(f"these are {modality}, and the encoder is a {type(tower).__name__}")
    else:
        kind: Any = TextEncoder if modality == "texts" else Encoder
        tower = load_once(kind, encoder, revision=revision, device=str(device), dtype=dtype)
    if rounding is not None and isinstance(tower, Encoder):
        return replace(tower, preprocessing=replace(tower.preprocessing, resize_rounding=rounding))
    return tower


def _origin(source: Any, modality: Modality) -> tuple[Origin, Source[Any] | None]:
    """Where the items come from; and the items, where they lie in this process instead of below a path."""
    if isinstance(source, Origin):
        return source, None
    if isinstance(source, str | Path):
        return Origin(modality, str(source)), None
    found = as_images(source) if modality == "images" else as_texts(source)
    return Origin(modality, f"({found.kind})"), found


def _check_store(store: Path, inputs: Sequence[Path], resume: bool, force: bool) -> None:
    """Refuse an output that is none of ours, before any work is done."""
    ours = (store / JOB).exists()
    if store.is_dir() and ((ours and resume and not force) or not any(store.iterdir())):
        return
    marker = JOB if ours else MANIFEST
    if not force and (store / marker).exists():
        raise OutputExistsError(f"{store} is a store of something else; give another output, or --force to replace it")
    check_output(store, force=force, inputs=inputs, marker=marker)


def _begun(store: Path, force: bool) -> Job | None:
    """The job of an earlier run; a damaged one counts as none where the store may be begun anew."""
    try:
        return read_job(store)
    except FileFormatError:
        if not force:
            raise
        return None


def _asked(begun: Job, origin: Origin, items: Source[Any], settings: dict[str, Any], device: str, dtype: str) -> Job:
    """What is asked for now, as far as it is known without the encoder; else as the store was begun."""
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if device != "auto":
        given["device"] = choose_device(device).type
    if dtype != "auto":
        given["dtype"] = dtype
    given |= {"origin": origin, "fingerprint": items.fingerprint, "items": len(items), "versions": versions()}
    return replace(begun, **given)


def _same(store: Path, begun: Job, job: Job, force: bool, observer: Listener) -> Job | None:
    """``begun`` where it gives what ``job`` does; else None with ``force``, and refused without."""
    if not force:
        refuse_another(store, begun, job)
    differences = begun.differences(job)
    if not differences:
        return begun
    what = ", ".join(name for name, _, _ in differences)
    observer.message(f"{store} was begun with something else ({what}): embedding anew")
    return None


def _note_versions(job: Job, observer: Listener) -> None:
    now = versions()
    others = [f"{name} {old} (now {now.get(name)})" for name, old in job.versions.items() if now.get(name) != old]
    if others:
        observer.message(f"the store was begun with {', '.join(others)}: its last bits may differ between parts")
