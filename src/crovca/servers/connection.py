"""Servers by address: one table of schemes.

::

    postgresql://user:password@host:5432/database?table=codes            (postgres:// too)
    postgresql:///database?host=/var/run/postgresql&table=archive.codes  all of libpq's parameters
    milvus://user:password@host:19530/collection?db=name&secure=true
    duckdb:///path/to/file?table=codes                                   duckdb://file?table=codes: where we are
    sqlite:///path/to/file?table=codes                                   sqlite://file?table=codes
    lancedb:///path/to/folder?table=codes                                lancedb://folder?table=codes
    chdb:///path/to/folder?table=codes                                   ClickHouse, in this process
    qdrant:///path/to/folder?table=codes                                 Qdrant Edge, in this process

A new server is a file with a subclass of ``base.Server``, and a line in ``SCHEMES``.
"""

from __future__ import annotations

from importlib import import_module

from crovca.errors import ConfigError
from crovca.servers.base import Server
from crovca.servers.rows import IdType

SCHEMES = {
    "postgresql": "crovca.servers.postgres:PostgresServer",
    "postgres": "crovca.servers.postgres:PostgresServer",
    "milvus": "crovca.servers.milvus:MilvusServer",
    "duckdb": "crovca.servers.duckdb:DuckDBServer",
    "sqlite": "crovca.servers.sqlite_vec:SQLiteServer",
    "lancedb": "crovca.servers.lancedb:LanceServer",
    "chdb": "crovca.servers.clickhouse:ClickHouseServer",
    "qdrant": "crovca.servers.qdrant:QdrantServer",
}
"""What an address begins with, to the module and the class that is imported for it."""


def connect(url: str, *, approximate: bool = False) -> Server:
    """Open a collection that is on a server.

    Args:
        url: see above.
        approximate: take candidates from an approximate index, where the server has one.

    Raises:
        ConfigError: an address of another form, or a server without approximate search.
        ServerError: the server cannot be reached or refuses, or there is no such collection of codes.
        MissingDependencyError: the server's driver is not installed.
    """
    return _opener(url).open_url(url, approximate=approximate)


def create(url: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False) -> Server:
    """Make an empty collection on a server and open it.

    Args:
        url: see above.
        bits: length of the codes.
        id_type: what ids are.
        exist_ok: take a collection that is there already, if it holds such codes.

    Raises:
        ConfigError, MissingDependencyError: as ``connect``.
        ServerError: as ``connect``; also where there is such a collection already.
    """
    return _opener(url).create_url(url, bits=bits, id_type=id_type, exist_ok=exist_ok)


def _opener(url: str) -> type[Server]:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        # The address itself is not repeated: it may hold a password.
        raise ConfigError(
            f"an address of a server cannot begin with {scheme[:20]!r}; expected one of "
            f"{', '.join(f'{known}://' for known in SCHEMES)} (postgresql://user@host:port/database?table=name); "
            "for Elasticsearch, OpenSearch and Vespa 'crovca index export' writes files"
        )
    module, _, name = SCHEMES[scheme].partition(":")
    opener: type[Server] = getattr(import_module(module), name)
    return opener
