"""Images in tables: Parquet files and datasets that Hugging Face ``datasets`` saved, read with pyarrow alone."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.columns import ID_NAMES, LABEL_NAMES, class_names, column, name_among, open_table
from crovca.data.labels import from_class_lists
from crovca.errors import CrovcaWarning, FileFormatError, InvalidInputError
from crovca.files import open_regular, read_json
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Source, build_source, read_below

_PREFERRED = ("image", "img", "jpg", "picture", "photo")
_PATHS = ("image", "img", "image_path", "path", "file_name")
_WINDOW_ROWS, _WINDOWS = 64, 16  # rows read at once, and how many such blocks are kept


def open_parquet_images(
    paths: list[Path], root: Path, *, image_column: str | None, caption_column: str | None
) -> Source[bytes]:
    """Open Parquet files with an image column: bytes, a struct of bytes and path (as ``datasets`` writes), or paths.

    Ids come from a column ``id`` or ``ids``; without one they are the row numbers over all the files.
    """
    files = [open_table(path) for path in paths]
    schema = files[0].schema_arrow
    for path, file in zip(paths, files, strict=True):
        if file.schema_arrow.names != schema.names:
            raise FileFormatError(f"{path} has other columns than {paths[0]}: {file.schema_arrow.names}")
    name = _image_column(schema, image_column, paths[0])
    import pyarrow as pa

    wanted = _described_columns(schema, caption_column, paths[0])
    try:
        described = pa.concat_tables([file.read(columns=wanted) for file in files])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FileFormatError(
            f"{paths[0]}: its columns {wanted} cannot be read ({str(error).splitlines()[0]})"
        ) from error
    rows = sum(file.metadata.num_rows for file in files)
    reader = _ParquetColumn(files, name)
    stamps = [
        f"{path.name}\0{path.stat().st_size}\0{file.metadata.num_rows}" for path, file in zip(paths, files, strict=True)
    ]
    return _table_source(
        "Parquet", described, rows, reader.value, root, name, caption_column, [name, *stamps], paths[0]
    )


def open_saved_dataset(path: Path, *, image_column: str | None, caption_column: str | None) -> Source[bytes]:
    """Open a folder of ``datasets.Dataset.save_to_disk``, memory-mapped."""
    import pyarrow as pa

    if (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json", "saved dataset").get("splits")
        raise InvalidInputError(
            f"{path} holds the splits {splits}; give one of them, like {path / str((splits or ['train'])[0])}"
        )
    state = read_json(path / "state.json", "saved dataset")
    if state.get("_indices_data_files"):
        raise InvalidInputError(
            f"{path} was saved with an index of chosen rows; save dataset.flatten_indices() instead"
        )
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
        wrong = next((name for name in names if Path(name).name != name), None)
        if wrong is not None:
            raise FileFormatError(f"{path}: state.json names {wrong!r}, expected a file of that folder")
        for name in names:
            open_regular(path / name).close()
        parts = [pa.ipc.open_stream(pa.memory_map(str(path / name))).read_all() for name in names]
        table = pa.concat_tables(parts)
        table.validate(full=True)  # offsets are followed without a look later
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is not a readable saved dataset ({str(error).splitlines()[0]})") from error
    name = _image_column(table.schema, image_column, path)
    images = table.column(name)
    stamps = [f"{name}\0{(path / name).stat().st_size}" for name in names]
    described = table.select(_described_columns(table.schema, caption_column, path))
    return _table_source(
        "Hugging Face dataset",
        described,
        table.num_rows,
        lambda row: images[row].as_py(),
        path,
        name,
        caption_column,
        [name, str(state.get("_fingerprint")), *stamps],
        path,
    )


def pick_column(
    names: list[str], wanted: str | None, usual: tuple[str, ...], what: str, path: Path, option: str
) -> str:
    """The column that was asked for, or the first of the usual names; where there are several, that is said."""
    if wanted is not None:
        if names.count(wanted) != 1:
            raise InvalidInputError(f"{path} has no one column {wanted!r}; found {names}")
        return wanted
    found = [name for name in usual if name in names]
    if len(found) > 1:
        others = ", ".join(map(repr, found[1:]))
        text = f"{path.name}: {what} are taken from {found[0]!r}, not {others}; {option} names another"
        warnings.warn(text, CrovcaWarning, stacklevel=2)
    if found:
        return found[0]
    raise InvalidInputError(f"{path}: no column of {what} was recognized in {names}; name it with {option}")


class _ParquetColumn:
    """One column of Parquet files, read by row from several threads; rows in about their order are read once."""

    def __init__(self, files: list[Any], name: str) -> None:
        self._groups = [
            (file, group, file.metadata.row_group(group).num_rows)
            for file in files
            for group in range(file.metadata.num_row_groups)
        ]
        self._ends = np.cumsum([rows for _, _, rows in self._groups], dtype=np.int64)
        self._name = name
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self._stream: tuple[int, int, Iterator[Any]] | None = None  # group, next block, batches
        self._broken: dict[int, tuple[int, str]] = {}  # of a group: its first unreadable block, and why

    def value(self, row: int) -> Any:
        """The value in a row; raises UnreadableItem from the first damaged place of a row group on."""
        group = int(np.searchsorted(self._ends, row, side="right"))
        within = row - int(self._ends[group]) + self._groups[group][2]
        block, place = divmod(within, _WINDOW_ROWS)
        with self._lock:
            return self._block(group, block)[place]

    def _block(self, group: int, block: int) -> list[Any]:
        if (group, block) not in self._blocks:
            if self._stream is None or self._stream[0] != group or self._stream[1] > block:
                self._stream = group, 0, self._batches(group)
            while (group, block) not in self._blocks:
                self._advance(group, block)
        return self._blocks[group, block]

    def _batches(self, group: int) -> Iterator[Any]:
        """The blocks of a row group; pyarrow may cut its batches elsewhere."""
        import pyarrow as pa

        file, number, _ = self._groups[group]
        left = None
        for batch in file.iter_batches(_WINDOW_ROWS, row_groups=[number], columns=[self._name], use_threads=False):
            left = batch.column(0) if not left else pa.concat_arrays([left, batch.column(0)])
            while len(left) >= _WINDOW_ROWS:
                yield left[:_WINDOW_ROWS]
                left = left[_WINDOW_ROWS:]
        if left:
            yield left

    def _advance(self, group: int, wanted: int) -> None:
        import pyarrow as pa

        if group in self._broken and wanted >= self._broken[group][0]:
            raise UnreadableItem("damaged", self._broken[group][1])
        assert self._stream is not None
        _, block, batches = self._stream
        try:
            values = next(batches)
            found = values.to_pylist() if block == wanted or wanted - block < _WINDOWS else []
        except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
            self._broken[group] = block, f"row group {group} cannot be read: {str(error).splitlines()[0:1]}"
            self._stream = None
            raise UnreadableItem("damaged", self._broken[group][1]) from error
        self._stream = group, block + 1, batches
        if found:
            self._blocks[group, block] = found
            while len(self._blocks) > _WINDOWS:
                self._blocks.popitem(last=False)


def _image_column(schema: Any, wanted: str | None, path: Path) -> str:
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        return pa.types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    likely = [field.name for field in schema if holds_images(field.type) or is_binary(field.type)]
    if wanted is None and len(likely) > 1 and not set(likely) & set(_PREFERRED):
        raise InvalidInputError(f"{path}: the columns {likely} may all be images; name one with --image-column")
    usual = sorted(likely, key=lambda name: (*_PREFERRED, name).index(name)) or _PATHS
    name = pick_column(schema.names, wanted, tuple(usual), "images", path, "--image-column")
    kind = schema.field(name).type
    paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (paths or holds_images(kind) or is_binary(kind)):
        raise InvalidInputError(
            f"{path}: column {name!r} has the type {kind}; expected bytes, paths, or a struct of them"
        )
    return name


def _described_columns(schema: Any, caption_column: str | None, path: Path) -> list[str]:
    names = [name_among(schema.names, usual, path) for usual in (ID_NAMES, LABEL_NAMES)]
    if caption_column is not None:
        names.append(pick_column(schema.names, caption_column, (), "captions", path, "--caption-column"))
    elif "caption" in schema.names:
        names.append("caption")
    return [name for name in names if name is not None]


def _table_source(
    kind: str,
    described: Any,
    rows: int,
    value: Callable[[int], Any],
    root: Path,
    name: str,
    caption_column: str | None,
    stamps: list[str],
    path: Path,
) -> Source[bytes]:
    """A source from the columns that describe images, and a function that gives an image's value."""
    if not rows:
        raise InvalidInputError(f"{path} has no rows")
    names = described.column_names
    id_column = next((name for name in ID_NAMES if name in names), None)
    ids: Any = np.arange(rows, dtype=np.int64)
    if id_column is not None:
        ids = column(described, id_column, path)
        if ids.dtype.kind not in "iuU" or ids.ndim != 1:
            raise InvalidInputError(
                f"{path}: column {id_column!r} must hold whole numbers or strings, got {ids.dtype} {ids.shape}"
            )
    caption = caption_column or ("caption" if "caption" in names else None)
    captions = None
    if caption is not None:
        captions = [first_text(value) for value in described.column(caption).to_pylist()]

    def fetch(row: int) -> bytes:
        found = value(row)
        if isinstance(found, dict):
            found = found.get("bytes") if found.get("bytes") is not None else found.get("path")
        if found is None:
            raise UnreadableItem("missing", f"column {name!r} is empty")
        return read_below(root, found) if isinstance(found, str) else bytes(found)

    labels, notes = _table_labels(described, path)
    return build_source(kind, ids, fetch, stamps, labels=labels, captions=captions, notes=tuple(notes))


