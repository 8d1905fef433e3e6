"""Items on their way to a server: checked, and with a digest by which a changed one is known."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crovca.codes import Codes
from crovca.data.columns import rows_of
from crovca.errors import InvalidInputError

IdType = Literal["int64", "string"]
Ids = npt.NDArray[Any]
RESERVED = ("id", "code", "crovca_digest")  # our own columns, on every server


@dataclass(frozen=True)
class ServerRows:
    """Items that a server can take, built by ``ServerRows.of``.

    Attributes:
        ids: (n,) int64 or str, each once.
        codes: n codes.
        metadata: n rows of plain values; no columns where there is no metadata.
        digests: int64 (n,), of code and metadata: equal items have equal digests, whatever the column types
            or their order; others differ but for chance (2^-64).
    """

    ids: npt.NDArray[Any]
    codes: Codes
    metadata: pa.Table
    digests: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, ids: npt.ArrayLike, codes: Codes, metadata: pa.Table | None, *, bits: int, id_type: IdType
    ) -> ServerRows:
        """Check items against what the collection holds."""
        checked = check_ids(ids, id_type)
        if len(np.unique(checked)) < len(checked):
            values, counts = np.unique(checked, return_counts=True)
            raise InvalidInputError(f"the id {values[counts > 1][0].item()!r} is given twice; ids must be unique")
        if codes.bits != bits:
            raise InvalidInputError(f"the collection holds codes of {bits} bits, got {codes.bits}")
        if len(codes) != len(checked):
            raise InvalidInputError(f"got {len(checked)} ids and {len(codes)} codes; expected as many")
        table = _check_metadata(metadata, len(checked))
        return cls(checked, codes, table, _digests(codes, table))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> ServerRows:
        """Some of the rows: a slice, or a mask."""
        index = np.arange(len(self))[rows]
        return ServerRows(self.ids[index], self.codes[index], self.metadata.take(index), self.digests[index])


def check_ids(ids: npt.ArrayLike, id_type: IdType) -> npt.NDArray[Any]:
    """Ids as an array (n,) of int64 or str; InvalidInputError if they are anything else."""
    values = np.asarray(ids)
    if values.ndim != 1:
        raise InvalidInputError(f"ids must be one-dimensional, got shape {values.shape}")
    if values.size == 0:
        return values.astype(np.int64 if id_type == "int64" else np.str_)
    if id_type == "int64":
        if values.dtype.kind not in "iu" or (values.dtype.kind == "u" and values.max() >= 2**63):
            raise InvalidInputError(f"ids must be whole numbers of 64 bits (int64), got {values.dtype}")
        return values.astype(np.int64)
    if values.dtype.kind not in "UTO" or (values.dtype.kind == "O" and not all(isinstance(one, str) for one in values)):
        raise InvalidInputError(f"ids must be strings, got {values.dtype}")
    zeros = next((one for one in values.tolist() if "\0" in one), None)
    if zeros is not None:
        raise InvalidInputError(
            f"a server's ids may have no zero character, as some cannot hold it; got {zeros[:40]!r}"
        )
    return values.astype(np.str_)


def check_names(names: Sequence[str], there: Sequence[str]) -> None:
    """InvalidInputError where a column has no name, or differs in case alone from another or one that is there."""
    known = {name.lower(): name for name in there}
    for name in names:
        if not name:
            raise InvalidInputError("a metadata column has no name; give it one")
        same = known.setdefault(name.lower(), name)
        if same != name:
            raise InvalidInputError(f"the metadata column {name!r} differs from {same!r} in case alone; rename it")


def json_rows(metadata: pa.Table, server: str, *, signed: bool = False) -> list[dict[str, Any]]:
    """One dict a row, of what JSON can hold; nulls are left out."""
    rows = rows_of(metadata)
    for row in rows:
        for name, value in list(row.items()):
            if value is None:
                del row[name]
            elif signed and isinstance(value, int) and value >= 2**63:
                raise InvalidInputError(
                    f"the metadata column {name!r} has the value {value}, and {server} cannot hold whole numbers above "
                    "2^63 - 1; leave it out, or make it text"
                )
            elif isinstance(value, float) and not math.isfinite(value):
                raise InvalidInputError(
                    f"the metadata column {name!r} has the value {value}, which {server} cannot hold; make it null"
                )
            elif isinstance(value, datetime.date):  # datetimes are dates, pandas timestamps too
                row[name] = value.isoformat()
    return rows


def json_table(rows: Sequence[Mapping[str, Any]], own: Sequence[str] = RESERVED) -> pa.Table | None:
    """Metadata as ``json_rows`` gave them, without our own columns; None where there are none."""
    names = sorted({name for row in rows for name in row}.difference(own))
    return pa.table({name: [row.get(name) for row in rows] for name in names}) if names else None


def _check_metadata(metadata: pa.Table | None, count: int) -> pa.Table:
    if metadata is None:
        return pa.table({"_": pa.nulls(count)}).select([])
    if metadata.num_columns and metadata.num_rows != count:
        raise InvalidInputError(f"got {count} ids and {metadata.num_rows} rows of metadata; expected as many")
    names = metadata.column_names
    for name in names:
        if name in RESERVED:
            raise InvalidInputError(f"the metadata column {name!r} has a name that servers need; rename it")
    if len(set(names)) < len(names):
        raise InvalidInputError(f"metadata columns must have different names, got {names}")
    columns = {}
    for name in names:
        column = metadata.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_float16(column.type):
            column = column.cast(pa.float32())
        if not _is_plain(column.type):
            raise InvalidInputError(
                f"the metadata column {name!r} is of type {column.type}, which is not sent to servers; "
                "expected numbers, strings, booleans, dates or timestamps"
            )
        columns[name] = column
    return pa.table(columns) if columns else _check_metadata(None, count)


def _is_plain(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind)
        for test in (
            types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string,
            types.is_timestamp, types.is_date32, types.is_null,
        )
    )  # fmt: skip


def _digests(codes: Codes, metadata: pa.Table) -> npt.NDArray[np.int64]:
    """64 bits of BLAKE2b over the code's bytes and every value that is not null, each with its name and length."""
    width = codes.bytes_per_item
    parts = [_binary(codes.packed.tobytes(), len(codes), width)]
    for name in sorted(metadata.column_names):
        column = metadata.column(name).combine_chunks()
        if pa.types.is_null(column.type):
            continue
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        text = column.cast(pa.string()).cast(pa.large_binary())
        length = pc.binary_length(text).cast(pa.string()).cast(pa.large_binary())
        head = pa.scalar(f"{len(name)}:{name}=".encode(), pa.large_binary())
        colon, empty = pa.scalar(b":", pa.large_binary()), pa.scalar(b"", pa.large_binary())
        value = pc.binary_join_element_wise(head, length, colon, text, empty)
        parts.append(pc.if_else(pc.is_valid(text), value, empty))
    joined = pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary())).to_pylist()
    hashed = b"".join([blake2b(row, digest_size=8).digest() for row in joined])
    return np.frombuffer(hashed, "<i8").astype(np.int64)


def _binary(data: bytes, count: int, width: int) -> pa.Array:
    offsets = np.arange(count + 1, dtype=np.int64) * width
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
