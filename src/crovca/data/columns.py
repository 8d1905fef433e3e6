"""Parquet files, read so that what they say of themselves is checked, and their columns as arrays."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.errors import CrovcaWarning, FileFormatError, StorageError
from crovca.files import open_regular

if TYPE_CHECKING:
    import pyarrow as pa

ID_NAMES, LABEL_NAMES = ("ids", "id"), ("labels", "label")
"""What ids and labels are called in files, the usual name first."""

_FREE_VALUES, _VALUES_PER_BYTE = (1 << 26, 1000)  # with more values than that, no more of them are packed into a byte
_MAX_TEXT_BYTES = 16 << 30


def name_among(names: Sequence[str], usual: tuple[str, str], where: Path) -> str | None:
    """Which of two usual names stands among ``names``; None where neither does. Of both the first, which is said."""
    found = [name for name in usual if name in names]
    if len(found) > 1:
        text = f"{where.name} has both {found[0]!r} and {found[1]!r}; {found[0]!r} is taken"
        warnings.warn(text, CrovcaWarning, stacklevel=2)
    return found[0] if found else None


def arrow_array(values: Any, kind: Any = None) -> pa.Array:
    """Values as an Arrow array, of a type or of their own. Of NumPy's text Arrow would read no further than a zero
    character."""
    import pyarrow as pa

    text = isinstance(values, np.ndarray) and values.dtype.kind in "SU"
    return pa.array(values.astype(object) if text else values, kind)


def open_table(path: Path) -> Any:
    """Open a Parquet file (``pyarrow.parquet.ParquetFile``) for reading in pieces, page checksums included.

    Raises:
        FileFormatError: missing, damaged, or a few bytes that declare a huge number of values.
        StorageError: the operating system refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path):
        pass
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20)
        footer = file.metadata
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        # Not ``group.column(...).num_values``: of a damaged column chunk that ends the process.
        values = sum(max(group.num_rows, group.total_byte_size // 8) for group in groups)
    except PermissionError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if min([values, *(group.num_rows for group in groups)]) < 0 or values > max(
        _FREE_VALUES, _VALUES_PER_BYTE * path.stat().st_size
    ):
        raise FileFormatError(f"{path} declares {values:,} values in a column, more than a file of its size holds")
    return file


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a Parquet file, or those of ``columns`` that it has, as an Arrow table; raises as ``open_table``."""
    import pyarrow as pa

    file = open_table(path)
    try:
        names = file.schema_arrow.names
        table = file.read(columns=None if columns is None else [name for name in names if name in columns])
        table.validate(full=True)
        return table.select(table.column_names)  # names that are not UTF-8 are noticed here
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return FileFormatError(f"{path} is not a readable .parquet ({reason}); it may be truncated")


def column(table: Any, name: str, path: Path) -> npt.NDArray[Any]:
    """One column of a table as an array: numbers and strings (n,), lists of one length (n, m), nested (n, v, d)."""
    import pyarrow as pa

    if table.column_names.count(name) != 1:
        raise FileFormatError(f"{path}: expected one column {name!r}, found {table.column_names}")
    data = table.column(name)
    where = f"{path}: column {name!r}"
    # Chunk by chunk: joined, lists of more than 2^31 numbers in all would not fit Arrow's 32-bit offsets.
    chunks = [chunk for chunk in data.chunks if len(chunk)] or [pa.array([], data.type)]
    parts = [_as_array(chunk, where) for chunk in chunks]
    if len({part.shape[1:] for part in parts}) > 1:
        raise FileFormatError(f"{where}: its lists have different lengths")
    if parts[0].dtype.kind == "U" and len(data) * max(part.itemsize for part in parts) > _MAX_TEXT_BYTES:
        raise FileFormatError(f"{where} has texts too long to be ids or labels")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def class_names(schema: Any, name: str) -> list[str]:
    """Names of the classes of a column (or of its lists) as ``datasets`` writes them into a schema's metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]
        feature = feature[0] if isinstance(feature, list) else feature
        return [str(one) for one in feature.get("feature", feature)["names"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
        return []


def _as_array(data: Any, where: str) -> npt.NDArray[Any]:
    import pyarrow as pa

    if isinstance(data, pa.FixedShapeTensorArray):
        if data.null_count:
            raise FileFormatError(f"{where} has {data.null_count} missing values")
        return np.asarray(data.to_numpy_ndarray())
    shape = [len(data)]
    while _is_nested(data.type):
        if data.null_count:
            raise FileFormatError(f"{where} has {data.null_count} missing values")
        flat = data.flatten()
        length, rest = divmod(len(flat), max(len(data), 1))
        lengths = data.value_lengths() if hasattr(data, "value_lengths") else None
        if rest or (lengths is not None and len(data) and set(lengths.unique().to_pylist()) != {length}):
            raise FileFormatError(f"{where}: its lists have different lengths")
        shape.append(length)
        data = flat
    if data.null_count:
        raise FileFormatError(f"{where} has {data.null_count} missing values")
    if pa.types.is_dictionary(data.type):
        data = data.dictionary_decode()
    kind = data.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = data.to_pylist()
        if 4 * len(texts) * max(map(len, texts), default=0) > _MAX_TEXT_BYTES:
            raise FileFormatError(f"{where} has texts too long to be ids or labels")
        return np.asarray(texts, np.str_).reshape(shape)
    values = data.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise FileFormatError(f"{where} has the type {kind}; expected numbers or strings")
    return np.asarray(values).reshape(shape)


def _is_nested(kind: Any) -> bool:
    from pyarrow import types

    lists = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(types, f"is_{name}")(kind) for name in lists)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """A table's rows as Python's values, (n,); times are cut to microseconds, which is what ``datetime`` has."""
    import pyarrow as pa

    kinds = pa.schema([(field.name, _in_microseconds(field.type)) for field in table.schema])
    rows: list[dict[str, Any]] = (table if kinds == table.schema else table.cast(kinds, safe=False)).to_pylist()
    return rows


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    types = pa.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_list(kind):
        return pa.list_(_in_microseconds(kind.value_type))
    if types.is_map(kind):
        return pa.map_(kind.key_type, _in_microseconds(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, _in_microseconds(field.type)) for field in kind])
    return kind
