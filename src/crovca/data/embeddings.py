"""Embedding files: one way to open ``.npz``, ``.npy``, ``.parquet``, ``.safetensors`` and stores.

The layouts are in docs/formats.md. Nothing is ever unpickled. ``.npy`` files and stores are memory-mapped;
the others are loaded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from crovca.data.columns import ID_NAMES, LABEL_NAMES, class_names, column, name_among, open_table, read_table
from crovca.data.labels import check_labels, check_text, check_whole, from_class_lists
from crovca.data.store import open_store
from crovca.errors import CrovcaWarning, FileFormatError, InvalidInputError
from crovca.files import array_names, load_arrays, open_npy, open_regular

_logger = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 20


class Rows(Protocol):
    """What is asked of an array of items: numpy arrays, memory maps and stores have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d), or (n, v, d) with v views of each item."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of items, with what is known of the items.

    Attributes:
        values: (n, d), or (n, v, d) with v views of each item; any float dtype.
        labels: (n,) int64 or str, (n, C) bool, or None.
        ids: (n,) int64 or str, unique, or None.
        degenerate: row numbers of items whose numbers are all equal (zero rows among them): they are
            kept, but no other item is ever taught by them.
    """

    values: Rows
    labels: npt.NDArray[Any] | None
    ids: npt.NDArray[Any] | None
    degenerate: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def width(self) -> int:
        """d, the numbers in one embedding."""
        return int(self.values.shape[-1])

    @property
    def views(self) -> int:
        """v, the stored views of each item."""
        return 1 if len(self.values.shape) == 2 else int(self.values.shape[1])


def chunks(values: Rows, rows: int | None = None) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Read ``values`` from first to last, some rows (by default 64 MiB in float32) at a time."""
    size = rows or max(1, _CHUNK_BYTES // (4 * int(np.prod(values.shape[1:]))))
    for start in range(0, len(values), size):
        part = slice(start, min(start + size, len(values)))
        yield part, np.asarray(values[part])


def evenly_spaced(items: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` row numbers, ascending, from the first to the last of ``items``."""
    return np.unique(np.linspace(0, items - 1, min(most, items)).astype(np.int64))


def mean_embedding(values: Rows) -> npt.NDArray[np.float32]:
    """Mean (d,) over items and views, summed in float64; read in chunks."""
    total, count = np.zeros(values.shape[-1]), 0
    for _, part in chunks(values):
        rows = part.reshape(-1, part.shape[-1])
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return (total / count).astype(np.float32)


def unit_rows(values: npt.NDArray[Any], center: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Rows (n, d) less ``center`` (d,), of length 1 whatever their scale was; float32. Rows of zeros stay."""
    rows = np.asarray(values, np.float32)
    if center is not None:
        rows = rows - center
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = ~((lengths > 1e-15) & (lengths < 1e15)).ravel()  # their squares are hardly numbers of float32
    lengths[extreme] = np.linalg.norm(rows[extreme].astype(np.float64), axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def root_mean_square(values: Rows, center: npt.NDArray[np.float32]) -> float:
    """Root mean square of all numbers after subtracting ``center`` (d,); read in chunks."""
    total, count = 0.0, 0
    for _, part in chunks(values):
        total += float(np.square(part.astype(np.float64) - center).sum())
        count += part.size
    return float(np.sqrt(total / count))


def as_embeddings(values: Any, labels: Any = None, ids: Any = None, *, what: str = "embeddings") -> Embeddings:
    """Check arrays of any library (numpy, torch, memory maps, lists) and wrap them.

    Raises:
        InvalidInputError: wrong rank, no items, numbers that are not finite, labels or ids that do not fit.
    """
    if isinstance(values, Embeddings):
        if labels is not None:
            values = replace(values, labels=check_labels(labels, len(values)))
        return values if ids is None else replace(values, ids=check_ids(np.asarray(ids), len(values), what))
    if hasattr(values, "detach"):  # a torch tensor, without importing torch for it
        values = values.detach().cpu()
        known = ("torch.float16", "torch.float32", "torch.float64")  # numpy has no others
        narrow = values.dtype.is_floating_point and str(values.dtype) not in known
        values = (values.float() if narrow else values).numpy()
    if np.ma.is_masked(values):
        raise InvalidInputError(f"{what} is a masked array with missing numbers; fill or remove them")
    if hasattr(values, "toarray"):
        raise InvalidInputError(f"{what} is a sparse matrix; give it dense: {what}.toarray()")
    if not (hasattr(values, "shape") and hasattr(values, "dtype") and hasattr(values, "__getitem__")):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise InvalidInputError(f"{what} cannot be made into an array: {error}") from error
    checked, degenerate = check_values(values, what)
    items = len(checked)
    if labels is not None:
        labels = check_labels(labels, items)
    if ids is not None:
        ids = check_ids(np.asarray(ids), items, what)
    return Embeddings(checked, labels, ids, degenerate)


def check_values(values: Rows, what: str = "embeddings") -> tuple[Rows, npt.NDArray[np.int64]]:
    """Check rank, dtype and every number; return the values and the rows whose numbers are all equal.

    Integers, booleans and rare floats (long double, the other byte order) are converted to float32 and
    float64 is kept as it is, each with a CrovcaWarning.
    The numbers are read once, in chunks.
    """
    kind = values.dtype.kind
    if kind == "V" and np.can_cast(values.dtype, np.float32):  # bfloat16 and float8 of ml_dtypes
        kind = "f"
    if kind == "O":
        raise InvalidInputError(f"{what} is an array of objects; expected numbers (float16, float32)")
    if kind not in "fiub":
        raise InvalidInputError(f"{what} must hold real numbers, got {values.dtype}")
    if len(values.shape) not in (2, 3):
        raise InvalidInputError(
            f"{what} must have shape (n, d), or (n, v, d) with v views of each item, got {tuple(values.shape)}"
        )
    if 0 in values.shape:
        raise InvalidInputError(f"{what} is empty: shape {tuple(values.shape)}")
    if values.dtype not in (np.float16, np.float32, np.float64):
        warnings.warn(f"{what}: {values.dtype} converted to float32", CrovcaWarning, stacklevel=2)
        with np.errstate(over="ignore"):  # beyond float32 is infinity, and refused below
            values = np.asarray(values[:]).astype(np.float32)
    elif values.dtype.itemsize > 4:
        text = f"{what}: {values.dtype} numbers are converted to float32 when used"
        warnings.warn(text, CrovcaWarning, stacklevel=2)
    bad: list[npt.NDArray[np.int64]] = []
    flat: list[npt.NDArray[np.int64]] = []
    for part, numbers in chunks(values):
        with np.errstate(over="ignore"):
            rows = numbers.reshape(len(numbers), -1).astype(np.float32)
        low, high = rows.min(axis=1), rows.max(axis=1)
        finite = np.isfinite(low) & np.isfinite(high)  # NaN spreads through min and max
        bad.append(np.flatnonzero(~finite) + part.start)
        flat.append(np.flatnonzero(finite & (low == high)) + part.start)
    wrong, degenerate = np.concatenate(bad), np.concatenate(flat)
    if len(wrong):
        raise InvalidInputError(
            f"{what} holds NaN, infinity or numbers beyond float32 in {len(wrong)} of {len(values)} rows: "
            f"{_listed(wrong)}; remove or repair them"
        )
    if values.shape[-1] == 1:
        degenerate = degenerate[:0]  # a single number is always equal to itself
    if len(degenerate):
        text = f"{len(degenerate)} of {len(values)} rows are zero or constant ({_listed(degenerate)})"
        warnings.warn(f"{what}: {text}; they are kept, but never used as neighbors", CrovcaWarning, stacklevel=2)
    return values, degenerate


def load_embeddings(path: str | Path, *, with_ids: bool = True) -> Embeddings:
    """Open an embedding file or store and check all of it; see docs/formats.md.

    Args:
        path: the file or folder.
        with_ids: whether the ids of a store are wanted; a million strings take memory that training can spare.

    Raises:
        FileFormatError: the file is missing, empty, damaged, or not laid out as its name says.
        InvalidInputError: its numbers, labels or ids cannot be used.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist")
    if path.is_dir():
        opened: _Parts = open_store(path, with_ids=with_ids)
    else:
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise FileFormatError(
                f"{path}: unknown kind of embedding file; expected one of {', '.join(_READERS)}, or a store (folder)"
            )
        if path.stat().st_size == 0:
            raise FileFormatError(f"{path} is empty")
        opened = reader(path)
        if reader is not _read_npy:
            what = f"{path.name} is loaded into memory ({path.stat().st_size / 2**20:,.1f} MiB)"
            _logger.warning("%s; .npy files and stores are memory-mapped", what)
    try:
        return as_embeddings(*opened)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error


_Parts = tuple[Rows, npt.NDArray[Any] | None, npt.NDArray[Any] | None]


def _read_npz(path: Path) -> _Parts:
    names = array_names(path)
    ids, labels = _described(names, path)
    arrays = load_arrays(path, required=["embeddings", *(name for name in (ids, labels) if name is not None)])
    return arrays["embeddings"], arrays.get(labels or ""), arrays.get(ids or "")


def _read_npy(path: Path) -> _Parts:
    return open_npy(path), *_read_items(path)


def _read_safetensors(path: Path) -> _Parts:
    from safetensors import safe_open

    with open_regular(path):
        pass
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            if "embeddings" not in shapes:
                raise FileFormatError(f"{path} has no tensor 'embeddings'; found {sorted(shapes)}")
            _, labels = _described([*shapes], path, known=("embeddings",))
            kind = shapes["embeddings"].get_dtype()
            values = None if kind == "BF16" or kind.startswith("F8") else file.get_tensor("embeddings")
            beside = None if labels is None else file.get_tensor(labels)
        if values is None:  # of which numpy has none: exact in float32
            with safe_open(path, framework="pt") as file:
                values = file.get_tensor("embeddings").float().numpy()
    except FileFormatError:
        raise
    except Exception as error:  # SafetensorError, and what numpy and torch say of a dtype they do not have
        raise FileFormatError(f"{path} is not a readable .safetensors ({error}); it may be truncated") from error
    from_table, ids = _read_items(path)
    return values, from_table if beside is None else beside, ids


def _read_parquet(path: Path) -> _Parts:
    names = open_table(path).schema_arrow.names
    if "embeddings" not in names:
        raise FileFormatError(f"{path} has no column 'embeddings'; found {names}")
    table = read_table(path, [name for name in ("embeddings", *_described(names, path)) if name is not None])
    return column(table, "embeddings", path), *_labels_and_ids(table, path)


def _read_items(path: Path) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """Labels and ids from ``NAME.items.parquet`` beside ``NAME.npy`` or ``NAME.safetensors``, if it is there."""
    items = path.with_name(f"{path.stem}.items.parquet")
    if not items.exists():
        return None, None
    found = _described(open_table(items).schema_arrow.names, items)
    return _labels_and_ids(read_table(items, [name for name in found if name is not None]), items)


def _described(names: list[str], path: Path, known: tuple[str, ...] | None = None) -> tuple[str | None, str | None]:
    """The names of ids and labels among those in a file; says which labels are taken, and what nobody reads."""
    ids, labels = name_among(names, ID_NAMES, path), name_among(names, LABEL_NAMES, path)
    if labels == "label":
        warnings.warn(f"{path.name}: labels are taken from 'label'", CrovcaWarning, stacklevel=4)
    if path.suffix.lower() in (".npz", ".safetensors"):
        left = sorted(set(names) - {"embeddings", labels, *((ids,) if known is None else ())})
        if left:
            text = f"{path.name}: {', '.join(map(repr, left[:8]))} not read; embeddings, labels and ids are"
            warnings.warn(text, CrovcaWarning, stacklevel=4)
    return ids, labels


def _labels_and_ids(table: Any, path: Path) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    ids, labels = (name_among(table.column_names, usual, path) for usual in (ID_NAMES, LABEL_NAMES))
    found = None
    if labels is not None:
        classes = class_names(table.schema, labels)
        lists = from_class_lists(table.column(labels), classes, path) if classes else None
        found = column(table, labels, path) if lists is None else lists
    return found, None if ids is None else column(table, ids, path)


_READERS = {".npz": _read_npz, ".npy": _read_npy, ".parquet": _read_parquet, ".safetensors": _read_safetensors}


def check_ids(ids: npt.NDArray[Any], items: int, what: str) -> npt.NDArray[Any]:
    """Return ids as an array (n,) of int64 or str."""
    if ids.shape != (items,):
        raise InvalidInputError(f"{what}: expected {items} ids in one dimension, got shape {ids.shape}")
    if ids.dtype.kind in "iu":
        ids = check_whole(ids, f"{what}: ids")
    elif ids.dtype.kind in "OTU":
        ids = check_text(ids, f"{what}: ids must be whole numbers or strings")
    else:
        raise InvalidInputError(f"{what}: ids must be whole numbers or strings, got {ids.dtype}")
    names, counts = np.unique(ids, return_counts=True)
    if len(names) < items:
        twice = names[counts > 1][0]
        raise InvalidInputError(
            f"{what}: ids must be unique, but {str(twice)!r} stands in several rows; "
            "rename or remove the repeated items"
        )
    return ids


def _listed(rows: npt.NDArray[np.int64], most: int = 8) -> str:
    text = ", ".join(str(row) for row in rows[:most])
    return f"row {text}" if len(rows) == 1 else f"rows {text}{', …' if len(rows) > most else ''}"
