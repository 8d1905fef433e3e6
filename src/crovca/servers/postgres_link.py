"""Connecting to PostgreSQL, and its driver's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crovca.errors import ConfigError, ServerError, needed, one_line
from crovca.index.conditions import DEFAULT_TIMEOUT, refuse, took_too_long
from crovca.servers.postgres_sql import identifier, split_name

if TYPE_CHECKING:
    from psycopg import Connection

_OLDEST = 140000  # bit_count of bit strings came with PostgreSQL 14
_CONNECT_TIMEOUT = 10


def connect(address: str) -> Connection[Any]:
    """A connection that commits statement by statement."""
    psycopg = needed("psycopg", "pg", "a PostgreSQL cluster")
    try:
        parsed = psycopg.conninfo.conninfo_to_dict(address)
    except psycopg.Error as error:
        raise ConfigError(
            f"this is no PostgreSQL address ({one_line(error)}); see 'crovca index push --help'"
        ) from None
    parsed.setdefault("connect_timeout", _CONNECT_TIMEOUT)
    parsed.setdefault("application_name", "crovca")
    place = f"{parsed.get('host', 'localhost')}:{parsed.get('port', 5432)}"
    try:
        connection = psycopg.connect(**parsed, autocommit=True)
    except (psycopg.Error, UnicodeError) as error:  # the latter of a host that can be no name
        raise ServerError(f"cannot connect to PostgreSQL at {place}: {one_line(error)}") from None
    version = connection.info.server_version
    if version < _OLDEST:
        connection.close()
        raise ServerError(f"PostgreSQL at {place} is version {version // 10000}; bit_count needs 14 or newer")
    return connection


def regclass(connection: Connection[Any], name: str) -> int | None:
    """The table's oid, found on the search path; None where there is no such table."""
    row = connection.execute("SELECT to_regclass(%s)::oid", [identifier(*filter(None, split_name(name)))]).fetchone()
    return None if row is None else row[0]


@contextmanager
def errors(where: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
    """Turn the driver's errors into ours; the condition of the statement is named where it is at fault, or took too
    long.
    """
    import psycopg

    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if where is None:
            raise ServerError(f"PostgreSQL: {one_line(error)}") from error
        took_too_long(where, timeout)
    except psycopg.Error as error:
        if where is not None and not isinstance(error, psycopg.OperationalError):
            refuse(where, f"PostgreSQL: {one_line(error)}")
        raise ServerError(f"PostgreSQL: {one_line(error)}") from error
