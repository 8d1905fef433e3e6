"""Codes in a shard of Qdrant Edge, which is Qdrant in this process: vectors of +1 and -1, by their dot product.

Qdrant has no vectors of bits: those of uint8 cut a query's numbers off as well, and binary quantization is approximate.
With float32 it computes the asymmetric distance itself, for every item, up to the rounding of float32, which is known:
answers are nearly always proven. An item takes 4 bytes a bit, 32 times its code.

A point has the vector, and a payload of ``id``, ``crovca_digest`` and the metadata as JSON has them: dates and
timestamps become ISO 8601 text; NaN and infinity are refused. Qdrant finds no booleans and rounds the last digit of
floats when it reads its JSON, so filters see 0 and 1, and ``crovca_exact`` is a text that has both as they were. Points
are numbered by ids (2^63 more) or by 128 bits of BLAKE2b of them. Beside Qdrant's files lies ``crovca.json`` with the
length of the codes, the names of the columns and how far a push came. Addresses are
``qdrant:///path/to/folder?table=name``: a shard in the folder of that name. One process at a time can open it.

Qdrant has filters, not SQL. Conditions are translated: AND, OR, NOT, comparisons of a column with a value, IN, BETWEEN,
IS NULL, and LIKE with % at its ends; texts are compared for equality alone, and numbers up to 2^53.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from crovca.codes import Codes, check_bits
from crovca.errors import ConfigError, CrovcaError, InvalidInputError, ServerError, needed, one_line
from crovca.files import write_json
from crovca.index.results import StoredItems
from crovca.servers.base import ALL_RETURNED, FileServer, ServerCandidates, in_order
from crovca.servers.bounds import Query
from crovca.servers.kept import COLUMNS
from crovca.servers.qdrant_filter import filter_of
from crovca.servers.rows import RESERVED, Ids, IdType, ServerRows, check_ids, check_names, json_rows, json_table
from crovca.servers.state import PushState

_FORMAT = 1
_PART = 4096  # points at a time
_UNIT = 2.0**-24  # rounding unit of float32
_DESCRIPTION = "crovca.json"
_EXACT = "crovca_exact"


class QdrantServer(FileServer):
    """A shard of codes in a folder; see ``base.Server`` for what is not described here.

    Writing is all or nothing for 4,096 items at a time. Not for several
    threads at once.
    """

    def __init__(self, shard: Any, folder: Path) -> None:
        self._shard, self._folder = shard, folder
        self._ours = json.loads((folder / _DESCRIPTION).read_text())
        if self._ours["format"] != _FORMAT:
            raise ServerError(f"the shard has format {self._ours['format']}, expected {_FORMAT}: update crovca")
        self.bits, self.id_type = self._ours["bits"], self._ours["id_type"]

    @classmethod
    def create(cls, path: str, table: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Self:
        check_bits(bits)
        driver, folder = _driver(), _folder(path, table)
        with _errors():
            exists = (folder / _DESCRIPTION).exists()
            if exists and not exist_ok:
                raise ServerError(f"there is a table {table!r} already; open it, or give another name")
            if not exists:
                folder.mkdir(parents=True, exist_ok=True)
                vectors = driver.EdgeVectorParams(size=bits, distance=driver.Distance.Dot)
                driver.EdgeShard.create(str(folder), driver.EdgeConfig(vectors=vectors)).close()
                ours: dict[str, Any] = {"format": _FORMAT, "bits": bits, "id_type": id_type, "columns": [], "push": ""}
                write_json(folder / _DESCRIPTION, ours)
        self = cls.open(path, table)
        self._check_holds(bits, id_type, "table", table)
        return self

    @classmethod
    def open(cls, path: str, table: str) -> Self:
        driver, folder = _driver(), _folder(path, table)
        with _errors():
            if not (folder / _DESCRIPTION).exists():
                raise ServerError(
                    f"there is no table {table!r} in {path}; make it with create(), or with 'crovca index push'"
                )
            return cls(driver.EdgeShard.load(str(folder)), folder)

    def close(self) -> None:
        self._shard.close()

    # --- writing -------------------------------------------------------------------------------------

    def upsert_rows(self, rows: ServerRows) -> None:
        driver = _driver()
        names = rows.metadata.column_names
        check_names(names, [*RESERVED, *self._ours["columns"]])
        for name in names:
            if '"' in name or name == _EXACT:
                raise InvalidInputError(f"a metadata column of Qdrant cannot have the name {name!r}; rename it")
        metadata = json_rows(rows.metadata, "Qdrant")
        if new := [name for name in names if name not in self._ours["columns"]]:
            self._remember(columns=[*self._ours["columns"], *new])
        self._index(rows.metadata.schema)
        for places in _parts(range(len(rows))):
            signs = 2.0 * rows.codes[np.array(places)].unpack() - 1.0
            points = []
            for at, vector in zip(places, signs.tolist(), strict=True):
                row = metadata[at]
                exact = {name: one for name, one in row.items() if isinstance(one, bool | float)}
                found = {name: int(one) if isinstance(one, bool) else one for name, one in row.items()}
                one, digest = rows.ids[at].item(), rows.digests[at].item()
                own = {"id": one, "crovca_digest": digest, _EXACT: json.dumps(exact)}
                points.append(driver.Point(_number(one), vector, own | found))
            with _errors():
                self._shard.update(driver.UpdateOperation.upsert_points(points))

    def delete(self, ids: npt.ArrayLike) -> None:
        numbers = [_number(one) for one in check_ids(ids, self.id_type).tolist()]
        with _errors():
            for part in _parts(numbers):
                self._shard.update(_driver().UpdateOperation.delete_points(part))

    # --- reading -------------------------------------------------------------------------------------

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        answers = []
        for query in queries:
            found = self._search(query, count, where)
            bound = ALL_RETURNED
            if len(found) == count:
                bound = _Dot(query).bound(found[-1].score)
            answers.append(ServerCandidates(self._ids(found), self._codes(found), bound))
        return answers

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        found = self._search(query, max(1, self.count()), where, _Dot(query).least(distance))
        yield self._ids(found), self._codes(found)

    def _search(self, query: Query, limit: int, where: str | None, least: float | None = None) -> list[Any]:
        driver = _driver()
        condition = None if where is None else filter_of(where, ["id", *self._ours["columns"]])
        with _errors():
            found: list[Any] = self._shard.search(
                driver.SearchRequest(
                    driver.Query.Nearest(_Dot(query).weights.tolist()), limit, filter=condition, score_threshold=least,
                    params=driver.SearchParams(exact=True), with_vector=True, with_payload=["id"],
                )
            )  # fmt: skip
        return found

    def _get(self, asked: Ids) -> StoredItems:
        """Metadata as JSON has them."""
        found = {one.payload["id"]: one for one in self._of_ids(asked, payload=True, vector=True)}
        ordered = in_order(asked, found)
        rows = [one.payload | json.loads(one.payload[_EXACT]) for one in ordered]
        return StoredItems(asked, self._codes(ordered), json_table(rows, (*RESERVED, _EXACT)))

    def count(self) -> int:
        with _errors():
            return int(self._shard.count(_driver().CountRequest(exact=True)))

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        found = self._of_ids(ids, payload=["id", "crovca_digest"], vector=False)
        return self._ids(found), np.array([one.payload["crovca_digest"] for one in found], np.int64)

    def stored_ids(self) -> Iterator[Ids]:
        driver, offset = _driver(), None
        while True:
            with _errors():
                request = driver.ScrollRequest(offset, _PART, with_payload=["id"], with_vector=False)
                found, offset = self._shard.scroll(request)
            yield self._ids(found)
            if offset is None:
                return

    def read_push(self) -> PushState | None:
        text = self._ours["push"]
        return PushState.from_json(text) if text else None

    def write_push(self, state: PushState) -> None:
        with _errors():
            self._shard.flush()
        self._remember(push=state.to_json())

    # --- inside --------------------------------------------------------------------------------------

    def _index(self, columns: pa.Schema) -> None:
        """Index columns that are not: without one Qdrant reads the payload of every item for a condition.

        All numbers as floats, as filters compare them. What an index does not hold, as a text among numbers, is read.
        """
        driver, types = _driver(), pa.types
        numbers = {"id": self.id_type == "int64"}
        for field in columns:
            if field.name not in COLUMNS and not types.is_null(field.type):  # of kept embeddings nobody asks
                tests = (types.is_integer, types.is_floating, types.is_boolean)
                numbers[field.name] = any(test(field.type) for test in tests)
        with _errors():
            known = {name.strip('"') for name in self._shard.info().payload_schema}
            for name in numbers.keys() - known:
                kind = driver.PayloadSchemaType.Float if numbers[name] else driver.PayloadSchemaType.Keyword
                self._shard.update(driver.UpdateOperation.create_field_index(f'"{name}"', kind))

    def _remember(self, **values: Any) -> None:
        with _errors():
            write_json(self._folder / _DESCRIPTION, ours := {**self._ours, **values})
        self._ours = ours

    def _of_ids(self, ids: Ids, *, payload: bool | list[str], vector: bool) -> list[Any]:
        """The points of these items, in no order."""
        numbers = [_number(one) for one in ids.tolist()]
        with _errors():
            parts = (self._shard.retrieve(part, payload, vector) for part in _parts(numbers))
            return [point for part in parts for point in part]

    def _ids(self, found: list[Any]) -> Ids:
        return check_ids([one.payload["id"] for one in found], self.id_type)

    def _codes(self, found: list[Any]) -> Codes:
        signs = np.array([one.vector for one in found], np.float32).reshape(len(found), self.bits)
        return Codes.from_bits(signs > 0)


class _Dot:
    """Dot products of a query's weights, the largest of which is 1, with vectors of +1 and -1, as distances.

    distance = query.least + unit (total - product) / 2; a product is wrong by ``slack`` at most.
    """

    def __init__(self, query: Query) -> None:
        self._query, self._unit = query, float(query.costs.max()) or 1.0
        costs = query.costs / self._unit
        self.weights = (costs * (2.0 * query.code.unpack()[0] - 1.0)).astype(np.float32)
        self._total = float(costs.sum())
        self._slack = 4 * (len(costs) + 4) * _UNIT * self._total

    def bound(self, product: float) -> np.float32:
        """No item whose product is this or less is nearer than this."""
        apart = self._total - product - self._slack
        return np.float32(self._query.least + self._unit * apart / 2 - self._query.slack)

    def least(self, distance: np.float32) -> float | None:
        """No item whose product is under this is within ``distance``; None: any may be."""
        if not np.isfinite(distance):
            return None
        beyond = float(np.nextafter(distance, np.float32(np.inf))) + 2 * self._query.slack
        return self._total - 2 * (beyond - self._query.least) / self._unit - 2 * self._slack


def _driver() -> Any:
    return needed("qdrant_edge", "qdrant", "a Qdrant folder", package="qdrant-edge-py")


@contextmanager
def _errors() -> Iterator[None]:
    """Qdrant's errors, which are Python's own, as ours."""
    try:
        yield
    except CrovcaError:
        raise
    except Exception as error:
        raise ServerError(f"Qdrant: {one_line(error)}") from error


def _parts(values: Sequence[Any]) -> Iterator[Any]:
    return (values[start : start + _PART] for start in range(0, len(values), _PART))


def _folder(path: str, table: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*", table, re.ASCII):
        raise ConfigError(f"Qdrant can have no table {table!r}; expected letters, digits, _, - and .")
    return Path(path, table)


def _number(one: int | str) -> int | uuid.UUID:
    if isinstance(one, int):
        return one + 2**63
    return uuid.UUID(bytes=blake2b(one.encode("utf-8", "surrogatepass"), digest_size=16).digest())
