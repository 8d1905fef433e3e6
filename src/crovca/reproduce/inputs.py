"""What recipes are made of: benchmarks, the lists of their images, and embeddings of these by frozen encoders.

::

    WORK/datasets/cifar10/                     images of an archive, as files
    WORK/splits/DATASET/SPLIT.txt              the list of a split's images, as 'crovca embed' takes it
    WORK/embeddings/ENCODER/DATASET/SPLIT/     stores; interrupted ones go on part by part
    WORK/weights.json                          which weights of each encoder all that is kept was made with

An encoder has the same weights in all of a work folder, so that nothing that is kept is ever mixed with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crovca.data.embeddings import Embeddings, evenly_spaced, load_embeddings
from crovca.data.store import MANIFEST, read_errors
from crovca.datasets.cifar10 import export_cifar10
from crovca.datasets.registry import PROTOCOLS, open_dataset
from crovca.datasets.splits import write_split
from crovca.datasets.structure import Dataset, Protocol, Split
from crovca.embedding.blocks import counted
from crovca.embedding.embed import embed
from crovca.embedding.job import Origin, read_job
from crovca.encoders.encoder import Encoder, TextEncoder, choose_device, choose_dtype, load_once
from crovca.encoders.families import ALIASES
from crovca.encoders.hub import locate, weight_files, weights_sha256
from crovca.errors import ConfigError, CrovcaError, FileFormatError, OutputExistsError
from crovca.files import atomic_file, read_json, write_json
from crovca.hashing.train import Observer, Silent
from crovca.sources.opening import open_images
from crovca.sources.source import Source

NESTED_LENGTHS = (16, 32, 64, 128, 256)
"""Lengths of the one model that ``nested`` trains instead of a model for each."""
STATISTICS = "train-sample"
"""A split beside those of the dataset: at most 65,536 evenly spaced items of "train"."""
_SAMPLE = 65_536
WEIGHTS = "weights.json"
_WEIGHTS_FORMAT = 1


class Inputs:
    """Benchmarks and embeddings, each made once and kept below one folder.

    Args:
        data: folder of all datasets, as ``crovca datasets --data`` takes it.
        work: folder for everything that is made; it is created.
        weights: for names of encoders, the folder or hub id to take instead of the known one.
        device: "auto", "cpu" or "cuda".
        dtype: that encoders compute in, as for ``Encoder.load``.
        protocols: what datasets are checked against.
        observer: is told how it goes.

    Attributes:
        left_out: for "DATASET/SPLIT", how many images could not be read, by reason.
    """

    def __init__(
        self,
        data: str | Path,
        work: str | Path,
        *,
        weights: Mapping[str, str] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        protocols: Mapping[str, Protocol] = PROTOCOLS,
        observer: Observer | None = None,
    ) -> None:
        self.data, self.work = Path(data), Path(work)
        if not self.data.is_dir():
            raise ConfigError(f"there is no folder {data}; give the folder of the datasets")
        choose_dtype(dtype, choose_device(device))
        given = {name: Path(place).expanduser() for name, place in (weights or {}).items()}
        self.weights = {n: str(place.resolve() if place.is_dir() else place) for n, place in given.items()}
        self.device, self.dtype = device, dtype
        self.protocols = protocols
        self.observer: Observer = observer or Silent()
        self.left_out: dict[str, dict[str, int]] = {}
        self._datasets: dict[str, Dataset] = {}
        self._sources: dict[tuple[str, str], Source[bytes]] = {}
        self._not_there: dict[str, CrovcaError] = {}
        self._weights: dict[str, dict[str, Any]] | None = None
        self._checksums: dict[str, str] = {}
        unknown = [name for name in self.weights if name not in ALIASES]
        if unknown:
            raise ConfigError(f"unknown encoder {unknown[0]!r}; expected some of {', '.join(ALIASES)}")

    # --- datasets ---

    def dataset(self, name: str) -> Dataset:
        """A benchmark, opened once and checked; CIFAR-10's archive is written as files first."""
        if name not in self._datasets:
            if name not in self.protocols:
                raise ConfigError(f"there is no dataset {name!r}; known are {', '.join(self.protocols)}")
            protocol = self.protocols[name]
            folder, exported = self.data / protocol.folder, self.work / "datasets" / name
            if exported.is_dir():
                folder = exported
            found = open_dataset(name, folder, protocol=protocol)
            if not found.embeddable:
                exported.parent.mkdir(parents=True, exist_ok=True)
                export_cifar10(folder, exported, protocol=protocol, progress=self.observer.advance)
                found = open_dataset(name, exported, protocol=protocol)
            for note in found.notes:
                self.observer.message(f"{name}: {note}")
            self._datasets[name] = found
        return self._datasets[name]

    def split(self, dataset: str, split: str) -> tuple[str, Split]:
        """A split and the name that it is kept under: one that equals "database" is the database."""
        splits = self.dataset(dataset).splits
        if split == STATISTICS and "train" in splits and len(splits["train"]) > _SAMPLE:
            whole = splits["train"]
            rows = evenly_spaced(len(whole), _SAMPLE)
            paths = None if whole.paths is None else whole.paths[rows]
            return split, Split(paths, None if whole.labels is None else whole.labels[rows])
        name = "train" if split == STATISTICS else split
        if name not in splits:
            raise ConfigError(f"{dataset} has no split {name!r}; it has {', '.join(splits)}")
        same = name == "train" and splits[name] is splits.get("database")
        return ("database" if same else name), splits[name]

    def source(self, dataset: str, split: str) -> Source[bytes]:
        """Images of a split with their labels; the ids are their paths below the dataset's folder."""
        name, found = self.split(dataset, split)
        if (dataset, name) not in self._sources:
            path = self._list(dataset, name, found)
            self._sources[dataset, name] = open_images(path, root=self.dataset(dataset).folder)
        return self._sources[dataset, name]

    def _list(self, dataset: str, name: str, split: Split) -> Path:
        """The split's file, written once; whoever finds another there has other data than the work."""
        path = self.work / "splits" / dataset / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else None
        with atomic_file(path) as temporary:
            write_split(temporary, split)
            if before is not None and before != temporary.read_bytes():
                raise ConfigError(
                    f"{dataset} has other images or labels in its split {name!r} than {self.work} was begun with "
                    f"({path}); give another --work"
                )
        return path

    # --- encoders ---

    def encoder(self, name: str) -> str:
        """Folder or hub id of an encoder's weights."""
        if name in self.weights:
            return self.weights[name]
        if name not in ALIASES:
            raise ConfigError(f"there is no encoder {name!r}; known are {', '.join(ALIASES)}")
        alias = ALIASES[name]
        if alias.hub_id is None:
            raise ConfigError(
                f"the weights of {name} must be converted first: {alias.how}; then --weights {name}=FOLDER"
            )
        return alias.hub_id

    def fetched(self, name: str) -> str:
        """``encoder``, after its files were found or fetched; what failed once is not tried again."""
        place = self.encoder(name)
        if name in self._not_there:
            raise self._not_there[name]
        try:
            locate(place)
        except CrovcaError as error:
            self._not_there[name] = error
            raise
        return place

    def checksum(self, name: str) -> str:
        """SHA-256 of an encoder's weights as they are now, computed once; fetched where they are not here."""
        place = self.fetched(name)
        if place not in self._checksums:
            self._checksums[place] = weights_sha256(weight_files(locate(place)))
        return self._checksums[place]

    def weights_of_work(self, name: str) -> str | None:
        """SHA-256 of the weights that ``work`` has of an encoder; None where nothing was made with it yet."""
        noted = self._noted(name)
        return None if noted is None else str(noted["weights_sha256"])

    def require_same_weights(self, name: str) -> None:
        """Refuse other weights of an encoder than those that ``work`` was begun with.

        To be called before anything that is kept is used. A folder is looked into; an id of the hub, or a folder that
        is gone, is the same if it has the same name.
        """
        noted, place = self._noted(name), self.encoder(name)
        if noted is None or (place == noted["source"] and not Path(place).is_dir()):
            return
        self._compare(name, noted, place, self.checksum(name))

    def note_weights(self, name: str, identity: Mapping[str, str | None]) -> None:
        """Bind ``work`` to weights of an encoder, before the first of what they make is kept."""
        noted, now = self._noted(name), str(identity["weights_sha256"])
        if noted is not None:
            self._compare(name, noted, self.encoder(name), now)
            return
        assert self._weights is not None
        note = {"source": self.encoder(name), "revision": identity.get("revision"), "weights_sha256": now}
        self._weights[name] = note
        self.work.mkdir(parents=True, exist_ok=True)
        write_json(self.work / WEIGHTS, {"format_version": _WEIGHTS_FORMAT, "encoders": self._weights})

    def _compare(self, name: str, noted: Mapping[str, Any], place: str, now: str) -> None:
        if now != noted["weights_sha256"]:
            raise ConfigError(
                f"{self.work} was begun with other weights of {name} ({noted['source']}, sha256 "
                f"{noted['weights_sha256'][:12]}…, now {place}, {now[:12]}…); give the same again or another --work"
            )

    def _noted(self, name: str) -> dict[str, Any] | None:
        path = self.work / WEIGHTS
        if self._weights is None:
            self._weights = _read_weights(path) if path.exists() else {}
        return self._weights.get(name)

    def embeddings(self, encoder: str, dataset: str, split: str) -> Embeddings:
        """Embeddings of a split's images by an encoder as it is; items that cannot be read are left out."""
        self.source(dataset, split)  # writes the list
        name, _ = self.split(dataset, split)
        origin = Origin(
            "images",
            str((self.work / "splits" / dataset / f"{name}.txt").resolve()),
            str(self.dataset(dataset).folder.resolve()),
        )
        folder = self.work / "embeddings" / encoder / dataset / name
        found = self.embed(encoder, origin, folder)
        self.note_left_out(f"{dataset}/{name}", Counter(error.reason for error in read_errors(folder)))
        return found

    def embed(self, encoder: str, origin: Origin, folder: Path) -> Embeddings:
        """A store of embeddings of images or texts, made or finished as far as it is not there.

        The modality of ``origin`` says which of the encoder's towers.
        """
        self.require_same_weights(encoder)
        place, source, begun = self.encoder(encoder), origin.open(), read_job(folder)
        same = begun is not None and (begun.encoder, begun.fingerprint) == (place, source.fingerprint)
        if same and (folder / MANIFEST).exists():
            return load_embeddings(folder)
        self.fetched(encoder)
        kind: Any = Encoder if origin.modality == "images" else TextEncoder
        self.note_weights(encoder, load_once(kind, place, device=self.device, dtype=self.dtype).identity)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # float16 is too small for some encoders
            found = embed(
                origin, place, folder, stored="float32", device=self.device, dtype=self.dtype, observer=self.observer
            )
        except OutputExistsError as error:
            raise ConfigError(f"{error}; here: another --work") from error
        return found.embeddings

    def note_left_out(self, where: str, reasons: Mapping[str, int]) -> None:
        """Say once how many images of "DATASET/SPLIT" could not be read."""
        if reasons and where not in self.left_out:
            self.left_out[where] = dict(reasons)
            self.observer.message(f"{where}: {sum(reasons.values()):,} left out ({counted(dict(reasons))})")


def _read_weights(path: Path) -> dict[str, dict[str, Any]]:
    content = read_json(path, "note of the weights")
    version, found = content.get("format_version"), content.get("encoders")
    if version != _WEIGHTS_FORMAT:
        raise FileFormatError(
            f"{path}: note of format version {version!r}, this crovca reads {_WEIGHTS_FORMAT}; give another --work"
        )
    if not isinstance(found, dict) or not all(
        isinstance(note, dict) and all(isinstance(note.get(key), str) for key in ("source", "weights_sha256"))
        for note in found.values()
    ):
        raise FileFormatError(f"{path} (the note of the weights) is damaged; give another --work")
    return found


def slice_source(source: Source[Any], start: int, end: int) -> Source[Any]:
    """Items ``start`` to ``end`` of a source, numbered from 0."""

    def cut(values: Any) -> Any:
        return None if values is None else values[start:end]

    return replace(
        source,
        ids=source.ids[start:end],
        fetch=lambda row: source.fetch(start + row),
        labels=cut(source.labels),
        paths=cut(source.paths),
        captions=cut(source.captions),
        faults={row - start: fault for row, fault in source.faults.items() if start <= row < end},
    )
