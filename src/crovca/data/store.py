"""Stores: a folder of embeddings in parts, for sets that do not fit in memory.

::

    STORE/job.json                      what ``crovca embed`` was asked for, written first (only of embedded stores)
    STORE/manifest.json                 format version, encoder, d, v, dtype, seed, batch size, parts; written last
    STORE/part-00000/embeddings.npy     (rows, d) or (rows, v, d)
    STORE/part-00000/items.parquet      id, labels, path, caption, note, as far as they are known
    STORE/part-00000/errors.parquet     items that are left out, if any: id, path, reason, detail
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import column, open_npy, read_table
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import atomic_directory, check_output, read_json, write_json

__all__ = [
    "FORMAT_VERSION",
    "JOB",
    "MANIFEST",
    "ItemError",
    "PartedArray",
    "open_store",
    "part_name",
    "part_rows",
    "read_errors",
    "save_store",
    "store_parts",
    "write_manifest",
    "write_part",
]

FORMAT_VERSION = 1
MANIFEST, JOB = "manifest.json", "job.json"
_ERROR_COLUMNS = ("id", "path", "reason", "detail")


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
    """Several arrays one after the other, seen as one; rows are read when they are asked for.

    Args:
        parts: arrays or memory maps that agree in all but their length.
    """

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
            start = self._ends[number] - len(self._parts[number])
            result[mine] = self._parts[number][rows[mine] - start]
        return result


def open_store(
    path: Path, *, with_ids: bool = True
) -> tuple[PartedArray, npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Open a store memory-mapped: its embeddings, labels and ids (None without, or unless ``with_ids``).

    Raises:
        FileFormatError: the manifest or a part is missing, damaged, of a newer format, or does not fit.
    """
    arrays, labels, ids = [], [], []
    for folder, rows in store_parts(path):
        array = open_npy(folder / "embeddings.npy")
        table = read_table(folder / "items.parquet")
        if array.ndim not in (2, 3):
            raise FileFormatError(
                f"{folder}: embeddings must have shape (n, d) or (n, v, d), got {array.shape}"
            )
        if not len(array) == table.num_rows == rows:
            raise FileFormatError(
                f"{folder}: {len(array)} embeddings and {table.num_rows} items, the manifest says {rows}"
            )
        if not rows:  # no item of the part could be read
            continue
        arrays.append(array)
        if with_ids and "id" in table.column_names:
            ids.append(column(table, "id", folder))
        if "labels" in table.column_names:
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


def store_parts(path: Path) -> list[tuple[Path, int]]:
    """The parts of a finished store: their folders and numbers of items.

    Raises:
        FileFormatError: no store, an unfinished one, one of a newer format, or a damaged manifest.
    """
    if not (path / MANIFEST).exists() and (path / JOB).exists():
        raise FileFormatError(
            f"{path} is unfinished ({len(list(path.glob('part-?????')))} parts are done); "
            "give the same 'crovca embed' command again to finish it"
        )
    manifest = read_json(path / MANIFEST, "embedding store")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: store of format version {version!r}, this crovca reads {FORMAT_VERSION}; "
            "upgrade crovca or write the store again"
        )
    listed = manifest.get("parts")
    if not isinstance(listed, list) or not listed:
        raise FileFormatError(f"{path}: the manifest lists no parts; was the store finished?")
    for part in listed:
        if not isinstance(part, dict) or not {"name", "rows"} <= set(part):
            raise FileFormatError(f"{path}: the manifest lists a part without 'name' and 'rows': {part!r}")
    return [(path / str(part["name"]), part["rows"]) for part in listed]


def part_name(number: int) -> str:
    """Name of a part's folder."""
    return f"part-{number:05d}"


def part_rows(part: Path) -> int | None:
    """Number of items in a part that is whole; None where it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = len(open_npy(part / "embeddings.npy"))
        return rows if pq.read_metadata(part / "items.parquet").num_rows == rows else None
    except (FileFormatError, OSError, pa.ArrowException):
        return None


def write_part(
    part: Path,
    values: npt.NDArray[Any],
    columns: Mapping[str, Any],
    errors: Sequence[ItemError] = (),
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
        return pa.array(list(content) if content.ndim == 2 else content)

    np.save(part / "embeddings.npy", values, allow_pickle=False)
    table = pa.table({name: as_column(content) for name, content in columns.items()})
    pq.write_table(table, part / "items.parquet", write_page_checksum=True)
    if errors:
        rows = {name: [getattr(error, name) for error in errors] for name in _ERROR_COLUMNS}
        described = {name: pa.array(rows[name], pa.string()) for name in _ERROR_COLUMNS[1:]}
        pq.write_table(
            pa.table({"id": pa.array(rows["id"]), **described}),
            part / "errors.parquet",
            write_page_checksum=True,
        )


def write_manifest(path: Path, rows: Sequence[int], values: Mapping[str, Any]) -> None:
    """Declare a store finished: its parts hold these numbers of items; ``values`` is what else is known."""
    parts = [{"name": part_name(number), "rows": count} for number, count in enumerate(rows)]
    write_json(path / MANIFEST, {"format_version": FORMAT_VERSION, **values, "parts": parts})


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
        write_manifest(
            folder,
            counts,
            {
                "encoder": encoder,
                "d": int(values.shape[-1]),
                "v": 1 if values.ndim == 2 else int(values.shape[1]),
                "dtype": str(values.dtype),
                "seed": seed,
                "batch_size": batch_size,
            },
        )
