"""Packed binary codes: the only home of the threshold, the bit order and the padding.

Bit ``j`` of an item is 1 where its logit ``j`` is greater than 0 (paper, Eq. 4; the two differ at
exactly 0 only). Bits are packed most significant first, as ``numpy.packbits``, PostgreSQL's ``bit`` and
sentence-transformers' ``ubinary`` do; the last byte is filled up with zeros. The length in bits
travels with the bytes, so 13 bits are never taken for 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError, InvalidInputError
from crovca.files import load_arrays, save_arrays

MAX_BITS = 4096

_Rows = SupportsIndex | slice | npt.NDArray[Any] | Sequence[int]


def check_bits(bits: object, *, at_most: int = MAX_BITS) -> int:
    """Return ``bits`` as an int, or raise InvalidInputError unless it is a whole number in [1, at_most]."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer):
        raise InvalidInputError(f"bits must be a whole number, got {bits!r}")
    if not 1 <= bits <= at_most:
        raise InvalidInputError(f"bits must lie between 1 and {at_most:,}, got {bits}")
    return int(bits)


class Codes:
    """``n`` binary codes of ``bits`` bits each, immutable.

    Args:
        packed: uint8 array (n, ceil(bits / 8)), packed as described above. Copied where it can be written to (a
            buffer may be filled again for the next batch); a read-only array or map is not.
        bits: length of every code, 1 to 4,096.

    Raises:
        InvalidInputError: wrong type, rank or width, or padding bits that are not zero.

    >>> codes = Codes.from_logits(np.array([[0.5, -1.0, 2.0], [-0.1, 0.0, 0.1]]))
    >>> codes
    Codes(n=2, bits=3)
    >>> codes.unpack()
    array([[1, 0, 1],
           [0, 0, 1]], dtype=uint8)
    >>> codes.hamming(codes)
    array([[0, 1],
           [1, 0]], dtype=uint16)
    """

    __slots__ = ("bits", "packed")

    packed: npt.NDArray[np.uint8]
    bits: int

    def __init__(self, packed: npt.NDArray[np.uint8], bits: int) -> None:
        bits = check_bits(bits)
        if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8:
            got = getattr(packed, "dtype", type(packed).__name__)
            raise InvalidInputError(f"packed codes must be a numpy array of uint8, got {got}")
        width = _byte_width(bits)
        if packed.ndim != 2 or packed.shape[1] != width:
            raise InvalidInputError(f"packed codes of {bits} bits must have shape (n, {width}), got {packed.shape}")
        padding = width * 8 - bits
        if padding and packed.size and (packed[:, -1] & ((1 << padding) - 1)).any():
            raise InvalidInputError(
                f"the last {padding} bits of each row pad {bits} bits to {width} bytes and must be 0; "
                "were these codes packed least significant bit first, or for another length?"
            )
        object.__setattr__(self, "packed", _frozen(packed.copy()) if packed.flags.writeable else packed)
        object.__setattr__(self, "bits", bits)

    @classmethod
    def from_logits(cls, logits: npt.ArrayLike) -> Codes:
        """Threshold logits (n, bits) at 0: bit ``j`` is 1 where logit ``j > 0`` as a float32 (paper, Eq. 4).

        Raises:
            InvalidInputError: another shape, no real numbers, or NaN, which has no sign.
        """
        values = np.asarray(logits)
        if values.ndim != 2:
            raise InvalidInputError(f"logits must have shape (n, bits), got {values.shape}")
        if values.dtype.kind not in "fiub":
            raise InvalidInputError(f"logits must be real numbers, got {values.dtype}")
        if values.dtype.kind == "f" and np.isnan(values.min(initial=0)):  # NaN spreads through min
            rows = np.flatnonzero(np.isnan(values).any(axis=1))
            raise InvalidInputError(
                f"logits are NaN in {len(rows):,} of {len(values):,} rows, the first {rows[0]}; NaN has no sign"
            )
        wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
        return cls.from_bits(values > (2.0**-150 if wide else 0))  # no more than that is 0 as a float32

    @classmethod
    def from_bits(cls, bits: npt.ArrayLike) -> Codes:
        """Pack an array (n, bits) of booleans, or of the numbers 0 and 1."""
        values = np.asarray(bits)
        if values.ndim != 2:
            raise InvalidInputError(f"bits must have shape (n, bits), got {values.shape}")
        check_bits(values.shape[1])
        if values.dtype != np.bool_:
            if values.size and not np.isin(values, (0, 1)).all():
                raise InvalidInputError("bits must be 0 or 1; use Codes.from_logits for real numbers")
            values = values.astype(np.bool_)
        return cls(_frozen(np.packbits(values, axis=1)), values.shape[1])

    @classmethod
    def concatenate(cls, parts: Sequence[Codes]) -> Codes:
        """Join codes of one length, in order."""
        if not parts:
            raise InvalidInputError("there are no codes to concatenate")
        lengths = sorted({part.bits for part in parts})
        if len(lengths) > 1:
            raise InvalidInputError(f"codes of different lengths cannot be joined: {lengths} bits")
        return cls(_frozen(np.concatenate([part.packed for part in parts])), parts[0].bits)

    def __len__(self) -> int:
        return int(self.packed.shape[0])

    @overload
    def __getitem__(self, rows: SupportsIndex) -> Codes: ...
    @overload
    def __getitem__(self, rows: slice | npt.NDArray[Any] | Sequence[int]) -> Codes: ...
    def __getitem__(self, rows: _Rows) -> Codes:
        """The codes of these rows (an int, a slice, row numbers or a mask); always a ``Codes``."""
        if isinstance(rows, SupportsIndex) and not isinstance(rows, np.ndarray):
            return Codes(self.packed[int(rows)][None, :], self.bits)
        return Codes(_frozen(self.packed[rows]), self.bits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return self.bits == other.bits and np.array_equal(self.packed, other.packed)

    __hash__ = None  # type: ignore[assignment]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Codes is immutable: cannot set {name!r}")

    def __repr__(self) -> str:
        return f"Codes(n={len(self)}, bits={self.bits})"

    @property
    def bytes_per_item(self) -> int:
        """Bytes that one packed code takes."""
        return int(self.packed.shape[1])

    def unpack(self) -> npt.NDArray[np.uint8]:
        """The bits as 0 and 1: uint8 (n, bits)."""
        return np.unpackbits(self.packed, axis=1, count=self.bits)

    def words(self) -> npt.NDArray[np.uint64]:
        """The codes as numbers of 64 bits: uint64 (n, ceil(bits / 64)), the first bit the most significant, filled up
        with zeros. Ordered by these numbers, codes are in the order of their bits."""
        width = self.bytes_per_item
        padded = np.zeros((len(self), -(-width // 8) * 8), np.uint8)
        padded[:, :width] = self.packed
        return padded.view(">u8").astype(np.uint64)

    def prefix(self, bits: int) -> Codes:
        """The first ``bits`` bits of every code: itself a code if the model was trained so."""
        bits = check_bits(bits, at_most=self.bits)
        packed = self.packed[:, : _byte_width(bits)]
        padding = packed.shape[1] * 8 - bits
        if padding:
            packed = packed.copy()
            packed[:, -1] &= (0xFF << padding) & 0xFF
        return Codes(_frozen(np.ascontiguousarray(packed)), bits)

    def hamming(self, other: Codes) -> npt.NDArray[np.uint16]:
        """Numbers of differing bits between all pairs: uint16 (len(self), len(other))."""
        if self.bits != other.bits:
            raise InvalidInputError(
                f"Hamming distance needs codes of one length, got {self.bits} and {other.bits} bits"
            )
        ours, theirs = self.words(), other.words()
        distances = np.zeros((len(self), len(other)), np.uint16)
        for word in range(ours.shape[1]):  # never a (n, m, bytes) array
            distances += np.bitwise_count(ours[:, word, None] ^ theirs[None, :, word])
        return distances

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` with ``packed`` and ``bits``, atomically (docs/formats.md)."""
        save_arrays(Path(path), packed=self.packed, bits=np.int64(self.bits))

    @classmethod
    def load(cls, path: str | Path) -> Codes:
        """Read what ``save`` wrote. Raises FileFormatError where the file is anything else."""
        arrays = load_arrays(Path(path), required=("packed", "bits"))
        return cls.from_arrays(arrays, Path(path))

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]], path: Path) -> Codes:
        """Build codes from the arrays of a file; ``path`` names it in errors."""
        bits = arrays["bits"]
        if bits.size != 1 or bits.dtype.kind not in "iu":
            raise FileFormatError(f"{path}: 'bits' must be one whole number, got {bits.dtype} {bits.shape}")
        try:
            return cls(arrays["packed"], int(bits.reshape(())))
        except InvalidInputError as error:
            raise FileFormatError(f"{path}: {error}") from error


def _frozen(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The array, or a view of one that is already read-only, which nobody can write to any more."""
    array.flags.writeable = False
    return array


def _byte_width(bits: int) -> int:
    return -(-bits // 8)
