"""Stores: a folder of embeddings in parts, for sets that do not fit in memory.

::

    STORE/manifest.json                 format version, encoder, d, v, dtype, seed, batch size, parts and rows
    STORE/part-00000/embeddings.npy     (rows, d) or (rows, v, d)
    STORE/part-00000/items.parquet      id, labels, path, caption, as far as they are known
    STORE/part-00000/errors.parquet     items that could not be read, with the reason (optional)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import column, open_npy, read_table
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import atomic_directory, check_output, read_json, write_json

__all__ = ["FORMAT_VERSION", "PartedArray", "open_store", "save_store"]

FORMAT_VERSION = 1


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
    manifest = read_json(path / "manifest.json", "embedding store")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise FileFormatError(
            f"{path}: store of format version {version!r}, this crovca reads {FORMAT_VERSION}; "
            "upgrade crovca or write the store again"
        )
    listed = manifest.get("parts")
    if not isinstance(listed, list) or not listed:
        raise FileFormatError(f"{path}: the manifest lists no parts; was the store finished?")
    arrays, labels, ids = [], [], []
    for part in listed:
        if not isinstance(part, dict) or not {"name", "rows"} <= set(part):
            raise FileFormatError(f"{path}: the manifest lists a part without 'name' and 'rows': {part!r}")
        folder = path / str(part["name"])
        array = open_npy(folder / "embeddings.npy")
        table = read_table(folder / "items.parquet")
        if array.ndim not in (2, 3):
            raise FileFormatError(
                f"{folder}: embeddings must have shape (n, d) or (n, v, d), got {array.shape}"
            )
        if not len(array) == table.num_rows == part["rows"]:
            raise FileFormatError(
                f"{folder}: {len(array)} embeddings and {table.num_rows} items, the manifest says {part['rows']}"
            )
        arrays.append(array)
        if with_ids and "id" in table.column_names:
            ids.append(column(table, "id", folder))
        if "labels" in table.column_names:
            labels.append(column(table, "labels", folder))
    for name, found in (("labels", labels), ("ids", ids)):
        if found and len(found) != len(arrays):
            raise FileFormatError(f"{path}: some parts have {name} and others have none")
    try:
        joined = [np.concatenate(found) if found else None for found in (labels, ids)]
        return PartedArray(arrays), joined[0], joined[1]
    except ValueError as error:  # of another width, dtype or number of classes
        raise FileFormatError(f"{path}: the parts do not fit together: {error}") from error


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_output(path, force=force, marker="manifest.json")
    with atomic_directory(path) as folder:
        parts: list[dict[str, Any]] = []
        for start in range(0, len(values), shard_size):
            rows = slice(start, start + shard_size)
            part = folder / f"part-{len(parts):05d}"
            part.mkdir()
            np.save(part / "embeddings.npy", values[rows], allow_pickle=False)
            numbers = np.arange(start, start + len(values[rows]))
            columns = {"row": pa.array(numbers)} if ids is None else {"id": pa.array(ids[rows])}
            if labels is not None:
                chosen = labels[rows]
                columns["labels"] = pa.array(list(chosen) if chosen.ndim == 2 else chosen)
            pq.write_table(pa.table(columns), part / "items.parquet", write_page_checksum=True)
            parts.append({"name": part.name, "rows": len(values[rows])})
        write_json(
            folder / "manifest.json",
            {
                "format_version": FORMAT_VERSION,
                "encoder": encoder,
                "d": int(values.shape[-1]),
                "v": 1 if values.ndim == 2 else int(values.shape[1]),
                "dtype": str(values.dtype),
                "seed": seed,
                "batch_size": batch_size,
                "parts": parts,
            },
        )
