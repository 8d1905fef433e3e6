"""Labels of items: one class each, or several (multi-hot)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError, InvalidInputError

_CHUNK = 65536


@dataclass(frozen=True)
class ClassMembership:
    """Which classes each item belongs to.

    Attributes:
        index: int64 (n,) the class of each item; or bool (n, C), its classes.
        names: the classes' names, in the order of the numbers (columns of a multi-hot array: their numbers).
    """

    index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]
    names: npt.NDArray[Any]

    @property
    def multi_label(self) -> bool:
        """Whether an item may have several classes."""
        return self.index.ndim == 2

    @property
    def count(self) -> int:
        """Number of classes."""
        return len(self.names)


def check_labels(labels: npt.ArrayLike, items: int) -> npt.NDArray[Any]:
    """Return labels as an array (n,) of int64 or str, or (n, C) of bool.

    A single column (n, 1), as tables give it, is one class each: it tells two classes apart by 0 and 1, not one.

    Raises:
        InvalidInputError: another length or rank, real numbers, numbers beyond 2^63 - 1, objects, or values that are
            not 0 and 1 in several columns.
    """
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2):
        raise InvalidInputError(
            f"labels must have shape (n,) for one class each or (n, C) multi-hot, got {values.shape}"
        )
    if len(values) != items:
        raise InvalidInputError(f"there are {len(values)} labels for {items} items; expected one row of labels an item")
    if values.ndim == 2:
        if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise InvalidInputError(f"multi-hot labels must be 0 or 1, got {values.dtype} {values.shape}")
        return values.astype(np.bool_)
    if values.dtype.kind == "f" and (np.abs(values) < 2**53).all() and (values == np.rint(values)).all():
        return values.astype(np.int64)
    if values.dtype.kind in "biu":
        return check_whole(values, "labels")
    if values.dtype.kind in "OTU":
        return check_text(values, "labels must be whole numbers or strings")
    raise InvalidInputError(f"labels must be whole numbers or strings, got {values.dtype}")


def check_whole(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.int64]:
    """Whole numbers as int64; raises InvalidInputError where one is beyond it, instead of turning it negative."""
    if values.dtype.kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{what} must be at most 2^63 - 1, got {values.max()}; give larger numbers as strings")
    return values.astype(np.int64)


def check_text(values: npt.NDArray[Any], expected: str) -> npt.NDArray[np.str_]:
    """Strings as numpy's own; raises InvalidInputError where one is none, or holds what is no character."""
    if values.dtype.kind == "O" and not all(isinstance(value, str) for value in values):
        other = next(type(value).__name__ for value in values if not isinstance(value, str))
        raise InvalidInputError(f"{expected}, got objects, among them {other}")
    try:
        plain = values if values.dtype.kind == "U" else values.tolist()
        texts = np.ascontiguousarray(plain, np.str_)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{expected}, got {values.dtype} ({error})") from error
    if not texts.dtype.itemsize:
        return texts
    points = texts.view(f"{texts.dtype.byteorder}u4".replace("|", "="))
    if (((points >= 0xD800) & (points < 0xE000)) | (points > 0x10FFFF)).any():
        raise InvalidInputError(f"{expected}, got text with code points that are no characters (damaged Unicode)")
    return texts


def from_class_lists(lists: Any, names: list[str], where: Path) -> npt.NDArray[np.bool_] | None:
    """Multi-hot labels (n, C) from an Arrow column of lists of class numbers, C the classes that a schema names.

    None where the column holds no lists.
    """
    import pyarrow as pa

    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        return None
    labels = np.zeros((len(lists), len(names)), np.bool_)
    for row, numbers in enumerate(lists.to_pylist()):
        if numbers is None or any(number is None or not 0 <= number < len(names) for number in numbers):
            raise FileFormatError(f"{where}: row {row} has the classes {numbers}, expected 0 to {len(names) - 1}")
        labels[row, numbers] = True
    return labels


def to_membership(labels: npt.NDArray[Any]) -> ClassMembership:
    """Number the classes of checked labels."""
    if labels.ndim == 2:
        present = labels.any(axis=0)
        if present.sum() < 2:
            raise _too_few(int(present.sum()))
        return ClassMembership(labels, np.arange(labels.shape[1]))
    names, index = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise _too_few(len(names))
    return ClassMembership(index.astype(np.int64), names)


def share_a_label(
    ours: npt.NDArray[Any], theirs: npt.NDArray[Any], rows: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.bool_]:
    """Relevance: whether items have a class in common, bool (q, k), or (q, n).

    Labels are checked: ``ours`` of q queries, ``theirs`` of n items; ``rows`` (q, k) of those are compared, None: all.
    """
    if ours.ndim != theirs.ndim or (ours.dtype.kind == "U") != (theirs.dtype.kind == "U"):
        raise InvalidInputError(
            f"query labels ({ours.dtype}, {ours.ndim}-d) and database labels ({theirs.dtype}, "
            f"{theirs.ndim}-d) cannot be compared; use one kind in both files"
        )
    if ours.ndim == 1:
        return ours[:, None] == (theirs[None, :] if rows is None else theirs[rows])
    if ours.shape[1] != theirs.shape[1]:
        raise InvalidInputError(
            f"multi-hot labels have {ours.shape[1]} columns in the queries and {theirs.shape[1]} in the database"
        )
    wide = ours.astype(np.float32)
    if rows is None:
        starts = range(0, len(theirs), _CHUNK)
        parts = [wide @ theirs[start : start + _CHUNK].T.astype(np.float32) for start in starts]
        return np.concatenate(parts, axis=1) > 0 if parts else np.zeros((len(ours), 0), np.bool_)
    return np.stack([theirs[found] @ mine > 0 for mine, found in zip(wide, rows, strict=True)])


def _too_few(found: int) -> InvalidInputError:
    return InvalidInputError(
        f"the labels hold {'a single class' if found == 1 else 'no class'}; learning classes needs at least 2: "
        "give other labels, or leave them out (--unsupervised on the command line, y=None in Python)"
    )
