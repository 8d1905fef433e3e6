"""What goes into an index, from wherever it comes: codes, embeddings, or images."""

from __future__ import annotations

import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.archive.encoding import encode_path
from crovca.archive.queries import describe_encoder
from crovca.codes import Codes, check_bits
from crovca.data.columns import arrow_array, read_table
from crovca.data.embeddings import Embeddings, Rows, evenly_spaced, load_embeddings
from crovca.data.encoded import Encoded
from crovca.data.store import JOB, MANIFEST, ItemError, store_parts
from crovca.embedding.blocks import counted
from crovca.embedding.embed import embed
from crovca.errors import ConfigError, CrovcaError, FileFormatError, InvalidInputError, StorageError
from crovca.files import atomic_directory, check_output, read_json, remove
from crovca.hasher import Hasher
from crovca.hasher.drift import Drift
from crovca.hashing.train import Observer
from crovca.index.index import HashIndex
from crovca.index.manifest import WriterLock
from crovca.index.metadata import columns_of
from crovca.index.metadata import read_table as read_metadata
from crovca.index.origin import Origin
from crovca.index.originals import Keep, Picked
from crovca.index.tuned import Tuned
from crovca.index.tuning import tune

if TYPE_CHECKING:
    import pyarrow as pa

_logger = logging.getLogger(__name__)

_BLOCK = 1 << 18
_SAMPLE = 512  # of a block, to see whether it lies outside of what was learned


@dataclass(frozen=True)
class NewItems:
    """Items on their way into an index.

    Attributes:
        ids: all of them.
        bits: of a code.
        blocks: (ids, codes, metadata), block by block.
        encoder: what the index keeps of the encoder of images (``queries.describe_encoder``), or None.
        save_model: puts the model that made the codes into a folder, where there is one.
        origin: what made the codes and the embeddings.
        embeddings: (n, d) of all items, where they are at hand.
        drift: says how far embeddings lie from what the model has learned, where it knows.
        left_out: images that could not be read.
    """

    ids: Any
    bits: int
    blocks: Iterator[tuple[Any, Codes, pa.Table | None]]
    encoder: dict[str, Any] | None = None
    save_model: Callable[[Path], object] = lambda folder: None
    origin: Origin = field(default_factory=Origin)
    embeddings: Rows | None = None
    drift: Callable[[Any], Drift] | None = None
    left_out: Sequence[ItemError] = ()


def source_kind(path: Path, encoder: str | None) -> str:
    """Whether a path holds "codes", "embeddings" or "images"."""
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.suffix.lower() == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "codes" if "packed.npy" in archive.namelist() else "embeddings"
    if path.is_dir() and ((path / MANIFEST).exists() or (path / JOB).exists()):
        return "embeddings"
    if path.suffix.lower() in (".npz", ".npy", ".safetensors") or (path.suffix == ".parquet" and encoder is None):
        return "embeddings"
    return "images"


def of_encoded(found: Encoded, extra: pa.Table | None) -> NewItems:
    """Codes with their ids and labels."""
    ids = np.arange(len(found)) if found.ids is None else found.ids
    codes = found.codes
    blocks = _blocks(ids, codes.__getitem__, _labels(found.labels), extra)
    return NewItems(ids, codes.bits, blocks, origin=Origin(found.model))


def of_embeddings(data: Embeddings, path: Path, hasher: Hasher, bits: int | None, extra: pa.Table | None) -> NewItems:
    """Embeddings of a file or store, encoded block by block."""
    if data.views > 1:
        raise InvalidInputError(f"{path} holds {data.views} views of each item; give embeddings of one view")
    bits = hasher.bits if bits is None else bits
    ids = np.arange(len(data)) if data.ids is None else data.ids

    def encode(part: slice) -> Codes:
        return hasher.encode(data.values[part], bits, modality=hasher.modalities[0])

    encoder = encoder_of(path)
    return NewItems(
        ids,
        bits,
        _blocks(ids, encode, {**_labels(data.labels), **_captions(path)}, extra),
        encoder,
        origin=Origin(hasher.fingerprint, encoder),
        embeddings=data.values,
    )


