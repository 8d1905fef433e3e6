"""What is known of the items beside their codes: Arrow tables in, Parquet on disk, SQL conditions over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crovca.data.columns import arrow_array, rows_of
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.ids import as_ids
from crovca.index.conditions import DEFAULT_TIMEOUT, check_boolean, checked_condition, refuse, took_too_long
from crovca.index.memo import Memo
from crovca.index.scoring import Int64

if TYPE_CHECKING:
    import duckdb

Metadata: TypeAlias = pa.Table | Mapping[str, Any]
_Found = TypeVar("_Found")

ROW_GROUP = 1 << 16
_GROUPS_KEPT = 64 << 20
_FILE, _ROW = "crovca file", "file_row_number"
_RESERVED = {"id", _FILE, _ROW}
_STOPPING = 3.0  # seconds to wait for DuckDB to stop


def as_table(metadata: Metadata | None, count: int) -> pa.Table | None:
    """Metadata as an Arrow table of ``count`` rows; None stays None.

    Raises:
        InvalidInputError: not columns, of another length, or with names that are taken or equal but for case.
    """
    if metadata is None:
        return None
    if isinstance(metadata, pa.Table):
        table = metadata
    elif isinstance(metadata, Mapping) or hasattr(metadata, "columns"):  # the latter a DataFrame
        table = _table_of({str(name): _column(name, metadata[name]) for name in metadata})
    else:
        raise InvalidInputError(
            f"metadata must be an Arrow table, a DataFrame or columns by name, got {type(metadata).__name__}; "
            "make a table of records by pyarrow.Table.from_pylist"
        )
    if table.num_rows != count:
        raise InvalidInputError(f"there are {table.num_rows} rows of metadata for {count} items")
    seen: set[str] = set()
    for name in table.column_names:
        if name.lower() in _RESERVED or name.lower() in seen or not name:
            raise InvalidInputError(
                f"a metadata column cannot be named {name!r}: that name is taken (SQL does not tell case apart); "
                "rename it"
            )
        seen.add(name.lower())
    return table


def _column(name: Any, values: Any) -> pa.Array | pa.ChunkedArray:
    """Values of one column, by position; one that would be taken apart or has no order is refused."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise InvalidInputError(
            f"the metadata column {name!r} must have one value for each item, got one {type(values).__name__}"
        )
    try:
        return arrow_array(list(values) if isinstance(values, Iterator) else values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidInputError(f"the metadata column {name!r} cannot be stored: {_first_line(error)}") from error


def _table_of(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InvalidInputError(f"the columns of metadata must be of equal length, got {lengths}")
    return pa.table(dict(columns))


def conform(table: pa.Table, known: pa.Schema) -> pa.Table:
    """Columns in the types that the index has for them, or in plain ones that Parquet gives back as they are.

    A value stays what it is: numbers may change their width where they are equal after it, texts and lists how they
    are laid out; nothing becomes another kind of value.

    Columns without a single value have no type yet: they are left out until they have one.

    Raises:
        InvalidInputError: a column's values are of another kind than its type or do not fit into it, Parquet has no
            such type, or a name differs in case alone.
    """
    names = {name.lower(): name for name in known.names}
    columns = {}
    for name in table.column_names:
        same = names.get(name.lower())
        if same is not None and same != name:
            raise InvalidInputError(f"the index has a metadata column {same!r}; {name!r} differs in case alone")
        column = table.column(name)
        kind = _plain(column.type) if same is None else known.field(name).type
        if kind is None or pa.types.is_null(column.type):
            continue
        try:
            columns[name] = column if column.type == kind else _kept(column, kind)
            pq.write_table(pa.table({name: columns[name].slice(0, 0)}), pa.BufferOutputStream())
        except (pa.ArrowException, ValueError) as error:
            raise InvalidInputError(
                f"the metadata column {name!r} is {kind} so far, and {column.type} here: {_first_line(error)}"
            ) from error
    return pa.table(columns)


def _kept(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as another type; ValueError where a value would become another one."""
    if not _same_kind(column.type, kind):
        raise ValueError("that is another kind of value; convert it yourself, or give the column another name")
    found = column.cast(kind)
    for given, stored in zip(_leaves(column.combine_chunks()), _leaves(found.combine_chunks()), strict=True):
        if pa.types.is_floating(given.type) and pa.types.is_floating(stored.type):
            before, after = given.cast(pa.float64()), stored.cast(pa.float64())
            same = pc.or_(pc.equal(before, after), pc.and_(pc.is_nan(before), pc.is_nan(after)))
            if pc.all(same).as_py() is False:
                raise ValueError("a number would be rounded; convert it yourself")
    return found


def _same_kind(given: pa.DataType, known: pa.DataType) -> bool:
    """Whether values of one type can be values of the other, where they fit."""
    types = pa.types
    plain = _plain(given)
    if plain is None or plain == known:
        return True
    for lists in (types.is_list(plain), types.is_struct(plain)):
        if lists and type(plain) is not type(known):
            return False
    if types.is_list(plain):
        return _same_kind(plain.value_type, known.value_type)
    if types.is_struct(plain):
        mine, theirs = ({field.name: field.type for field in plain}, {field.name: field.type for field in known})
        return mine.keys() == theirs.keys() and all(_same_kind(mine[name], theirs[name]) for name in mine)
    if types.is_timestamp(plain):
        return types.is_timestamp(known) and (plain.tz is None) == (known.tz is None)
    tests = (
        lambda kind: types.is_integer(kind) or types.is_floating(kind),
        types.is_decimal, types.is_time, types.is_duration, types.is_large_string, types.is_large_binary,
    )  # fmt: skip
    return any(test(plain) and test(known) for test in tests)


def _leaves(values: Any) -> Iterator[pa.Array]:
    """The arrays of plain values that an array of any depth is made of."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_struct(values.type):
        for place in range(values.type.num_fields):
            yield from _leaves(values.field(place))
    elif hasattr(values, "flatten") and pa.types.is_nested(values.type):
        yield from _leaves(values.flatten())
    else:
        yield values


def read_table(path: Path) -> pa.Table:
    """A table with a column ``id``, each id once, from .parquet or .csv, to be joined by ``columns_of``.

    Of .csv ids are text as they stand there. So is a column that would lose something as numbers: zeros before them,
    or digits or a size that a number of 64 bits does not have. Among numbers an empty field, NA, NaN and null are null.

    Raises:
        FileFormatError: it is no such table.
    """
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    try:
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise FileFormatError(f"{path} is not readable as metadata (.parquet or .csv): {_first_line(error)}") from error
    if "id" not in table.column_names:
        raise FileFormatError(f"{path} has no column 'id'; it has {', '.join(table.column_names)}")
    if len(table.column("id").unique()) != len(table):
        raise FileFormatError(f"{path}: an id occurs twice in its column 'id'")
    return table


def _read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    names = csv.open_csv(path).schema.names
    as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    texts = csv.read_csv(path, convert_options=as_text)
    guess = csv.ConvertOptions(column_types={"id": pa.string()}, strings_can_be_null=False)
    table = csv.read_csv(path, convert_options=guess)
    for place, name in enumerate(table.column_names):
        values, text = table.column(place), texts.column(place)
        if pa.types.is_integer(values.type):
            odd = pc.match_substring_regex(text, r"^[+-]?0[0-9]|^[+-]?[0-9]{19,}$|^\+")
        elif pa.types.is_floating(values.type):
            odd = pc.match_substring_regex(text, r"^[+-]?0[0-9]|^[+-]?[0-9]{16,}$|^\+|[1-9](\.?[0-9]){17,}")
            odd = pc.or_kleene(odd, pc.and_kleene(pc.is_inf(values), pc.match_substring_regex(text, "[0-9]")))
        else:
            continue
        if pc.any(odd).as_py():
            table = table.set_column(place, name, text)
    return table


def columns_of(ids: npt.NDArray[Any], table: pa.Table) -> tuple[pa.Table, int]:
    """The rows of ``read_table`` that belong to items, null where there is none, and for how many there is none.

    Raises:
        InvalidInputError: the table's ids are of another kind than those of the items.
    """
    keys, wanted = table.column("id").combine_chunks(), arrow_array(as_ids(ids))
    text = pa.types.is_string(wanted.type)
    if pa.types.is_dictionary(keys.type):
        keys = keys.dictionary_decode()
    if text:
        same = _plain(keys.type) == pa.large_string()
    elif _plain(keys.type) == pa.large_string():  # as CSV has them
        same = pc.all(pc.match_substring_regex(keys, r"^(0|-?[1-9][0-9]{0,18})$")).as_py() is not False
    else:
        same = pa.types.is_integer(keys.type)
    try:
        keys = keys.cast(wanted.type) if same else None
    except pa.ArrowException:  # beyond 64 bits
        keys = None
    if keys is None:
        example = table.column("id")[0].as_py()
        raise InvalidInputError(
            f"the metadata's ids are {table.column('id').type}, like {example!r}, those of the items "
            f"{'text' if text else 'whole numbers'}, like {wanted[0].as_py()!r}; write them in the same way"
        )
    place = pc.index_in(wanted, keys)
    return table.drop_columns("id").take(place), place.null_count


def _plain(kind: pa.DataType) -> pa.DataType | None:
    """The type in which values of another are kept; None for one that holds no values."""
    types = pa.types
    if types.is_null(kind):
        return None
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind) or types.is_binary(kind):
        return pa.large_binary()
    if types.is_timestamp(kind) and kind.unit == "s":  # Parquet begins at milliseconds
        return pa.timestamp("ms", kind.tz)
    if types.is_date64(kind):
        return pa.date32()
    if types.is_time32(kind):
        return pa.time32("ms")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inside = _plain(kind.value_type)
        return None if inside is None else pa.list_(inside)
    if types.is_struct(kind):
        fields = [(field.name, _plain(field.type)) for field in kind]
        return pa.struct([(name, inside) for name, inside in fields if inside is not None])
    return kind


def matching_rows(
    files: Sequence[Path], where: str, *, timeout: float = DEFAULT_TIMEOUT, memory: str = "1GB"
) -> list[Int64]:
    """The rows of each Parquet file for which a SQL condition holds, ascending: int64 arrays.

    DuckDB evaluates the condition (``conditions`` has its grammar); it sees the files' columns and nothing else of the
    machine, in UTC, and writes nothing. The same condition on the same files has the same answer always.

    Args:
        files: with the columns that the condition may name, each in any number of them.
        where: the condition.
        timeout: seconds after which it is stopped.
        memory: what DuckDB may take, in its own words.

    Raises:
        InvalidInputError: it is not one condition that DuckDB understands for these columns, or took too long.
        StorageError: a file cannot be read.
    """
    import duckdb

    if not isinstance(where, str):
        raise InvalidInputError(f"where must be a SQL condition as text, got {where!r}")
    if not files:
        return []
    connection = duckdb.connect(":memory:")

    def work() -> list[Int64]:
        with connection:
            return _matching(connection, [str(file.resolve()) for file in files], where, memory)

    return in_time(connection, work, where, timeout)


def in_time(connection: duckdb.DuckDBPyConnection, work: Callable[[], _Found], where: str, timeout: float) -> _Found:
    """What the work finds in DuckDB; InvalidInputError that names the condition where that takes longer than this.

    Args:
        connection: what the work uses, and nobody else meanwhile.
        work: evaluates a condition.
        where: the condition.
        timeout: in seconds.
    """
    done: Future[_Found] = Future()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(found)

    # In a thread, so that waiting can be interrupted (Ctrl-C) whatever DuckDB is at.
    thread = Thread(target=run, name="crovca condition")
    thread.start()
    try:
        return done.result(timeout)
    except BaseException as error:
        if done.done():  # it failed by itself
            raise
        until = time.monotonic() + _STOPPING
        while thread.is_alive() and time.monotonic() < until:
            with suppress(Exception):  # closed meanwhile
                connection.interrupt()
            thread.join(0.05)
        if isinstance(error, TimeoutError):
            took_too_long(where, timeout)
        raise


def _matching(connection: duckdb.DuckDBPyConnection, names: list[str], where: str, memory: str) -> list[Int64]:
    import duckdb

    for name in names:
        if any(sign in name for sign in "*?["):
            raise StorageError(f"a condition cannot be evaluated below a folder with *, ? or [ in its name: {name}")
    listed = ", ".join(map(_quoted, names))
    for setting in (
        "TimeZone = 'UTC'",
        f"memory_limit = {_quoted(memory)}",
        "temp_directory = ''",
        f"allowed_paths = [{listed}]",
        "enable_external_access = false",
    ):
        connection.execute(f"SET {setting}")
    try:
        items = connection.sql(
            f"SELECT * FROM read_parquet([{listed}], union_by_name = true, hive_partitioning = false, "
            f"file_row_number = true, filename = {_quoted(_FILE)})"
        )
    except duckdb.Error as error:
        raise StorageError(f"cannot read the metadata: {_first_line(error)}") from error
    columns = [name for name in items.columns if name not in (_FILE, _ROW)]
    condition = duckdb.SQLExpression(checked_condition(where, columns, "duckdb"))
    if any(kind in str(one) for one in items.types for kind in ("FLOAT", "DOUBLE")):
        # Parquet's least and greatest values pass over NaN, which is greater than all numbers.
        connection.execute("SET disabled_optimizers = 'statistics_propagation,filter_pushdown'")
    connection.execute("SET lock_configuration = true")
    try:
        check_boolean(where, items.select(condition).types[0])
        found = (
            items.filter(condition)
            .select(duckdb.ColumnExpression(_FILE), duckdb.ColumnExpression(_ROW))
            .to_arrow_table()
        )
    except duckdb.OutOfMemoryException:
        refuse(where, f"it takes more than {memory} of memory")
    except (duckdb.IOException, duckdb.PermissionException) as error:
        raise StorageError(f"cannot read the metadata: {_first_line(error)}") from error
    except duckdb.Error as error:
        refuse(where, f"{_first_line(error)}; the columns are {', '.join(columns)}")
    owner = found.column(_FILE).combine_chunks().dictionary_encode()
    if isinstance(owner, pa.ChunkedArray):
        owner = owner.combine_chunks()
    rows = found.column(_ROW).to_numpy()
    of_file = {name.as_py(): number for number, name in enumerate(owner.dictionary)}
    numbers = owner.indices.to_numpy()
    return [np.sort(rows[numbers == of_file.get(name, -1)]) for name in names]


class Layout(NamedTuple):
    """Of a Parquet file: its columns but for ``id``, its rows, where each row group ends, the bytes of the largest, and
    those that are kept."""

    schema: pa.Schema
    rows: int
    ends: Int64
    largest: int
    kept: Memo[int, pa.Table]


class RowReader:
    """Reads some rows of a Parquet file, with nulls for ``id``, which is known; the row groups that were read last are
    kept.

    Args:
        file: which does not change.
        kept: bytes of row groups that are kept; at least one is.
    """

    def __init__(self, file: Path, kept: int = _GROUPS_KEPT) -> None:
        self._file, self._kept = file, kept
        self._layout: Memo[str, Layout] = Memo(1)

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(group.nbytes for _, layout in self._layout.items() for _, group in layout.kept.items())

    @property
    def layout(self) -> Layout:
        """What the file says of itself."""
        return self._layout.get("", self._read_layout)

    def rows(self, rows: Int64) -> pa.Table:
        """Some rows (m,), in the order asked for, reading no more row groups than needed.

        Raises:
            FileFormatError: the file is damaged.
        """
        schema, _, ends, _, kept = self.layout
        without = pa.table({"id": pa.nulls(len(rows))})  # a table without columns has no rows
        if not schema.names:
            return without
        owner = np.searchsorted(ends, rows, side="right")
        groups = np.unique(owner)
        pieces = [kept.get(int(group), partial(self._read_group, int(group), schema.names)) for group in groups]
        held = np.cumsum([0, *(len(piece) for piece in pieces)])[:-1]
        starts = np.concatenate([[0], ends])[:-1]
        place = held[np.searchsorted(groups, owner)] + rows - starts[owner]
        found = pa.concat_tables(pieces).take(pa.array(place))
        return found.add_column(0, "id", without["id"])

    def _read_layout(self) -> Layout:
        with _parquet(self._file) as parquet:
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            largest = max((group.total_byte_size for group in groups), default=1)
            schema = pa.schema([field for field in parquet.schema_arrow if field.name != "id"])
            ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
            kept: Memo[int, pa.Table] = Memo(max(1, self._kept // max(1, largest)))
            return Layout(schema, parquet.metadata.num_rows, ends, largest if schema.names else 0, kept)

    def _read_group(self, group: int, columns: list[str]) -> pa.Table:
        with _parquet(self._file) as parquet:
            return parquet.read_row_group(group, columns)


def read_ids(file: Path) -> Iterator[pa.ChunkedArray]:
    """The column ``id`` of a Parquet file, a row group at a time, the checksums compared."""
    with _parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, ["id"]).column("id")


def count_values(file: Path, column: str, wanted: npt.NDArray[np.bool_] | None) -> Iterator[pa.Table]:
    """The values of a column but null, and how often each occurs (``value``, ``items``), row group by row group.

    Args:
        file: which may lack the column: nothing is counted then.
        column: its name.
        wanted: which rows count; None: all.
    """
    with _parquet(file) as parquet:
        schema = parquet.schema_arrow
    if column not in schema.names:
        return
    start, text = 0, pa.types.is_large_string(schema.field(column).type)
    with _parquet(file, read_dictionary=[column] if text else []) as parquet:
        for group in range(parquet.num_row_groups):
            values = parquet.read_row_group(group, [column]).column(0)
            if wanted is not None:
                start, values = start + len(values), values.filter(pa.array(wanted[start : start + len(values)]))
            if pa.types.is_nested(values.type):
                values = pa.chunked_array([pa.array(map(str, _values(values.drop_null())), pa.large_string())])
            counted = values.drop_null().value_counts()
            found, counts = counted.field("values"), counted.field("counts")
            yield pa.table({"value": found.dictionary_decode() if pa.types.is_dictionary(found.type) else found,
                            "items": counts})  # fmt: skip


def most_frequent(counted: Sequence[pa.Table], most: int) -> list[tuple[Any, int]]:
    """Of what ``count_values`` gave the most frequent values, each with how often it occurs; equals in their order."""
    if not counted:
        return []
    table = pa.concat_tables(counted).group_by("value").aggregate([("items", "sum")])
    found = table.take(pc.select_k_unstable(table, most, [("items_sum", "descending"), ("value", "ascending")]))
    return list(zip(_values(found["value"]), found["items_sum"].to_pylist(), strict=True))


def _values(column: pa.ChunkedArray) -> list[Any]:
    return [row["value"] for row in rows_of(pa.table({"value": column}))]


@contextmanager
def _parquet(file: Path, **how: Any) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True, **how) as parquet:
            yield parquet
    except FileNotFoundError:
        raise FileFormatError(f"{file} is missing: was the index moved or built anew? Open it again") from None
    except (OSError, pa.ArrowException) as error:
        raise FileFormatError(
            f"{file} is damaged: {_first_line(error)}; 'crovca index verify' tells what else is"
        ) from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
