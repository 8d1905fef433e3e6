"""Texts: lines of a file, a column of a table, or the captions of a store."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.data.columns import ID_NAMES, LABEL_NAMES, column, name_among, open_table, read_table
from crovca.data.labels import check_labels
from crovca.data.store import store_parts
from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import open_regular
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source, build_source, numbers_or_names
from crovca.sources.tables import first_text, pick_column

_OF_STORE = ("caption", *ID_NAMES, *LABEL_NAMES)
_USUAL = ("caption", "captions", "text", "texts", "title", "sentence")


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
        csv.field_size_limit(1 << 24)  # captions may be longer than Python's own limit of 128 KiB
        text = io.StringIO(content.decode("utf-8-sig"), newline="\n")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
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

    def values(usual: tuple[str, str]) -> list[str] | None:
        name = name_among(names, usual, path)
        if name is None:
            return None
        where = names.index(name)
        return [record[where] if where < len(record) else "" for record in records]

    texts = [record[place].strip() if row not in faults else "" for row, record in enumerate(records)]
    ids, labels = values(ID_NAMES), values(LABEL_NAMES)
    return _source(
        "table",
        path,
        content,
        np.arange(len(texts)) if ids is None else [name or f"row {row}" for row, name in enumerate(ids)],
        texts,
        None if labels is None else numbers_or_names(labels),
        faults,
    )


def _open_parquet(path: Path, caption_column: str | None) -> Source[str]:
    names = open_table(path).schema_arrow.names
    name = pick_column(names, caption_column, _USUAL, "captions", path, "--caption-column")
    table = read_table(path, [name, *ID_NAMES, *LABEL_NAMES])
    texts = [first_text(value).strip() for value in table.column(name).to_pylist()]
    return _source("table", path, _read(path), *_described(table, path, len(texts), texts), {})


def _open_store(path: Path, caption_column: str | None) -> Source[str]:
    """The captions in a store's parts, with its ids and labels."""
    import pyarrow as pa

    if caption_column not in (None, "caption"):
        raise InvalidInputError(f"{path}: the texts of a store are its column 'caption'")
    tables = [read_table(part.folder / "items.parquet", _OF_STORE) for part in store_parts(path)]
    if any("caption" not in table.column_names for table in tables):
        raise InvalidInputError(f"{path} is a store without captions; give the file of the texts")
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise FileFormatError(f"{path}: the parts do not fit together ({str(error).splitlines()[0]})") from error
    texts = [first_text(value).strip() for value in table.column("caption").to_pylist()]
    described = _described(table, path, len(texts), texts)
    content = "\0".join([*map(str, described[0]), *texts]).encode()
    return _source("captions of a store", path, content, *described, {})


def _described(table: Any, path: Path, rows: int, texts: list[str]) -> tuple[Any, list[str], npt.NDArray[Any] | None]:
    ids, labels = (name_among(table.column_names, usual, path) for usual in (ID_NAMES, LABEL_NAMES))
    return (
        np.arange(rows) if ids is None else column(table, ids, path),
        texts,
        None if labels is None else check_labels(column(table, labels, path), rows),
    )


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
    with open_regular(path) as file:
        return file.read()
