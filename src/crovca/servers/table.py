"""A table of codes in a database that is one file or folder, opened in this process: what DuckDB, SQLite and
ClickHouse share.

Addresses are ``SCHEME:///path/to/file?table=name``, or ``SCHEME://file?table=name`` below the working folder. The
table ``crovca_tables`` has the name of each of ours, its bits, the type of its ids and how far a push came. Metadata
are columns of their own, added when they first come.

A statement has nothing in it but names, which are quoted, checked conditions (``index.conditions``), digits and what
``Ranking`` says; values are parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import ServerError
from crovca.index.conditions import DEFAULT_TIMEOUT, Database, checked_condition
from crovca.index.metadata import conform
from crovca.index.results import StoredItems
from crovca.servers.base import ALL_RETURNED, FileServer, ServerCandidates, closed_on_error, in_order
from crovca.servers.bounds import Query
from crovca.servers.postgres_sql import identifier
from crovca.servers.rows import RESERVED, Ids, IdType, ServerRows, check_ids, check_names
from crovca.servers.state import PushState

PART = 32768  # rows at a time
GIVEN = "crovca_given"  # what ids or rows are called in a statement that are given to it
TABLES = "crovca_tables"
_LEVELS = 6


@dataclass(frozen=True)
class Ranking:
    """What an engine puts items in order by, for one query.

    Attributes:
        sql: of a whole number for each item.
        bound: no item whose number is this or more is nearer than what it returns.
        most: no item whose number is over what it returns is within a distance.
    """

    sql: str
    bound: Callable[[int], np.float32]
    most: Callable[[np.float32], int]

    @classmethod
    def by_levels(cls, query: Query, term: str) -> Self:
        """By the lower bound of ``bounds``, for an engine whose codes are lists of words of 64 bits.

        Args:
            query: the query; Hamming distances need one level, and are exact.
            term: SQL of {step} times the number of bits in which code[{at}] differs from {word}, of those in {part}.
        """
        levels = query.levels(1 if query.metric == "hamming" else _LEVELS)
        (code,) = query.code.words().tolist()
        terms = [
            term.format(step=step, at=at, word=word, part=part)
            for step, mask in zip(levels.steps.tolist(), levels.masks.words().tolist(), strict=True)
            for at, (word, part) in enumerate(zip(code, mask, strict=True), 1)
            if part
        ]
        return cls(f"({' + '.join(terms)})", partial(query.bound_of, levels), partial(query.total, levels))


class TableServer(FileServer):
    """A table of codes in a file; see ``base.Server`` for what is not described here.

    Not for several threads at once. Writing is all or nothing; all of one
    search's reads see one state of the table. A new engine defines what is abstract here.
    """

    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a statement with a condition is stopped; set it to allow more."""

    _dialect: ClassVar[Database]
    _id_types: ClassVar[dict[IdType, str]]
    _create_sql: ClassVar[str]  # makes a {table} with an {id} of this type, and codes, of so many {words} of 64 bits
    _columns_sql: ClassVar[str]  # names of the columns of a table, which is the one parameter
    _begin_writing: ClassVar[str]  # "": the engine has no transactions
    _begin_reading: ClassVar[str] = "BEGIN"

    def __init__(self, connection: Any, table: str) -> None:
        self._connection = connection
        self._name, self._table = table, identifier(table)
        with self._errors():
            ours = bool(self._columns(TABLES))
            known = self._do(f"SELECT bits, id_type FROM {TABLES} WHERE name = ?", table) if ours else []
        if not known:
            raise ServerError(
                f"there is no table {table!r} of crovca's in this file; make it with create(), or with "
                "'crovca index push'"
            )
        self.bits, self.id_type = known[0]

    @classmethod
    def create(cls, path: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Self:
        check_bits(bits)
        with closed_on_error(cls._opened(path)) as connection:
            with cls._errors():
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {TABLES} "
                    "(name TEXT PRIMARY KEY, bits BIGINT NOT NULL, id_type TEXT NOT NULL, push TEXT)"
                )
                known = connection.execute(f"SELECT 1 FROM {TABLES} WHERE name = ?", [table]).fetchall()
            if known and not exist_ok:
                raise ServerError(f"there is a table {table!r} already; open it, or give another name")
            if not known:
                with cls._errors(), _transaction(connection, cls._begin_writing):
                    own = {"table": identifier(table), "id": cls._id_types[id_type], "words": -(-bits // 64)}
                    connection.execute(cls._create_sql.format(**own))
                    connection.execute(f"INSERT INTO {TABLES} VALUES (?, ?, ?, NULL)", [table, bits, id_type])
            self = cls(connection, table)
            self._check_holds(bits, id_type, "table", table)
            return self

    @classmethod
    def open(cls, path: str, table: str) -> Self:
        with cls._errors():
            exists = cls._exists(Path(path))
        if not exists:
            raise ServerError(f"there is no file {path}; make it with create(), or with 'crovca index push'")
        with closed_on_error(cls._opened(path)) as connection:
            return cls(connection, table)

    def close(self) -> None:
        self._connection.close()

    # What an engine has to say:

    @staticmethod
    def _exists(path: Path) -> bool:
        """Whether there may be a database."""
        return path.is_file()

    @classmethod
    @abstractmethod
    def _connect(cls, path: str) -> Any:
        """Open a file, which is made if there is none."""

    @staticmethod
    @abstractmethod
    def _errors(where: str | None = None) -> AbstractContextManager[None]:
        """The engine's errors as ours; a condition is named where it is at fault."""

    @abstractmethod
    def _given(self, ids: Ids) -> AbstractContextManager[None]:
        """``crovca_given`` is a table of these ids."""

    @abstractmethod
    def _insert(self, rows: ServerRows) -> None:
        """Add the columns that are missing, and the rows, which replace those that are there."""

    @abstractmethod
    def _ranking(self, query: Query) -> Ranking:
        """What candidates of this query are put in order by."""

    @abstractmethod
    def _read(self, command: str, values: Sequence[Any], where: str | None) -> Iterator[pa.Table]:
        """What a SELECT returns, part by part, no part of it empty; with a condition, under a time limit."""

    @abstractmethod
    def _packed(self, codes: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        """(n, bytes) of stored codes, and zeros behind them."""

    # --- writing -------------------------------------------------------------------------------------

    def upsert_rows(self, rows: ServerRows) -> None:
        if len(rows):
            with self._writing():
                check_names(rows.metadata.column_names, self._columns(self._name))
                self._insert(rows)

    def _add_columns(self, types: dict[str, str]) -> list[str]:
        """Add what is not there; returns all columns that are there then."""
        there = self._columns(self._name)
        for name, kind in types.items():
            if name not in there:
                self._do(f"ALTER TABLE {self._table} ADD COLUMN {identifier(name)} {kind}")
        return self._columns(self._name)

    def delete(self, ids: npt.ArrayLike) -> None:
        with self._writing(), self._given(check_ids(ids, self.id_type)):
            self._do(f"DELETE FROM {self._table} WHERE id IN (SELECT id FROM {GIVEN})")

    # --- reading -------------------------------------------------------------------------------------

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        return [self._nearest(query, count, where) for query in queries]

    def _nearest(self, query: Query, count: int, where: str | None) -> ServerCandidates:
        ranking = self._ranking(query)
        # By id as well: the answer is then the same whatever the plan.
        columns, order = f"id, code, {ranking.sql} AS crovca_rank", "ORDER BY crovca_rank, id LIMIT ?"
        found = list(self._select(columns, order, count, where=where))
        ids = self._ids(found)
        bound = ALL_RETURNED if len(ids) < count else ranking.bound(int(found[-1].column(2)[-1].as_py()))
        return ServerCandidates(ids, self._codes(found), bound)

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        ranking = self._ranking(query)
        for part in self._select("id, code", f"AND {ranking.sql} <= ?", ranking.most(distance), where=where):
            yield self._ids([part]), self._codes([part])

    def _get(self, asked: Ids) -> StoredItems:
        names = self._metadata_columns()
        found = self._of_ids(", ".join(map(identifier, ("id", "code", *names))), asked)
        place = {one: at for at, one in enumerate(self._ids(found).tolist())}
        order = np.array(in_order(asked, place), np.int64)
        table = None
        if names and found:
            whole = pa.concat_tables(found, promote_options="permissive").take(order)
            table = whole.select(range(2, 2 + len(names))).rename_columns(names)
        return StoredItems(asked, self._codes(found)[order], table)

    def count(self) -> int:
        with self._errors():
            return int(self._do(f"SELECT count(*) FROM {self._table}")[0][0])

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        found = self._of_ids("id, crovca_digest", ids)
        digests = [part.column(1).to_numpy() for part in found]
        return self._ids(found), np.concatenate([np.zeros(0, np.int64), *digests])

    def stored_ids(self) -> Iterator[Ids]:
        for part in self._select("id", ""):
            yield self._ids([part])

    def read_push(self) -> PushState | None:
        with self._errors():
            text = self._do(f"SELECT push FROM {TABLES} WHERE name = ?", self._name)[0][0]
        return PushState.from_json(text) if text else None

    def write_push(self, state: PushState) -> None:
        with self._errors():
            self._do(f"UPDATE {TABLES} SET push = ? WHERE name = ?", state.to_json(), self._name)

    # --- inside --------------------------------------------------------------------------------------

    @classmethod
    def _opened(cls, path: str) -> Any:
        try:
            with cls._errors():
                return cls._connect(path)
        except ServerError as error:
            raise ServerError(f"cannot open {path}: {error}") from error

    def _do(self, command: str, *values: Any) -> list[Any]:
        """The rows that a statement returns."""
        found: list[Any] = self._connection.execute(command, values).fetchall()
        return found

    def _select(self, columns: str, rest: str, *values: Any, where: str | None = None) -> Iterator[pa.Table]:
        with self._errors(where):
            condition = "true" if where is None else self._condition(where)
            yield from self._read(f"SELECT {columns} FROM {self._table} WHERE {condition} {rest}", values, where)

    def _condition(self, where: str) -> str:
        return f"({checked_condition(where, ['id', *self._metadata_columns()], self._dialect)})"

    def _of_ids(self, columns: str, ids: Ids) -> list[pa.Table]:
        """These columns of the items with these ids, in no order."""
        with self._errors(), self._given(ids):
            return list(self._select(columns, f"AND id IN (SELECT id FROM {GIVEN})"))

    def _columns(self, table: str) -> list[str]:
        return [name for (name,) in self._do(self._columns_sql, table)]

    def _metadata_columns(self) -> list[str]:
        return [name for name in self._columns(self._name) if name not in RESERVED]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._errors(), _transaction(self._connection, self._begin_writing):
            yield

    @contextmanager
    def _reading(self, where: str | None = None) -> Iterator[None]:
        """One state of the table."""
        with self._errors(), _transaction(self._connection, self._begin_reading):
            yield

    def _ids(self, found: Sequence[pa.Table]) -> Ids:
        return check_ids([one for part in found for one in part.column(0).to_pylist()], self.id_type)

    def _codes(self, found: Sequence[pa.Table]) -> Codes:
        width = -(-self.bits // 8)
        parts = [self._packed(part.column(1))[:, :width] for part in found]
        return Codes(np.concatenate([np.zeros((0, width), np.uint8), *parts]), self.bits)


@contextmanager
def _transaction(connection: Any, begin: str) -> Iterator[None]:
    """All that is done within it is done, or nothing."""
    if not begin:
        yield
        return
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(Exception):  # some errors have ended it already
            connection.execute("ROLLBACK")
        raise


class WordsServer(TableServer):
    """A table whose codes are lists of words of 64 bits (``Codes.words``)."""

    _term: ClassVar[str]  # of ``Ranking.by_levels``

    def _ranking(self, query: Query) -> Ranking:
        return Ranking.by_levels(query, self._term)

    def _packed(self, codes: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
        words = codes.combine_chunks().flatten().to_numpy()
        return words.astype(">u8").view(np.uint8).reshape(len(codes), -1)

    def _with_words(self, rows: ServerRows, stored: pa.Table) -> pa.Table:
        """Rows as the table has them; metadata of the types that are stored, as the engine itself would round."""
        metadata = conform(rows.metadata, conform(stored, pa.schema([])).schema)
        words = pa.FixedSizeListArray.from_arrays(pa.array(rows.codes.words().ravel()), -(-self.bits // 64))
        arrays = [pa.array(rows.ids), words, pa.array(rows.digests), *metadata.columns]
        return pa.Table.from_arrays(arrays, names=[*RESERVED, *metadata.column_names])
