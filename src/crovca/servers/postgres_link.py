"""Connecting to PostgreSQL, and its driver's errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from crovca.errors import ConfigError, MissingDependencyError, ServerError
from crovca.index.conditions import DEFAULT_TIMEOUT, refuse, took_too_long
from crovca.servers.postgres_sql import name_parts

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["connect", "errors", "regclass"]

_OLDEST = 140000  # bit_count of bit strings came with PostgreSQL 14
_CONNECT_TIMEOUT = 10


def connect(address: str) -> Connection[Any]:
    """A connection that commits statement by statement."""
    try:
        import psycopg
    except ImportError:
        raise MissingDependencyError("psycopg", "pg", "a PostgreSQL cluster") from None
    try:
        parsed = psycopg.conninfo.conninfo_to_dict(address)
    except psycopg.Error as error:
        raise ConfigError(
            f"this is no PostgreSQL address ({_line(error)}); see 'crovca index push --help'"
        ) from None
    parsed.setdefault("connect_timeout", _CONNECT_TIMEOUT)
    parsed.setdefault("application_name", "crovca")
    place = f"{parsed.get('host', 'localhost')}:{parsed.get('port', 5432)}"
    try:
        connection = psycopg.connect(**cast(dict[str, Any], parsed), autocommit=True)
    except psycopg.Error as error:
        raise ServerError(f"cannot connect to PostgreSQL at {place}: {_line(error)}") from None
    version = connection.info.server_version
    if version < _OLDEST:
        connection.close()
        raise ServerError(f"PostgreSQL at {place} is version {version // 10000}; bit_count needs 14 or newer")
    return connection


def regclass(connection: Connection[Any], name: str) -> int | None:
    """The table's oid, found on the search path; None where there is no such table."""
    from psycopg import sql

    quoted = sql.Identifier(*name_parts(name)).as_string()
    row = connection.execute("SELECT to_regclass(%s)::oid", [quoted]).fetchone()
    return None if row is None else row[0]


@contextmanager
def errors(where: str | None = None, timeout: float = DEFAULT_TIMEOUT) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Args:
        where: the condition of the statement, which is named where it is at fault.
        timeout: its time limit in seconds.
    """
    import psycopg

    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if where is None:
            raise ServerError(f"PostgreSQL: {_line(error)}") from error
        took_too_long(where, timeout)
    except psycopg.Error as error:
        if where is not None and not isinstance(error, psycopg.OperationalError):
            refuse(where, f"PostgreSQL: {_line(error)}")
        raise ServerError(f"PostgreSQL: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
