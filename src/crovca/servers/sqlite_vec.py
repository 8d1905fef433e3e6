"""Codes in a table of a SQLite file: ``vec_distance_hamming`` of the extension sqlite-vec, over vectors of bits.

SQLite itself computes the Hamming distance, exactly, and sorts by it. Asymmetric distances are scored here over the
candidates that are nearest by it, and proven by ``bounds``; ``exact=True`` reads what else may be among the nearest.

::

    CREATE TABLE name (
        id            INTEGER  -- or: TEXT
                      PRIMARY KEY,
        code          BLOB    NOT NULL,  -- the bytes of ``Codes``
        crovca_digest INTEGER NOT NULL,  -- of code and metadata: which items a push has to send
        ...                              -- one column for each column of metadata: INTEGER, REAL or TEXT
    ) STRICT

SQLite has no other types: booleans become 0 and 1, dates and timestamps ISO 8601 text. NaN and infinity are refused.
Conditions are its own, in its SQL, in the grammar of ``index.conditions``; LIKE tells case apart, as elsewhere.

The driver is APSW, which brings a SQLite of its own: many builds of Python have one that loads no extensions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.errors import InvalidInputError, ServerError, needed, one_line
from crovca.index.conditions import Database, refuse, took_too_long
from crovca.servers.bounds import Query
from crovca.servers.postgres_sql import identifier
from crovca.servers.rows import Ids, IdType, ServerRows, json_rows
from crovca.servers.table import GIVEN, PART, Ranking, TableServer

_LOCK_WAIT = 15.0  # seconds that another process may write
_STEPS = 1000  # of SQLite's machine, after which it is asked for the time


class SQLiteServer(TableServer):
    """A table of codes in a SQLite file; see ``table.TableServer``."""

    _dialect: ClassVar[Database] = "sqlite"
    _id_types: ClassVar[dict[IdType, str]] = {"int64": "INTEGER", "string": "TEXT"}
    _create_sql: ClassVar[str] = (
        "CREATE TABLE {table} (id {id} PRIMARY KEY NOT NULL, code BLOB NOT NULL, crovca_digest INTEGER NOT NULL) STRICT"
    )
    _columns_sql: ClassVar[str] = "SELECT name FROM pragma_table_info(?)"
    _begin_writing: ClassVar[str] = "BEGIN IMMEDIATE"

    @classmethod
    def _connect(cls, path: str) -> Any:
        extension = needed("sqlite_vec", "sqlite", "a SQLite file", package="sqlite-vec").loadable_path()
        connection = _driver().Connection(path)
        connection.enable_load_extension(True)
        connection.load_extension(extension)
        connection.enable_load_extension(False)
        connection.set_busy_timeout(round(1000 * _LOCK_WAIT))
        connection.execute("PRAGMA case_sensitive_like = ON")
        connection.execute("PRAGMA schema_version").fetchall()  # whether it is a database
        return connection

    @staticmethod
    @contextmanager
    def _errors(where: str | None = None) -> Iterator[None]:
        driver = _driver()
        try:
            yield
        except (OverflowError, UnicodeError) as error:
            raise InvalidInputError(f"SQLite cannot hold a value: {one_line(error)}; leave it out") from error
        except (driver.Error, OSError) as error:
            what = f"SQLite: {one_line(error)}"
            if where is not None and isinstance(error, driver.SQLError):
                refuse(where, what)
            raise ServerError(what) from error

    @contextmanager
    def _given(self, ids: Ids) -> Iterator[None]:
        self._do(f"CREATE TEMP TABLE IF NOT EXISTS {GIVEN} (id {self._id_types[self.id_type]})")
        self._do(f"DELETE FROM {GIVEN}")
        self._connection.executemany(f"INSERT INTO {GIVEN} VALUES (?)", ([one] for one in ids.tolist()))
        yield

    def _insert(self, rows: ServerRows) -> None:
        types = {one.name: _column_type(one.type) for one in rows.metadata.schema if not pa.types.is_null(one.type)}
        known = dict(self._do("SELECT name, type FROM pragma_table_info(?)", self._name))
        for name, kind in types.items():
            if known.get(name, kind) != kind:  # SQLite itself would turn '1' into 1
                raise InvalidInputError(
                    f"the metadata column {name!r} is {known[name]} so far, and {kind} here; convert it yourself, "
                    "or give the column another name"
                )
        columns = self._add_columns(types)
        metadata = json_rows(rows.metadata, "SQLite", signed=True)
        own = zip(rows.ids.tolist(), rows.codes.packed, rows.digests.tolist(), metadata, strict=True)
        given = (
            {"id": one, "code": code.tobytes(), "crovca_digest": digest, **values} for one, code, digest, values in own
        )
        names, marks = ", ".join(map(identifier, columns)), ", ".join("?" * len(columns))
        self._connection.executemany(
            f"INSERT OR REPLACE INTO {self._table} ({names}) VALUES ({marks})",
            ([row.get(name) for name in columns] for row in given),
        )

    def _ranking(self, query: Query) -> Ranking:
        code = query.code.packed.tobytes().hex()
        return Ranking(f"vec_distance_hamming(vec_bit(code), vec_bit(x'{code}'))", query.bound_at, query.radius)

    def _read(self, command: str, values: Sequence[Any], where: str | None) -> Iterator[pa.Table]:
        if where is not None:
            until = time.monotonic() + self.where_timeout
            self._connection.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
        try:
            cursor = self._connection.execute(command, values)
            while part := list(islice(cursor, PART)):
                columns = [pa.array(column) for column in zip(*part, strict=True)]
                yield pa.Table.from_arrays(columns, names=[str(at) for at in range(len(columns))])
        except _driver().InterruptError:
            took_too_long(where or "", self.where_timeout)
        finally:
            self._connection.set_progress_handler(None)

    def _packed(self, codes: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        return np.frombuffer(b"".join(codes.to_pylist()), np.uint8).reshape(len(codes), -1)


def _driver() -> Any:
    return needed("apsw", "sqlite", "a SQLite file")


def _column_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "INTEGER"
    return "REAL" if pa.types.is_floating(kind) else "TEXT"
