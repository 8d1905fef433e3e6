"""What is known of the items beside their codes: Arrow tables in, Parquet on disk, SQL conditions over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from crovca.errors import InvalidInputError, StorageError
from crovca.search.scoring import Int64

__all__ = ["Metadata", "as_ids", "as_table", "conform", "matching_rows", "read_rows"]

Metadata: TypeAlias = pa.Table | Mapping[str, Any]

ROW_GROUP = 1 << 16
_FILE, _ROW = "crovca file", "file_row_number"
_RESERVED = {"id", _FILE, _ROW}


def as_ids(ids: Any) -> npt.NDArray[Any]:
    """Ids as an int64 or str array (n,).

    Raises:
        InvalidInputError: another type, another rank, or whole numbers beyond int64.
    """
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        ids = ids.to_numpy(zero_copy_only=False) if isinstance(ids, pa.Array) else ids.to_numpy()
    found = np.asarray(ids)
    if found.dtype == object:
        if not all(isinstance(item, str) for item in found.ravel()):
            raise InvalidInputError("ids must be whole numbers or strings, got a mixture or something else")
        found = found.astype(np.str_)
    if found.ndim != 1:
        raise InvalidInputError(f"ids must have one dimension, got shape {found.shape}")
    if found.dtype.kind == "U":
        return found
    if found.dtype.kind not in "iu" or (found.dtype == np.uint64 and (found > np.iinfo(np.int64).max).any()):
        if found.size == 0:
            return found.astype(np.int64)
        raise InvalidInputError(f"ids must be strings or 64-bit whole numbers, got {found.dtype}")
    return found.astype(np.int64)


def as_table(metadata: Metadata | None, count: int) -> pa.Table | None:
    """Metadata as an Arrow table of ``count`` rows; None stays None.

    Raises:
        InvalidInputError: not columns, of another length, or with names that are taken or equal but for case.
    """
    if metadata is None:
        return None
    try:
        table = metadata if isinstance(metadata, pa.Table) else pa.table(dict(metadata))
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"metadata must be an Arrow table or columns of equal length: {error}"
        ) from error
    if table.num_rows != count:
        raise InvalidInputError(f"there are {table.num_rows} rows of metadata for {count} items")
    seen: set[str] = set()
    for name in table.column_names:
        if name.lower() in _RESERVED or name.lower() in seen or not name:
            raise InvalidInputError(
                f"a metadata column cannot be named {name!r}: that name is taken (SQL does not tell case apart); "
                "rename it"
            )
        seen.add(name.lower())
    return table


def conform(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Cast columns to the types that the index has for them (``columns``: name -> Arrow type as text).

    Raises:
        InvalidInputError: a column's values do not fit into its type, or its name differs in case alone.
    """
    known = {name.lower(): name for name in columns}
    for position, name in enumerate(table.column_names):
        same = known.get(name.lower())
        if same is None:
            continue
        if same != name:
            raise InvalidInputError(
                f"the index has a metadata column {same!r}; {name!r} differs in case alone"
            )
        column = table.column(name)
        if str(column.type) == columns[name]:
            continue
        try:
            table = table.set_column(position, name, column.cast(pa.type_for_alias(columns[name])))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise InvalidInputError(
                f"the metadata column {name!r} is {columns[name]} in the index, and {column.type} here: {error}"
            ) from error
    return table


def matching_rows(files: Sequence[Path], where: str) -> list[Int64]:
    """The rows of each Parquet file for which a SQL condition holds, ascending: int64 arrays.

    DuckDB evaluates the condition; it sees the files' columns and nothing else of the machine.

    Raises:
        InvalidInputError: it is not one condition that DuckDB understands for these columns.
        StorageError: a file cannot be read.
    """
    import duckdb

    names = [str(file.resolve()) for file in files]
    if not names:
        return []
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"SET allowed_paths = [{', '.join(map(_quoted, names))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            items = connection.sql(
                f"SELECT * FROM read_parquet([{', '.join(map(_quoted, names))}], union_by_name = true, "
                f"file_row_number = true, filename = {_quoted(_FILE)})"
            )
            condition = duckdb.SQLExpression(where)
            kind = items.select(condition).types[0]
            if str(kind) != "BOOLEAN":
                raise InvalidInputError(
                    f'where must be a condition, like "year < 1960"; {where!r} is a value of type {kind}'
                )
            found = (
                items.filter(condition)
                .select(duckdb.ColumnExpression(_FILE), duckdb.ColumnExpression(_ROW))
                .to_arrow_table()
            )
        except duckdb.IOException as error:
            raise StorageError(f"cannot read the metadata: {_first_line(error)}") from error
        except duckdb.Error as error:
            columns = [name for name in items.columns if name not in (_FILE, _ROW)]
            raise InvalidInputError(
                f"cannot use where = {where!r}: {_first_line(error)}; the columns are {', '.join(columns)}"
            ) from error
    owner = found.column(_FILE).combine_chunks().dictionary_encode()
    if isinstance(owner, pa.ChunkedArray):
        owner = owner.combine_chunks()
    rows = found.column(_ROW).to_numpy()
    of_file = {name.as_py(): number for number, name in enumerate(owner.dictionary)}
    numbers = owner.indices.to_numpy()
    return [np.sort(rows[numbers == of_file.get(name, -1)]) for name in names]


def read_rows(file: Path, rows: Int64) -> pa.Table:
    """Some rows of a Parquet file, in the order asked for, reading no more row groups than needed."""
    with pq.ParquetFile(file) as parquet:
        sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        ends = np.cumsum(sizes)
        owner = np.searchsorted(ends, rows, side="right")
        groups = np.unique(owner)
        table = parquet.read_row_groups(groups.tolist())
        starts = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])])[:-1]
        place = np.searchsorted(groups, owner)
        return table.take(starts[place] + rows - (ends[owner] - np.asarray(sizes)[owner]))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
