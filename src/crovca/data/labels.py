"""Labels of items: one class each, or several (multi-hot)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import InvalidInputError

__all__ = ["ClassMembership", "check_labels", "share_a_label", "to_membership"]

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

    Raises:
        InvalidInputError: another length or rank, real numbers, objects, or values that are not 0 and 1
            in a two-dimensional array.
    """
    values = np.asarray(labels)
    if values.ndim not in (1, 2):
        raise InvalidInputError(
            f"labels must have shape (n,) for one class each or (n, C) multi-hot, got {values.shape}"
        )
    if len(values) != items:
        raise InvalidInputError(
            f"there are {len(values)} labels for {items} items; expected one row of labels an item"
        )
    if values.ndim == 2:
        if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
            raise InvalidInputError(f"multi-hot labels must be 0 or 1, got {values.dtype} {values.shape}")
        return values.astype(np.bool_)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int64)
    if values.dtype.kind in "biu":
        return values.astype(np.int64)
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        return values.astype(np.str_)
    if values.dtype.kind == "U":
        return values
    raise InvalidInputError(f"labels must be whole numbers or strings, got {values.dtype}")


def to_membership(labels: npt.NDArray[Any]) -> ClassMembership:
    """Number the classes of checked labels.

    Raises:
        InvalidInputError: fewer than two classes occur, so there is nothing to tell apart.
    """
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
    """Relevance: whether items have a class in common.

    Args:
        ours: checked labels of q queries.
        theirs: checked labels of n database items.
        rows: (q, k) database rows to compare with; None: all of them.

    Returns:
        bool (q, k), or (q, n).

    Raises:
        InvalidInputError: the two kinds of labels cannot be compared.
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
        parts = [
            wide @ theirs[start : start + _CHUNK].T.astype(np.float32)
            for start in range(0, len(theirs), _CHUNK)
        ]
        return np.concatenate(parts, axis=1) > 0 if parts else np.zeros((len(ours), 0), np.bool_)
    return np.stack([theirs[found] @ mine > 0 for mine, found in zip(wide, rows, strict=True)])


def _too_few(found: int) -> InvalidInputError:
    return InvalidInputError(
        f"the labels hold {'a single class' if found == 1 else 'no class'}; learning classes needs at least 2: "
        "give other labels, or leave them out (--unsupervised on the command line, y=None in Python)"
    )
