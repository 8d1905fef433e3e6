"""Codes in a table of ClickHouse, which chDB runs in this process: ``bitCount(bitXor(...))`` of words of 64 bits.

ClickHouse itself computes the Hamming distance, exactly, and of the asymmetric distances a weighted sum of bit counts,
a lower bound that is close to them (``bounds``), and sorts by it. Conditions are its own, in its SQL, in the grammar of
``index.conditions``.

::

    CREATE TABLE name (
        id            Int64,  -- or: String
        code          Array(UInt64),  -- words, their first bit the most significant one, filled up with zeros
        crovca_digest Int64,          -- of code and metadata: which items a push has to send
        ...                           -- one column for each column of metadata, Nullable
    ) ENGINE = ReplacingMergeTree PRIMARY KEY id

An item that is written again stands twice in the table until ClickHouse merges its parts; reads are FINAL, which is to
say that they see the last one alone: set ``final = 1`` where you ask such a table yourself. Timestamps become
DateTime64 in UTC, from 1900 to 2299.

Addresses are ``chdb:///path/to/folder?table=name``. One process at a time can open a folder, and a process can have one
folder open. ClickHouse has no transactions: a write is all or nothing, but new columns stay where it then fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crovca.errors import InvalidInputError, ServerError, needed, one_line
from crovca.index.conditions import Database, check_boolean, refuse, took_too_long
from crovca.servers.postgres_sql import identifier
from crovca.servers.rows import RESERVED, Ids, IdType, ServerRows, check_ids
from crovca.servers.state import PushState
from crovca.servers.table import GIVEN, PART, TABLES, WordsServer

_NO_ZONE = "Zulu"  # UTC by a name that no data have: times without a zone are kept with it
_SETTINGS = {
    "final": 1, "default_table_engine": "'ReplacingMergeTree'", "timeout_before_checking_execution_speed": 0,
    "max_insert_block_size": 2**40, "min_insert_block_size_rows": 2**40, "lightweight_deletes_sync": 2,
    "cast_keep_nullable": 1, "date_time_overflow_behavior": "'throw'", "session_timezone": f"'{_NO_ZONE}'",
}  # fmt: skip
_BOOLEAN = {"Bool", "UInt8", "Nullable(Bool)", "Nullable(UInt8)", "Nullable(Nothing)"}
_YEARS = range(1900, 2300)
_CLOSED = "the connection is closed"


class ClickHouseServer(WordsServer):
    """A table of codes in a folder of ClickHouse; see ``table.TableServer``."""

    _dialect: ClassVar[Database] = "clickhouse"
    _id_types: ClassVar[dict[IdType, str]] = {"int64": "Int64", "string": "String"}
    _create_sql: ClassVar[str] = "CREATE TABLE {table} (id {id} PRIMARY KEY, code Array(UInt64), crovca_digest Int64)"
    _columns_sql: ClassVar[str] = (
        "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = ? ORDER BY position"
    )
    _begin_writing: ClassVar[str] = ""
    _begin_reading: ClassVar[str] = ""
    _term: ClassVar[str] = "toInt64({step}) * bitCount(bitAnd(bitXor(code[{at}], toUInt64({word})), toUInt64({part})))"

    @classmethod
    def _connect(cls, path: str) -> _Connection:
        connection = _Connection(_driver().connect(path))
        for name, value in _SETTINGS.items():
            connection.execute(f"SET {name} = {value}")
        return connection

    @staticmethod
    def _exists(path: Path) -> bool:
        _driver()
        return (path / "metadata").is_dir()

    @staticmethod
    @contextmanager
    def _errors(where: str | None = None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError) as error:
            what = f"ClickHouse: {one_line(error)}"
            if where is not None and not isinstance(error, OSError) and _CLOSED not in what:
                refuse(where, what)
            raise ServerError(what) from error

    @contextmanager
    def _given(self, ids: Ids) -> Iterator[None]:
        crovca_given = pa.table({"id": pa.array(ids)})  # noqa: F841  # Python() finds it by its name
        self._do(f"CREATE OR REPLACE TABLE {GIVEN} ENGINE = Memory AS SELECT id FROM Python({GIVEN})")
        yield

    def _insert(self, rows: ServerRows) -> None:
        stored = self._connection.table(f"SELECT * FROM {self._table} LIMIT 0")
        crovca_given = self._with_words(rows, stored)
        for name in crovca_given.column_names[len(RESERVED) :]:
            _check_column(name, crovca_given.column(name))
        self._add_columns({name: _stored(kind) for name, kind, *_ in self._do(f"DESCRIBE Python({GIVEN})")})
        names = ", ".join(map(identifier, crovca_given.column_names))
        self._do(f"INSERT INTO {self._table} ({names}) SELECT {names} FROM Python({GIVEN})")

    def delete(self, ids: npt.ArrayLike) -> None:
        with self._errors(), self._given(check_ids(ids, self.id_type)):  # a deletion knows no database but by its name
            self._do(f"DELETE FROM {self._table} WHERE id IN (SELECT id FROM default.{GIVEN})")

    def _condition(self, where: str) -> str:
        condition = super()._condition(where)
        kind = self._do(f"DESCRIBE (SELECT {condition} FROM {self._table})")[0][1]
        check_boolean(where, "BOOLEAN" if kind in _BOOLEAN else kind)
        return condition

    def _read(self, command: str, values: Sequence[Any], where: str | None) -> Iterator[pa.Table]:
        if where is not None:
            command += f" SETTINGS max_execution_time = {self.where_timeout}"
        try:
            found = self._connection.table(command, values)
        except RuntimeError as error:
            if "TIMEOUT_EXCEEDED" in str(error):
                took_too_long(where or "", self.where_timeout)
            raise
        yield from (found.slice(start, PART) for start in range(0, len(found), PART))

    def write_push(self, state: PushState) -> None:
        with self._errors():
            values = (self._name, self.bits, self.id_type, state.to_json())
            self._do(f"INSERT INTO {TABLES} VALUES (?, ?, ?, ?)", *values)


@dataclass
class _Connection:
    """A connection of chDB with values for question marks."""

    chdb: Any

    def execute(self, command: str, values: Sequence[Any] = ()) -> _Connection:
        self._found = self.table(command, values)
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(zip(*self._found.to_pydict().values(), strict=True))

    def table(self, command: str, values: Sequence[Any] = ()) -> pa.Table:
        if self.chdb is None:
            raise RuntimeError(_CLOSED)
        *parts, last = command.rsplit("?", len(values))  # all else stands before the values
        command = "".join(f"{part}{_literal(value)}" for part, value in zip(parts, values, strict=True)) + last
        data = self.chdb.query(command, "ArrowStream").bytes()
        return _as_given(pa.ipc.open_stream(data).read_all()) if data else pa.table({})

    def close(self) -> None:
        if self.chdb is not None:
            self.chdb.close()
        self.chdb = None


def _driver() -> Any:
    return needed("chdb", "chdb", "a ClickHouse folder")


def _stored(kind: str) -> str:
    """The type of a column: one of times without a zone gets ours, as ClickHouse would give it the machine's."""
    return re.sub(
        r"(DateTime64\(\d)\)", rf"\1, '{_NO_ZONE}')", re.sub(r"DateTime\b(?!\()", f"DateTime('{_NO_ZONE}')", kind)
    )


def _as_given(found: pa.Table) -> pa.Table:
    """Times that were stored without a zone, without one again."""
    kinds = [
        pa.timestamp(field.type.unit) if pa.types.is_timestamp(field.type) and field.type.tz == _NO_ZONE else field.type
        for field in found.schema
    ]
    return found.cast(pa.schema(list(zip(found.column_names, kinds, strict=True))))


def _literal(value: int | str) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _check_column(name: str, column: pa.ChunkedArray) -> None:
    """InvalidInputError for what ClickHouse would change."""
    if "\\" in name:
        raise InvalidInputError(f"ClickHouse can have no metadata column {name!r}, which has a backslash; rename it")
    if pa.types.is_temporal(column.type):
        years = pc.min_max(pc.year(column)).as_py()
        if not {years["min"], years["max"]} <= {None, *_YEARS}:
            raise InvalidInputError(
                f"the metadata column {name!r} has dates from {years['min']} to {years['max']}, and ClickHouse holds "
                f"those from {_YEARS[0]} to {_YEARS[-1]}; make the others null, or text"
            )
