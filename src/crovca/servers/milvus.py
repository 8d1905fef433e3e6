"""Codes in a Milvus collection (2.3 or newer): BINARY_VECTOR, metric HAMMING, index BIN_FLAT, which is exact.

A collection has the fields ``id`` (INT64 or VARCHAR), ``code`` (BINARY_VECTOR), ``crovca_digest`` (INT64), and
metadata as dynamic fields, that is JSON: dates and timestamps become ISO 8601 text, null is left out, and NaN and
infinity, which JSON does not have, are refused.

Binary vectors have whole bytes. A code of 13 bits is stored with three zero bits behind it, which differ from
no query's; the length is kept in the collection's description.

``where`` is an expression of Milvus's own (``year > 1990 and name like "a%"``), not SQL. Searches and counts
are made at consistency level Strong: they see every upsert and delete that was acknowledged, which costs up to
some 0.3 s a call on an idle server. One search returns at most 16,384 items.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes, check_bits
from crovca.errors import ConfigError, InvalidInputError, ServerError, needed, one_line
from crovca.index.conditions import refuse
from crovca.index.results import StoredItems
from crovca.servers.base import ALL_RETURNED, Server, ServerCandidates, closed_on_error, in_order, split_url
from crovca.servers.bounds import Query
from crovca.servers.rows import Ids, IdType, ServerRows, check_ids, json_rows, json_table
from crovca.servers.state import PushState

if TYPE_CHECKING:
    from pymilvus import MilvusClient

MOST_RESULTS = 16_384
_FORMAT = 1
_PORT = 19530
_PUSH = "crovca.push"  # the property that remembers a push
_TIMEOUT = 10.0  # seconds to connect
_PART = 8192  # rows sent, or ids asked for, at a time
_LISTED = 65_536  # ids listed at a time, about
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_LONGEST_ID = 65_535  # bytes: the longest VARCHAR


class MilvusServer(Server):
    """A collection of codes; see ``base.Server`` for what is not described here.

    Opened with ``MilvusServer.open`` or made with ``MilvusServer.create``. Items are sent and deleted in parts of
    8,192, each all or nothing. Milvus has no locks: two pushes at once do the work twice, to the same end.
    """

    most_results = MOST_RESULTS

    def __init__(self, client: MilvusClient, collection: str) -> None:
        self._client = client
        self._collection = collection
        self.bits, self.id_type = self._describe()
        from pymilvus.client.types import LoadState

        with _errors():
            if client.get_load_state(collection)["state"] != LoadState.Loaded:
                client.load_collection(collection)

    @classmethod
    def create(
        cls,
        address: str,
        collection: str,
        *,
        bits: int,
        id_type: IdType = "int64",
        exist_ok: bool = False,
        token: str = "",
        database: str = "",
    ) -> Self:
        """Make an empty collection and open it.

        Args:
            address: ``http://host:port`` or ``https://host:port``.
            collection: letters, digits and underscores.
            bits: length of the codes.
            id_type: what ids are.
            exist_ok: take a collection that is there already, if it holds such codes.
            token: ``user:password``.
            database: of the server; empty: its default.

        Raises:
            ServerError: the server cannot be reached, or there is such a collection already.
        """
        check_bits(bits)
        with closed_on_error(_connect(address, token, database)) as client:
            with _errors():
                exists = client.has_collection(collection)
            if exists and not exist_ok:
                raise ServerError(f"there is a collection {collection!r} already; open it, or give another name")
            if not exists:
                _create(client, collection, bits, id_type)
            self = cls(client, collection)
            self._check_holds(bits, id_type, "collection", collection)
            return self

    @classmethod
    def open(cls, address: str, collection: str, *, token: str = "", database: str = "") -> Self:
        """Open a collection that ``create`` made; the arguments are those of ``create``."""
        with closed_on_error(_connect(address, token, database)) as client:
            return cls(client, collection)

    @classmethod
    def open_url(cls, url: str, *, approximate: bool = False) -> Self:
        if approximate:
            raise ConfigError("approximate search is PostgreSQL's (pgvector) alone; leave it out for Milvus")
        address, collection, login = _place(url)
        return cls.open(address, collection, **login)

    @classmethod
    def create_url(cls, url: str, *, bits: int, id_type: IdType, exist_ok: bool) -> Self:
        address, collection, login = _place(url)
        return cls.create(address, collection, bits=bits, id_type=id_type, exist_ok=exist_ok, **login)

    def close(self) -> None:
        self._client.close()

    # --- writing -------------------------------------------------------------------------------------

    def upsert_rows(self, rows: ServerRows) -> None:
        if self.id_type == "int64" and (rows.ids == _LARGEST).any():
            raise InvalidInputError(f"Milvus cannot find the id {_LARGEST} again; give that item another id")
        if self.id_type == "string":
            longest = max((len(one.encode()) for one in rows.ids.tolist()), default=0)
            if longest > _LONGEST_ID:
                raise InvalidInputError(f"Milvus takes ids of {_LONGEST_ID:,} bytes at most, got {longest:,}")
        metadata = json_rows(rows.metadata, "Milvus")
        ids, digests, packed = rows.ids.tolist(), rows.digests.tolist(), rows.codes.packed
        self._check_same()
        with _errors():
            for start in range(0, len(rows), _PART):
                self._client.upsert(
                    self._collection,
                    [
                        {**metadata[at], "id": ids[at], "code": packed[at].tobytes(), "crovca_digest": digests[at]}
                        for at in range(start, min(start + _PART, len(rows)))
                    ],
                )
        self._check_arrived(rows)

    def delete(self, ids: npt.ArrayLike) -> None:
        for condition in self._conditions(check_ids(ids, self.id_type)):
            with _errors():
                self._client.delete(self._collection, filter=condition)

    # --- reading -------------------------------------------------------------------------------------

    def nearest(self, queries: Sequence[Query], count: int, where: str | None) -> list[ServerCandidates]:
        """Several queries a request, as many as 16,384 items allow."""
        each = max(1, MOST_RESULTS // count)
        found: list[ServerCandidates] = []
        for start in range(0, len(queries), each):
            part = queries[start : start + each]
            codes = Codes.concatenate([query.code for query in part])
            for query, hits in zip(part, self._hits(codes, count, where, {}), strict=True):
                all_there = len(hits) < count
                bound = ALL_RETURNED if all_there else query.bound_at(int(hits[-1]["distance"]))
                found.append(ServerCandidates(*self._unpacked(hits), bound))
        return found

    def within(self, query: Query, distance: np.float32, where: str | None) -> Iterator[tuple[Ids, Codes]]:
        """ServerError where there are more than the server returns."""
        radius = query.radius(distance)
        (hits,) = self._hits(query.code, MOST_RESULTS, where, {"radius": radius + 1})  # exclusive
        if len(hits) == MOST_RESULTS:
            raise ServerError(
                f"an exact answer needs all items within Hamming distance {radius}, more than the "
                f"{MOST_RESULTS:,} that Milvus returns; ask for fewer results, or do without exact"
            )
        yield self._unpacked(hits)

    def _get(self, asked: Ids) -> StoredItems:
        """Metadata as JSON has them."""
        rows = in_order(asked, {row["id"]: row for row in self._query(asked, ["*"])})
        return StoredItems(asked, self._codes([row["code"][0] for row in rows]), json_table(rows))

    def count(self) -> int:
        return int(self._ask("", ["count(*)"])[0]["count(*)"])

    # --- for push ------------------------------------------------------------------------------------

    def digests(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        found = self._query(ids, ["id", "crovca_digest"])
        digests = np.array([row["crovca_digest"] for row in found], np.int64)
        return check_ids([row["id"] for row in found], self.id_type), digests

    def stored_ids(self) -> Iterator[Ids]:
        """By ranges of digests: they are spread evenly, and an answer without a limit is complete.

        Pages by id would have to trust in an order that the server does not promise.
        """
        parts = max(1, -(-self.count() // _LISTED))
        edges = [-(2**63) + (2**64 * part) // parts for part in range(parts)]
        for low, next_low in zip(edges, [*edges[1:], 2**63], strict=True):
            # The parser has no literal for -2^63, so the two outer ranges are left open.
            ends = [f"crovca_digest >= {low}"] if low > _SMALLEST else []
            ends += [f"crovca_digest < {next_low}"] if next_low < 2**63 else []
            found = self._ask(" and ".join(ends) or "crovca_digest < 0 or crovca_digest >= 0", ["id"])
            yield check_ids([row["id"] for row in found], self.id_type)

    def read_push(self) -> PushState | None:
        with _errors():
            text = self._client.describe_collection(self._collection)["properties"].get(_PUSH)
        return PushState.from_json(text) if text else None  # 2.3 cannot take a property away, only empty it

    def write_push(self, state: PushState) -> None:
        """Remember how far a push came, in a property of the collection."""
        with _errors():
            self._client.alter_collection_properties(self._collection, {_PUSH: state.to_json()})

    # --- inside --------------------------------------------------------------------------------------

    def _hits(
        self, queries: Codes, count: int, where: str | None, parameters: dict[str, int]
    ) -> list[list[dict[str, Any]]]:
        with _errors(where):
            found = self._client.search(
                self._collection,
                data=[row.tobytes() for row in queries.packed],
                anns_field="code",
                limit=count,
                filter=where or "",
                output_fields=["code"],
                search_params={"metric_type": "HAMMING", "params": parameters},
                consistency_level="Strong",
            )
        return list(found)

    def _check_same(self) -> None:
        """Vectors of another length than the collection's are garbage in Milvus 2.3, or its end."""
        _forget_schemas(self._client)
        now = self._describe()
        if now != (self.bits, self.id_type):
            raise ServerError(
                f"another program made the collection {self._collection!r} anew: it holds codes of {now[0]} bits with "
                f"ids of type {now[1]}, expected {self.bits} bits and {self.id_type}; open it again"
            )

    def _check_arrived(self, rows: ServerRows) -> None:
        """Read the last code of each part back, as what is cut wrongly is stored without a word."""
        last = [min(start + _PART, len(rows)) - 1 for start in range(0, len(rows), _PART)]
        stored = {row["id"]: row["code"][0] for row in self._query(rows.ids[last], ["id", "code"])}
        for one, code in zip(rows.ids[last].tolist(), rows.codes.packed[last], strict=True):
            if stored.get(one) != code.tobytes():
                raise ServerError(
                    f"Milvus does not hold the item {one!r} as it was just sent: another program writes to the "
                    f"collection {self._collection!r} or made it anew; drop it, and push again"
                )

    def _unpacked(self, hits: list[dict[str, Any]]) -> tuple[Ids, Codes]:
        codes = self._codes([hit["entity"]["code"] for hit in hits])
        return check_ids([hit["id"] for hit in hits], self.id_type), codes

    def _codes(self, raw: list[bytes]) -> Codes:
        width = -(-self.bits // 8)
        if any(len(one) != width for one in raw):
            self._check_same()
        return Codes(np.frombuffer(b"".join(raw), np.uint8).reshape(len(raw), width), self.bits)

    def _query(self, ids: Ids, fields: list[str]) -> list[dict[str, Any]]:
        return [row for condition in self._conditions(ids) for row in self._ask(condition, fields)]

    def _ask(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        with _errors():
            return list(
                self._client.query(self._collection, filter=condition, output_fields=fields, consistency_level="Strong")
            )

    def _conditions(self, ids: Ids) -> Iterator[str]:
        """``id in [...]``, part by part. Strings as JSON: the client's own quoting breaks on quotes."""
        for start in range(0, len(ids), _PART):
            part = ids[start : start + _PART].tolist()
            condition = f"id in {json.dumps(part, ensure_ascii=False)}"
            if _SMALLEST in part:  # the parser reads the number before its sign
                part.remove(_SMALLEST)
                condition = f"id < {_SMALLEST + 1}" + (f" or id in {part}" if part else "")
            yield condition

    def _describe(self) -> tuple[int, IdType]:
        """bits and id type, from the collection's description and schema."""
        with _errors():
            if not self._client.has_collection(self._collection):
                raise ServerError(
                    f"there is no collection {self._collection!r}; make it with create(), or with 'crovca index push'"
                )
            found = self._client.describe_collection(self._collection)
        try:
            ours = json.loads(found["description"])["crovca"]
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"the collection {self._collection!r} was not made by crovca; give another one") from None
        if ours["format"] != _FORMAT:
            raise ServerError(
                f"the collection {self._collection!r} has format {ours['format']}, expected {_FORMAT}; "
                "it was made by a newer crovca"
            )
        return int(ours["bits"]), "string" if ours["id_type"] == "string" else "int64"


def _forget_schemas(client: MilvusClient) -> None:
    """Of a collection that another process made anew, pymilvus would go on with the schema that this one first saw.

    It remembers schemas by address and name, and cuts the vectors that it sends by them.
    """
    try:
        from pymilvus.client.cache import GlobalCache
    except ImportError:  # pymilvus 2
        getattr(client._get_connection(), "schema_cache", {}).clear()
    else:
        GlobalCache.schema.clear()


def _create(client: MilvusClient, collection: str, bits: int, id_type: IdType) -> None:
    from pymilvus import DataType

    with _errors():
        schema = client.create_schema(
            auto_id=False,
            enable_dynamic_field=True,
            description=json.dumps({"crovca": {"format": _FORMAT, "bits": bits, "id_type": id_type}}),
        )
        if id_type == "int64":
            schema.add_field("id", DataType.INT64, is_primary=True)
        else:
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_LONGEST_ID)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=-(-bits // 8) * 8)
        schema.add_field("crovca_digest", DataType.INT64)
        index = client.prepare_index_params()
        index.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
        client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")


def _connect(address: str, token: str, database: str) -> MilvusClient:
    pymilvus = needed("pymilvus", "milvus", "a Milvus cluster")
    # It prints each error with a traceback before raising it; we say it once, in one line.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    try:
        return pymilvus.MilvusClient(address, token=token, db_name=database, timeout=_TIMEOUT)
    except Exception as error:  # of pymilvus, of grpc, or ValueError: a wrong address, or nobody answers
        raise ServerError(f"cannot connect to Milvus at {address}: {_line(error)}") from None


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(getattr(error, "message", "")).split()) or one_line(error)


@contextmanager
def _errors(where: str | None = None) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        text = _line(error)
        if where is not None and ("parse expression" in text or "expr" in text):
            refuse(where, f"Milvus: {text}")
        raise ServerError(f"Milvus: {text}") from error


def _place(url: str) -> tuple[str, str, dict[str, str]]:
    """Address, collection and login."""
    parts = split_url(url)
    parameters = dict(parse_qsl(parts.query))
    unknown = sorted(set(parameters) - {"db", "secure"})
    collection = unquote(parts.path.strip("/"))
    try:
        port = parts.port or _PORT
    except ValueError:
        raise ConfigError(
            "the address of a Milvus cluster has no usable port; expected milvus://host:port/collection"
        ) from None
    if unknown or not collection or "/" in collection or not parts.hostname:
        what = f"unknown parameter {unknown[0]!r}" if unknown else "it needs a host and one collection"
        raise ConfigError(
            f"the address of a Milvus cluster cannot be used: {what}; expected milvus://host:port/collection"
        )
    protocol = "https" if parameters.get("secure") in ("true", "1") else "http"
    token = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{protocol}://{host}:{port}", collection, {"token": token, "database": parameters.get("db", "")}
