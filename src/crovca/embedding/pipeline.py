"""From images or texts to a store: a pure function from a shard of the source to a part of the store.

``embed_shard`` is all that a runner (``runners.py``) calls. What it writes depends on the job and the shard's number
alone: not on who runs it, when, after what, or how many threads decode. A part is written under a temporary name and
renamed: it is there whole, or missing. ``finish`` lists the parts in the manifest once all are there.

Within a shard decoding and model overlap: ``decoders`` threads read and decode items ahead, ``lanes`` threads carry
batches through the model. On a CPU a lane computes with one thread and there are as many lanes as cores: faster than
one batch with many threads, and the result does not depend on their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crovca.data.store import MANIFEST, ItemError, part_name, part_rows, read_errors, write_manifest, write_part
from crovca.embedding.blocks import cores, counted, embed_blocks
from crovca.embedding.job import Job, Origin
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import InvalidInputError, OutputExistsError, StorageError
from crovca.files import atomic_directory, remove
from crovca.sources.source import Fault, Source

Advance = Callable[[int], None]
"""Told how many items more have been dealt with."""

_LIBRARIES = ("crovca", "torch", "transformers", "pillow", "kornia", "tokenizers")
_SHARD_SIZES = {"cpu": 512, "cuda": 32768}  # a run that is killed loses one; the pause between two does not show
_OF_TEXTS = 4096


@dataclass
class Worker:
    """What a process needs to embed shards: the job, its items, its encoder, and threads.

    ``decoders`` read and decode; ``lanes`` are the batches that are in the model at once.
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
    """The job of embedding a source with an encoder that was called ``name``.

    Of its settings shard_size, batch_size and threads may be None: as the job was begun, or chosen by the encoder and
    its device.
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
        elif setting == "shard_size":
            asked[setting] = max(_SHARD_SIZES[device], _OF_TEXTS if texts else 0)
        else:
            asked[setting] = cores() if texts else 1
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
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def open_worker(job: Job, *, device: str | None = None, share: int = 1) -> Worker:
    """Open the job's source and load its encoder, and check that they are those of the job.

    ``device`` is of the job's kind, such as "cuda:1"; ``share`` workers have this machine's cores in common.
    """
    source = job.origin.open()
    if (source.fingerprint, len(source)) != (job.fingerprint, job.items):
        raise OutputExistsError(f"{job.origin.path} changed since the job began; --force begins anew")
    kind = Encoder if job.origin.modality == "images" else TextEncoder
    encoder = kind.load(job.encoder, revision=job.revision, device=device or job.device, dtype=job.dtype)
    if isinstance(encoder, Encoder):
        encoder.preprocessing = Preprocessing.from_dict(job.preprocessing)
    theirs, ours = ({**one, "source": None} for one in (job.identity, encoder.identity))
    if theirs != ours:
        raise OutputExistsError(
            f"the encoder {job.encoder} is another one here than where the job began: {encoder.identity}"
        )
    return make_worker(job, source, encoder, share=share)


def make_worker(job: Job, source: Source[Any], encoder: Encoder | TextEncoder, *, share: int = 1) -> Worker:
    """A worker of things that are open already."""
    own = max(1, cores() // share)
    lanes = 2 if job.device == "cuda" else max(1, own // job.threads)
    if job.origin.modality == "texts":
        lanes = 1  # tokenizers may not be used by two threads at once
    return Worker(job, source, encoder, decoders=own, lanes=lanes)


def embed_shard(worker: Worker, store: Path, shard: int, advance: Advance = lambda _: None) -> int:
    """Embed one shard and write it as a part of the store; gives the number of items that were embedded.

    Where it cannot be written (full disk, permissions), nothing of it remains.
    """
    job, source = worker.job, worker.source
    how: Any = {"batch_size": job.batch_size, "views": job.v, "seed": job.seed, "threads": job.threads}
    how |= {"lanes": worker.lanes, "decoders": worker.decoders}
    shape = (0, job.d) if job.v == 1 else (0, job.v, job.d)
    rows: list[int] = []
    notes: list[str | None] = []
    faults: dict[int, Fault] = {}
    parts = [np.zeros(shape, np.float32)]
    with _threads(job.threads):
        for block in embed_blocks(source, worker.encoder, job.rows(shard), **how):
            rows += block.rows
            notes += block.notes
            faults |= block.faults
            parts.append(block.embeddings.cpu().numpy())
            advance(len(block.rows) + len(block.faults))
    values = _stored(np.concatenate(parts), job.stored, source.ids, rows)
    errors = [
        ItemError(source.ids[[row]].tolist()[0], None if source.paths is None else source.paths[row], *fault)
        for row, fault in sorted(faults.items())
    ]
    part = store / part_name(shard)
    try:
        with atomic_directory(part) as folder:
            write_part(folder, values, _columns(source, rows, notes), errors)
    except StorageError:
        if part_rows(part) is None:  # another worker has not written the same in the meantime
            raise
    return len(values)


def missing_shards(store: Path, job: Job) -> list[int]:
    """Shards whose part is not there, or damaged."""
    return [shard for shard in range(job.shards) if part_rows(store / part_name(shard)) is None]


def finish(store: Path, job: Job) -> bool:
    """Write the manifest if every part is there, and say so; whoever is last does it, and two at once do the same."""
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
    """What is in a store, finished or not; what was left out, and what was noted of others, is counted by reason."""

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


def _columns(source: Source[Any], rows: list[int], notes: list[str | None]) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": source.ids[rows]}
    if source.labels is not None:
        columns["labels"] = source.labels[rows]
    if source.paths is not None:
        columns["path"] = [source.paths[row] for row in rows]
    if source.captions is not None:
        columns["caption"] = [source.captions[row] for row in rows]
    return {**columns, "note": notes}


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
