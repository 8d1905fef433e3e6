"""Conditions on metadata: one grammar for all databases, read by one parser before a database sees them.

A condition is made of columns, literals, operators, casts, CASE, and scalar functions of a list. It sees the data and
nothing else, and its answer is the same whenever it is asked: no subqueries, no settings, no functions such as now()
or random(). What is sent on is written anew from what was read, so a database reads what was checked: a bracket, a
comment or a second statement in the text cannot get through.
A condition that passes may therefore be remembered with its answer for as long as the items are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from crovca.errors import InvalidInputError

if TYPE_CHECKING:
    from sqlglot import Dialect, exp

Database = Literal["duckdb", "postgres", "sqlite", "lancedb", "clickhouse"]

DEFAULT_TIMEOUT = 10.0  # seconds
_LONGEST = 1 << 16  # characters
_SHOWN = 500
_MOST_CALLS = 200

FUNCTIONS = frozenset(
    """
    abs ceil ceiling floor round trunc sign sqrt cbrt exp ln log log10 log2 power pow mod greatest least
    coalesce nullif ifnull isnan isinf isfinite lower upper length len char_length character_length octet_length
    strlen trim ltrim rtrim btrim substring substr left right starts_with ends_with prefix suffix contains
    position strpos instr reverse concat concat_ws split_part ascii chr regexp_matches regexp_full_match
    regexp_extract regexp_like date_part date_trunc extract year month day hour minute second
    quarter week dayofweek isodow dayofyear epoch make_date make_timestamp to_timestamp date_diff datediff
    strftime strptime list_contains list_has array_contains list_has_any list_has_all list_position list_extract
    array_length cardinality list_min list_max list_sum struct_extract
    """.split()  # noqa: SIM905
)
"""Scalar functions whose answer depends on their arguments alone; a database may lack some and says so.

None makes text much longer than what it is given (as replace and repeat do): DuckDB looks whether it is to stop
between operations on some 2,000 rows, so each of these has to be short.
"""

CHANGING = frozenset(
    """
    now today random rand uuid gen_random_uuid uuidv4 uuidv7 age clock_timestamp statement_timestamp
    transaction_timestamp timeofday current_date current_time current_timestamp current_datetime localtime
    localtimestamp get_current_time get_current_timestamp current_localtime current_localtimestamp nextval
    setseed
    """.split()  # noqa: SIM905
)

_NODES = frozenset(
    """
    And Or Not Paren EQ NEQ GT GTE LT LTE Is In Between Like ILike SimilarTo RegexpLike RegexpILike
    RegexpFullMatch Glob Escape NullSafeEQ NullSafeNEQ Add Sub Mul Div IntDiv Mod Pow DPipe Neg Column
    Identifier Literal Boolean Null Cast TryCast DataType DataTypeParam Case If Anonymous Extract Interval Var
    Array Bracket Tuple Any Collate BitwiseAnd BitwiseOr BitwiseNot BitwiseLeftShift BitwiseRightShift Substring
    Trim StrPosition Dot AtTimeZone ArrayContainsAll ArrayOverlaps
    """.split()  # noqa: SIM905
)

_TYPES = frozenset(
    """
    BOOLEAN TINYINT SMALLINT INT BIGINT INT128 UTINYINT USMALLINT UINT UBIGINT FLOAT DOUBLE DECIMAL TEXT VARCHAR
    CHAR DATE TIME TIMESTAMP TIMESTAMPTZ TIMESTAMPNTZ TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS INTERVAL VARBINARY
    ARRAY LIST
    """.split()  # noqa: SIM905
)

# SQLite takes any other for a number, and a date for its year.
_SQLITE_TYPES = frozenset({"TINYINT", "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "TEXT", "VARCHAR", "CHAR"})


def checked_condition(where: str, columns: Sequence[str], database: Database) -> str:
    """A condition as SQL of a database, written anew from what was read in it.

    Args:
        where: SQL condition.
        columns: names that it may use; found whatever their case, as SQL does.
        database: whose SQL it is.

    Raises:
        InvalidInputError: it is not one condition, or has something in it that a condition cannot have.
    """
    import sqlglot
    from sqlglot import exp

    if not isinstance(where, str):
        raise InvalidInputError(f"where must be a SQL condition as text, got {where!r}")
    if len(where) > _LONGEST:
        refuse(where, f"it may have {_LONGEST:,} characters, got {len(where):,}")
    if any(sign == "\0" or 0xD800 <= ord(sign) < 0xE000 for sign in where):
        refuse(where, "it has characters that are no text")
    try:
        found = sqlglot.parse(where, dialect=_dialect(database))
        if len(found) != 1 or not isinstance(found[0], exp.Expression):
            refuse(where, f"it must be one condition, got {len([one for one in found if one is not None])}")
        tree = found[0]
        nodes = list(tree.walk())
        for node in nodes:
            _check(where, node, database)
        if sum(isinstance(node, exp.Anonymous | exp.RegexpLike) for node in nodes) > _MOST_CALLS:
            refuse(where, f"it may call functions {_MOST_CALLS} times")
        for column in list(tree.find_all(exp.Column)):
            _resolve(where, column, columns, database)
        return tree.sql(dialect=_dialect(database), comments=False, unsupported_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.errors.SqlglotError as error:
        details = getattr(error, "errors", None)
        if not details:
            refuse(where, str(error).splitlines()[0])
        what, line, place = (details[0][name] for name in ("description", "line", "col"))
        what = "something is missing" if "missing for <class" in what else what
        refuse(where, f"{what} at line {line}, column {place}")
    except RecursionError:
        refuse(where, "its brackets are too deep")


def refuse(where: str, why: str) -> NoReturn:
    """The one line in which a condition is refused, by whichever database."""
    shown = where if len(where) <= _SHOWN else where[:_SHOWN] + "..."
    raise InvalidInputError(f"cannot use where = {shown!r}: {why}") from None


def check_boolean(where: str, kind: object) -> None:
    """Refuse what is a value of another type, as DuckDB names it."""
    if str(kind) != "BOOLEAN":
        raise InvalidInputError(f'where must be a condition, like "year < 1960"; {where!r} is a value of type {kind}')


def took_too_long(where: str, seconds: float) -> NoReturn:
    """A condition was stopped at its time limit."""
    refuse(where, f"it took longer than {seconds:g} s; ask for less, or allow more time (where_timeout)")


@cache
def _dialect(database: Database) -> Dialect:
    """The database's SQL, but all functions are read and written as they stand: none is taken for another."""
    from sqlglot.dialects import ClickHouse, DuckDB, Postgres, SQLite

    base: type[Dialect] = {
        "duckdb": DuckDB, "postgres": Postgres, "sqlite": SQLite, "lancedb": Postgres, "clickhouse": ClickHouse,
    }[database]  # fmt: skip
    kept = ["CAST", "EXTRACT", "SUBSTRING", "TRIM", "POSITION", *["TRY_CAST"] * (database == "duckdb")]
    parsers = {name: one for name, one in base.parser_class.FUNCTION_PARSERS.items() if name in kept}
    parser = type("Parser", (base.parser_class,), {"FUNCTIONS": {}, "FUNCTION_PARSERS": parsers})
    own: dict[str, Any] = {"Parser": parser}
    if database == "lancedb":  # its older versions take a name in double quotes for a text
        own["Tokenizer"] = type("Tokenizer", (base.tokenizer_class,), {"IDENTIFIERS": ["`", '"']})
    return type(f"{database}_condition", (base,), own)()