def check_new(opened: HashIndex, ids: Any) -> None:
    """Refuse ids of which the index holds some already."""
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


def open_items(
    source: Path,
    *,
    model: Path | None = None,
    encoder: str | None = None,
    revision: str | None = None,
    bits: int | None = None,
    extra: pa.Table | None = None,
    device: str = "auto",
    store: Path,
    force: bool = False,
    check: Callable[[Any], object] = lambda ids: None,
    observer: Observer,
) -> NewItems:
    """The items of a source, on their way into an index.

    Args:
        source: codes, embeddings, or images.
        model: folder of the hasher; None: one is learned from the embeddings, without labels.
        encoder, revision: of images.
        bits: length of the codes; None: the model's.
        extra: more metadata, as ``read_metadata`` gives it.
        device: "auto", "cpu" or "cuda".
        store: where images are embedded, going on where an earlier run stopped.
        force: whether a store that was begun with something else is replaced.
        check: sees the ids of images before they are embedded, and raises where they cannot be added.
        observer: is told how it goes.

    Raises:
        ConfigError: an option does not go with what the source holds, or one is missing.
        CrovcaError: what reading, embedding and encoding raise.
    """
    kind = source_kind(source, encoder)
    save: Callable[[Path], object] = partial(shutil.copytree, model) if model else lambda folder: None
    if kind == "codes":
        if bits is not None:
            raise ConfigError("--bits goes with embeddings and images: codes are taken as they are")
        items = replace(of_encoded(Encoded.load(source), extra), save_model=save)
        if model is None:
            return items
        maker = Origin(Hasher.load(model, device=device).fingerprint)
        maker.check(items.origin, "these codes")
        return replace(items, origin=maker)
    hasher: Any = None if model is None else Hasher.load(model, device=device)
    if hasher is not None and hasher.fine_tuning is not None:  # its encoder is its own
        found = encode_path(hasher, source, None, observer=observer, bits=bits)
        return replace(of_encoded(found.encoded, extra), save_model=save, embeddings=found.embeddings)
    left_out: list[ItemError] = []
    if kind == "images":
        if encoder is None:
            raise ConfigError(f"{source} holds images: give --encoder, the folder of a model or its id on the hub")
        options: Any = {"force": force, "check": check, "observer": observer}
        made = embed(source, encoder, store, revision=revision, device=device, **options)
        if broken := made.summary.broken:
            observer.message(f"{sum(broken.values()):,} images left out: {counted(broken)}")
            left_out = made.left_out
        data, source = made.embeddings, store
    else:
        data = load_embeddings(source)
    if hasher is None:
        observer.message(
            f"no --model: learning codes of {bits or 64} bits from these {len(data):,} embeddings, without labels"
        )
        hasher = Hasher(bits=bits or 64, device=device).fit(data, observer=observer)
        return replace(of_embeddings(data, source, hasher, bits, extra), save_model=hasher.save, left_out=left_out)
    known = hasher.towers_.coders[0].gate is not None
    items = of_embeddings(data, source, hasher, bits, extra)
    return replace(items, save_model=save, drift=hasher.drift if known else None, left_out=left_out)


