"""Stores: a folder of embeddings in parts, for sets that do not fit in memory.

::

    STORE/job.json                      what ``crovca embed`` was asked for, written first (only of embedded stores)
    STORE/manifest.json                 format version, encoder, d, v, dtype, seed, batch size, parts with the checksums
                                        of their files, a checksum of all this; written last
    STORE/part-00000/embeddings.npy     (rows, d) or (rows, v, d)
    STORE/part-00000/items.parquet      id, labels, path, caption, note, as far as they are known
    STORE/part-00000/errors.parquet     items that are left out, if any: id, path, reason, detail

A store may come from anybody. Names of parts are by pattern, sizes are compared with what the manifest and the headers
say before anything is read, and the manifest's checksum is verified whenever a store is opened. Those of the parts are
verified by ``verify_store``, which reads all of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.columns import ID_NAMES, arrow_array, column, name_among, open_table, read_table
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.files import atomic_directory, check_output, open_npy, read_json, sha256, write_json

FORMAT_VERSION = 1
MANIFEST, JOB = "manifest.json", "job.json"
_ERROR_COLUMNS = ("id", "path", "reason", "detail")
_FILES = ("embeddings.npy", "items.parquet", "errors.parquet")
_NAME = re.compile(r"part-[0-9]{5,9}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ROWS = 1 << 40


@dataclass(frozen=True)
class Part:
    """A part as a manifest lists it: its folder, how many items it has, and the checksums of its files by name.

    ``checksums`` is None in stores that were written before there were any.
    """

    folder: Path
    rows: int
    checksums: Mapping[str, str] | None


@dataclass(frozen=True)
class ItemError:
    """An item that is not in a store, and why.

    Attributes:
        id: as it would have been in the store.
        path: where it was found, or None where the id says it.
        reason: one of ``crovca.sources.decode.REASONS``.
        detail: what exactly was found.
    """

    id: str | int
    path: str | None
    reason: str
    detail: str


class PartedArray:
    """Several arrays one after the other, seen as one; rows are read when they are asked for."""

    def __init__(self, parts: list[npt.NDArray[Any]]) -> None:
        if len({(part.shape[1:], part.dtype) for part in parts}) != 1:
            raise InvalidInputError("the parts of an array must agree in width and dtype")
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d) or (n, v, d)."""
        return (int(self._ends[-1]), *self._parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers, the same in every part."""
        return self._parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Copy these rows (a slice, or an array of row numbers) into memory."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in [0, {len(self)})")
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner):
            mine = owner == number
            part = self._parts[number]
            _check_length(part)
            result[mine] = part[rows[mine] - (self._ends[number] - len(part))]
        return result


def open_store(
    path: Path, *, with_ids: bool = True
) -> tuple[PartedArray, npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Open a store memory-mapped: its embeddings, labels and ids (None without, or unless ``with_ids``)."""
    arrays, labels, ids = [], [], []
    manifest, parts = _read_manifest(path)
    for part in parts:
        folder = part.folder
        array, names = _open_part(part, manifest)
        if not part.rows:  # no item of the part could be read
            continue
        arrays.append(array)
        id_name = name_among(names, ID_NAMES, folder) if with_ids else None
        wanted = [name for name in (id_name, "labels") if name is not None and name in names]
        table = read_table(folder / "items.parquet", wanted) if wanted else None
        if id_name is not None:
            ids.append(column(table, id_name, folder))
        if "labels" in wanted:
            labels.append(column(table, "labels", folder))
    if not arrays:
        raise FileFormatError(f"{path}: the store holds no item")
    for name, found in (("labels", labels), ("ids", ids)):
        if found and len(found) != len(arrays):
            raise FileFormatError(f"{path}: some parts have {name} and others have none")
    try:
        joined = [np.concatenate(found) if found else None for found in (labels, ids)]
        return PartedArray(arrays), joined[0], joined[1]
    except ValueError as error:  # of another width, dtype or number of classes
        raise FileFormatError(f"{path}: the parts do not fit together: {error}") from error


def _open_part(part: Part, manifest: dict[str, Any]) -> tuple[npt.NDArray[Any], list[str]]:
    """The embeddings of a part, mapped, and the names of its columns; sizes are compared with the manifest."""
    array = open_npy(part.folder / "embeddings.npy")
    items = open_table(part.folder / "items.parquet")
    if array.ndim not in (2, 3):
        raise FileFormatError(f"{part.folder}: embeddings must have shape (n, d) or (n, v, d), got {array.shape}")
    if not len(array) == items.metadata.num_rows == part.rows:
        raise FileFormatError(
            f"{part.folder}: {len(array)} embeddings and {items.metadata.num_rows} items, the manifest says {part.rows}"
        )
    for name, value in _facts(array).items():
        if part.rows and manifest.get(name, value) != value:
            raise FileFormatError(f"{part.folder}: {name} is {value!r}, the manifest says {manifest[name]!r}")
    return array, list(items.schema_arrow.names)


def _facts(array: npt.NDArray[Any]) -> dict[str, Any]:
    """What a manifest says of embeddings."""
    return {"d": array.shape[-1], "v": array.shape[1] if array.ndim == 3 else 1, "dtype": str(array.dtype)}


def store_parts(path: Path) -> list[Part]:
    """The parts of a finished store.

    Raises:
        FileFormatError: no store, an unfinished one, one of a newer format, or a damaged manifest.
    """
    return _read_manifest(path)[1]


def verify_store(path: Path) -> list[str]:
    """Compare every file of a store with the checksums in its manifest; all of it is read.

    Gives a line for each file that is not what was written.
    """
    problems = []
    for part in store_parts(path):
        if part.checksums is None:
            raise FileFormatError(
                f"{path} was written without checksums, so there is nothing to compare with; embed it again"
            )
        for name, expected in part.checksums.items():
            where = f"{part.folder.name}/{name}"
            try:
                if sha256(part.folder / name) != expected:
                    problems.append(f"{where} has changed since it was written")
            except (FileFormatError, StorageError) as error:
                problems.append(f"{where} cannot be read ({error})")
        problems += [
            f"{part.folder.name}/{name} was added after the store was written"
            for name in _FILES
            if name not in part.checksums and (part.folder / name).exists()
        ]
    return problems


def _read_manifest(path: Path) -> tuple[dict[str, Any], list[Part]]:
    if not (path / MANIFEST).exists() and (path / JOB).exists():
        raise FileFormatError(
            f"{path} is unfinished ({len(list(path.glob('part-?????')))} parts are done); "
            "give the same 'crovca embed' command again to finish it"
        )
    if not (path / MANIFEST).exists():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        hint = "; it is a saved dataset: write its embeddings with dataset.to_parquet()" if saved else ""
        raise FileFormatError(f"{path} is no store of embeddings: it has no {MANIFEST}{hint}")
    manifest = read_json(path / MANIFEST, "embedding store")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise FileFormatError(
            f"{path}: store of format version {version!r}, this crovca reads {FORMAT_VERSION}; "
            "upgrade crovca or write the store again"
        )
    listed = manifest.get("parts")
    if not isinstance(listed, list) or not listed:
        raise FileFormatError(f"{path}: the manifest lists no parts; was the store finished?")
    parts = [_part(path, described) for described in listed]
    if len({part.folder for part in parts}) < len(parts):
        raise FileFormatError(f"{path}: the manifest lists a part twice; it is damaged")
    checked = [part for part in parts if part.checksums is not None]
    if (manifest.get("sha256") is None) != (not checked) or len(checked) not in (0, len(parts)):
        raise FileFormatError(f"{path}: some checksums are missing in its manifest; it is damaged")
    if checked and manifest["sha256"] != _checksum(manifest):
        raise FileFormatError(f"{path}: the manifest does not have the checksum it says; it was changed or is damaged")
    return manifest, parts


def _part(path: Path, described: Any) -> Part:
    if not isinstance(described, dict) or not {"name", "rows"} <= set(described):
        raise FileFormatError(f"{path}: the manifest lists a part without 'name' and 'rows': {str(described)[:80]}")
    name, rows, checksums = described["name"], described["rows"], described.get("sha256")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FileFormatError(f"{path}: the manifest lists a part named {str(name)[:80]!r}, expected {part_name(0)!r}")
    if not isinstance(rows, int) or isinstance(rows, bool) or not 0 <= rows <= _MAX_ROWS:
        raise FileFormatError(f"{path}: {name} has {str(rows)[:80]!r} rows in the manifest, expected a whole number")
    if checksums is not None and not (
        isinstance(checksums, dict)
        and set(_FILES[:2]) <= set(checksums) <= set(_FILES)
        and all(isinstance(value, str) and _SHA256.fullmatch(value) for value in checksums.values())
    ):
        raise FileFormatError(f"{path}: the checksums of {name} in the manifest are none; it is damaged")
    return Part(path / name, rows, checksums)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_length(array: npt.NDArray[Any]) -> None:
    """Refuse to read a mapped file that became shorter: the system would kill the process (SIGBUS)."""
    if isinstance(array, np.memmap) and array.filename is not None:
        try:
            found = Path(array.filename).stat().st_size
        except OSError:  # removed or replaced: what is mapped stays
            return
        if found < array.offset + array.nbytes:
            raise FileFormatError(f"{array.filename} was truncated to {found:,} bytes while it was read")


def part_name(number: int) -> str:
    """Name of a part's folder."""
    return f"part-{number:05d}"


def part_rows(part: Path) -> int | None:
    """Number of items in a part that is whole; None where it is missing or damaged."""
    try:
        rows = len(open_npy(part / "embeddings.npy"))
        return rows if open_table(part / "items.parquet").metadata.num_rows == rows else None
    except (FileFormatError, StorageError):
        return None


def write_part(
    part: Path, values: npt.NDArray[Any], columns: Mapping[str, Any], errors: Sequence[ItemError] = ()
) -> None:
    """Write one part into an existing folder. The same arguments give the same bytes.

    Args:
        part: the folder.
        values: (rows, d) or (rows, v, d).
        columns: of items.parquet, each with one value an item: arrays (multi-hot labels in two dimensions), or lists in
            which None is a missing text.
        errors: items that are not in ``values``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def as_column(content: Any) -> Any:
        if isinstance(content, list):
            return pa.array(content, pa.string())
        return pa.array(list(content)) if content.ndim == 2 else arrow_array(content)

    np.save(part / "embeddings.npy", values, allow_pickle=False)
    table = pa.table({name: as_column(content) for name, content in columns.items()})
    pq.write_table(table, part / "items.parquet", write_page_checksum=True)
    if errors:
        rows = {name: [getattr(error, name) for error in errors] for name in _ERROR_COLUMNS}
        described = {name: pa.array(rows[name], pa.string()) for name in _ERROR_COLUMNS[1:]}
        table = pa.table({"id": pa.array(rows["id"]), **described})
        pq.write_table(table, part / "errors.parquet", write_page_checksum=True)


def write_manifest(path: Path, rows: Sequence[int], values: Mapping[str, Any]) -> None:
    """Declare a store finished: its parts hold these numbers of items; ``values`` is what else is known.

    The files of the parts are read once more, for their checksums.
    """
    parts = []
    for number, count in enumerate(rows):
        files = [path / part_name(number) / name for name in _FILES]
        checksums = {file.name: sha256(file) for file in files if file.exists()}
        parts.append({"name": part_name(number), "rows": count, "sha256": checksums})
    manifest = {"format_version": FORMAT_VERSION, **values, "parts": parts}
    write_json(path / MANIFEST, {**manifest, "sha256": _checksum(json.loads(json.dumps(manifest)))})


def read_errors(path: Path) -> list[ItemError]:
    """Every item that a store, finished or not, lists as left out, in the order of the source."""
    found: list[ItemError] = []
    for file in sorted(path.glob("part-?????/errors.parquet")):
        table = read_table(file)
        missing = [name for name in _ERROR_COLUMNS if name not in table.column_names]
        if missing:
            raise FileFormatError(f"{file} has no column {missing[0]!r}; found {table.column_names}")
        found += [ItemError(**row) for row in table.select(list(_ERROR_COLUMNS)).to_pylist()]
    return found


def save_store(
    path: Path,
    values: npt.NDArray[Any],
    *,
    ids: npt.NDArray[Any] | None = None,
    labels: npt.NDArray[Any] | None = None,
    shard_size: int = 65536,
    encoder: str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    force: bool = False,
) -> None:
    """Write embeddings (n, d) or (n, v, d) as a store, atomically."""
    check_output(path, force=force, marker=MANIFEST)
    with atomic_directory(path) as folder:
        counts: list[int] = []
        for start in range(0, len(values), shard_size):
            rows = slice(start, start + shard_size)
            part = folder / part_name(len(counts))
            part.mkdir()
            counts.append(len(values[rows]))
            numbers = np.arange(start, start + counts[-1])
            columns = {"row": numbers} if ids is None else {"id": ids[rows]}
            if labels is not None:
                columns["labels"] = labels[rows]
            write_part(part, values[rows], columns)
        described = {"encoder": encoder, **_facts(values), "seed": seed, "batch_size": batch_size}
        write_manifest(folder, counts, described)
