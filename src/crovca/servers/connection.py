"""Clusters by address: ``postgresql://...`` and ``milvus://...``.

::

    postgresql://user:password@host:5432/database?table=codes            (postgres:// too)
    postgresql:///database?host=/var/run/postgresql&table=archive.codes  all of libpq's parameters
    milvus://user:password@host:19530/collection?db=name&secure=true
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from crovca.errors import ConfigError
from crovca.servers.base import IdType, Server
from crovca.servers.milvus import MilvusServer
from crovca.servers.postgres import PostgresServer

__all__ = ["connect", "create"]

_FORMS = "expected postgresql://user@host:port/database?table=name or milvus://host:port/collection"
_MILVUS_PORT = 19530


def connect(url: str, *, approximate: bool = False) -> PostgresServer | MilvusServer:
    """Open a collection that is on a server.

    Args:
        url: see above.
        approximate: PostgreSQL only, see ``PostgresServer.open``.

    Raises:
        ConfigError: an address of another form.
        ServerError: the server cannot be reached or refuses, or there is no such collection of codes.
        MissingDependencyError: the server's driver is not installed.
    """
    if _scheme(url) == "milvus":
        if approximate:
            raise ConfigError("approximate search is PostgreSQL's (pgvector) alone; leave it out for Milvus")
        address, collection, login = _milvus(url)
        return MilvusServer.open(address, collection, **login)
    address, table = _postgres(url)
    return PostgresServer.open(address, table, approximate=approximate)


def create(
    url: str, *, bits: int, id_type: IdType = "int64", exist_ok: bool = False
) -> PostgresServer | MilvusServer:
    """Make an empty collection on a server and open it.

    Args:
        url: see above.
        bits: length of the codes.
        id_type: what ids are.
        exist_ok: take a collection that is there already, if it holds such codes.

    Raises:
        As ``connect``; ServerError also where there is such a collection already.
    """
    if _scheme(url) == "milvus":
        address, collection, login = _milvus(url)
        return MilvusServer.create(
            address, collection, bits=bits, id_type=id_type, exist_ok=exist_ok, **login
        )
    address, table = _postgres(url)
    return PostgresServer.create(address, table, bits=bits, id_type=id_type, exist_ok=exist_ok)


def _scheme(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme in ("postgresql", "postgres"):
        return "postgresql"
    if scheme == "milvus":
        return scheme
    # The address itself is not repeated: it may hold a password.
    raise ConfigError(f"an address of a cluster cannot begin with {scheme[:20]!r}; {_FORMS}")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:  # brackets that are no IPv6 address, for one
        raise ConfigError(f"the address of a cluster cannot be read ({error}); {_FORMS}") from None


def _postgres(url: str) -> tuple[str, str]:
    """libpq's own URI, and the table."""
    parts = _split(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    tables = [value for name, value in parameters if name == "table"]
    if len(tables) != 1 or not tables[0]:
        raise ConfigError(f"the address of a PostgreSQL cluster has to name one table; {_FORMS}")
    rest = urlencode([(name, value) for name, value in parameters if name != "table"])
    return urlunsplit(parts._replace(query=rest)), tables[0]


def _milvus(url: str) -> tuple[str, str, dict[str, str]]:
    """Address, collection and login."""
    parts = _split(url)
    parameters = dict(parse_qsl(parts.query))
    unknown = sorted(set(parameters) - {"db", "secure"})
    collection = unquote(parts.path.strip("/"))
    try:
        port = parts.port or _MILVUS_PORT
    except ValueError:
        raise ConfigError(f"the address of a Milvus cluster has no usable port; {_FORMS}") from None
    if unknown or not collection or "/" in collection or not parts.hostname:
        what = f"unknown parameter {unknown[0]!r}" if unknown else "it needs a host and one collection"
        raise ConfigError(f"the address of a Milvus cluster cannot be used: {what}; {_FORMS}")
    protocol = "https" if parameters.get("secure") in ("true", "1") else "http"
    token = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{protocol}://{host}:{port}", collection, {"token": token, "database": parameters.get("db", "")}


def _is_cluster(cluster: PostgresServer | MilvusServer) -> Server:
    """Held by the type checker: both are what ``Server`` says."""
    return cluster