def _check(where: str, node: Any, database: Database) -> None:
    """Refuse what is not of the grammar, naming it."""
    from sqlglot import ErrorLevel, exp

    kind = type(node).__name__
    place = f"in {node.sql(unsupported_level=ErrorLevel.IGNORE)[:80]!r}"
    if isinstance(node, exp.Anonymous):
        name = str(node.this).lower()
        if name in CHANGING or (name == "strftime" and database == "sqlite"):  # SQLite's may be of 'now'
            refuse(where, f"{name}() has another answer each time {place}; write the value itself")
        if name not in FUNCTIONS:
            refuse(where, f"the function {name}() is not one that a condition may use {place}")
        return
    if kind.lower().replace("current", "current_") in CHANGING or kind.lower() in CHANGING:
        refuse(where, f"it has another answer each time {place}; write the value itself")
    if isinstance(node, exp.DataType):
        name = getattr(node.this, "name", str(node.this))
        if name not in (_SQLITE_TYPES if database == "sqlite" else _TYPES):
            refuse(where, f"a condition cannot use the type {node.sql()!r}")
        return
    if kind not in _NODES:
        what = "a subquery" if isinstance(node, exp.Query | exp.Subquery) else f"{_words(kind)}"
        refuse(where, f"a condition cannot have {what} {place}; it has columns, values, operators and functions")


def _words(kind: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()


def _resolve(where: str, column: exp.Column, columns: Sequence[str], database: Database) -> None:
    """Put a column's name as the items have it, quoted, so that no database looks for another one."""
    parts = column.parts
    first = parts[0]
    name = first.name
    same = [one for one in columns if one == name] or [one for one in columns if one.lower() == name.lower()]
    fields = len(parts) > 1
    if not same or (fields and database != "duckdb"):
        shown = ".".join(part.name for part in parts)
        refuse(where, f"there is no column {shown!r}; the columns are {', '.join(columns)}")
    first.set("this", same[0])
    for part in parts:
        part.set("quoted", True)
