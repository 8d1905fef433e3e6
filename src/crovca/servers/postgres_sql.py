"""The texts that are sent to PostgreSQL: names, columns, conditions, codes as constants, and rows as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, LiteralString

import numpy as np
import pyarrow as pa
import pyarrow.csv

from crovca.codes import Codes
from crovca.errors import ConfigError, InvalidInputError
from crovca.index.conditions import checked_condition
from crovca.servers.base import IdType
from crovca.servers.bounds import Levels, Query
from crovca.servers.rows import RESERVED, ServerRows

if TYPE_CHECKING:
    from psycopg.sql import SQL, Composable, Composed

__all__ = [
    "bit_literal",
    "column_type",
    "columns_sql",
    "condition",
    "csv_blocks",
    "levels_sql",
    "name_parts",
    "quoted",
    "split_name",
]

_ID_SQL: dict[IdType, LiteralString] = {"int64": "bigint", "string": 'text COLLATE "C"'}
_BLOCK = 32768  # rows of CSV at a time


def columns_sql(bits: int, id_type: IdType, *, key: bool = True) -> Composed:
    """Definitions of our own columns."""
    from psycopg import sql

    return sql.SQL("id {}{}, code bit({}) NOT NULL, crovca_digest bigint NOT NULL").format(
        sql.SQL(_ID_SQL[id_type]), sql.SQL(" PRIMARY KEY" if key else " NOT NULL"), sql.Literal(bits)
    )


_COLUMN_TYPES: dict[str, LiteralString] = {
    "bool": "boolean", "int8": "smallint", "uint8": "smallint", "int16": "smallint", "uint16": "integer",
    "int32": "integer", "uint32": "bigint", "int64": "bigint", "uint64": "numeric(20)",
    "halffloat": "real", "float": "real", "double": "double precision",
    "string": "text", "large_string": "text", "null": "text", "date32[day]": "date",
}  # fmt: skip


def column_type(name: str, kind: pa.DataType) -> Composable:
    """The column type for metadata of this Arrow type; InvalidInputError where there is none."""
    from psycopg import sql

    if pa.types.is_timestamp(kind):
        return sql.SQL("timestamptz" if kind.tz else "timestamp")
    if str(kind) not in _COLUMN_TYPES:
        raise InvalidInputError(
            f"the metadata column {name!r} is of type {kind}, which PostgreSQL does not get"
        )
    return sql.SQL(_COLUMN_TYPES[str(kind)])


def quoted(*parts: str) -> SQL:
    """A quoted name. Every statement is sent with parameters, if none, so % is written twice in all of them."""
    from psycopg import sql

    return sql.SQL(sql.Identifier(*parts).as_string().replace("%", "%%"))


def split_name(name: str) -> tuple[str, str]:
    """Schema (empty where none is named) and table."""
    schema, _, table = name.rpartition(".")
    if not table or "." in schema:
        raise ConfigError(f"a table is named NAME or SCHEMA.NAME, got {name!r}")
    return schema, table


def name_parts(name: str) -> list[str]:
    """Schema and table, or the table alone."""
    return [part for part in split_name(name) if part]


def condition(where: str | None, columns: Sequence[str]) -> Composable:
    """WHERE (...) of a condition on these columns (``index.conditions``), or nothing; % is no placeholder."""
    from psycopg import sql

    if where is None:
        return sql.SQL("")
    checked = checked_condition(where, columns, "postgres")
    return sql.SQL("WHERE (" + checked.replace("%", "%%") + ")")


def bit_literal(code: Codes) -> Composable:
    """One code as a constant. Only digits, so it needs no parameter, and the server can fold it."""
    from psycopg import sql

    return sql.SQL("B{}").format(sql.Literal(_bit_strings(code)[0].as_py()))


def levels_sql(query: Query, levels: Levels) -> Composable:
    """The sum of ``Levels``, in whole numbers."""
    from psycopg import sql

    code = bit_literal(query.code)
    terms = []
    for at, step in enumerate(levels.steps.tolist()):
        mask = levels.masks[at]
        whole = bool(mask.unpack().all())
        form: LiteralString = (
            "{0} * bit_count(code # {1})" if whole else "{0} * bit_count((code # {1}) & {2})"
        )
        terms.append(sql.SQL(form).format(sql.Literal(step), code, bit_literal(mask)))
    return sql.SQL("({})").format(sql.SQL(" + ").join(terms))


def _bit_strings(codes: Codes) -> pa.Array:
    """Each code as text of 0 and 1."""
    characters = codes.unpack() + np.uint8(ord("0"))
    offsets = np.arange(len(codes) + 1, dtype=np.int64) * codes.bits
    return pa.LargeStringArray.from_buffers(
        len(codes), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(characters))
    )


def csv_blocks(rows: ServerRows) -> Iterator[memoryview]:
    """The rows as CSV, as COPY reads it: null is nothing, an empty string two quotes."""
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        own = [pa.array(part.ids), _bit_strings(part.codes), pa.array(part.digests)]
        metadata = [
            column.cast(pa.float32()) if pa.types.is_float16(column.type) else column
            for column in part.metadata.columns
        ]
        table = pa.Table.from_arrays([*own, *metadata], names=[*RESERVED, *part.metadata.column_names])
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=False))
        yield memoryview(sink.getvalue())
