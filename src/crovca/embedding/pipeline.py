"""From images or texts to a store: a pure function from a shard of the source to a part of the store.

``embed_shard`` is all that a runner (``runners.py``) calls. What it writes depends on the job and the shard's number
alone: not on who runs it, when, after what, or how many threads decode. A part is written under a temporary name and
renamed: it is there whole, or missing. ``finish`` lists the parts in the manifest once all are there.

Within a shard decoding and model overlap: ``decoders`` threads read and decode items ahead, ``lanes`` threads carry
batches through the model. On a CPU a lane computes with one thread and there are as many lanes as cores: faster than
one batch with many threads, and the result does not depend on their number.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.store import (
    MANIFEST,
    ItemError,
    part_name,
    part_rows,
    read_errors,
    write_manifest,
    write_part,
)
from crovca.embedding.job import Job, Origin
from crovca.encoders.augmentation import augment, side_for_views
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import EncoderError, InvalidInputError, OutputExistsError, StorageError
from crovca.files import atomic_directory, remove
from crovca.ids import id_hashes
from crovca.sources.decode import UnreadableItem, decode
from crovca.sources.source import Source

__all__ = [
    "Advance",
    "Summary",
    "Worker",
    "choose_batch_size",
    "counted",
    "embed_shard",
    "finish",
    "make_worker",
    "missing_shards",
    "open_worker",
    "plan_job",
    "summarize",
    "versions",
]

Advance = Callable[[int], None]
"""Told how many items more have been dealt with."""

_LIBRARIES = ("crovca", "torch", "transformers", "pillow", "kornia", "tokenizers")
_SHARD_SIZES = {"cpu": 4096, "cuda": 32768}  # so that the pause between two shards does not show
_LANES_AHEAD = 2  # batches that are decoded while every lane is busy


@dataclass
class Worker:
    """What a process needs to embed shards: the job, its items, its encoder and some threads.

    Attributes:
        job: the same in every process.
        source: opened anew in each.
        encoder: loaded anew in each.
        decoders: threads that read and decode.
        lanes: batches that are in the model at once.
    """

    job: Job
    source: Source[Any]
    encoder: Encoder | TextEncoder
    decoders: int
    lanes: int


def plan_job(
    origin: Origin,
    source: Source[Any],
    encoder: Encoder | TextEncoder,
    name: str,
    revision: str | None,
    settings: Mapping[str, Any],
    begun: Job | None = None,
) -> Job:
    """The job of embedding a source with an encoder.

    Args:
        origin, source: what is embedded.
        encoder, name, revision: with what, and as it was named.
        settings: v, seed, stored, shard_size, batch_size, threads; the last three may be None: as the job was begun,
            or chosen by the encoder and its device.
        begun: the job that the store was begun with, if it was.

    Raises:
        ConfigError: a setting is out of range.
    """
    device = encoder.device.type
    texts = isinstance(encoder, TextEncoder)
    asked = dict(settings)
    for setting in ("shard_size", "batch_size", "threads"):
        if asked.get(setting) is not None:
            continue
        if begun is not None:
            asked[setting] = getattr(begun, setting)
        elif setting == "batch_size":
            asked[setting] = choose_batch_size(encoder)
        else:
            asked[setting] = _SHARD_SIZES[device] if setting == "shard_size" else _cores() if texts else 1
    return Job(
        origin=origin,
        fingerprint=source.fingerprint,
        items=len(source),
        encoder=name,
        revision=revision,
        identity=encoder.identity,
        preprocessing={} if isinstance(encoder, TextEncoder) else encoder.preprocessing.to_dict(),
        d=encoder.width,
        dtype=str(encoder.dtype).removeprefix("torch."),
        device=device,
        versions=versions(),
        **asked,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of an embedding."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def open_worker(job: Job, *, device: str | None = None, share: int = 1) -> Worker:
    """Open the job's source and load its encoder, and check that they are those of the job.

    Args:
        job: from ``begin_job``.
        device: such as "cuda:1", of the job's kind; None: the job's.
        share: how many workers share this machine's cores.

    Raises:
        CrovcaError: source or encoder cannot be opened, or are not the job's.
    """
    source = job.origin.open()
    if (source.fingerprint, len(source)) != (job.fingerprint, job.items):
        raise OutputExistsError(f"{job.origin.path} changed since the job began; --force begins anew")
    encoder: Encoder | TextEncoder
    where = device or job.device
    if job.origin.modality == "images":
        encoder = Encoder.load(job.encoder, revision=job.revision, device=where, dtype=job.dtype)
        encoder.preprocessing = Preprocessing.from_dict(job.preprocessing)
    else:
        encoder = TextEncoder.load(job.encoder, revision=job.revision, device=where, dtype=job.dtype)
    theirs, ours = ({**one, "source": None} for one in (job.identity, encoder.identity))
    if theirs != ours:
        raise OutputExistsError(
            f"the encoder {job.encoder} is another one here than where the job began: {encoder.identity}"
        )
    return make_worker(job, source, encoder, share=share)


def make_worker(job: Job, source: Source[Any], encoder: Encoder | TextEncoder, *, share: int = 1) -> Worker:
    """A worker of things that are open already."""
    cores = max(1, _cores() // share)
    lanes = 2 if job.device == "cuda" else max(1, cores // job.threads)
    if job.origin.modality == "texts":
        lanes = 1  # tokenizers may not be used by two threads at once
    return Worker(job, source, encoder, decoders=cores, lanes=lanes)


def embed_shard(worker: Worker, store: Path, shard: int, advance: Advance = lambda _: None) -> int:
    """Embed one shard and write it as a part of the store.

    Args:
        worker: from ``open_worker``.
        store: the store's folder, which exists.
        shard: number of the shard.
        advance: told after every batch how many items it held.

    Returns:
        The number of items that were embedded.

    Raises:
        StorageError: the part cannot be written (full disk, permissions); nothing of it remains.
        InvalidInputError: numbers beyond float16 where that is stored.
    """
    job, source = worker.job, worker.source
    rows = job.rows(shard)
    batches = [rows[start : start + job.batch_size] for start in range(0, len(rows), job.batch_size)]
    found = _Part()
    with _threads(job.threads):
        for batch, result in zip(batches, _run_batches(worker, batches), strict=True):
            found.add(result)
            advance(len(batch))
    shape = (0, job.d) if job.v == 1 else (0, job.v, job.d)
    values = np.concatenate([np.zeros(shape, np.float32), *found.values])
    values = _stored(values, job.stored, source.ids, found.rows)
    errors = [
        ItemError(_plain(source.ids[row]), None if source.paths is None else source.paths[row], *fault)
        for row, fault in found.faults
    ]
    part = store / part_name(shard)
    try:
        with atomic_directory(part) as folder:
            write_part(folder, values, _columns(source, found), errors)
    except StorageError:
        if part_rows(part) is None:  # another worker has not written the same in the meantime
            raise
    return len(values)


def missing_shards(store: Path, job: Job) -> list[int]:
    """Shards whose part is not there, or damaged."""
    return [shard for shard in range(job.shards) if part_rows(store / part_name(shard)) is None]


def finish(store: Path, job: Job) -> bool:
    """Write the manifest if every part is there; whoever finishes last does it, and two at once do the same.

    Returns:
        Whether the store is finished.

    Raises:
        InvalidInputError: not one item could be embedded.
    """
    rows = [part_rows(store / part_name(shard)) for shard in range(job.shards)]
    counts = [count for count in rows if count is not None]
    if len(counts) < len(rows):
        return False
    if not sum(counts):
        reasons = Counter(error.reason for error in read_errors(store))
        raise InvalidInputError(
            f"{job.origin.path}: none of the {job.items:,} {job.origin.modality} could be read ({counted(reasons)}); "
            f"the reasons stand in {store}/part-*/errors.parquet"
        )
    for left in store.glob(".*.tmp*"):  # of processes that were killed
        remove(left)
    described = {
        "encoder": job.encoder if job.revision is None else f"{job.encoder}@{job.revision}",
        "d": job.d,
        "v": job.v,
        "dtype": job.stored,
        "seed": job.seed,
        "batch_size": job.batch_size,
        "job": job.to_dict(),
    }
    write_manifest(store, counts, described)
    return True


@dataclass(frozen=True)
class Summary:
    """What is in a store, finished or not.

    Attributes:
        embedded: number of items.
        broken: for each reason, the items left out for it.
        notes: for each note on items that were embedded, their number.
        parts, missing: parts that are there, and parts that are not.
        finished: whether the manifest is written.
    """

    embedded: int
    broken: dict[str, int]
    notes: dict[str, int]
    parts: int
    missing: int
    finished: bool


def summarize(store: Path, job: Job) -> Summary:
    """Count what the parts of a store hold."""
    from crovca.data.columns import read_table

    rows = [part_rows(store / part_name(shard)) for shard in range(job.shards)]
    notes: Counter[str] = Counter()
    for shard, count in enumerate(rows):
        if count:
            table = read_table(store / part_name(shard) / "items.parquet", ["note"])
            if "note" in table.column_names:
                notes.update(note for note in table.column("note").to_pylist() if note is not None)
    broken = Counter(error.reason for error in read_errors(store))
    there = [count for count in rows if count is not None]
    return Summary(
        sum(there),
        dict(sorted(broken.items())),
        dict(sorted(notes.items())),
        len(there),
        len(rows) - len(there),
        (store / MANIFEST).exists(),
    )


def counted(reasons: dict[str, int]) -> str:
    """ "3 truncated, 2 empty"."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


