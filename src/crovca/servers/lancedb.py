"""Codes in a LanceDB table, a folder of files: vectors of bytes, distance type hamming, without an index.

LanceDB itself computes the Hamming distance, exactly, and returns the nearest by it. Asymmetric distances are scored
here over those candidates, and proven by ``bounds``; ``exact=True`` reads what else may be among the nearest.
Conditions are its own: those of the grammar of ``index.conditions`` for PostgreSQL, as far as LanceDB knows them.

A table has the columns ``id``, ``code`` (a list of as many bytes as ``Codes`` has), ``crovca_digest``, and one for each
column of metadata, of its own type; the length of the codes is kept with its schema. Beside it lies the table
``crovca_push`` with how far each push came. Addresses are ``lancedb:///path/to/folder?table=name``.

Every write makes a new version of the table; what older ones held is removed by LanceDB's own ``optimize``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import CrovcaError, InvalidInputError, ServerError, needed, one_line
from crovca.index.conditions import DEFAULT_TIMEOUT, checked_condition, refuse, took_too_long
from crovca.index.metadata import conform
from crovca.index.results import StoredItems
from crovca.servers.base import ALL_RETURNED, FileServer, ServerCandidates, in_order
from crovca.servers.bounds import Query
from crovca.servers.rows import RESERVED, Ids, IdType, ServerRows, check_ids, check_names
from crovca.servers.state import PushState

_FORMAT = 1
_PART = 8192  # ids asked for at a time
_PUSH = "crovca_push"
_ALWAYS = timedelta(0)  # what other processes wrote is seen at once
_SOURCE = re.compile(r", /\S+\.rs:\d+:\d+")  # where in its source an error arose
_ID_TYPES = {"int64": pa.int64(), "string": pa.string()}


class LanceServer(FileServer):
    """A table of codes in a folder; see ``base.Server`` for what is not described here.

    Each write is all or nothing; all of one search's reads see one state
    of the table. Not for several threads at once.
    """

    where_timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a search with a condition is stopped; set it to allow more."""

    def __init__(self, database: Any, table: str) -> None:
        self._database, self._name = database, table
        with _errors():
            self._table = database.open_table(table)
            described = (self._table.schema.metadata or {}).get(b"crovca")
        if described is None:
            raise ServerError(f"the table {table!r} was not made by crovca; give another one")
        ours = json.loads(described)
        if ours["format"] != _FORMAT:
            raise ServerError(f"the table {table!r} has format {ours['format']}, expected {_FORMAT}: update crovca")
        self.bits, self.id_type = ours["bits"], ours["id_type"]

    @classmethod
    def create(cls, path: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Self:
        check_bits(bits)
        driver = _driver()
        with _errors():
            exists = Path(path, f"{table}.lance").exists()
            if exists and not exist_ok:
                raise ServerError(f"there is a table {table!r} already; open it, or give another name")
            database = driver.connect(path, read_consistency_interval=_ALWAYS)
            if not exists:
                types = [_ID_TYPES[id_type], pa.list_(pa.uint8(), -(-bits // 8)), pa.int64()]
                described = json.dumps({"format": _FORMAT, "bits": bits, "id_type": id_type})
                schema = pa.schema(list(zip(RESERVED, types, strict=True)), metadata={"crovca": described})
                database.create_table(table, schema=schema)
        self = cls(database, table)
        self._check_holds(bits, id_type, "table", table)
        return self

    @classmethod
    def open(cls, path: str, table: str) -> Self:
        driver = _driver()
        with _errors():
            if not Path(path, f"{table}.lance").is_dir():
                raise ServerError(
                    f"there is no table {table!r} in {path}; make it with create(), or with 'crovca index push'"
                )
            database = driver.connect(path, read_consistency_interval=_ALWAYS)
        return cls(database, table)

    def close(self) -> None:
        """Nothing is open between calls."""

    # --- writing -------------------------------------------------------------------------------------

    def upsert_rows(self, rows: ServerRows) -> None:
        if len(rows) == 0:
            return
        for name in rows.metadata.column_names:
            if name.startswith("_") or set(".`") & set(name):
                raise InvalidInputError(
                    f"LanceDB can have no metadata column {name!r}: a name with _ before it, or with . or ` in it, is "
                    "not for columns there; rename it"
                )
        with _errors():
            schema = self._table.schema
            check_names(rows.metadata.column_names, schema.names)
            metadata = conform(rows.metadata, conform(schema.empty_table(), pa.schema([])).schema)
            new = [field for field in metadata.schema if field.name not in schema.names]
            if new:
                self._table.add_columns(pa.schema(new))
            codes = pa.FixedSizeListArray.from_arrays(pa.array(rows.codes.packed.ravel()), rows.codes.bytes_per_item)
            given = dict(zip(RESERVED, (pa.array(rows.ids), codes, pa.array(rows.digests)), strict=True))
            given |= dict(zip(metadata.column_names, metadata.columns, strict=True))
            whole = self._table.schema
            columns = [given.get(field.name, pa.nulls(len(rows))).cast(field.type) for field in whole]
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.Table.from_arrays(columns, schema=whole))

    def delete(self, ids: npt.ArrayLike) -> None:
        """In parts of 8,192, each all or nothing."""
        with _errors():
            for condition, _ in _parts(check_ids(ids, self.id_type)):
                self._table.delete(condition)

    # --- reading -------------------------------------------------------------------------------------

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        answers = []
        for query in queries:
            found = self._hits(query, where, limit=count)
            bound = ALL_RETURNED
            if len(found) == count:
                bound = query.bound_at(int(found["_distance"][-1].as_py()))
            answers.append(ServerCandidates(self._ids(found), self._codes(found), bound))
        return answers

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        radius = query.radius(distance)
        if radius >= 0:
            found = self._hits(query, where, limit=max(1, self.count()), radius=radius)
            yield self._ids(found), self._codes(found)

    def _hits(self, query: Query, where: str | None, *, limit: int, radius: int | None = None) -> pa.Table:
        """Items by their Hamming distance, the nearest first."""
        with _errors(where):
            search = self._table.search(query.code.packed[0], vector_column_name="code").distance_type("hamming")
            search = search.bypass_vector_index().select(["id", "code", "_distance"]).limit(limit)
            if radius is not None:
                search = search.distance_range(upper_bound=radius + 0.5)
            if where is None:
                return search.to_arrow()
            names = ["id", *(name for name in self._table.schema.names if name not in RESERVED)]
            search = search.where(checked_condition(where, names, "lancedb"), prefilter=True)
            try:
                return search.to_arrow(timeout=timedelta(seconds=self.where_timeout))
            except RuntimeError as error:
                if "timeout" in str(error):
                    took_too_long(where, self.where_timeout)
                raise

    def _get(self, asked: Ids) -> StoredItems:
        with _errors():
            found = self._of_ids(self._table.schema.names, asked)
        place = {one: at for at, one in enumerate(self._ids(found).tolist())}
        found = found.take(np.array(in_order(asked, place), np.int64))
        table = found.drop_columns(list(RESERVED))
        return StoredItems(asked, self._codes(found), table if table.num_columns else None)

    def count(self) -> int:
        with _errors():
            return int(self._table.count_rows())

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        with _errors():
            found = self._of_ids(["id", "crovca_digest"], ids)
        return self._ids(found), found["crovca_digest"].to_numpy()

    def stored_ids(self) -> Iterator[Ids]:
        with _errors():
            yield self._ids(self._table.search().select(["id"]).limit(max(1, self.count())).to_arrow())

    def read_push(self) -> PushState | None:
        with _errors():
            condition = f"name = {_literal(self._name)}"
            found = self._push_table().search().where(condition).limit(1).to_arrow()["state"].to_pylist()
        return PushState.from_json(found[0]) if found else None

    def write_push(self, state: PushState) -> None:
        with _errors():
            merge = self._push_table().merge_insert("name").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.table({"name": [self._name], "state": [state.to_json()]}))

    # --- inside --------------------------------------------------------------------------------------

    @contextmanager
    def _reading(self, where: str | None = None) -> Iterator[None]:
        """One version of the table."""
        with _errors():
            self._table.checkout(self._table.version)
        try:
            yield
        finally:
            with _errors():
                self._table.checkout_latest()

    def _push_table(self) -> Any:
        schema = pa.schema([("name", pa.string()), ("state", pa.string())])
        return self._database.create_table(_PUSH, schema=schema, exist_ok=True)

    def _of_ids(self, columns: list[str], ids: Ids) -> pa.Table:
        """These columns of the items with these ids, in no order."""
        parts = [self._table.schema.empty_table().select(columns)]
        for condition, count in _parts(ids):
            parts.append(self._table.search().where(condition).select(columns).limit(count).to_arrow())
        return pa.concat_tables(parts)

    def _ids(self, found: pa.Table) -> Ids:
        return check_ids(found["id"].to_pylist(), self.id_type)

    def _codes(self, found: pa.Table) -> Codes:
        packed = found["code"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return Codes(packed.reshape(len(found), -(-self.bits // 8)), self.bits)


def _driver() -> Any:
    return needed("lancedb", "lancedb", "a LanceDB folder")


@contextmanager
def _errors(where: str | None = None) -> Iterator[None]:
    """LanceDB's errors, which are Python's own, as ours; a condition is named where it is at fault."""
    try:
        yield
    except CrovcaError:
        raise
    except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
        what = f"LanceDB: {_SOURCE.sub('', one_line(error, 1000))[:300]}"
        if where is not None and not isinstance(error, OSError):
            refuse(where, what)
        raise ServerError(what) from error


def _parts(ids: Ids) -> Iterator[tuple[str, int]]:
    """Conditions for the items with these ids, part by part, and how many there can be."""
    for start in range(0, len(ids), _PART):
        part = ids[start : start + _PART].tolist()
        yield f"id IN ({', '.join(map(_literal, part))})", len(part)


def _literal(value: int | str) -> str:
    if isinstance(value, int):
        return str(value) if value > -(2**63) else f"{value + 1} - 1"  # the sign is read after the number
    return "'" + value.replace("'", "''") + "'"
