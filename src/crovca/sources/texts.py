"""Texts: lines of a file, a column of a table, or the captions of a store."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.embeddings import column, read_table
from crovca.errors import FileFormatError, InvalidInputError, StorageError
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source, build_source
from crovca.sources.tables import pick_column

__all__ = ["open_texts"]

_USUAL = ("caption", "captions", "text", "texts", "title", "sentence")
_ID_COLUMNS = ("id", "ids")
_LABEL_COLUMNS = ("labels", "label")


def open_texts(path: Path, caption_column: str | None) -> Source[str]:
    """See ``sources.open_texts``."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_store(path, caption_column)
    if suffix == ".txt":
        if caption_column is not None:
            raise InvalidInputError(f"{path}: a .txt has no columns; each line is a text")
        return _open_lines(path)
    if suffix in (".csv", ".tsv"):
        return _open_csv(path, caption_column, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return _open_parquet(path, caption_column)
    raise FileFormatError(
        f"{path}: not a source of texts; expected .txt, .csv, .tsv, .parquet, or a store with captions"
    )


def _open_lines(path: Path) -> Source[str]:
    content = _read(path)
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()
    texts, faults = [], {}
    for row, line in enumerate(lines):
        try:
            texts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            texts.append("")
            faults[row] = ("not text", f"line {row + 1} is not UTF-8 ({error.reason})")
    return _source("lines", path, content, np.arange(len(texts)), texts, None, faults)


def _open_csv(path: Path, caption_column: str | None, delimiter: str) -> Source[str]:
    content = _read(path)
    try:
        lines = content.decode("utf-8-sig").splitlines(keepends=True)
        csv.field_size_limit(1 << 24)  # captions may be longer than Python's own limit of 128 KiB
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names = next(rows, [])
        records = [row for row in rows if row]
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,})") from error
    except csv.Error as error:
        raise FileFormatError(f"{path} is not a readable .csv: {error}") from error
    place = names.index(pick_column(names, caption_column, _USUAL, "captions", path, "--caption-column"))
    faults: dict[int, Fault] = {
        row: ("damaged", f"{len(record)} fields where the header has {len(names)}")
        for row, record in enumerate(records)
        if len(record) != len(names)
    }

    def values(usual: tuple[str, ...]) -> list[str] | None:
        name = next((name for name in usual if name in names), None)
        if name is None:
            return None
        where = names.index(name)
        return [record[where] if where < len(record) else "" for record in records]

    texts = [record[place].strip() if row not in faults else "" for row, record in enumerate(records)]
    ids, labels = values(_ID_COLUMNS), values(_LABEL_COLUMNS)
    return _source(
        "table",
        path,
        content,
        np.arange(len(texts)) if ids is None else [name or f"row {row}" for row, name in enumerate(ids)],
        texts,
        None if labels is None else _numbers_or_names(labels),
        faults,
    )


def _open_parquet(path: Path, caption_column: str | None) -> Source[str]:
    table = read_table(path)
    name = pick_column(table.column_names, caption_column, _USUAL, "captions", path, "--caption-column")
    texts = [_text(value) for value in table.column(name).to_pylist()]
    return _source("table", path, _read(path), *_described(table, path, len(texts), texts), {})


def _open_store(path: Path, caption_column: str | None) -> Source[str]:
    """The captions in a store's parts, with its ids and labels."""
    import pyarrow as pa

    from crovca.data.store import store_parts

    if caption_column not in (None, "caption"):
        raise InvalidInputError(f"{path}: the texts of a store are its column 'caption'")
    tables = [read_table(folder / "items.parquet") for folder, _ in store_parts(path)]
    if any("caption" not in table.column_names for table in tables):
        raise InvalidInputError(f"{path} is a store without captions; give the file of the texts")
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise FileFormatError(
            f"{path}: the parts do not fit together ({str(error).splitlines()[0]})"
        ) from error
    texts = [_text(value) for value in table.column("caption").to_pylist()]
    described = _described(table, path, len(texts), texts)
    content = "\0".join([*map(str, described[0]), *texts]).encode()
    return _source("captions of a store", path, content, *described, {})


def _described(
    table: Any, path: Path, rows: int, texts: list[str]
) -> tuple[Any, list[str], npt.NDArray[Any] | None]:
    ids: Any = np.arange(rows)
    labels = None
    for name in _ID_COLUMNS:
        if name in table.column_names:
            ids = column(table, name, path)
            break
    for name in _LABEL_COLUMNS:
        if name in table.column_names:
            labels = column(table, name, path)
            break
    if labels is not None:
        from crovca.data.labels import check_labels

        labels = check_labels(labels, rows)
    return ids, texts, labels


def _source(
    kind: str,
    path: Path,
    content: bytes,
    ids: Any,
    texts: list[str],
    labels: npt.NDArray[Any] | None,
    faults: dict[int, Fault],
) -> Source[str]:
    if not texts:
        raise InvalidInputError(f"{path} holds no text")

    def fetch(row: int) -> str:
        if not texts[row]:
            raise UnreadableItem("empty", "no characters")
        return texts[row]

    digest = hashlib.sha256(content).hexdigest()
    return build_source(kind, ids, fetch, [digest], labels=labels, captions=texts, faults=faults)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _text(value: Any) -> str:
    if isinstance(value, list):  # several captions: the first
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


def _numbers_or_names(values: list[str]) -> npt.NDArray[Any]:
    return np.array(values, np.int64) if all(value.isdecimal() for value in values) else np.array(values)