# --- within a shard ---------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """What became of a batch: the rows that were embedded, their embeddings and notes, and the faults of the others."""

    rows: list[int]
    values: npt.NDArray[np.float32]
    notes: list[str | None]
    faults: list[tuple[int, tuple[str, str]]]


@dataclass
class _Part:
    rows: list[int] = field(default_factory=list)
    values: list[npt.NDArray[np.float32]] = field(default_factory=list)
    notes: list[str | None] = field(default_factory=list)
    faults: list[tuple[int, tuple[str, str]]] = field(default_factory=list)

    def add(self, batch: _Batch) -> None:
        self.rows += batch.rows
        self.values.append(batch.values)
        self.notes += batch.notes
        self.faults += batch.faults


def _run_batches(worker: Worker, batches: Sequence[range]) -> Iterator[_Batch]:
    """Embed batches, some at once, and give their results in order; never more than a few are in memory."""
    waiting: deque[Future[_Batch]] = deque()
    decoders = ThreadPoolExecutor(worker.decoders, "crovca-decode")
    lanes = ThreadPoolExecutor(worker.lanes, "crovca-lane", torch.set_num_threads, (worker.job.threads,))
    try:
        for batch in batches:
            items = [decoders.submit(_prepare, worker, row) for row in batch]
            waiting.append(lanes.submit(_embed_batch, worker, batch, items))
            if len(waiting) >= worker.lanes + _LANES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in (lanes, decoders):
            pool.shutdown(wait=True, cancel_futures=True)