def fill(index: HashIndex, items: NewItems, observer: Observer, *, upsert: bool = False) -> int:
    """Put items into an index, block by block; how many took the place of others. Says once where many of a block lie
    outside of what the model has learned, and what was lost of embeddings that are kept."""
    replaced = done = 0
    drift = items.drift
    for ids, codes, table in items.blocks:
        rows = np.arange(done, done + len(codes))
        floats = None if items.embeddings is None else Picked(items.embeddings, rows)
        if drift is not None and floats is not None:
            found = drift(floats[evenly_spaced(len(rows), _SAMPLE)])
            if found.much:
                observer.message(
                    f"{found.sentence('of the items to add')}: their codes may not find them; look with 'crovca index "
                    "check', and learn anew with 'crovca index refit'"
                )
                drift = None
        write = index.upsert if upsert else index.add
        replaced += write(ids, codes, table, floats, origin=items.origin) or 0
        done += len(codes)
        observer.advance("indexing", done / len(items.ids))
    try:
        while index.merge():
            pass
    except StorageError as error:  # the items are there; it is tried again the next time
        observer.message(str(error))
    if index.loss.items:
        observer.message(index.loss.sentence(index.keep))
    return replaced


@dataclass(frozen=True)
class Changed:
    """What became of an index.

    Attributes:
        items: that it holds now.
        added, replaced: by this call.
        bits: of a code.
        disk_bytes: by what they hold, as ``stats`` has them.
        encoder: what is known of the encoder of its images, or None.
        tuned: what was chosen for a target recall, where one was given.
        left_out: images that could not be read.
    """

    items: int
    added: int
    replaced: int
    bits: int
    disk_bytes: dict[str, int]
    encoder: Mapping[str, Any] | None
    tuned: Tuned | None = None
    left_out: Sequence[ItemError] = ()


def build_index(
    source: Path,
    output: Path,
    *,
    model: Path | None = None,
    bits: int | None = None,
    encoder: str | None = None,
    revision: str | None = None,
    metadata: Path | None = None,
    keep: Keep | None = None,
    target_recall: float | None = None,
    top_k: int = 10,
    device: str = "auto",
    force: bool = False,
    observer: Observer,
) -> Changed:
    """Build an index from codes, from embeddings, or straight from images.

    Embeddings are encoded by ``model``; without one, a model is learned from them and kept in the index. Images are
    embedded into OUTPUT.embeddings, which stays: a run that was interrupted goes on from it.

    Args:
        source, model, bits, encoder, revision, device, observer: as for ``open_items``.
        output: folder of the index.
        metadata: more columns, by a column "id": .parquet or .csv.
        keep: what is kept of embeddings; None: "int8" where they are at hand.
        target_recall, top_k: tune the index for this recall at this k (``index.tuning``); None: not.
        force: whether an index that exists is replaced; and embeddings of other images or of another encoder.

    Raises:
        OutputExistsError: ``output`` exists.
        CrovcaError: as ``open_items``.
    """
    inputs = [path for path in (source, model, metadata) if path is not None]
    check_output(output, force=force, inputs=inputs, marker="manifest.json")
    if bits is not None:
        check_bits(bits)
    extra = None if metadata is None else read_metadata(metadata)
    # Whoever writes to the index that is replaced is kept out, or keeps us out.
    lock = WriterLock(output) if (output / "manifest.json").exists() else nullcontext()
    with lock, atomic_directory(output) as folder:
        items = open_items(
            source,
            model=model,
            encoder=encoder,
            revision=revision,
            bits=bits,
            extra=extra,
            device=device,
            store=output.with_name(f"{output.name}.embeddings"),
            force=force,
            observer=observer,
        )
        keep = ("none" if items.embeddings is None else "int8") if keep is None else keep
        if keep != "none" and items.embeddings is None:
            raise ConfigError(f"--keep {keep} goes with embeddings and images; {source} holds codes alone")
        model_print = items.origin.model or ""
        with HashIndex.create(folder, items.bits, encoder=items.encoder, model=model_print, keep=keep) as made:
            items.save_model(made.model_folder)
            fill(made, items, observer)
            tuned = None
            if target_recall is not None:
                tuned = tune(made, target_recall, top_k, advance=partial(observer.advance, "tuning"))
                made.keep_tuned(tuned)
            return replace(_changed(made, len(made), 0), tuned=tuned, left_out=items.left_out)


