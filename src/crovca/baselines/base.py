"""What every baseline looks like: ``fit / logits / encode`` as ``Hasher``, or ``fit`` and ``scores``.

A baseline takes embeddings (n, d), or (n, v, d), of which it sees each item's mean over the views. It is fitted for one
code length: there are no nested lengths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes, check_bits
from crovca.data.embeddings import as_embeddings
from crovca.data.labels import ClassMembership, to_membership
from crovca.errors import InvalidInputError, NotFittedError
from crovca.evaluation.evaluate import one_view

Float32 = npt.NDArray[np.float32]
Size = Literal["asked", "width", "float"]

_BLOCK = 8192


class _Method(ABC):
    """Parameters, checks, and what the registry and a comparison ask of a method.

    Attributes:
        supervised: whether ``fit`` needs labels.
        seeds: how many seeds there are to run: 1 for a method without chance; None: as many as one likes.
        size: "asked" for a code of the length asked for; "width" for one bit a number; "float" for the floats.
        learned: whether it passes over the data several times, and takes the number of ``epochs``.
    """

    supervised: ClassVar[bool] = False
    seeds: ClassVar[int | None] = None
    size: ClassVar[Size] = "asked"
    learned: ClassVar[bool] = False

    n_features_in_: int

    def __init__(self, bits: int = 64, *, seed: int = 0) -> None:
        self.bits = bits
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from embeddings; ``y`` is ignored where the method is unsupervised.

        Args:
            X: (n, d) or (n, v, d).
            y: labels (n,) of whole numbers or strings, or (n, C) multi-hot.
        """
        data = as_embeddings(X, y if self.supervised else None, what="X")
        if len(data) < 2:
            raise InvalidInputError(f"training needs at least 2 items, got {len(data)}")
        classes = None
        if self.supervised:
            if y is None or data.labels is None:
                raise InvalidInputError(f"{type(self).__name__} is supervised: give labels as y")
            classes = to_membership(data.labels)
        values = as_matrix(data, "X")
        self._fit(values, classes)
        self.n_features_in_ = values.shape[1]
        return self

    @abstractmethod
    def _fit(self, values: Float32, classes: ClassMembership | None) -> None: ...

    def _checked(self, X: Any, what: str) -> Float32:
        if not hasattr(self, "n_features_in_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        values = as_matrix(X, what)
        if values.shape[1] != self.n_features_in_:
            raise InvalidInputError(
                f"{what} must have shape (n, {self.n_features_in_}), as the method was fitted with, got {values.shape}"
            )
        return values


class BinaryBaseline(_Method):
    """A method whose codes are signs of logits, behind the interface of ``Hasher``.

    Args:
        bits: length of the code, 1 to 4,096.
        seed: of everything random; the same seed gives the same codes on one machine.
    """

    def __init__(self, bits: int = 64, *, seed: int = 0) -> None:
        super().__init__(check_bits(bits), seed=seed)

    def logits(self, X: Any) -> Float32:
        """Logits float32 (n, bits) of embeddings; their signs are the codes."""
        values = self._checked(X, "X")
        blocks = [self._project(values[start : start + _BLOCK]) for start in range(0, len(values), _BLOCK)]
        return np.concatenate(blocks).astype(np.float32, copy=False)

    def encode(self, X: Any, bits: int | None = None) -> Codes:
        """Codes of embeddings; ``bits`` may only be the length the method was made for."""
        if bits not in (None, self.bits):
            raise InvalidInputError(
                f"{type(self).__name__} has codes of {self.bits} bits only, got {bits}; fit another of that length"
            )
        return Codes.from_logits(self.logits(X))

    @abstractmethod
    def _project(self, values: Float32) -> npt.NDArray[Any]:
        """Logits (n, bits) of checked embeddings (n, d)."""


class LinearBaseline(BinaryBaseline):
    """Logits (x - center) W, scaled by one factor to a root mean square of 1 on the data of the fit.

    The factor changes no code and no ranking by the BCE score; it puts the asymmetric Hamming distance of all methods
    on the scale that batch normalization gives the learned ones.
    """

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        self.center_, weight = self._learn(values, np.random.default_rng(self.seed))
        spread = float(np.sqrt(np.square((values - self.center_) @ weight, dtype=np.float64).mean()))
        self.weight_ = (weight / spread if spread > 0 else weight).astype(np.float32)

    @abstractmethod
    def _learn(self, values: Float32, random: np.random.Generator) -> tuple[Float32, npt.NDArray[Any]]:
        """The center (d,) and the projection (d, bits)."""

    def _project(self, values: Float32) -> npt.NDArray[Any]:
        return (values - self.center_) @ self.weight_

    def _fits_into(self, width: int) -> None:
        if self.bits > width:
            raise InvalidInputError(
                f"{type(self).__name__} gives at most one bit a number: {self.bits} bits need embeddings of at "
                f"least {self.bits} numbers, got {width}"
            )


class ScoreBaseline(_Method):
    """A method with a score of its own between float queries and what it stores of the database.

    Args:
        bits: 8 times the bytes an item may take.
        seed: of everything random.
    """

    def scores(self, queries: Any, database: Any) -> Float32:
        """Similarities float32 (q, n); greater is nearer."""
        return self.compare(queries, self.store(database))

    @property
    @abstractmethod
    def bytes_per_item(self) -> int:
        """Bytes that one stored item takes; known after ``fit``."""

    def store(self, database: Any) -> Any:
        """What is kept of the database: given to ``compare``."""
        return self._store(self._checked(database, "database"))

    def compare(self, queries: Any, stored: Any) -> Float32:
        """Similarities float32 (q, n) between float queries and what ``store`` kept."""
        return np.asarray(self._compare(self._checked(queries, "queries"), stored), np.float32)

    @abstractmethod
    def _store(self, values: Float32) -> Any: ...

    @abstractmethod
    def _compare(self, values: Float32, stored: Any) -> npt.NDArray[Any]: ...

    def _whole_bytes(self) -> int:
        if self.bits % 8 or self.bits < 8:
            raise InvalidInputError(
                f"{type(self).__name__} needs a length of whole bytes, got {self.bits} bits; use a multiple of 8"
            )
        return self.bits // 8


def as_matrix(X: Any, what: str) -> Float32:
    """Embeddings as float32 (n, d) in memory: the mean over the views where an item has several."""
    return np.ascontiguousarray(one_view(as_embeddings(X, what=what).values[:]))


def orthogonal(size: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random rotation (size, size), uniform over all (QR of a Gaussian, signs of R's diagonal made positive)."""
    q, r = np.linalg.qr(random.normal(size=(size, size)))
    return np.asarray(q * np.sign(np.diagonal(r)), np.float64)
