"""An archive: a folder of pictures and, elsewhere, all that is known of it, kept in step by ``sync``.

    ARCHIVE/archive.json     what it is of: root, encoder, bits
    ARCHIVE/index/           codes, model, int8 embeddings, metadata; whoever searches needs nothing else
    ARCHIVE/state.json       files that could not be read, so that they are not tried again before more formats can be;
                             its table's hash
    ARCHIVE/sync.partial/    embeddings of a round that was not finished

What was seen of a file (bytes, time of change, content hash) are columns of its own row in the index. So a file is
known as soon as its code is, and a sync that is killed at any moment is gone on with by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
import pyarrow as pa

from crovca import files
from crovca.archive import pictures
from crovca.archive.folder import MARKER, OF_SYNC
from crovca.archive.ingest import encoder_of
from crovca.codes import Codes, check_bits
from crovca.data.embeddings import Rows, evenly_spaced
from crovca.data.store import read_errors
from crovca.embedding.embed import embed
from crovca.encoders.hub import check_name
from crovca.errors import ConfigError, FileFormatError, InvalidInputError, StorageError
from crovca.hasher import Hasher
from crovca.hasher.drift import Drift
from crovca.hashing.train import Observer, Silent
from crovca.index.index import HashIndex
from crovca.index.manifest import WriterLock
from crovca.index.metadata import columns_of, read_table
from crovca.index.origin import Origin
from crovca.index.originals import Keep, Loss
from crovca.sources import folders
from crovca.sources.decode import UnreadableItem, readable_formats
from crovca.sources.source import Source, build_source, read_file

_FORMAT = 1
_ROUND = 4096  # files that are embedded, and then in the index for good
_SAMPLE = 512  # of a round, to see whether it lies outside of what was learned
_KEEP: Keep = "int8"
_SETTINGS: dict[str, Any] = {"root": str, "encoder": str, "revision": str | None, "bits": int, "metadata": str | None}

_OF_FILE = pa.schema([
    ("folder", pa.large_string()), ("file", pa.large_string()), ("size", pa.int64()), ("width", pa.int64()),
    ("height", pa.int64()), ("taken", pa.timestamp("s")), ("latitude", pa.float64()), ("longitude", pa.float64()),
])  # fmt: skip
_OF_SYNC = pa.schema(list(zip(OF_SYNC, (pa.int64(), pa.int64(), pa.large_string()), strict=True)))
_TAKEN = {"id", *_OF_FILE.names, *_OF_SYNC.names}


@dataclass(frozen=True)
class Seen:
    """What tells that a file is the one that it was: bytes, time of change and that of its sidecar in ns, or None."""

    size: int
    modified: int
    sidecar: int | None


@dataclass(frozen=True)
class LeftOut:
    """A file that is not in the archive, and why."""

    id: str
    reason: str
    detail: str


@dataclass
class Plan:
    """What a sync would do.

    Attributes:
        seen: all picture files below the root.
        left_out: files that cannot be read: those that have not changed since that was found.
        new, changed: files to embed.
        touched: files whose content is what it was, while their time, sidecar or table of metadata is not.
        moved: new name to the old one, of the same content.
        gone: ids of files that are not there any more, the moved ones among them.
        unchanged: how many files are as they were.
    """

    seen: dict[str, Seen]
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0

    def counts(self) -> dict[str, int]:
        """How many files of each kind; those that were moved are not gone."""
        return {
            "new": len(self.new),
            "changed": len(self.changed),
            "moved": len(self.moved),
            "removed": len(self.gone) - len(self.moved),
            "touched": len(self.touched),
            "unchanged": self.unchanged,
        }


@dataclass(frozen=True)
class Synced:
    """What a sync did: the plan, what was left out now and before, the items there are now, and seconds."""

    plan: Plan
    left_out: list[LeftOut]
    items: int
    seconds: float


class Archive:
    """See the module. Open one with ``open``, make one with ``create``.

    Attributes:
        path: its folder.
        root: the folder of pictures; ids are paths below it.
        encoder, revision: what makes embeddings.
        bits: of a code.
        metadata: a table (.csv, .parquet) with more columns, by a column "id", or None.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.root = Path(settings["root"])
        self.encoder: str = settings["encoder"]
        self.revision: str | None = settings["revision"]
        self.bits: int = settings["bits"]
        self.metadata = None if settings["metadata"] is None else Path(settings["metadata"])

    @classmethod
    def create(
        cls,
        root: str | Path,
        encoder: str,
        path: str | Path,
        *,
        revision: str | None = None,
        bits: int = 64,
        metadata: str | Path | None = None,
    ) -> Self:
        """Make an archive of a folder; nothing is embedded yet.

        Raises:
            FileFormatError: ``root`` is no folder, or ``metadata`` no table.
            OutputExistsError: something stands at ``path``.
            ConfigError: the archive would lie in its own pictures, a column has a name that is taken, or ``encoder``
                is neither a folder nor an id.
        """
        path, root = Path(path), Path(root)
        if not root.is_dir():
            raise FileFormatError(f"{root} is no folder; give the one that the pictures lie in")
        files.check_output(path, force=False)
        if path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"{path} lies among the pictures of {root}; keep the archive elsewhere")
        check_name(encoder, revision)
        if metadata is not None:
            _read_metadata(Path(metadata))
        # A folder is remembered as it was named from the top: the archive is used from other places, too.
        settings = {
            "root": str(root.resolve()),
            "encoder": str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder,
            "revision": revision,
            "bits": check_bits(bits),
            "metadata": None if metadata is None else str(Path(metadata).resolve()),
        }
        with files.atomic_directory(path, new=True) as folder:
            files.write_json(folder / MARKER, {"format_version": _FORMAT, **settings})
        return cls(path, settings)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an archive.

        Raises:
            FileFormatError: ``path`` is none, or one of another version.
        """
        path = Path(path)
        if not (path / MARKER).is_file():
            raise FileFormatError(f"{path} is no archive: it has no {MARKER}; make one with 'crovca archive init'")
        content = files.read_json(path / MARKER, "archive")
        if content.get("format_version") != _FORMAT:
            raise FileFormatError(
                f"{path / MARKER} has the format {content.get('format_version')!r}, expected {_FORMAT}"
            )
        for name, kind in _SETTINGS.items():
            if name not in content or not isinstance(content[name], kind) or isinstance(content[name], bool):
                raise FileFormatError(f"{path / MARKER}: {name!r} is missing or of another kind than {kind}")
        check_bits(content["bits"])
        return cls(path, content)

    @property
    def index(self) -> Path:
        """The folder of its index, which is there after the first sync."""
        return self.path / "index"

    # --- planning ---

    def plan(self, *, allow_empty: bool = False) -> Plan:
        """Compare the files below the root with what the index knows.

        Files of the size of one that is gone, and those whose time alone has changed, are read for their content hash.

        Raises:
            StorageError: the root is not there, cannot be read, or holds no pictures any more (unless ``allow_empty``).
        """
        known = self._known()
        plan = Plan(*self._scan(known, allow_empty=allow_empty))
        plan.gone = [name for name in known if name not in plan.seen]
        sizes = {known[name][0].size for name in plan.gone}
        by_content = {known[name][1]: name for name in plan.gone}
        same = self._state().get("formats") == list(readable_formats())  # where not, what was left out may be read now
        for fault in self._faults() if same else []:
            if plan.seen.get(fault[0]) == fault[1]:
                plan.left_out[fault[0]] = fault[2]
        for name, seen in plan.seen.items():
            if name in plan.left_out:
                continue
            if name not in known:
                content = self._hash(name) if seen.size in sizes else None
                if content in by_content:
                    plan.moved[name] = by_content.pop(content)
                else:
                    plan.new.append(name)
            elif known[name][0] == seen:
                plan.unchanged += 1
            elif known[name][0].size == seen.size and known[name][1] == self._hash(name):
                plan.touched.append(name)
            else:
                plan.changed.append(name)
        return plan

    def _scan(self, known: Mapping[str, Any], *, allow_empty: bool) -> tuple[dict[str, Seen], dict[str, LeftOut]]:
        if not self.root.is_dir():
            raise StorageError(f"{self.root} is not there; is its disk mounted? Nothing was changed")
        found, others = folders.scan(self.root)
        if not found and known and not allow_empty:
            raise StorageError(
                f"{self.root} holds no pictures, while the archive knows {len(known):,}; is its disk mounted? "
                "Nothing was changed (--allow-empty removes them all)"
            )
        beside = {name[: -len(".json")] for name in others if name.endswith(".json")}
        seen, nameless = {}, {}
        for file in found:
            sidecar = None
            if (id := file.name.encode("utf-8", "backslashreplace").decode()) != file.name:
                nameless[id] = LeftOut(id, "bad name", "the name is not UTF-8")
                continue
            if file.name in beside:
                sidecar = _modified(self.root / f"{file.name}.json")
            seen[file.name] = Seen(file.size, file.modified, sidecar)
        return seen, nameless

    def _known(self) -> dict[str, tuple[Seen, str]]:
        """What the index knows of each file: how it was seen, and its content hash."""
        if not self.index.exists():
            return {}
        with HashIndex.open(self.index) as opened:
            view = opened.view()
            rows = view.live()
            table = view.metadata(rows)
            if table is None or not {"size", *_OF_SYNC.names} <= set(table.column_names):
                if len(rows):
                    raise FileFormatError(
                        f"{self.index} was not made by a sync: it does not know its files; build it anew"
                    )
                return {}
            columns = (table.column(name).to_pylist() for name in ("size", "modified", "sidecar", "sha256"))
            return {
                str(name): (Seen(*rest), content)
                for name, *rest, content in zip(view.ids(rows).tolist(), *columns, strict=True)
            }

    def _hash(self, name: str) -> str | None:
        try:
            return files.sha256(self.root / name)
        except (StorageError, FileFormatError):  # what is wrong with it is said where it is embedded
            return None

    # --- doing ---

    def sync(self, *, device: str = "auto", allow_empty: bool = False, observer: Observer | None = None) -> Synced:
        """Embed what is new or changed, keep what was moved, remove what is gone; raises as ``plan`` and ``embed``.

        The first sync learns a model from its first files. What was embedded stays, whenever the process ends: files go
        into the index in rounds, and the next sync goes on.
        """
        started = time.perf_counter()
        observer = observer or Silent()
        with WriterLock(self.path):
            plan = self.plan(allow_empty=allow_empty)
            extra = None if self.metadata is None else _read_metadata(self.metadata)
            table = None if self.metadata is None else files.sha256(self.metadata)
            if extra is not None and not any(str(id) in plan.seen for id in extra["id"].to_pylist()):
                observer.message(
                    f"no picture is in {self.metadata}: an id there is the path below {self.root}, such as "
                    f"{next(iter(plan.seen), 'folder/1.jpg')!r}"
                )
            others_too = self.index.exists() and table != self._state().get("metadata")
            work = [*plan.changed, *plan.new]
            if not self.index.exists():  # the model learns from the first round: it has to see of every folder
                Random(0).shuffle(work)
            faults = dict(plan.left_out)
            done, noticed = 0, _Noticed()
            for names in _rounds(work):
                observer.advance(f"{len(work):,} files", done / len(work))
                faults |= self._embed(names, plan, extra, device, noticed, _Part(observer, done, len(names), len(work)))
                done += len(names)
                self._keep_state(faults, plan, self._state().get("metadata"))
            items = self._rearrange(plan, extra, faults, others_too=others_too)
            self._keep_state(faults, plan, table)
            files.remove(self.path / "sync.partial")
        if noticed.drift is not None and noticed.drift.much:
            observer.message(
                f"{noticed.drift.sentence('of the new pictures')}: learn anew with 'crovca archive refit {self.path}'"
            )
        if noticed.loss.items:
            observer.message(noticed.loss.sentence(_KEEP))
        return Synced(plan, sorted(faults.values(), key=lambda fault: fault.id), items, time.perf_counter() - started)

    def _embed(
        self,
        names: Sequence[str],
        plan: Plan,
        extra: pa.Table | None,
        device: str,
        noticed: _Noticed,
        observer: Observer,
    ) -> dict[str, LeftOut]:
        """Embed one round and put it into the index; what could not be read."""
        store = self.path / "sync.partial"
        known: dict[str, dict[str, Any]] = {}

        def fetch(row: int) -> bytes:
            data = read_file(self.root / names[row])
            known[names[row]] = _facts(data)
            return data

        source: Source[bytes] = build_source(
            "archive", names, fetch, (f"{name}\0{plan.seen[name].size}\0{plan.seen[name].modified}" for name in names)
        )
        try:
            made = embed(
                source, self.encoder, store, revision=self.revision, device=device, force=True, observer=observer
            )
        except InvalidInputError:
            faults = read_errors(store) if store.is_dir() else []
            if len(faults) < len(names):
                raise
            return {name: LeftOut(name, fault.reason, fault.detail) for name, fault in zip(names, faults, strict=True)}
        found = made.embeddings
        assert found.ids is not None
        ids = found.ids.astype(np.str_)
        for name in ids.tolist():
            if name not in known:  # embedded by a sync that was stopped
                known[name] = self._facts_now(name)
        rows = [{**_of_name(name), **known[name], **vars(plan.seen[name])} for name in ids.tolist()]
        table = self._table(ids.tolist(), rows, extra)
        self._put(ids, found.values, table, encoder_of(store), device, noticed, observer)
        left_out = {str(one.id): LeftOut(str(one.id), one.reason, one.detail) for one in made.left_out}
        files.remove(store)
        return left_out

    def _facts_now(self, name: str) -> dict[str, Any]:
        try:
            return _facts(read_file(self.root / name))
        except UnreadableItem:  # gone meanwhile: the next sync sees that it is another file, or none
            return _facts(b"")

    def _put(
        self,
        ids: Any,
        values: Rows,
        table: pa.Table,
        encoder: dict[str, Any] | None,
        device: str,
        noticed: _Noticed,
        observer: Observer,
    ) -> None:
        def write(opened: HashIndex, hasher: Hasher) -> None:
            codes = hasher.encode(values, self.bits)
            opened.upsert(ids, codes, table, values, origin=Origin(hasher.fingerprint, encoder))
            noticed.loss = noticed.loss.joined(opened.loss)

        if self.index.exists():
            with HashIndex.open(self.index, writable=True) as opened:
                hasher = Hasher.load(opened.model_folder, device=device)
                if hasher.towers_.coders[0].gate is not None:
                    found = hasher.drift(values[evenly_spaced(len(ids), _SAMPLE)])
                    noticed.drift = found if noticed.drift is None else noticed.drift.joined(found)
                write(opened, hasher)
            return
        observer.message(f"learning codes of {self.bits} bits from the first {len(ids):,} pictures, without labels")
        hasher = Hasher(bits=self.bits, device=device).fit(values, observer=observer)
        with files.atomic_directory(self.index, new=True) as folder:
            options: dict[str, Any] = {"encoder": encoder, "model": hasher.fingerprint, "keep": _KEEP}
            with HashIndex.create(folder, self.bits, **options) as opened:
                hasher.save(opened.model_folder)
                write(opened, hasher)

    def _table(self, ids: list[str], rows: list[dict[str, Any]], extra: pa.Table | None) -> pa.Table:
        """Metadata: what the files say, what their sidecars and the table of metadata say."""
        table = pa.Table.from_pylist(rows, pa.unify_schemas([_OF_FILE, _OF_SYNC]))
        taken = set(_TAKEN)
        if extra is not None:
            found, _ = columns_of(np.array(ids), extra)
            for name in found.column_names:
                table = table.append_column(name, found.column(name))
                taken.add(name.lower())
        said = [
            pictures.sidecar(self.root / f"{name}.json", taken) if row["sidecar"] is not None else {}
            for name, row in zip(ids, rows, strict=True)
        ]
        spelled: dict[str, str] = {}  # SQL does not tell case apart
        for one in said:
            for key in one:
                spelled.setdefault(key.lower(), key)
        for lower, key in spelled.items():
            values = [next((text for name, text in one.items() if name.lower() == lower), None) for one in said]
            table = table.append_column(key, pa.array(values, pa.large_string()))
        return table

    def _rearrange(self, plan: Plan, extra: pa.Table | None, faults: Mapping[str, LeftOut], *, others_too: bool) -> int:
        """Give moved files their new ids, touched ones (or all) their new facts, and let go of those that are gone."""
        if not self.index.exists():
            return 0
        with HashIndex.open(self.index, writable=True) as opened:
            sources = {**plan.moved, **{name: name for name in plan.touched}}
            if others_too:  # the table of metadata is another one
                view = opened.view()
                known = {str(name) for name in view.ids(view.live()).tolist()}
                sources |= {name: name for name in known - set(plan.gone)}
            for names in _rounds(list(sources)):
                self._copy(opened, names, [sources[name] for name in names], plan, extra)
            unreadable = [name for name in plan.changed if name in faults]  # what it was is not there any more
            opened.delete(np.array([*plan.gone, *unreadable], np.str_))
            if sum(segment.entry.deleted for segment in opened.view().segments) > len(opened) // 4:
                opened.compact()
            return len(opened)

    def _copy(
        self, opened: HashIndex, names: Sequence[str], before: Sequence[str], plan: Plan, extra: pa.Table | None
    ) -> None:
        """Write rows again under these names, with the codes and embeddings that ``before`` have."""
        view = opened.view()
        rows = view.find_all(np.array(before, np.str_))
        table = view.metadata(rows)
        assert table is not None
        kept = table.select(_OF_FILE.names + _OF_SYNC.names).to_pylist()
        facts = [{**old, **_of_name(name), **vars(plan.seen[name])} for name, old in zip(names, kept, strict=True)]
        codes: Codes = view.codes(rows)
        opened.upsert(
            np.array(names, np.str_), codes, self._table(list(names), facts, extra), view.originals().take(rows)
        )

    # --- what is kept beside the index ---

    def left_out(self) -> list[LeftOut]:
        """Files that could not be read, as of the last sync."""
        return [fault for _, _, fault in self._faults()]

    def _state(self) -> dict[str, Any]:
        file = self.path / "state.json"
        return files.read_json(file, "state of the archive") if file.exists() else {}

    def _faults(self) -> list[tuple[str, Seen, LeftOut]]:
        try:
            found = self._state().get("left_out", [])
            return [(str(name), Seen(*seen), LeftOut(str(name), *why)) for name, seen, why in found]
        except (TypeError, ValueError):
            return []  # they are tried again

    def _keep_state(self, faults: Mapping[str, LeftOut], plan: Plan, metadata: str | None) -> None:
        left_out = [
            [name, list(vars(plan.seen[name]).values()), [one.reason, one.detail]]
            for name, one in sorted(faults.items())
            if name in plan.seen
        ]
        state = {"metadata": metadata, "formats": list(readable_formats()), "left_out": left_out}
        files.write_json(self.path / "state.json", state)


@dataclass
class _Noticed:
    """What the rounds of a sync find out, to be said once: how far new pictures lie from what was learned, and what
    keeping their embeddings loses."""

    drift: Drift | None = None
    loss: Loss = field(default_factory=Loss)


class _Part:
    """An observer of one round, which is a part of the whole."""

    def __init__(self, whole: Observer, done: int, count: int, total: int) -> None:
        self._whole, self._done, self._count, self._total = whole, done, count, total

    def advance(self, stage: str, share: float) -> None:
        """Embedding is the whole's work; the rest has its own name."""
        if stage.startswith("embedding"):
            stage, share = f"{self._total:,} files", (self._done + share * self._count) / self._total
        self._whole.advance(stage, share)

    def progress(self, state: Any) -> None:
        """Of training."""
        self._whole.progress(state)

    def message(self, text: str) -> None:
        """What a person should know."""
        self._whole.message(text)


def _rounds(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _ROUND):
        yield names[start : start + _ROUND]


def _modified(file: Path) -> int | None:
    """When a file was changed, in ns; None of one that is not there, as of a link that leads nowhere."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _of_name(name: str) -> dict[str, str]:
    folder, _, file = name.rpartition("/")
    return {"folder": folder, "file": file}


def _facts(data: bytes) -> dict[str, Any]:
    return {**pictures.described(data), "sha256": sha256(data).hexdigest()}


def _read_metadata(path: Path) -> pa.Table:
    table = read_table(path)
    wrong = [name for name in table.column_names if name != "id" and name.lower() in _TAKEN]
    if wrong:
        raise ConfigError(f"{path}: the column {wrong[0]!r} is one that an archive knows by itself; rename it")
    return table
