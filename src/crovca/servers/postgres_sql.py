"""The texts that are sent to PostgreSQL: names, columns, conditions, codes as constants, and rows as CSV.

Nothing but names, which are quoted, checked conditions and digits is ever written into a statement; values are
parameters. Every statement is sent with parameters, if none, so % is written twice in names and conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from crovca.codes import Codes
from crovca.errors import ConfigError, InvalidInputError
from crovca.index.conditions import checked_condition
from crovca.servers.bounds import Levels, Query
from crovca.servers.rows import RESERVED, IdType, ServerRows

PART = 32768  # rows of a result or of CSV, or ids of a condition, at a time
_ID_SQL: dict[IdType, str] = {"int64": "bigint", "string": 'text COLLATE "C"'}
_COLUMN_TYPES = {
    "bool": "boolean", "int8": "smallint", "uint8": "smallint", "int16": "smallint", "uint16": "integer",
    "int32": "integer", "uint32": "bigint", "int64": "bigint", "uint64": "numeric(20)",
    "halffloat": "real", "float": "real", "double": "double precision",
    "string": "text", "large_string": "text", "null": "text", "date32[day]": "date",
}  # fmt: skip


def columns_sql(bits: int, id_type: IdType, *, key: bool = True) -> str:
    """Definitions of our own columns."""
    rule = "PRIMARY KEY" if key else "NOT NULL"
    return f"id {_ID_SQL[id_type]} {rule}, code bit({bits:d}) NOT NULL, crovca_digest bigint NOT NULL"


def column_type(name: str, kind: pa.DataType) -> str:
    """The column type for metadata of this Arrow type; InvalidInputError where there is none."""
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if str(kind) not in _COLUMN_TYPES:
        raise InvalidInputError(f"the metadata column {name!r} is of type {kind}, which PostgreSQL does not get")
    return _COLUMN_TYPES[str(kind)]


def identifier(*parts: str) -> str:
    """A quoted name."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def quoted(*parts: str) -> str:
    """A quoted name for a statement with parameters."""
    return identifier(*parts).replace("%", "%%")


def split_name(name: str) -> tuple[str, str]:
    """Schema (empty where none is named) and table."""
    schema, _, table = name.rpartition(".")
    if not table or "." in schema:
        raise ConfigError(f"a table is named NAME or SCHEMA.NAME, got {name!r}")
    return schema, table


def condition(where: str | None, columns: Sequence[str]) -> str:
    """A condition on these columns in brackets (``index.conditions``); ``true`` where there is none."""
    if where is None:
        return "true"
    return "(" + checked_condition(where, columns, "postgres").replace("%", "%%") + ")"


def bit_literal(code: Codes) -> str:
    """One code as a constant. Only digits, so it needs no parameter, and the server can fold it."""
    return f"B'{_bit_strings(code)[0].as_py()}'"


def levels_sql(query: Query, levels: Levels) -> str:
    """The sum of ``Levels``, in whole numbers."""
    code = bit_literal(query.code)
    terms = []
    for at, step in enumerate(levels.steps.tolist()):
        mask = levels.masks[at]
        differing = f"code # {code}"
        if not mask.unpack().all():
            differing = f"({differing}) & {bit_literal(mask)}"
        terms.append(f"{step:d} * bit_count({differing})")
    return f"({' + '.join(terms)})"


def _bit_strings(codes: Codes) -> pa.Array:
    """Each code as text of 0 and 1."""
    characters = codes.unpack() + np.uint8(ord("0"))
    offsets = np.arange(len(codes) + 1, dtype=np.int64) * codes.bits
    return pa.LargeStringArray.from_buffers(
        len(codes), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(characters))
    )


def csv_blocks(rows: ServerRows) -> Iterator[memoryview]:
    """The rows as CSV, as COPY reads it: null is nothing, an empty string two quotes."""
    for start in range(0, len(rows), PART):
        part = rows[start : start + PART]
        own = [pa.array(part.ids), _bit_strings(part.codes), pa.array(part.digests)]
        table = pa.Table.from_arrays([*own, *part.metadata.columns], names=[*RESERVED, *part.metadata.column_names])
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=False))
        yield memoryview(sink.getvalue())