def add_items(
    index: Path,
    source: Path,
    *,
    model: Path | None = None,
    encoder: str | None = None,
    revision: str | None = None,
    metadata: Path | None = None,
    keep: Keep | None = None,
    upsert: bool = False,
    device: str = "auto",
    observer: Observer,
) -> Changed:
    """Add items to an index; with ``upsert`` in the place of those with the same ids.

    All ids are checked before anything is added. Items are then added durably, up to 262,144 at a time: should a later
    step fail, those of the earlier ones are in the index.

    Args:
        index: its folder.
        source, revision, metadata, device, observer: as for ``build_index``.
        model, encoder: None: the index's.
        keep: what the index keeps of embeddings, which was settled when it was built; None: that.
        upsert: whether ids may be in the index already.

    Raises:
        InvalidInputError: ids are in the index already, or twice among those given.
        CrovcaError: as ``open_items``.
    """
    extra = None if metadata is None else read_metadata(metadata)
    with HashIndex.open(index, writable=True) as opened:
        if keep not in (None, opened.keep):
            raise ConfigError(
                f"{index} keeps {opened.keep} of its items' embeddings, not {keep}; change that for all of them with "
                f"'crovca index refit {index} --keep {keep}'"
            )
        if model is None and opened.model_folder.is_dir():
            model = opened.model_folder
        if encoder is None and opened.encoder is not None:
            encoder, revision = opened.encoder["encoder"], opened.encoder["revision"]
        kind = source_kind(source, encoder)
        if kind != "codes" and model is None:
            raise ConfigError(f"{index} holds no model: give --model, or codes made by 'crovca encode'")
        # Only as long as it takes; a run that was interrupted goes on from it.
        name = f"{index.name}.adding-{sha256(str(source.resolve()).encode()).hexdigest()[:8]}"
        store = index.with_name(name)
        check: Callable[[Any], object] = (lambda ids: None) if upsert else partial(check_new, opened)
        before = len(opened)
        try:
            items = open_items(
                source,
                model=model,
                encoder=encoder,
                revision=revision,
                bits=None if kind == "codes" else opened.bits,
                extra=extra,
                device=device,
                store=store,
                force=True,
                check=check,
                observer=observer,
            )
            opened.origin.check(items.origin, f"the items of {source}")
            check_distinct(items.ids)
            check(items.ids)
            replaced = fill(opened, items, observer, upsert=upsert)
        except CrovcaError:
            remove(store)
            raise
        remove(store)
        return replace(_changed(opened, len(opened) - before, replaced), left_out=items.left_out)


def _changed(index: HashIndex, added: int, replaced: int) -> Changed:
    size = index.stats()["disk_bytes"]
    return Changed(len(index), added, replaced, index.bits, size, index.encoder)


def encoder_of(path: Path) -> dict[str, Any] | None:
    """What a store says of the encoder of its images."""
    job = read_json(path / MANIFEST, "embedding store").get("job") if path.is_dir() else None
    return describe_encoder(job) if isinstance(job, dict) and job["origin"]["modality"] == "images" else None


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
    captions = []
    for part in store_parts(path):
        table = read_table(part.folder / "items.parquet", ["caption"])
        if "caption" not in table.column_names:
            return {}
        captions += table.column(0).to_pylist()
    return {"caption": captions}


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
        _logger.warning("none of these items is in the metadata: are its ids written in the same way?")
    elif missing:
        what = f"{missing:,} of {len(ids):,} items"
        _logger.warning("%s are not in the metadata: their columns from it are empty", what)


def _metadata(ids: Any, known: dict[str, Any], part: slice, extra: pa.Table | None) -> tuple[pa.Table | None, int]:
    """Columns of one block: what the source knows, and what a table of metadata has for these ids.

    Also returns how many of the ids are not in the table.
    """
    import pyarrow as pa

    table = pa.table({name: arrow_array(values[part]) for name, values in known.items()}) if known else None
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
