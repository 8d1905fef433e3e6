"""What an embedding job is: everything that decides the bytes of its store, fixed when the job begins."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from crovca.data.store import JOB
from crovca.errors import ConfigError, FileFormatError, OutputExistsError, StorageError
from crovca.files import read_json
from crovca.sources.opening import open_images, open_texts
from crovca.sources.source import Source

JOB_VERSION = 1
"""Of the recipe: raised whenever the same job would give other bytes."""
Modality = Literal["images", "texts"]
Stored = Literal["float16", "float32"]
STORED: tuple[Stored, ...] = get_args(Stored)


@dataclass(frozen=True)
class Origin:
    """Where the items of a job come from.

    Attributes:
        modality: "images" or "texts".
        path: as it was given.
        root: for a split file, the folder that its paths are relative to.
        image_column, caption_column: names of columns; None: those that are recognized.
    """

    modality: Modality
    path: str
    root: str | None = None
    image_column: str | None = None
    caption_column: str | None = None

    def open(self) -> Source[Any]:
        """Open the source; raises what ``open_images`` and ``open_texts`` raise."""
        if self.modality == "texts":
            return open_texts(self.path, caption_column=self.caption_column)
        return open_images(
            self.path,
            root=None if self.root is None else Path(self.root),
            image_column=self.image_column,
            caption_column=self.caption_column,
        )


_LEAST = {"v": 1, "shard_size": 1, "batch_size": 1, "threads": 1, "seed": 0}


def check_settings(modality: str, *, stored: str, v: int, **given: int | None) -> None:
    """Refuse settings of a job that are out of range, before anything is loaded; None: not chosen yet."""
    for name, value in {"v": v, **given}.items():
        if value is not None and value < _LEAST[name]:
            raise ConfigError(f"{_OPTIONS.get(name, name)} must be at least {_LEAST[name]}, got {value}")
    if stored not in STORED:
        raise ConfigError(f"--stored must be one of {', '.join(STORED)}, got {stored!r}")
    if modality == "texts" and v > 1:
        raise ConfigError("--views goes with images; a text has one view")


@dataclass(frozen=True)
class Job:
    """An embedding job; ``job.json`` in its store.

    Attributes:
        origin: the source, as it was named at the first run.
        fingerprint, items: of the source.
        encoder, revision: as they were named at the first run.
        identity: of the encoder: family, output, revision, checksum of the weights.
        preprocessing: of images, ``Preprocessing.to_dict``; empty for texts.
        d: width of an embedding.
        v: views of each image; 1 is the plain image, more are all augmented.
        seed: of the views.
        shard_size: items of the source in a part.
        batch_size: items of the source in a batch; a batch lies within a part.
        dtype: what the model computes in.
        stored: float16 or float32.
        device: "cpu" or "cuda".
        threads: of the processor within one batch.
        versions: of what computes, at the first run.
    """

    origin: Origin
    fingerprint: str
    items: int
    encoder: str
    revision: str | None
    identity: Mapping[str, str | None]
    preprocessing: Mapping[str, Any]
    d: int
    v: int
    seed: int
    shard_size: int
    batch_size: int
    dtype: str
    stored: str
    device: str
    threads: int
    versions: Mapping[str, str]
    job_version: int = JOB_VERSION

    def __post_init__(self) -> None:
        check_settings(self.origin.modality, **{name: getattr(self, name) for name in (*_LEAST, "stored")})

    @property
    def shards(self) -> int:
        """Number of parts."""
        return -(-self.items // self.shard_size)

    def rows(self, shard: int) -> range:
        """Items of a part."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.items))

    def differences(self, other: Job) -> list[tuple[str, Any, Any]]:
        """What decides the result and differs: (option, ours, the other's)."""
        named = ("origin", "encoder", "revision", "versions", "identity")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in asdict(self) if name not in named]
        keys = sorted((self.identity.keys() | other.identity.keys()) - {"source"})
        pairs += [(f"encoder {key}", self.identity.get(key), other.identity.get(key)) for key in keys]
        pairs.append(("modality", self.origin.modality, other.origin.modality))
        pairs.append(("crovca", self.versions.get("crovca"), other.versions.get("crovca")))
        return [(_OPTIONS.get(name, name), ours, theirs) for name, ours, theirs in pairs if ours != theirs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], path: Path) -> Self:
        """Read what ``to_dict`` wrote; FileFormatError names ``path``."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise FileFormatError(f"{path}: unknown key {unknown[0]!r}; upgrade crovca, or --force to begin anew")
        try:
            return cls(**{**values, "origin": Origin(**values["origin"])})
        except (TypeError, KeyError, ConfigError) as error:
            raise FileFormatError(f"{path} is damaged ({error}); --force begins anew") from error


_OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("seed", "shard_size", "batch_size", "dtype", "stored", "device", "threads")
    },
    "v": "--views",
    "items": "number of items",
    "fingerprint": "content of the source",
    "d": "width of the embeddings",
    "encoder weights_sha256": "weights of the encoder",
    "job_version": "version of the recipe",
    "crovca": "version of crovca",
}


def read_job(store: Path) -> Job | None:
    """The job that a store was begun with, or None where none was."""
    path = store / JOB
    return Job.from_dict(read_json(path, "embedding job"), path) if path.exists() else None


def begin_job(store: Path, job: Job) -> Job:
    """Fix a job as that of a store, or go on with the store's own if it is the same.

    Several processes may do this at once: one of them wins, the others take its job.

    Returns:
        The store's job: what it was begun with.

    Raises:
        OutputExistsError: the store was begun with something that gives another result, which is named.
        StorageError: it cannot be written.
    """
    try:
        store.mkdir(exist_ok=True)
        temporary = store / f".{JOB}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps(job.to_dict(), indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            _place(temporary, store / JOB)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {store}: {error.strerror or error}") from error
    begun = read_job(store)
    assert begun is not None
    refuse_another(store, begun, job)
    return begun


def refuse_another(store: Path, begun: Job, job: Job) -> None:
    """Refuse to go on with a store that was begun with something else."""
    differences = begun.differences(job)
    if differences:
        what, theirs, ours = differences[0]
        more = f" (and {', '.join(name for name, _, _ in differences[1:])})" if differences[1:] else ""
        raise OutputExistsError(
            f"{store} was begun with another {what}: {_short(theirs)}, now {_short(ours)}{more}; "
            "give the same again, another output, or --force to begin anew"
        )


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name; FileExistsError where another has it already."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
