"""What goes into an index, from wherever it comes: codes, embeddings, or images."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.cli.options import open_embeddings
from crovca.cli.output import Reporter, note
from crovca.data.store import JOB, MANIFEST
from crovca.errors import ConfigError, FileFormatError, InvalidInputError, OutputExistsError
from crovca.files import check_output, read_json, remove

if TYPE_CHECKING:
    import pyarrow as pa

    from crovca.codes import Codes
    from crovca.data.embeddings import Embeddings
    from crovca.data.encoded import Encoded
    from crovca.embedding.job import Job
    from crovca.hasher import CrossModalHasher, Hasher
    from crovca.index.index import HashIndex

__all__ = [
    "NewItems",
    "Target",
    "check_distinct",
    "check_new",
    "copy_model",
    "encoder_of",
    "of_codes",
    "of_embeddings",
    "of_encoded",
    "open_embedded",
    "read_metadata",
    "source_kind",
]

_BLOCK = 1 << 18


@dataclass(frozen=True)
class NewItems:
    """Items on their way into an index: all their ids, and (ids, codes, metadata) in blocks."""

    ids: Any
    bits: int
    blocks: Iterator[tuple[Any, Codes, pa.Table | None]]


@dataclass(frozen=True)
class Target:
    """Where images are embedded on their way into an index.

    Attributes:
        store: folder of the embeddings.
        anew: whether a store that was begun with something else is replaced.
        check: sees the source's ids before anything is embedded, and raises where they cannot be added.
        inputs: what the command reads, which is never replaced.
    """

    store: Path
    anew: bool = False
    check: Callable[[Any], None] = lambda ids: None
    inputs: tuple[Path, ...] = ()


def source_kind(path: Path, encoder: str | None) -> str:
    """Whether a path holds "codes", "embeddings" or "images"."""
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "codes" if "packed.npy" in archive.namelist() else "embeddings"
    if path.is_dir() and ((path / MANIFEST).exists() or (path / JOB).exists()):
        return "embeddings"
    if path.suffix.lower() in (".npz", ".npy", ".safetensors") or (
        path.suffix == ".parquet" and encoder is None
    ):
        return "embeddings"
    return "images"


def of_codes(path: Path, extra: pa.Table | None) -> NewItems:
    """Codes that ``crovca encode`` wrote."""
    from crovca.data.encoded import Encoded

    return of_encoded(Encoded.load(path), extra)


def of_encoded(found: Encoded, extra: pa.Table | None) -> NewItems:
    """Codes with their ids and labels."""
    ids = np.arange(len(found)) if found.ids is None else found.ids
    codes = found.codes
    return NewItems(ids, codes.bits, _blocks(ids, codes.__getitem__, _labels(found.labels), extra))


def of_embeddings(
    data: Embeddings, path: Path, hasher: Hasher | CrossModalHasher, bits: int | None, extra: pa.Table | None
) -> NewItems:
    """Embeddings of a file or store, encoded block by block."""
    from crovca.hasher import Hasher

    if data.views > 1:
        raise InvalidInputError(f"{path} holds {data.views} views of each item; give embeddings of one view")
    bits = hasher.bits if bits is None else bits
    ids = np.arange(len(data)) if data.ids is None else data.ids

    def encode(part: slice) -> Codes:
        values = data.values[part]
        if isinstance(hasher, Hasher):
            return hasher.encode(values, bits)
        return hasher.encode(images=values, bits=bits)

    return NewItems(ids, bits, _blocks(ids, encode, {**_labels(data.labels), **_captions(path)}, extra))


def check_new(opened: HashIndex, ids: Any) -> None:
    """Refuse ids of which the index holds some already.

    Raises:
        InvalidInputError: it does, or the ids are of another kind than the index's.
    """
    known = ids[opened.contains(ids)].tolist()
    if known:
        raise InvalidInputError(
            f"{len(known):,} of {len(ids):,} ids are in the index already, for example {known[0]!r}; "
            "--replace puts these in their place"
        )


def check_distinct(ids: Any) -> None:
    """Refuse ids that occur twice in different blocks; within one, the index itself sees it."""
    if len(ids) <= _BLOCK:
        return
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise InvalidInputError(f"the id {values[counts > 1][0].item()!r} occurs twice among those given")


def open_embedded(
    path: Path,
    encoder: str,
    revision: str | None,
    device: str,
    target: Target,
    reporter: Reporter,
) -> Embeddings:
    """Embed images into ``target.store``, going on where an earlier run stopped, and open it.

    Raises:
        OutputExistsError: the store holds embeddings of something else, and is not to be begun anew.
        InvalidInputError: what ``target.check`` raises, before anything is embedded.
    """
    from crovca.embedding.job import Origin, begin_job
    from crovca.embedding.pipeline import counted, finish, make_worker, missing_shards, plan_job, summarize
    from crovca.embedding.runners import run_here
    from crovca.encoders.encoder import Encoder

    store = target.store
    origin = Origin("images", str(path))
    source = origin.open()
    for text in source.notes:
        reporter.message(text)
    target.check(source.ids)
    begun = _begun(target)
    tower = Encoder.load(encoder, revision=revision, device=device)
    chosen = {"v": 1, "seed": 0, "stored": "float16"}
    job = plan_job(origin, source, tower, encoder, revision, chosen, begun)
    if begun is not None and (differences := begun.differences(job)):
        what = ", ".join(name for name, _, _ in differences)
        if not target.anew:
            raise OutputExistsError(
                f"{store} was begun with something else ({what}); "
                "--force embeds anew and replaces it; or remove it, or give another --output"
            )
        reporter.message(f"{store} was begun with something else ({what}): embedding anew")
        job = plan_job(origin, source, tower, encoder, revision, chosen)
        check_output(store, force=True, inputs=[path, *target.inputs], marker=JOB)
        remove(store)  # not before everything else was found to be in order
    job = begin_job(store, job)
    missing = missing_shards(store, job)
    done = job.items - sum(len(job.rows(shard)) for shard in missing)
    counter = [done]

    def advance(items: int) -> None:
        counter[0] += items
        reporter.advance("embedding", counter[0] / job.items)

    if missing:
        run_here(make_worker(job, source, tower), store, missing, advance)
    finish(store, job)
    broken = summarize(store, job).broken
    if broken:
        reporter.message(f"{sum(broken.values()):,} images left out: {counted(broken)}")
    return open_embeddings(store)


def _begun(target: Target) -> Job | None:
    """The job of an earlier run; a damaged one is dropped where the store may be begun anew."""
    from crovca.embedding.job import read_job

    try:
        return read_job(target.store)
    except FileFormatError:
        if not target.anew:
            raise
        check_output(target.store, force=True, inputs=target.inputs, marker=JOB)
        remove(target.store)
        return None


def read_metadata(path: Path | None) -> pa.Table | None:
    """A table with a column ``id``, from .parquet or .csv."""
    if path is None:
        return None
    from crovca.index.metadata import read_table

    return read_table(path)


def encoder_of(path: Path) -> dict[str, Any] | None:
    """What a store says of its encoder."""
    from crovca.archive.queries import describe_encoder

    if not path.is_dir():
        return None
    job = read_json(path / MANIFEST, "embedding store").get("job")
    return describe_encoder(job) if isinstance(job, dict) and job["origin"]["modality"] == "images" else None


def copy_model(model: Path | None, folder: Path) -> None:
    """Put a model into an index, where there is one."""
    if model is not None:
        shutil.copytree(model, folder)


def _labels(labels: Any) -> dict[str, Any]:
    if labels is None:
        return {}
    if labels.ndim == 2:
        return {"labels": [np.flatnonzero(row).tolist() for row in labels]}
    return {"label": labels}


def _captions(path: Path) -> dict[str, Any]:
    """Captions of a store, where there are any."""
    if not path.is_dir():
        return {}
    import pyarrow.parquet as pq

    tables = []
    for part in read_json(path / MANIFEST, "embedding store")["parts"]:
        file = path / str(part["name"]) / "items.parquet"
        if "caption" not in pq.read_schema(file).names:
            return {}
        tables += pq.read_table(file, columns=["caption"]).column(0).to_pylist()
    return {"caption": tables}


def _blocks(
    ids: Any, encode: Callable[[slice], Codes], known: dict[str, Any], extra: pa.Table | None
) -> Iterator[tuple[Any, Codes, pa.Table | None]]:
    """The items block by block; says at the end how many of them a table of metadata does not know."""
    missing = 0
    for start in range(0, len(ids), _BLOCK):
        part = slice(start, start + _BLOCK)
        table, absent = _metadata(ids[part], known, part, extra)
        missing += absent
        yield ids[part], encode(part), table
    if missing == len(ids) and missing:
        note("none of these items is in the metadata: are its ids written in the same way?")
    elif missing:
        note(f"{missing:,} of {len(ids):,} items are not in the metadata: their columns from it are empty")


def _metadata(
    ids: Any, known: dict[str, Any], part: slice, extra: pa.Table | None
) -> tuple[pa.Table | None, int]:
    """Columns of one block: what the source knows, and what a table of metadata has for these ids.

    Also returns how many of the ids are not in the table.
    """
    import pyarrow as pa

    from crovca.index.metadata import columns_of

    table = pa.table({name: pa.array(values[part]) for name, values in known.items()}) if known else None
    if extra is None:
        return table, 0
    found, missing = columns_of(ids, extra)
    for name in found.column_names if table is not None else ():
        if name in known:
            raise ConfigError(f"the metadata's column {name!r} is known from the source already; rename it")
    if table is None:
        return found, missing
    for name in found.column_names:
        table = table.append_column(name, found.column(name))
    return table, missing