def first_text(value: Any) -> str:
    """A caption, the first of several; empty where there is none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value)


def _table_labels(table: Any, path: Path) -> tuple[npt.NDArray[Any] | None, list[str]]:
    name = next((name for name in LABEL_NAMES if name in table.column_names), None)
    if name is None:
        return None, []
    nulls = table.column(name).null_count
    if nulls:
        return None, [f"labels are left out: {nulls:,} of {table.num_rows:,} are missing"]
    named = class_names(table.schema, name)
    try:
        lists = from_class_lists(table.column(name), named, path) if named else None
        labels = column(table, name, path) if lists is None else lists
    except FileFormatError as error:
        return None, [f"labels are left out: {error}"]
    if named and labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels):
        unknown = int(((labels < 0) | (labels >= len(named))).sum())
        if unknown:  # datasets writes -1 for items of no class
            said = f"{unknown:,} of {len(labels):,} are none of the {len(named)} classes"
            return None, [f"labels are left out: {said}"]
        return np.array(named)[labels], []
    if labels.ndim == 2:
        hot = np.isin(labels, (0, 1)).all()
        return (labels.astype(np.bool_), []) if hot else (None, ["labels are left out: not 0 or 1"])
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64), []
    return (labels, []) if labels.dtype.kind == "U" else (None, ["labels are left out: real numbers"])
