"""Codes in a table of a DuckDB file: ``bit_count(xor(...))`` of words of 64 bits.

DuckDB itself computes the Hamming distance, exactly, and of the asymmetric distances a weighted sum of bit counts, a
lower bound that is close to them (``bounds``), and sorts by it. Only the candidates are scored again here. Conditions
are its own, and the same as those of ``HashIndex``.

::

    CREATE TABLE name (
        id            BIGINT  -- or: VARCHAR
                      PRIMARY KEY,
        code          UBIGINT[1] NOT NULL,  -- words, their first bit the most significant one, filled up with zeros
        crovca_digest BIGINT     NOT NULL,  -- of code and metadata: which items a push has to send
        ...                                 -- one column for each column of metadata, of its own type
    )

One process at a time can open a file. Within ours nothing else can be reached: no files, no extensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from crovca.errors import ServerError
from crovca.index.conditions import Database, check_boolean, refuse
from crovca.index.metadata import in_time
from crovca.servers.postgres_sql import identifier
from crovca.servers.rows import Ids, IdType, ServerRows
from crovca.servers.table import GIVEN, PART, WordsServer

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class DuckDBServer(WordsServer):
    """A table of codes in a DuckDB file; see ``table.TableServer``."""

    _dialect: ClassVar[Database] = "duckdb"
    _id_types: ClassVar[dict[IdType, str]] = {"int64": "BIGINT", "string": "VARCHAR"}
    _create_sql: ClassVar[str] = (
        "CREATE TABLE {table} (id {id} PRIMARY KEY, code UBIGINT[{words}] NOT NULL, crovca_digest BIGINT NOT NULL)"
    )
    _columns_sql: ClassVar[str] = "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
    _begin_writing: ClassVar[str] = "BEGIN"
    _term: ClassVar[str] = "{step}::BIGINT * bit_count(xor(code[{at}], {word}::UBIGINT) & {part}::UBIGINT)"

    @classmethod
    def _connect(cls, path: str) -> DuckDBPyConnection:
        import duckdb

        connection = duckdb.connect(path, config={"enable_external_access": False, "python_enable_replacements": False})
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    @staticmethod
    @contextmanager
    def _errors(where: str | None = None) -> Iterator[None]:
        import duckdb

        try:
            yield
        except (duckdb.Error, OSError) as error:
            what = f"DuckDB: {str(error).splitlines()[0]}"
            if where is not None and not isinstance(error, duckdb.OperationalError | OSError):
                refuse(where, what)
            raise ServerError(what) from error

    @contextmanager
    def _given(self, ids: Ids) -> Iterator[None]:
        with self._registered(pa.table({"id": ids})):
            yield

    @contextmanager
    def _registered(self, table: pa.Table) -> Iterator[None]:
        self._connection.register(GIVEN, table)
        yield
        self._connection.unregister(GIVEN)  # not after an error, which has ended the transaction

    def _insert(self, rows: ServerRows) -> None:
        stored = self._connection.sql(f"SELECT * FROM {self._table} LIMIT 0").to_arrow_table()
        with self._registered(self._with_words(rows, stored)):
            types = {name: kind for name, kind, *_ in self._do(f"DESCRIBE {GIVEN}")}
            columns = self._add_columns(types)
            given = ", ".join(identifier(name) if name in types else "NULL" for name in columns)
            names = ", ".join(map(identifier, columns))
            self._do(f"INSERT OR REPLACE INTO {self._table} ({names}) SELECT {given} FROM {GIVEN}")

    def _condition(self, where: str) -> str:
        condition = super()._condition(where)
        check_boolean(where, self._connection.sql(f"SELECT {condition} FROM {self._table}").types[0])
        return condition

    def _read(self, command: str, values: Sequence[Any], where: str | None) -> Iterator[pa.Table]:
        def work() -> pa.Table:
            return self._connection.sql(command, params=values).to_arrow_table()

        found = work() if where is None else in_time(self._connection, work, where, self.where_timeout)
        yield from (found.slice(start, PART) for start in range(0, len(found), PART))
