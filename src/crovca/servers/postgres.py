"""Codes in a PostgreSQL table (14 or newer): ``bit_count`` of ``bit`` columns, no extension needed.

The server sorts by a weighted sum of bit counts, a lower bound of the asymmetric distance that is close to it
(``bounds``), so that most answers are proven to be exact.

::

    CREATE TABLE name (
        id            bigint  -- or: text COLLATE "C"
                      PRIMARY KEY,
        code          bit(64) NOT NULL,
        crovca_digest bigint  NOT NULL,  -- of code and metadata: which items a push has to send
        ...                              -- one column for each column of metadata
    )

Metadata are columns of their own types rather than one ``jsonb``: the same ``where`` then works here and in
``HashIndex``, and the server can index and check them. They are added when they first come. Codes are
returned as ``bit``, whose bytes are ours (``crovca.codes``).

The extension pgvector is used for one thing only, an HNSW index, and only where asked for: ``build_hnsw`` and
``approximate=True``. Its exact operator ``<~>`` is as fast as ``bit_count``, not faster.

``where`` is a condition as ``HashIndex`` takes it, in PostgreSQL's SQL (``index.conditions``): parsed, checked and
written anew here, and evaluated in a read-only transaction, in UTC, under a time limit.

``crovca_digest`` is written by ``upsert`` alone. What other SQL changes in a row leaves it as it was, so a later
``upsert`` or push takes the row for unchanged; change items through here.

A partitioned table, also over other servers (``shards``), is used like a plain one, but for its columns: they
have to be there from the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlencode, urlunsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import ConfigError, InvalidInputError, ServerError
from crovca.index.conditions import DEFAULT_TIMEOUT
from crovca.index.results import StoredItems
from crovca.servers.base import (
    ALL_RETURNED,
    NOTHING_KNOWN,
    Server,
    ServerCandidates,
    closed_on_error,
    in_order,
    split_url,
)
from crovca.servers.bounds import Query
from crovca.servers.postgres_link import connect, errors, regclass
from crovca.servers.postgres_sql import (
    PART,
    bit_literal,
    column_type,
    columns_sql,
    condition,
    csv_blocks,
    levels_sql,
    quoted,
    split_name,
)
from crovca.servers.rows import RESERVED, Ids, IdType, ServerRows, check_ids
from crovca.servers.state import PushState

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

_LOCK_WAIT = 15.0  # seconds: a killed client's session ends only when the server notices
_LEVELS = 6
_OLDEST_PGVECTOR = (0, 8)  # hnsw.iterative_scan


class PostgresServer(Server):
    """A table of codes; see ``base.Server`` for what is not described here.

    Opened with ``PostgresServer.open`` or made with ``PostgresServer.create``. Not for several threads at once.
    Writing is all or nothing; ``where`` is in PostgreSQL's SQL; all of one search's reads see one state of the table.
    """

    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a statement with a condition is stopped; set it to allow more."""

    def __init__(
        self, connection: Connection[Any], name: str, *, approximate: bool = False, levels: int = _LEVELS
    ) -> None:
        if levels < 1:
            raise InvalidInputError(f"levels must be at least 1, got {levels}")
        self.levels = levels
        self._connection = connection
        self._schema, self._name = split_name(name)
        self._approximate = approximate
        self.bits, self.id_type, self._partitioned = self._describe()
        self._table = quoted(self._schema, self._name)
        self._push_table = quoted(self._schema, "crovca_push")
        if approximate:
            self._check_approximate()

    @classmethod
    def create(cls, address: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Self:
        """Make an empty table and open it.

        Args:
            address: a libpq connection string or URI.
            table: ``name`` or ``schema.name``.
            bits: length of the codes.
            id_type: what ids are.
            exist_ok: take a table that is there already, if it holds such codes.

        Raises:
            ServerError: the server cannot be reached, or there is such a table already.
        """
        check_bits(bits)
        with closed_on_error(connect(address)) as connection:
            with errors():
                exists = regclass(connection, table) is not None
            if exists and not exist_ok:
                raise ServerError(f"there is a table {table!r} already; open it, or give another name")
            if not exists:
                name = quoted(*filter(None, split_name(table)))
                with errors():
                    _execute(connection.cursor(), f"CREATE TABLE {name} ({columns_sql(bits, id_type)})")
            self = cls(connection, table)
            self._check_holds(bits, id_type, "table", table)
            return self

    @classmethod
    def open(cls, address: str, table: str, *, approximate: bool = False, levels: int = _LEVELS) -> Self:
        """Open a table that ``create`` made.

        Args:
            address: a libpq connection string or URI.
            table: ``name`` or ``schema.name``.
            approximate: take candidates from pgvector's HNSW index, which may miss some; no answer is then proven,
                unless asked for with ``exact=True``.
            levels: of ``bounds``, by which the server puts candidates in order: more cost it time, fewer
                need more candidates to prove an answer; 1 is the Hamming distance alone.
        """
        with closed_on_error(connect(address)) as connection:
            return cls(connection, table, approximate=approximate, levels=levels)

    @classmethod
    def open_url(cls, url: str, *, approximate: bool = False) -> Self:
        return cls.open(*_place(url), approximate=approximate)

    @classmethod
    def create_url(cls, url: str, *, bits: int, id_type: IdType, exist_ok: bool) -> Self:
        return cls.create(*_place(url), bits=bits, id_type=id_type, exist_ok=exist_ok)

    def close(self) -> None:
        self._connection.close()

    # --- writing -------------------------------------------------------------------------------------

    def upsert_rows(self, rows: ServerRows) -> None:
        """Copy the rows into a temporary table and merge them from there; an item that is there just so stays."""
        if len(rows) == 0:
            return
        names = rows.metadata.column_names
        types = {name: column_type(name, rows.metadata.schema.field(name).type) for name in names}
        with errors(), self._connection.transaction():
            stored = self._add_columns(types)
            definitions = [columns_sql(self.bits, self.id_type, key=False)]
            definitions += [f"{quoted(name)} {kind}" for name, kind in types.items()]
            self._do(f"CREATE TEMPORARY TABLE crovca_staging ({', '.join(definitions)}) ON COMMIT DROP")
            with self._connection.cursor().copy("COPY crovca_staging FROM STDIN (FORMAT csv, ENCODING 'UTF8')") as copy:
                for block in csv_blocks(rows):
                    copy.write(block)
            self._merge(rows, names, stored)

    def _merge(self, rows: ServerRows, names: Sequence[str], stored: Sequence[str]) -> None:
        """From the staging table into ours. Columns that did not come become null: an item is replaced whole."""
        columns = ", ".join(map(quoted, (*RESERVED, *names)))
        insert = f"INSERT INTO {self._table} ({columns}) SELECT {columns} FROM crovca_staging"
        if self._partitioned:  # foreign tables know no ON CONFLICT ... DO UPDATE
            self._do(f"DELETE FROM {self._table} WHERE id = ANY(%s)", [rows.ids.tolist()])
            self._do(insert)
            return
        changes = [f"{quoted(name)} = excluded.{quoted(name)}" for name in (*RESERVED[1:], *names)]
        changes += [f"{quoted(name)} = NULL" for name in stored if name not in names]
        self._do(
            f"{insert} ON CONFLICT (id) DO UPDATE SET {', '.join(changes)} "
            f"WHERE {self._table}.crovca_digest <> excluded.crovca_digest"
        )

    def delete(self, ids: npt.ArrayLike) -> None:
        checked = check_ids(ids, self.id_type)
        with errors(), self._connection.transaction():
            for start in range(0, len(checked), PART):
                part = checked[start : start + PART].tolist()
                self._do(f"DELETE FROM {self._table} WHERE id = ANY(%s)", [part])

    def build_hnsw(self, m: int = 16, ef_construction: int = 64) -> None:
        """Build pgvector's HNSW index over the codes, for ``approximate=True``; takes minutes a million.

        Raises:
            ServerError: the server has no pgvector, or the table is spread over servers.
        """
        if self._partitioned:
            raise ServerError("a table of partitions has no HNSW index of its own; build one on each shard")
        with errors():
            known = self._value("SELECT default_version FROM pg_available_extensions WHERE name = %s", "vector")
        if known is None:
            raise ServerError("this server has no pgvector; install its package there, or search exactly")
        with errors():
            self._do("CREATE EXTENSION IF NOT EXISTS vector")
            self._do(
                f"CREATE INDEX ON {self._table} USING hnsw (code bit_hamming_ops) "
                f"WITH (m = {int(m)}, ef_construction = {int(ef_construction)})"
            )

    # --- reading -------------------------------------------------------------------------------------

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        return [self._nearest(query, count, where) for query in queries]

    def _nearest(self, query: Query, count: int, where: str | None) -> ServerCandidates:
        if self._approximate:
            # The index returns no more than it looks at, 1,000 at most, unless it may look again.
            self._do(f"SET LOCAL hnsw.ef_search = {min(1000, count)}")
            self._do("SET LOCAL hnsw.iterative_scan = strict_order")
            found = self._ranked(f"code <~> {bit_literal(query.code)}", "distance", count, where)
            if len(found) == count:  # fewer: the index gave up early, so the scan below decides
                return ServerCandidates(self._ids(found), self._codes(found), NOTHING_KNOWN)
        levels = query.levels(self.levels) if self.levels > 1 else None
        distance = f"bit_count(code # {bit_literal(query.code)})" if levels is None else levels_sql(query, levels)
        # By id as well: the answer is then the same whatever the plan, or the number of shards.
        found = self._ranked(distance, "distance, id", count, where)
        bound = ALL_RETURNED
        if len(found) == count:
            last = int(found[-1][2])
            bound = query.bound_at(last) if levels is None else query.bound_of(levels, last)
        return ServerCandidates(self._ids(found), self._codes(found), bound)

    def _ranked(self, distance: str, order: str, count: int, where: str | None, *, explain: str = "") -> list[Any]:
        """Rows of id, code and what they are ordered by; or the lines of the server's plan for it."""
        command = (
            f"{explain}SELECT id, code, {distance} AS distance FROM {self._table} WHERE {self._where(where)} "
            f"ORDER BY {order} LIMIT %(count)s"
        )
        with errors(where, self.where_timeout), self._connection.cursor(binary=not explain) as cursor:
            return _execute(cursor, command, {"count": count}).fetchall()

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        levels = query.levels(max(self.levels, 1 if query.metric == "hamming" else _LEVELS))
        command = (
            f"SELECT id, code FROM {self._table} "
            f"WHERE {self._where(where)} AND {levels_sql(query, levels)} <= %(total)s"
        )
        with errors(where, self.where_timeout), self._connection.cursor("crovca_within", binary=True) as cursor:
            _execute(cursor, command, {"total": query.total(levels, distance)})
            while found := cursor.fetchmany(PART):
                yield self._ids(found), self._codes(found)

    def _get(self, asked: Ids) -> StoredItems:
        names = self._metadata_columns()
        columns = ", ".join(map(quoted, ("id", "code", *names)))
        ordered = in_order(asked, {row[0]: row for row in self._of_ids(columns, asked)})
        table = pa.table({name: [row[2 + at] for row in ordered] for at, name in enumerate(names)})
        return StoredItems(asked, self._codes(ordered), table if names else None)

    def count(self) -> int:
        with errors():
            return int(self._value(f"SELECT count(*) FROM {self._table}"))

    def explain(
        self, logits: npt.ArrayLike, count: int = 1000, *, metric: str = "bce", where: str | None = None
    ) -> str:
        """The server's plan for the candidates of one query (bits,): whether shards sort for themselves, say."""
        query = Query.of(np.asarray(logits, np.float32), metric)
        order = levels_sql(query, query.levels(self.levels))
        with self._reading(where):
            found = self._ranked(order, "distance, id", count, where, explain="EXPLAIN (VERBOSE, COSTS OFF) ")
        return "\n".join(line for (line,) in found)

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        found = self._of_ids("id, crovca_digest", ids)
        return self._ids(found), np.array([row[1] for row in found], np.int64)

    def stored_ids(self) -> Iterator[Ids]:
        with self._reading(), self._connection.cursor("crovca_ids", binary=True) as cursor:
            _execute(cursor, f"SELECT id FROM {self._table}")
            while found := cursor.fetchmany(PART):
                yield self._ids(found)

    @contextmanager
    def push_lock(self) -> Iterator[None]:
        """Let one push work on this table at a time; it ends with the session, so a killed one's is freed."""
        key = f"crovca push {self._schema}.{self._name}"
        until = time.monotonic() + _LOCK_WAIT
        with errors():
            while not self._value("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key):
                if time.monotonic() > until:
                    raise ServerError(f"another push into {self._name!r} is running; wait until it ends")
                time.sleep(0.2)
        try:
            yield
        finally:
            if not self._connection.closed:
                self._value("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)

    def read_push(self) -> PushState | None:
        with errors():
            if regclass(self._connection, f"{self._schema}.crovca_push") is None:
                return None
            text = self._value(f"SELECT state FROM {self._push_table} WHERE name = %s", self._name)
        return None if text is None else PushState.from_json(text)

    def write_push(self, state: PushState) -> None:
        """Remember how far a push came, in the table ``crovca_push`` beside ours."""
        table = self._push_table
        with errors():
            self._do(f"CREATE TABLE IF NOT EXISTS {table} (name text PRIMARY KEY, state text NOT NULL)")
            self._do(
                f"INSERT INTO {table} VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET state = excluded.state",
                [self._name, state.to_json()],
            )

    # --- inside --------------------------------------------------------------------------------------

    def _do(self, command: str, values: Sequence[Any] = ()) -> Cursor[Any]:
        return _execute(self._connection.cursor(), command, values)

    def _value(self, command: str, *values: str) -> Any:
        """The one value that a statement returns; None where it returns no row."""
        row = self._do(command, values).fetchone()
        return None if row is None else row[0]

    def _of_ids(self, columns: str, ids: Ids) -> list[Any]:
        """These columns of the items with these ids, in no order."""
        command = f"SELECT {columns} FROM {self._table} WHERE id = ANY(%s)"
        found: list[Any] = []
        with errors(), self._connection.cursor(binary=True) as cursor:
            for start in range(0, len(ids), PART):
                found += _execute(cursor, command, [ids[start : start + PART].tolist()]).fetchall()
        return found

    @contextmanager
    def _reading(self, where: str | None = None) -> Iterator[None]:
        """One state of the table, of which nothing is changed; a condition has a time limit and UTC."""
        with errors(), self._connection.transaction():
            self._do("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if where is not None:  # until the transaction ends
                self._do(f"SET LOCAL statement_timeout = {max(1, round(1000 * self.where_timeout))}")
                self._do("SET LOCAL TimeZone = 'UTC'")
            yield

    def _where(self, where: str | None) -> str:
        return condition(where, [] if where is None else ["id", *self._metadata_columns()])

    def _describe(self) -> tuple[int, IdType, bool]:
        """bits, id type and whether partitioned, from the server's own catalog."""
        name = f"{self._schema}.{self._name}" if self._schema else self._name
        with errors():
            table = regclass(self._connection, name)
            found = self._do(
                "SELECT a.attname, format_type(a.atttypid, NULL), a.atttypmod, c.relkind, n.nspname "
                "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.oid = %s AND a.attname = ANY(%s) AND NOT a.attisdropped",
                [table, list(RESERVED)],
            ).fetchall()
        if table is None:
            raise ServerError(f"there is no table {name!r}; make it with create(), or with 'crovca index push'")
        columns = {row[0]: (row[1], row[2]) for row in found}
        ids: dict[str, IdType] = {"bigint": "int64", "text": "string"}
        kind = columns.get("id", ("", 0))[0]
        code, length = columns.get("code", ("", 0))
        if len(columns) < len(RESERVED) or kind not in ids or code != "bit":
            raise ServerError(
                f"the table {name!r} is not one of crovca's: it needs the columns id (bigint or text), "
                "code (bit(n)) and crovca_digest (bigint)"
            )
        self._schema = found[0][4]
        return int(length), ids[kind], found[0][3] == "p"

    def _check_approximate(self) -> None:
        """ServerError unless there is an HNSW index, and a pgvector that returns as many items as are asked for."""
        with errors():
            index = self._do(
                "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam "
                "WHERE i.indrelid = %s AND m.amname = 'hnsw' AND i.indisvalid",
                [regclass(self._connection, f"{self._schema}.{self._name}")],
            ).fetchone()
            version = self._value("SELECT extversion FROM pg_extension WHERE extname = %s", "vector")
        if index is None:
            raise ServerError(
                f"the table {self._name!r} has no HNSW index for approximate search; build it with build_hnsw(), "
                "or search exactly"
            )
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
            raise ServerError(f"this server has pgvector {version}; approximate search needs 0.8 or newer")

    def _metadata_columns(self) -> list[str]:
        with errors():
            found = self._do(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped "
                "ORDER BY attnum",
                [regclass(self._connection, f"{self._schema}.{self._name}")],
            ).fetchall()
        return [name for (name,) in found if name not in RESERVED]

    def _add_columns(self, wanted: Mapping[str, str]) -> list[str]:
        """Add what is not there; returns all metadata columns that are there then."""
        there = self._metadata_columns()
        for name, kind in wanted.items():
            if name in there:
                continue
            if self._partitioned:
                raise ServerError(
                    f"the table {self._name!r} is spread over partitions and has no column {name!r}; "
                    "add it to every shard and to the table itself first"
                )
            self._do(f"ALTER TABLE {self._table} ADD COLUMN {quoted(name)} {kind}")
            there.append(name)
        return there

    def _ids(self, found: Sequence[Any]) -> Ids:
        return check_ids([row[0] for row in found], self.id_type)

    def _codes(self, found: Sequence[Any]) -> Codes:
        """From the wire format of ``bit``: the length in bits as int32, then the bytes."""
        raw = b"".join([row[1][4:] for row in found])
        return Codes(np.frombuffer(raw, np.uint8).reshape(len(found), -(-self.bits // 8)), self.bits)


def _execute(cursor: Any, command: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
    """Send a statement, always with parameters (``postgres_sql``)."""
    return cursor.execute(command, values)


def _place(url: str) -> tuple[str, str]:
    """libpq's own URI, and the table."""
    parts = split_url(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    tables = [value for name, value in parameters if name == "table"]
    if len(tables) != 1 or not tables[0]:
        raise ConfigError(
            "the address of a PostgreSQL cluster has to name one table; expected postgresql://user@host:port/database?table=name"
        )
    rest = urlencode([(name, value) for name, value in parameters if name != "table"])
    return urlunsplit(parts._replace(query=rest)), tables[0]
