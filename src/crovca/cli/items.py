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
from crovca.data.store import MANIFEST
from crovca.errors import ConfigError, FileFormatError, InvalidInputError, OutputExistsError
from crovca.files import read_json, remove

if TYPE_CHECKING:
    import pyarrow as pa

    from crovca.codes import Codes
    from crovca.data.embeddings import Embeddings
    from crovca.data.encoded import Encoded
    from crovca.hasher import CrossModalHasher, Hasher

__all__ = [
    "Items",
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
class Items:
    """Items on their way into an index: (ids, codes, metadata) in blocks."""

    count: int
    bits: int
    blocks: Iterator[tuple[Any, Codes, pa.Table | None]]


def source_kind(path: Path, encoder: str | None) -> str:
    """Whether a path holds "codes", "embeddings" or "images"."""
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "codes" if "packed.npy" in archive.namelist() else "embeddings"
    if path.is_dir() and ((path / MANIFEST).exists() or (path / "job.json").exists()):
        return "embeddings"
    if path.suffix.lower() in (".npz", ".npy", ".safetensors") or (
        path.suffix == ".parquet" and encoder is None
    ):
        return "embeddings"
    return "images"


def of_codes(path: Path, extra: pa.Table | None) -> Items:
    """Codes that ``crovca encode`` wrote."""
    from crovca.data.encoded import Encoded

    return of_encoded(Encoded.load(path), extra)


def of_encoded(found: Encoded, extra: pa.Table | None) -> Items:
    """Codes with their ids and labels."""
    ids = np.arange(len(found)) if found.ids is None else found.ids
    known = _labels(found.labels)

    def blocks() -> Iterator[tuple[Any, Codes, pa.Table | None]]:
        for start in range(0, len(found), _BLOCK):
            part = slice(start, start + _BLOCK)
            yield ids[part], found.codes[part], _metadata(ids[part], known, part, extra)

    return Items(len(found), found.codes.bits, blocks())


def of_embeddings(
    data: Embeddings, path: Path, hasher: Hasher | CrossModalHasher, bits: int | None, extra: pa.Table | None
) -> Items:
    """Embeddings of a file or store, encoded block by block."""
    from crovca.hasher import Hasher

    if data.views > 1:
        raise InvalidInputError(f"{path} holds {data.views} views of each item; give embeddings of one view")
    bits = hasher.bits if bits is None else bits
    ids = np.arange(len(data)) if data.ids is None else data.ids
    known = {**_labels(data.labels), **_captions(path)}

    def blocks() -> Iterator[tuple[Any, Codes, pa.Table | None]]:
        for start in range(0, len(data), _BLOCK):
            part = slice(start, start + _BLOCK)
            values = data.values[part]
            codes = (
                hasher.encode(values, bits)
                if isinstance(hasher, Hasher)
                else hasher.encode(images=values, bits=bits)
            )
            yield ids[part], codes, _metadata(ids[part], known, part, extra)

    return Items(len(data), bits, blocks())


def open_embedded(
    path: Path,
    encoder: str,
    revision: str | None,
    device: str,
    store: Path,
    reporter: Reporter,
    *,
    anew: bool = False,
    refuse: Callable[[Any], None] | None = None,
) -> Embeddings:
    """Embed images into ``store``, going on where an earlier run stopped, and open it.

    Args:
        path, encoder, revision, device: as for ``crovca embed``.
        store: where the embeddings are kept.
        reporter: is told how it goes.
        anew: a store that was begun with something else is replaced.
        refuse: is shown the ids before anything is embedded, and raises where they cannot be used.
    """
    from crovca.encoders.encoder import Encoder
    from crovca.encoders.job import Origin, begin_job, read_job
    from crovca.encoders.pipeline import counted, finish, make_worker, missing_shards, plan_job, summarise
    from crovca.encoders.runners import run_here

    origin = Origin("images", str(path))
    source = origin.open()
    if refuse is not None:
        refuse(source.ids)
    for text in source.notes:
        reporter.message(text)
    tower = Encoder.load(encoder, revision=revision, device=device)
    unset = dict.fromkeys(("shard_size", "threads", "batch_size"))
    chosen = {"v": 1, "seed": 0, "stored": "float16", **unset}
    begun = read_job(store)
    job = plan_job(origin, source, tower, encoder, revision, chosen, begun)
    if anew and begun is not None and begun.differences(job):
        remove(store)
        job = plan_job(origin, source, tower, encoder, revision, chosen, None)
    try:
        job = begin_job(store, job)
    except OutputExistsError as error:
        raise OutputExistsError(
            f"{error} (the embeddings of an earlier build are in {store}: remove it)"
        ) from error
    missing = missing_shards(store, job)
    done = job.items - sum(len(job.rows(shard)) for shard in missing)
    counter = [done]

    def advance(items: int) -> None:
        counter[0] += items
        reporter.advance("embedding", counter[0] / job.items)

    if missing:
        run_here(make_worker(job, source, tower), store, missing, advance)
    finish(store, job)
    broken = summarise(store, job).broken
    if broken:
        reporter.message(f"{sum(broken.values()):,} images left out: {counted(broken)}")
    return open_embeddings(store)


def read_metadata(path: Path | None) -> pa.Table | None:
    """A table with a column ``id``, from .parquet or .csv."""
    if path is None:
        return None
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    try:
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else pyarrow.csv.read_csv(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise FileFormatError(f"{path} is not readable as metadata (.parquet or .csv): {error}") from error
    if "id" not in table.column_names:
        raise FileFormatError(f"{path} has no column 'id'; it has {', '.join(table.column_names)}")
    ids = table.column("id")
    if len(ids.unique()) != len(ids):
        raise FileFormatError(f"{path}: an id occurs twice in its column 'id'")
    return table


def encoder_of(path: Path) -> dict[str, Any] | None:
    """What a store says of its encoder."""
    from crovca.queries import describe_encoder

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


def _metadata(ids: Any, known: dict[str, Any], part: slice, extra: pa.Table | None) -> pa.Table | None:
    """Columns of one block: what the source knows, and what a table of metadata has for these ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({name: pa.array(values[part]) for name, values in known.items()}) if known else None
    if extra is None:
        return table
    keys = extra.column("id")
    wanted = pa.array(ids)
    try:
        place = pc.index_in(wanted.cast(keys.type), keys.combine_chunks())
    except pa.ArrowInvalid as error:
        raise ConfigError(f"the metadata's ids are {keys.type}, those of the items {wanted.type}") from error
    missing = place.null_count
    if missing == len(wanted):
        note("none of these items is in the metadata: are its ids written in the same way?")
    found = extra.drop_columns("id").take(place)
    for name in found.column_names if table is not None else ():
        if name in known:
            raise ConfigError(f"the metadata's column {name!r} is known from the source already; rename it")
    if table is None:
        return found
    for name in found.column_names:
        table = table.append_column(name, found.column(name))
    return table
