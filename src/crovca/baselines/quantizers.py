"""The floats, and quantizers at the same bytes an item: the query stays floats, only the database is compressed.

Quantizers see centered unit vectors, on which squared distance and inner product rank as the cosine
(``FloatCentered``), and as many principal components as fit into the bytes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from crovca.baselines.base import Float32, ScoreBaseline, Size, orthogonal
from crovca.baselines.linear import principal_components
from crovca.data.embeddings import unit_rows
from crovca.data.labels import ClassMembership
from crovca.errors import InvalidInputError

Preparation = Literal["raw", "normalized", "centered"]
_Method = TypeVar("_Method", bound=ScoreBaseline)

_CENTROIDS = 256
_CHUNK = 8192  # items decoded at a time
_ITERATIONS = 50
_GRID = 1 << 16  # points of the sphere's density


# --- the floats themselves, exact and at 4 bytes a number: what codes are measured against --------------


class FloatRaw(ScoreBaseline):
    """Inner product of the embeddings as they are."""

    seeds: ClassVar[int | None] = 1
    size: ClassVar[Size] = "float"
    preparation: ClassVar[Preparation] = "raw"

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        self.mean_ = values.mean(axis=0, dtype=np.float64).astype(np.float32)

    @property
    def bytes_per_item(self) -> int:
        """4 d."""
        return 4 * self.n_features_in_

    def _store(self, values: Float32) -> Float32:
        if self.preparation == "raw":
            return values
        return unit_rows(values - self.mean_ if self.preparation == "centered" else values)

    def _compare(self, values: Float32, stored: Float32) -> npt.NDArray[Any]:
        return self._store(values) @ stored.T


class FloatNormalized(FloatRaw):
    """Cosine."""

    preparation: ClassVar[Preparation] = "normalized"


class FloatCentered(FloatRaw):
    """Cosine after subtracting the mean embedding of the database."""

    preparation: ClassVar[Preparation] = "centered"


# --- compressed --------------------------------------------------------------------------------------------


class _Quantizer(ScoreBaseline):
    """Centered unit vectors, reduced to the principal components that fit."""

    def _fit(self, values: Float32, classes: ClassMembership | None) -> None:
        budget = self._whole_bytes()
        self.mean_ = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        unit = unit_rows(values - self.mean_)
        count = self._components(values.shape[1], budget)
        # Without a reduction there is no rotation either: the plain method.
        self.center_ = np.zeros(values.shape[1], np.float32)
        self.components_: Float32 | None = None
        if count < values.shape[1]:
            self.center_, components = principal_components(unit, count)
            self.components_ = components.astype(np.float32)
        self._train(self._reduced(unit), budget)

    @abstractmethod
    def _components(self, width: int, budget: int) -> int:
        """How many principal components of ``width`` numbers the method takes for ``budget`` bytes."""

    @abstractmethod
    def _train(self, reduced: Float32, budget: int) -> None:
        """Learn from reduced vectors."""

    def _prepare(self, values: Float32) -> Float32:
        return self._reduced(unit_rows(values - self.mean_))

    def _reduced(self, unit: Float32) -> Float32:
        if self.components_ is None:
            return np.ascontiguousarray(unit)
        return np.ascontiguousarray((unit - self.center_) @ self.components_)


class FaissQuantizer(_Quantizer):
    """A FAISS index that can decode its codes, ranked by -|q - x|^2 of the decoded x."""

    index_: Any

    def _train(self, reduced: Float32, budget: int) -> None:
        self.index_ = self._index(reduced, budget)

    @abstractmethod
    def _index(self, prepared: Float32, budget: int) -> Any:
        """A trained index over prepared vectors."""

    @property
    def bytes_per_item(self) -> int:
        """Bytes of one of FAISS's codes."""
        return int(self.index_.sa_code_size())

    def _store(self, values: Float32) -> npt.NDArray[np.uint8]:
        return np.asarray(self.index_.sa_encode(self._prepare(values)), np.uint8)

    def _compare(self, values: Float32, stored: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        queries = self._prepare(values)
        similarities = np.empty((len(values), len(stored)), np.float32)
        for start in range(0, len(stored), _CHUNK):
            part = slice(start, start + _CHUNK)
            decoded = self.index_.sa_decode(stored[part])
            # -|q - x|^2 without the query's own length, which is the same for all items
            similarities[:, part] = 2 * queries @ decoded.T - np.square(decoded).sum(axis=1)
        return similarities


class SQ8(FaissQuantizer):
    """``faiss.IndexScalarQuantizer``: each number by itself to 8 bits, the int8 of vector databases."""

    seeds: ClassVar[int | None] = 1
    bits_a_number: ClassVar[int] = 8

    def _components(self, width: int, budget: int) -> int:
        return min(width, 8 * budget // self.bits_a_number)

    def _index(self, prepared: Float32, budget: int) -> Any:
        kind = {8: faiss.ScalarQuantizer.QT_8bit, 4: faiss.ScalarQuantizer.QT_4bit}[self.bits_a_number]
        index = faiss.IndexScalarQuantizer(prepared.shape[1], kind, faiss.METRIC_L2)
        index.train(prepared)
        return index


class PQ(FaissQuantizer):
    """``faiss.IndexPQ`` with ``bits / 8`` sub-quantizers on all numbers (fewer components where they do not divide).

    Jégou, Douze and Schmid, TPAMI 2011, the asymmetric distance (their Eq. 13); 256 centroids a sub-quantizer.
    """

    def _components(self, width: int, budget: int) -> int:
        if budget > width:
            raise InvalidInputError(
                f"{type(self).__name__} needs a number for every byte: {self.bits} bits take {budget}, got {width}"
            )
        return width // budget * budget

    def _index(self, prepared: Float32, budget: int) -> Any:
        _check_training_points(prepared, type(self).__name__)
        index = faiss.IndexPQ(prepared.shape[1], budget, 8)
        _prepare_clustering(index.pq, self.seed)
        index.train(prepared)
        return index


class OPQ(PQ):
    """``faiss.OPQMatrix`` before PQ, on the leading components: 64, or 4 a byte where that is more.

    Ge, He, Ke and Sun, CVPR 2013, the non-parametric solution. On all of 1,280 numbers each of the 50 iterations
    decomposes a matrix of that size.
    """

    def _components(self, width: int, budget: int) -> int:
        super()._components(width, budget)
        return max(1, min(width, max(64, 4 * budget)) // budget) * budget

    def _index(self, prepared: Float32, budget: int) -> Any:
        _check_training_points(prepared, type(self).__name__)
        width = prepared.shape[1]
        rotation, quantizer = faiss.OPQMatrix(width, budget), faiss.IndexPQ(width, budget, 8)
        trained_with = faiss.ProductQuantizer(width, budget, 8)
        rotation.pq = trained_with
        _prepare_clustering(trained_with, self.seed)
        _prepare_clustering(quantizer.pq, self.seed)
        index = faiss.IndexPreTransform(rotation, quantizer)
        index.train(prepared)
        self._kept = (rotation, quantizer, trained_with)  # FAISS holds bare pointers to them
        return index


class RaBitQ(FaissQuantizer):
    """``faiss.IndexRaBitQ`` on randomly rotated principal components; the query is not quantized (``qb = 0``).

    Gao and Long, SIGMOD 2024 (arXiv 2405.12497): with the sign bits x̄ of the rotated residual o to a centroid,
    <x̄, q> / <x̄, o> is an unbiased estimate of <o, q> (their Theorem 3.2). Beside d'/8 bytes of bits FAISS keeps two
    floats an item, so there is such a code only from 9 bytes on.
    """

    bits_a_number: ClassVar[int] = 1
    corrections: ClassVar[int] = 8  # bytes an item

    def _components(self, width: int, budget: int) -> int:
        room = budget - self.corrections
        for count in range(min(width, 8 * room // self.bits_a_number), 0, -1):
            # FAISS packs the signs and the other bits apart, each in whole bytes
            if -(-count // 8) + -(-count * (self.bits_a_number - 1) // 8) <= room:
                return count
        least = self.corrections + min(2, self.bits_a_number)
        raise InvalidInputError(
            f"{type(self).__name__} keeps {self.corrections} bytes of corrections an item beside the bits, so that "
            f"it takes at least {8 * least} bits, and is meant for {16 * self.corrections} or more; {self.bits} were "
            "asked for"
        )

    def _index(self, prepared: Float32, budget: int) -> Any:
        width = prepared.shape[1]
        self._rotation = faiss.RandomRotationMatrix(width, width)
        self._rotation.init(1234 + self.seed)
        index = faiss.IndexRaBitQ(width, faiss.METRIC_L2, self.bits_a_number)
        index.qb = 0
        index.train(self._rotation.apply(prepared))
        return index

    def _prepare(self, values: Float32) -> Float32:
        return np.asarray(self._rotation.apply(super()._prepare(values)), np.float32)

    def _store(self, values: Float32) -> Any:
        index = faiss.clone_index(self.index_)
        index.add(self._prepare(values))
        return index

    def _compare(self, values: Float32, stored: Any) -> npt.NDArray[Any]:
        distances, rows = stored.search(self._prepare(values), stored.ntotal)
        similarities = np.full((len(values), stored.ntotal), -np.inf, np.float32)
        np.put_along_axis(similarities, rows, -distances, axis=1)
        return similarities


class RaBitQ2(RaBitQ):
    """Two bits a number: FAISS's multi-bit RaBitQ.

    Gao et al., "Practical and asymptotically optimal quantization of high-dimensional vectors in Euclidean space for
    approximate nearest neighbor search", SIGMOD 2025 (arXiv 2409.09913): the same estimate <ȳ, q> / <ȳ, o>, with ȳ the
    vector of the grid of B-bit numbers, centered at 0, that has the smallest angle with o (FAISS finds one nearly as
    near). FAISS keeps five floats an item: three are those of the sign bits, with an error bound, for a first pass.
    """

    bits_a_number: ClassVar[int] = 2
    corrections: ClassVar[int] = 20


class _ScalarQuantizer(_Quantizer):
    """Whole numbers of ``bits_a_number`` bits of rotated components; the score is <q, x̃> with a float query.

    Nothing is kept beside the numbers: what a subclass decodes to, x̃ (n, d'), follows from them alone.
    """

    bits_a_number: ClassVar[int]
    rotation_: Float32  # (d', d')

    def _components(self, width: int, budget: int) -> int:
        return min(width, 8 * budget // self.bits_a_number)

    @property
    def bytes_per_item(self) -> int:
        """Bytes of the packed numbers."""
        return -(-len(self.rotation_) * self.bits_a_number // 8)

    def _prepare(self, values: Float32) -> Float32:
        return super()._prepare(values) @ self.rotation_

    def _store(self, values: Float32) -> npt.NDArray[np.uint8]:
        """One number a component, unpacked: uint8 (n, d')."""
        return self._quantize(self._prepare(values))

    def _compare(self, values: Float32, stored: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        queries = self._prepare(values)
        similarities = np.empty((len(values), len(stored)), np.float32)
        for start in range(0, len(stored), _CHUNK):
            part = slice(start, start + _CHUNK)
            similarities[:, part] = queries @ self._decode(stored[part]).T
        return similarities

    @abstractmethod
    def _quantize(self, rotated: Float32) -> npt.NDArray[np.uint8]: ...

    @abstractmethod
    def _decode(self, numbers: npt.NDArray[np.uint8]) -> Float32: ...


class TurboQuant1(_ScalarQuantizer):
    """TurboQuant, the variant for the squared error, with one bit a number.

    Zandieh et al., "TurboQuant: online vector quantization with near-optimal distortion rate", arXiv 2504.19874,
    Algorithm 1: a random rotation, then each number of the unit vector to the nearest of 2^B centroids that are optimal
    for its density on the sphere (Lemma 1, Eq. 4); x̃ is the centroids, rotated back. Theirs keeps all d numbers; at a
    code's size only the principal components that fit are kept, made unit vectors again, so that no length is stored.
    Their second variant spends one of the bits on the residual (QJL), for inner products without bias; a bias common to
    all items does not change a ranking.
    """

    bits_a_number: ClassVar[int] = 1

    def _train(self, reduced: Float32, budget: int) -> None:
        width = reduced.shape[1]
        self.rotation_ = orthogonal(width, np.random.default_rng(self.seed)).astype(np.float32)
        self.codebook_ = beta_codebook(width, self.bits_a_number).astype(np.float32)

    def _quantize(self, rotated: Float32) -> npt.NDArray[np.uint8]:
        bounds = (self.codebook_[1:] + self.codebook_[:-1]) / 2
        return np.searchsorted(bounds, unit_rows(rotated)).astype(np.uint8)

    def _decode(self, numbers: npt.NDArray[np.uint8]) -> Float32:
        return np.asarray(self.codebook_[numbers], np.float32)


class ASH1(_ScalarQuantizer):
    """Like asymmetric scalar hashing, with one bit a number: a learned orthonormal projection W, a float query.

    After "ASH: asymmetric scalar hashing with learned dimensionality reduction for high-fidelity vector quantization",
    arXiv 2606.07870: a learned orthonormal projection to fewer numbers, B bits for each, the query as it is. Of the
    paper the abstract was read, not the equations; that W comes from PCA and Procrustes iterations is said of its
    author's code in Elasticsearch (pull request 156823). So this is like ASH, not ASH: W is the leading principal
    components and a rotation R, and ||s C - V R||_F is made small in turn over whole numbers C (odd, from 1 - 2^B to
    2^B - 1), the step s and rotations R, 50 times from a random rotation. With one bit that is ITQ. x̃ = C / |C|, so
    that nothing is kept beside the numbers; theirs may keep corrections for each item.
    """

    bits_a_number: ClassVar[int] = 1

    def _train(self, reduced: Float32, budget: int) -> None:
        rotation = orthogonal(reduced.shape[1], np.random.default_rng(self.seed)).astype(np.float32)
        spread = float(np.sqrt(np.square(reduced, dtype=np.float64).mean())) or 1.0
        self.step_ = spread * (2 * self.bits_a_number) ** 0.5 / 2**self.bits_a_number  # near a Gaussian's best
        self.losses_: list[float] = []
        for _ in range(_ITERATIONS):
            rotated = reduced @ rotation
            codes = self._odd(self._quantize(rotated))
            self.step_ = float((codes * rotated).sum(dtype=np.float64) / np.square(codes).sum(dtype=np.float64)) or 1.0
            self.losses_.append(float(np.square(self.step_ * codes - rotated).sum(dtype=np.float64)))
            left, _, right = np.linalg.svd((reduced.T @ codes).astype(np.float64))
            rotation = (left @ right).astype(np.float32)
        self.rotation_ = rotation

    def _quantize(self, rotated: Float32) -> npt.NDArray[np.uint8]:
        half = 2 ** (self.bits_a_number - 1)
        numbers = np.floor(rotated / np.float32(2 * self.step_)) + half
        return np.clip(numbers, 0, 2 * half - 1).astype(np.uint8)

    def _odd(self, numbers: npt.NDArray[np.uint8]) -> Float32:
        return 2 * numbers.astype(np.float32) + np.float32(1 - 2**self.bits_a_number)

    def _decode(self, numbers: npt.NDArray[np.uint8]) -> Float32:
        return unit_rows(self._odd(numbers))


def _with_bits(method: type[_Method], bits: int, name: str) -> type[_Method]:
    """The same method with so many bits a number."""
    described = f"{method.__name__} with {bits} bits a number."
    return type(name, (method,), {"bits_a_number": bits, "__doc__": described, "__module__": __name__})


SQ4 = _with_bits(SQ8, 4, "SQ4")
RaBitQ4 = _with_bits(RaBitQ2, 4, "RaBitQ4")
TurboQuant2, TurboQuant4 = _with_bits(TurboQuant1, 2, "TurboQuant2"), _with_bits(TurboQuant1, 4, "TurboQuant4")
ASH2, ASH4, ASH8 = _with_bits(ASH1, 2, "ASH2"), _with_bits(ASH1, 4, "ASH4"), _with_bits(ASH1, 8, "ASH8")


def beta_codebook(width: int, bits: int) -> npt.NDArray[np.float64]:
    """The 2^bits centroids, ascending, with the least squared error for a number of a random unit vector.

    A number of a uniform point on the sphere in ``width`` dimensions has the density
    Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)) (1 - x^2)^((d-3)/2) (TurboQuant's Lemma 1). Solved by Lloyd's iterations on
    an even grid of angles, x = -cos(theta), whose density sin(theta)^(d-2) has no poles.
    """
    count = 2**bits
    if width == 1:  # the sphere is -1 and 1
        return np.repeat([-1.0, 1.0], count // 2)
    theta = (np.arange(_GRID) + 0.5) * np.pi / _GRID
    points, weights = -np.cos(theta), np.sin(theta) ** (width - 2)
    mass = np.concatenate([[0], np.cumsum(weights)])
    moment = np.concatenate([[0], np.cumsum(weights * points)])
    quantiles = (np.arange(count) + 0.5) / count
    centroids = points[np.minimum(np.searchsorted(mass, quantiles * mass[-1]), _GRID - 1)]
    for _ in range(500):
        inner = np.searchsorted(points, (centroids[1:] + centroids[:-1]) / 2)
        ends = np.concatenate([[0], inner, [_GRID]])
        within = np.diff(mass[ends])
        moved = np.where(within > 0, np.diff(moment[ends]) / np.where(within > 0, within, 1), centroids)
        if np.abs(moved - centroids).max() < 1e-12:
            break
        centroids = moved
    return centroids


def _check_training_points(values: Float32, method: str) -> None:
    """Refuse fewer items than a codebook has centroids."""
    if len(values) < _CENTROIDS:
        raise InvalidInputError(
            f"{method} learns {_CENTROIDS} centroids for every byte and needs at least as many items, got {len(values)}"
        )


def _prepare_clustering(quantizer: Any, seed: int) -> None:
    quantizer.cp.seed += seed
    quantizer.cp.min_points_per_centroid = 1  # else FAISS warns on standard output below 39