_Prepared = tuple[Any, str | None] | UnreadableItem  # what the model takes, and a note


def _prepare(worker: Worker, row: int) -> _Prepared:
    """Read an item and make of it what a batch is made of."""
    try:
        content = worker.source.read(row)
        if isinstance(worker.encoder, TextEncoder):
            return content, None
        preprocessing = worker.encoder.preprocessing
        if worker.job.v == 1:
            decoded = decode(content, smallest=preprocessing.smallest_decode)
            return preprocessing.crop_image(decoded.image, decoded.size), decoded.note
        side = side_for_views(preprocessing.size)
        decoded = decode(content, smallest=lambda size: _shrunk(size, side))
        width, height = _shrunk(decoded.image.size, side) or decoded.image.size
        return np.array(decoded.image.resize((width, height), 2)), decoded.note  # 2: bilinear
    except UnreadableItem as fault:
        return fault
    except MemoryError:
        return UnreadableItem("no memory", "not enough memory to resize it")


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int] | None:
    """The size whose shorter side is ``side``; None where the image is no larger."""
    scale = side / min(size)
    return None if scale >= 1 else (max(side, round(size[0] * scale)), max(side, round(size[1] * scale)))


def _embed_batch(worker: Worker, batch: range, items: Sequence[Future[_Prepared]]) -> _Batch:
    good: list[tuple[int, Any, str | None]] = []
    faults: list[tuple[int, tuple[str, str]]] = []
    for row, item in zip(batch, items, strict=True):
        result = item.result()
        if isinstance(result, UnreadableItem):
            faults.append((row, (result.reason, result.detail)))
        else:
            good.append((row, *result))
    if good:
        try:
            values = _model(worker, [row for row, _, _ in good], [content for _, content, _ in good])
        except EncoderError:  # not finite: find the items that it is about
            good, values = _one_by_one(worker, good, faults)
        except torch.OutOfMemoryError:
            raise InvalidInputError(
                f"the device has not enough memory for batches of {worker.job.batch_size}; "
                "begin anew with a smaller --batch-size and --force"
            ) from None
    if not good:
        shape = (0, worker.job.d) if worker.job.v == 1 else (0, worker.job.v, worker.job.d)
        values = np.zeros(shape, np.float32)
    return _Batch([row for row, _, _ in good], values, [note for _, _, note in good], sorted(faults))


