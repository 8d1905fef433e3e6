"""Codes in a PostgreSQL table (14 or newer): ``bit_count`` of ``bit`` columns, no extension needed.

The server sorts by a weighted sum of bit counts, a lower bound of the asymmetric distance that is close to it
(``bounds``), so that the answers are nearly always proven to be exact.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, LiteralString, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import InvalidInputError, ServerError
from crovca.index.conditions import DEFAULT_TIMEOUT
from crovca.index.results import StoredItems
from crovca.servers.base import (
    ALL_RETURNED,
    NOTHING_KNOWN,
    Ids,
    IdType,
    ServerCandidates,
    ServerNeighbors,
    missing,
    search_by_rescoring,
)
from crovca.servers.bounds import Query
from crovca.servers.postgres_link import connect, errors, regclass
from crovca.servers.postgres_sql import (
    bit_literal,
    column_type,
    columns_sql,
    condition,
    csv_blocks,
    levels_sql,
    name_parts,
    quoted,
    split_name,
)
from crovca.servers.rows import RESERVED, ServerRows, check_ids
from crovca.servers.state import PushState

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import SQL, Composable, Composed

__all__ = ["PostgresServer"]

_PART = 32768  # rows of a result, or ids of a condition, at a time
_LOCK_WAIT = 15.0  # seconds: a killed client's session ends only when the server notices
_LEVELS = 6
_OLDEST_PGVECTOR = (0, 8)  # hnsw.iterative_scan


class PostgresServer:
    """A table of codes; see ``base.Server`` for what is not described here.

    Opened with ``PostgresServer.open`` or made with ``PostgresServer.create``. Not for several threads at once.
    """

    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a statement with a condition is stopped; set it to allow more."""

    def __init__(
        self,
        connection: Connection[Any],
        name: str,
        *,
        approximate: bool = False,
        levels: int = _LEVELS,
        where_timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if levels < 1:
            raise InvalidInputError(f"levels must be at least 1, got {levels}")
        self.levels = levels
        self._connection = connection
        self._schema, self._name = split_name(name)
        self._approximate = approximate
        self.bits: int
        self.id_type: IdType
        self.bits, self.id_type, self._partitioned = self._describe()
        if approximate:
            self._check_approximate()

    @classmethod
    def create(
        cls, address: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False
    ) -> Self:
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
        connection = connect(address)
        try:
            with errors():
                exists = regclass(connection, table) is not None
            if exists and not exist_ok:
                raise ServerError(f"there is a table {table!r} already; open it, or give another name")
            if not exists:
                from psycopg import sql

                with errors():
                    connection.execute(
                        sql.SQL("CREATE TABLE {} ({})").format(
                            quoted(*name_parts(table)), columns_sql(bits, id_type)
                        ),
                        (),
                    )
            self = cls(connection, table)
            if (self.bits, self.id_type) != (bits, id_type):
                raise ServerError(
                    f"the table {table!r} holds codes of {self.bits} bits with ids of type {self.id_type}, "
                    f"expected {bits} bits and {id_type}; give another table"
                )
        except BaseException:
            connection.close()
            raise
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
        connection = connect(address)
        try:
            return cls(connection, table, approximate=approximate, levels=levels)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """See ``Server``."""
        self._connection.close()

    # --- writing -------------------------------------------------------------------------------------

    def upsert(self, ids: npt.ArrayLike, codes: Codes, metadata: pa.Table | None = None) -> None:
        """See ``Server``; all or nothing. An item that is there just so is left alone."""
        self.upsert_rows(ServerRows.of(ids, codes, metadata, bits=self.bits, id_type=self.id_type))

    def upsert_rows(self, rows: ServerRows) -> None:
        """Copy the rows into a temporary table and merge them from there, in one transaction."""
        from psycopg import sql

        if len(rows) == 0:
            return
        names = rows.metadata.column_names
        types = [column_type(name, rows.metadata.schema.field(name).type) for name in names]
        with errors(), self._connection.transaction():
            stored = self._add_columns(dict(zip(names, types, strict=True)))
            definitions = [columns_sql(self.bits, self.id_type, key=False)]
            definitions += [
                sql.SQL("{} {}").format(quoted(name), kind) for name, kind in zip(names, types, strict=True)
            ]
            self._do(
                sql.SQL("CREATE TEMPORARY TABLE crovca_staging ({}) ON COMMIT DROP").format(
                    sql.SQL(", ").join(definitions)
                )
            )
            with self._connection.cursor().copy(
                "COPY crovca_staging FROM STDIN (FORMAT csv, ENCODING 'UTF8')"
            ) as copy:
                for block in csv_blocks(rows):
                    copy.write(block)
            self._merge(rows, names, stored)

    def _merge(self, rows: ServerRows, names: Sequence[str], stored: Sequence[str]) -> None:
        """From the staging table into ours. Columns that did not come become null: an item is replaced whole."""
        from psycopg import sql

        columns = [quoted(name) for name in (*RESERVED, *names)]
        insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM crovca_staging").format(
            self._table, sql.SQL(", ").join(columns), sql.SQL(", ").join(columns)
        )
        if self._partitioned:  # foreign tables know no ON CONFLICT ... DO UPDATE
            self._connection.execute(
                sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table), [rows.ids.tolist()]
            )
            self._do(insert)
            return
        changes = [
            sql.SQL("{0} = excluded.{0}").format(quoted(name))
            for name in (*RESERVED[1:], *names)
        ]  # fmt: skip
        changes += [sql.SQL("{} = NULL").format(quoted(name)) for name in stored if name not in names]
        self._do(
            sql.SQL(
                "{} ON CONFLICT (id) DO UPDATE SET {} WHERE {}.crovca_digest <> excluded.crovca_digest"
            ).format(insert, sql.SQL(", ").join(changes), self._table)
        )

    def delete(self, ids: npt.ArrayLike) -> None:
        """See ``Server``; all or nothing."""
        from psycopg import sql

        checked = check_ids(ids, self.id_type)
        command = sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(self._table)
        with errors(), self._connection.transaction():
            for start in range(0, len(checked), _PART):
                self._connection.execute(command, [checked[start : start + _PART].tolist()])

    def build_hnsw(self, m: int = 16, ef_construction: int = 64) -> None:
        """Build pgvector's HNSW index over the codes, for ``approximate=True``; takes minutes a million.

        Raises:
            ServerError: the server has no pgvector, or the table is spread over servers.
        """
        from psycopg import sql

        if self._partitioned:
            raise ServerError("a table of partitions has no HNSW index of its own; build one on each shard")
        with errors():
            available = self._connection.execute(
                "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone()
        if available is None:
            raise ServerError("this server has no pgvector; install its package there, or search exactly")
        with errors():
            self._do(sql.SQL("CREATE EXTENSION IF NOT EXISTS vector"))
            self._do(
                sql.SQL(
                    "CREATE INDEX ON {} USING hnsw (code bit_hamming_ops) WITH (m = {}, ef_construction = {})"
                ).format(self._table, sql.Literal(int(m)), sql.Literal(int(ef_construction)))
            )

    # --- reading -------------------------------------------------------------------------------------

    def search(
        self,
        logits: npt.ArrayLike | Codes,
        k: int = 10,
        *,
        metric: str = "bce",
        where: str | None = None,
        overfetch: int | None = None,
        exact: bool = False,
    ) -> ServerNeighbors:
        """See ``Server``; ``where`` is in PostgreSQL's SQL. All of one call's reads see one state of the table."""
        with self._reading(where):
            return search_by_rescoring(self, logits, k, metric, where, overfetch, exact)

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        """See ``Engine``."""
        return [self._nearest(query, count, where) for query in queries]

    def _nearest(self, query: Query, count: int, where: str | None) -> ServerCandidates:
        if self._approximate:
            found = self._ranked(self._by_index(query), "distance", count, where)
            if len(found) == count:  # fewer: the index gave up early, so the scan below decides
                return ServerCandidates(self._ids(found), self._codes(found), NOTHING_KNOWN)
        levels = query.levels(self.levels) if self.levels > 1 else None
        order = self._by_hamming(query) if levels is None else levels_sql(query, levels)
        # By id as well: the answer is then the same whatever the plan, or the number of shards.
        found = self._ranked(order, "distance, id", count, where)
        bound = ALL_RETURNED
        if len(found) == count:
            last = int(found[-1][2])
            bound = query.bound_at(last) if levels is None else query.bound_of(levels, last)
        return ServerCandidates(self._ids(found), self._codes(found), bound)

    def _ranked(self, distance: Composable, order: LiteralString, count: int, where: str | None) -> list[Any]:
        """ServerRows of id, code and what they are ordered by."""
        if self._approximate and order == "distance":
            # The index returns no more than it looks at, 1,000 at most, unless it may look again.
            for setting in (f"hnsw.ef_search = {min(1000, count)}", "hnsw.iterative_scan = strict_order"):
                self._connection.execute(f"SET LOCAL {setting}")
        with errors(where, self.where_timeout), self._connection.cursor(binary=True) as cursor:
            command = self._ranking(distance, order, where)
            return cursor.execute(command, {"count": count}).fetchall()

    def _ranking(self, distance: Composable, order: LiteralString, where: str | None) -> Composed:
        from psycopg import sql

        return sql.SQL("SELECT id, code, {} AS distance FROM {} {} ORDER BY {} LIMIT %(count)s").format(
            distance, self._table, self._where(where), sql.SQL(order)
        )

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        """See ``Engine``."""
        from psycopg import sql

        levels = query.levels(max(self.levels, 1 if query.metric == "hamming" else _LEVELS))
        command = sql.SQL("SELECT id, code FROM {} {} {} <= %(total)s").format(
            self._table,
            sql.SQL("WHERE") if where is None else self._where(where) + sql.SQL(" AND"),
            levels_sql(query, levels),
        )
        total = query.total(levels, distance)
        with (
            errors(where, self.where_timeout),
            self._connection.cursor("crovca_within", binary=True) as cursor,
        ):
            cursor.execute(command, {"total": total})
            while found := cursor.fetchmany(_PART):
                yield self._ids(found), self._codes(found)

    def _by_index(self, query: Query) -> Composable:
        from psycopg import sql

        return sql.SQL("code <~> {}").format(bit_literal(query.code))

    def _by_hamming(self, query: Query) -> Composable:
        from psycopg import sql

        return sql.SQL("bit_count(code # {})").format(bit_literal(query.code))

    def get(self, ids: npt.ArrayLike) -> StoredItems:
        """See ``Server``."""
        from psycopg import sql

        asked = check_ids(ids, self.id_type)
        names = self._metadata_columns()
        columns = sql.SQL(", ").join([quoted(name) for name in ("id", "code", *names)])
        command = sql.SQL("SELECT {} FROM {} WHERE id = ANY(%s)").format(columns, self._table)
        with errors(), self._connection.cursor(binary=True) as cursor:
            found = cursor.execute(command, [asked.tolist()]).fetchall()
        rows = {row[0]: row for row in found}
        missing(asked, list(rows))
        ordered = [rows[one] for one in asked.tolist()]
        table = pa.table({name: [row[2 + at] for row in ordered] for at, name in enumerate(names)})
        return StoredItems(asked, self._codes(ordered), table if names else None)

    def count(self) -> int:
        """See ``Server``."""
        from psycopg import sql

        with errors():
            row = self._connection.execute(
                sql.SQL("SELECT count(*) FROM {}").format(self._table), ()
            ).fetchone()
        assert row is not None
        return int(row[0])

    def explain(
        self,
        logits: npt.ArrayLike,
        count: int = 1000,
        *,
        metric: str = "bce",
        where: str | None = None,
    ) -> str:
        """The server's plan for the candidates of one query (bits,): whether shards sort for themselves, say."""
        from psycopg import sql

        query = Query.of(np.asarray(logits, np.float32), metric)
        order = levels_sql(query, query.levels(self.levels))
        command = sql.SQL("EXPLAIN (VERBOSE, COSTS OFF) ") + self._ranking(order, "distance, id", where)
        with self._reading(where), errors(where, self.where_timeout):
            found = self._connection.execute(command, {"count": count}).fetchall()
        return "\n".join(line for (line,) in found)

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        """ids and digests of those of these items that are stored, in no order."""
        from psycopg import sql

        command = sql.SQL("SELECT id, crovca_digest FROM {} WHERE id = ANY(%s)").format(self._table)
        found: list[Any] = []
        with errors(), self._connection.cursor(binary=True) as cursor:
            for start in range(0, len(ids), _PART):
                found += cursor.execute(command, [ids[start : start + _PART].tolist()]).fetchall()
        return self._ids(found), np.array([row[1] for row in found], np.int64)

    def stored_ids(self) -> Iterator[Ids]:
        """All ids, part by part, in no order; nothing may be written meanwhile."""
        from psycopg import sql

        with self._reading(), self._connection.cursor("crovca_ids", binary=True) as cursor:
            cursor.execute(sql.SQL("SELECT id FROM {}").format(self._table), ())
            while found := cursor.fetchmany(_PART):
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
        """How far a push came; None where nothing was pushed."""
        with errors():
            if regclass(self._connection, f"{self._schema}.crovca_push") is None:
                return None
            text = self._value(f"SELECT state FROM {self._push_table} WHERE name = %s", self._name)
        return None if text is None else PushState.from_json(text)

    def write_push(self, state: PushState) -> None:
        """Remember how far a push came, in the table ``crovca_push`` beside ours."""
        with errors():
            for command in (
                f"CREATE TABLE IF NOT EXISTS {self._push_table} (name text PRIMARY KEY, state text NOT NULL)",
                f"INSERT INTO {self._push_table} VALUES (%(name)s, %(state)s) "
                "ON CONFLICT (name) DO UPDATE SET state = excluded.state",
            ):
                values = {"name": self._name, "state": state.to_json()}
                self._connection.execute(command, values)

    # --- inside --------------------------------------------------------------------------------------

    @property
    def _table(self) -> SQL:
        return quoted(self._schema, self._name)

    @property
    def _push_table(self) -> str:
        return quoted(self._schema, "crovca_push").as_string()

    def _do(self, command: SQL | Composed) -> None:
        """A statement that returns nothing."""
        self._connection.execute(command, ())

    def _value(self, command: LiteralString, value: str) -> Any:
        """The one value that a statement returns; None where it returns no row."""
        row = self._connection.execute(command, [value]).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _reading(self, where: str | None = None) -> Iterator[None]:
        """One state of the table, of which nothing is changed; a condition has a time limit and UTC."""
        with errors(), self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            if where is not None:
                limit = max(1, round(1000 * self.where_timeout))
                for setting in (f"statement_timeout = {limit}", "TimeZone = 'UTC'"):
                    self._connection.execute(f"SET LOCAL {setting}")  # until the transaction ends
            yield

    def _where(self, where: str | None) -> Composable:
        columns = [] if where is None else ["id", *self._metadata_columns()]
        return condition(where, columns)

    def _describe(self) -> tuple[int, IdType, bool]:
        """bits, id type and whether partitioned, from the server's own catalog."""
        name = f"{self._schema}.{self._name}" if self._schema else self._name
        with errors():
            found = self._connection.execute(
                "SELECT a.attname, format_type(a.atttypid, NULL), a.atttypmod, c.relkind, n.nspname "
                "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE c.oid = %s AND a.attname = ANY(%s) AND NOT a.attisdropped",
                [regclass(self._connection, name), list(RESERVED)],
            ).fetchall()
        columns = {row[0]: (row[1], row[2]) for row in found}
        if not found:
            if regclass(self._connection, name) is None:
                raise ServerError(
                    f"there is no table {name!r}; make it with create(), or with 'crovca index push'"
                )
            columns = {}
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
            index = self._connection.execute(
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
            found = self._connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped "
                "ORDER BY attnum",
                [regclass(self._connection, f"{self._schema}.{self._name}")],
            ).fetchall()
        return [name for (name,) in found if name not in RESERVED]

    def _add_columns(self, wanted: dict[str, Composable]) -> list[str]:
        """Add what is not there; returns all metadata columns that are there then."""
        from psycopg import sql

        there = self._metadata_columns()
        for name, kind in wanted.items():
            if name in there:
                continue
            if self._partitioned:
                raise ServerError(
                    f"the table {self._name!r} is spread over partitions and has no column {name!r}; "
                    "add it to every shard and to the table itself first"
                )
            self._do(sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(self._table, quoted(name), kind))
            there.append(name)
        return there

    def _ids(self, found: Sequence[Any]) -> Ids:
        return check_ids([row[0] for row in found], self.id_type)

    def _codes(self, found: Sequence[Any]) -> Codes:
        """From the wire format of ``bit``: the length in bits as int32, then the bytes."""
        raw = b"".join([row[1][4:] for row in found])
        return Codes(np.frombuffer(raw, np.uint8).reshape(len(found), -(-self.bits // 8)), self.bits)
