"""Are the bits well used? Balance, correlation, entropy, distinct codes, collisions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.codes import Codes
from crovca.errors import InvalidInputError

_CHUNK = 65536


@dataclass(frozen=True)
class CodeDiagnostics:
    """How a set of codes uses its bits.

    Attributes:
        balance_min: smallest share of ones over the bits (0.5 is ideal).
        balance_max: largest share of ones over the bits.
        correlation_mean: mean |correlation| over pairs of bits (0 is ideal; a constant bit counts as 0).
        correlation_max: largest |correlation| over pairs of bits.
        bit_entropy: mean over bits of the entropy of a bit (1 is ideal).
        code_entropy: entropy of the distribution of whole codes, in bits; at most log2(items).
        distinct: how many different codes there are.
        collisions: share of the items that have their code in common with another item.
        largest_collision: how many items have the commonest code.
    """

    balance_min: float
    balance_max: float
    correlation_mean: float
    correlation_max: float
    bit_entropy: float
    code_entropy: float
    distinct: int
    collisions: float
    largest_collision: int

    def to_dict(self) -> dict[str, float | int]:
        """The attributes by name."""
        return asdict(self)


def bit_balance(codes: Codes) -> npt.NDArray[np.float64]:
    """Share of ones of each bit: float64 (bits,)."""
    return _moments(codes)[0]


def bit_correlation(codes: Codes) -> npt.NDArray[np.float64]:
    """Pearson correlation of every pair of bits: float64 (bits, bits); 0 where a bit is constant."""
    ones, joint = _moments(codes)
    deviation = np.sqrt(ones * (1 - ones))
    scale = np.outer(deviation, deviation)
    covariance = joint - np.outer(ones, ones)
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def diagnose(codes: Codes) -> CodeDiagnostics:
    """Measure how ``codes`` (at least one) use their bits."""
    balance = bit_balance(codes)
    off_diagonal = np.abs(bit_correlation(codes))[np.triu_indices(codes.bits, 1)]
    counts = counts_of_rows(codes.packed)
    shares = counts / len(codes)
    return CodeDiagnostics(
        balance_min=float(balance.min()),
        balance_max=float(balance.max()),
        correlation_mean=float(off_diagonal.mean()) if len(off_diagonal) else 0.0,
        correlation_max=float(off_diagonal.max(initial=0.0)),
        bit_entropy=float(np.mean(_entropy(balance) + _entropy(1 - balance))),
        code_entropy=float(_entropy(shares).sum()) + 0.0,
        distinct=len(counts),
        collisions=float(counts[counts > 1].sum() / len(codes)),
        largest_collision=int(counts.max()),
    )


def counts_of_rows(stored: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How often each different row of (n, m) occurs."""
    rows = np.ascontiguousarray(stored)
    return np.unique(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), return_counts=True)[1]


def _moments(codes: Codes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shares of ones (bits,) and of joint ones (bits, bits)."""
    if not len(codes):
        raise InvalidInputError("there are no codes to diagnose")
    joint = np.zeros((codes.bits, codes.bits))
    for start in range(0, len(codes), _CHUNK):
        bits = codes[start : start + _CHUNK].unpack().astype(np.float32)  # counts below 2^24 are exact
        joint += bits.T @ bits
    joint /= len(codes)
    return np.diag(joint).copy(), joint


def _entropy(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-p log2 p, with 0 at 0."""
    return -shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