def _one_by_one(
    worker: Worker, items: list[tuple[int, Any, str | None]], faults: list[tuple[int, tuple[str, str]]]
) -> tuple[list[tuple[int, Any, str | None]], npt.NDArray[np.float32]]:
    good, values = [], []
    for item in items:
        try:
            values.append(_model(worker, [item[0]], [item[1]]))
            good.append(item)
        except EncoderError:
            faults.append((item[0], ("not finite", f"the encoder's output in {worker.job.dtype}")))
    return good, np.concatenate(values) if values else np.zeros(0, np.float32)


def _model(worker: Worker, rows: list[int], contents: list[Any]) -> npt.NDArray[np.float32]:
    """Embeddings (B, d) or (B, v, d) of items."""
    encoder, job = worker.encoder, worker.job
    if isinstance(encoder, TextEncoder):
        return _on_cpu(encoder.embed(contents))
    if job.v == 1:
        pixels = torch.from_numpy(np.stack(contents)).to(encoder.device)
        return _on_cpu(encoder.embed(encoder.preprocessing.normalize(pixels)))
    images = [torch.from_numpy(content).to(encoder.device) for content in contents]
    keys = id_hashes(worker.source.ids[rows], 0)
    views = []
    for view in range(job.v):
        pixels = augment(images, encoder.preprocessing.size, keys=keys, view=view, seed=job.seed)
        views.append(encoder.embed(encoder.preprocessing.normalize(pixels)))
    return _on_cpu(torch.stack(views, dim=1))


def _on_cpu(values: Tensor) -> npt.NDArray[np.float32]:
    return values.float().cpu().numpy()


def _stored(
    values: npt.NDArray[np.float32], dtype: str, ids: npt.NDArray[Any], rows: Sequence[int]
) -> npt.NDArray[Any]:
    if dtype == "float16" and len(values):
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
        limit = float(np.finfo(np.float16).max)
        if largest.max() > limit:
            raise InvalidInputError(
                f"the embedding of {str(ids[rows[int(largest.argmax())]])!r} holds {largest.max():,.0f}, "
                f"beyond float16 ({limit:,.0f}); begin anew with --stored float32 --force"
            )
    return values.astype(dtype)


def _columns(source: Source[Any], part: _Part) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": source.ids[part.rows]}
    if source.labels is not None:
        columns["labels"] = source.labels[part.rows]
    if source.paths is not None:
        columns["path"] = [source.paths[row] for row in part.rows]
    if source.captions is not None:
        columns["caption"] = [source.captions[row] for row in part.rows]
    columns["note"] = part.notes
    return columns


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain(name: Any) -> str | int:
    return int(name) if isinstance(name, np.integer) else str(name)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_batch_size(encoder: Encoder | TextEncoder) -> int:
    """Items in a batch: few on a CPU, where they stay in its caches; on a GPU as many as fit into its memory."""
    if encoder.device.type == "cpu":
        return 32 if isinstance(encoder, TextEncoder) else 8
    size = 256
    while size > 1:
        try:
            if isinstance(encoder, TextEncoder):
                encoder.embed(["a word " * 200] * 2 * size)
            else:
                shape = (2 * size, *encoder.preprocessing.size, 3)
                pixels = torch.zeros(shape, dtype=torch.uint8, device=encoder.device)
                encoder.embed(encoder.preprocessing.normalize(pixels))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
        else:
            break
    return size
