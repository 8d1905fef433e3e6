"""Ids: what they may be, their hash, and the order that it gives to equals.

Ids are strings or int64, given by the user, and never cast from one to the other. Their hash is the same on every
machine, for ever: indexes on disk rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import InvalidInputError

Int64 = npt.NDArray[np.int64]

MAX_ID_LENGTH = 4096
_LARGEST = np.iinfo(np.int64).max
_PADDED = 64 << 20  # bytes of padding that an array of text may have


def as_ids(ids: Any) -> npt.NDArray[Any]:
    """Ids as an array (n,): int64, or str; of objects of str where one long id would make all of them long.

    They are a sequence, or an array of NumPy, pandas or Arrow, of strings or of whole numbers, and no mixture.
    """
    if hasattr(ids, "to_pylist"):  # Arrow's
        ids = ids.to_pylist()
    if isinstance(ids, list | tuple) or getattr(ids, "dtype", None) == np.dtype(object):
        ids = _checked(list(ids))
    found = np.asarray(ids)
    if found.ndim != 1:
        raise InvalidInputError(f"ids must have one dimension, got shape {found.shape}")
    if found.dtype.kind in "UO":
        if found.dtype.itemsize > 4 * MAX_ID_LENGTH and len(found):
            raise InvalidInputError(f"ids may have {MAX_ID_LENGTH:,} characters at most")
        return found
    if found.size == 0:
        return found.astype(np.int64)
    if found.dtype.kind not in "iu":
        raise InvalidInputError(f"ids must be strings or 64-bit whole numbers, got {found.dtype}")
    if found.dtype == np.uint64 and (found > _LARGEST).any():
        raise _beyond(int(found[found > _LARGEST][0]))
    return found.astype(np.int64)


def _beyond(number: int) -> InvalidInputError:
    return InvalidInputError(
        f"ids must be strings or 64-bit whole numbers from -2^63 to 2^63 - 1, got {number}; give larger ones as text"
    )


def _checked(ids: list[Any]) -> Any:
    """Python ids, all of one kind; numpy would make strings of a mixture, and cut zeros off."""
    if not ids:
        return ids
    if all(isinstance(item, str) for item in ids):
        for item in ids:
            if len(item) > MAX_ID_LENGTH or item.endswith("\0"):
                raise InvalidInputError(
                    f"ids may have {MAX_ID_LENGTH:,} characters at most, and not end in a zero character; "
                    f"got {item[:40]!r}"
                )
        width = max(map(len, ids))
        spare = 4 * (len(ids) * width - sum(map(len, ids))) > _PADDED
        return np.array(ids, object if spare else np.str_)
    if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in ids):
        outside = next((item for item in ids if not -_LARGEST - 1 <= int(item) <= _LARGEST), None)
        if outside is not None:
            raise _beyond(int(outside))
        return np.array(ids, np.int64)
    odd = [item for item in ids if isinstance(item, bool) or not isinstance(item, str | int | np.integer)]
    found = repr(odd[0]) if odd else "a mixture"
    raise InvalidInputError(f"ids must all be strings or all 64-bit whole numbers, got {found}")


def tie_order(ids: npt.NDArray[Any] | None, count: int, *, seed: int = 0) -> npt.NDArray[np.uint32]:
    """Each item's place among equals: by a seeded 64-bit hash of its id, then by the id.

    Args:
        ids: (count,) int64 or strings; None: the row number is the id.
        count: how many items there are, below 2^32.
        seed: of the hash; another one gives another fixed order.

    Returns:
        uint32 (count,), a permutation.
    """
    keys = np.arange(count, dtype=np.int64) if ids is None else np.asarray(ids)
    if keys.shape != (count,):
        raise InvalidInputError(f"expected {count} ids in one dimension, got shape {keys.shape}")
    places = np.empty(count, np.uint32)
    order = order_by_hash(id_hashes(keys, seed), lambda rows: keys[rows])
    places[order] = np.arange(count, dtype=np.uint32)
    return places


def order_by_hash(hashes: npt.NDArray[np.uint64], ids: Callable[[Int64], npt.NDArray[Any]]) -> Int64:
    """The permutation that sorts by (hash, id). Comparing ids is slow: only those of equal hashes are asked for."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(equal):
        inside = np.union1d(equal, equal + 1)
        order[inside] = order[inside][np.lexsort((ids(order[inside]), ordered[inside]))]
    return order


def id_hashes(ids: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each id, uint64 (n,): splitmix64 chained over its canonical bytes in 8-byte words (int64
    little-endian, strings UTF-8)."""
    if ids.dtype.kind in "iu":
        if ids.dtype == np.uint64 and (ids > _LARGEST).any():
            raise _beyond(int(ids.max()))
        words = ids.astype("<i8").view("<u8")
        return splitmix64(splitmix64(words ^ np.uint64(seed)) ^ np.uint64(8))
    if ids.dtype.kind not in "UO":
        raise InvalidInputError(f"ids must be whole numbers or strings, got {ids.dtype}")
    try:
        encoded = [str(item).encode() for item in ids]
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"ids must be text that UTF-8 can hold, got {error.object!r}") from error
    # Each id takes whole words of its own; the longest first, so those that have a next word are the first ones.
    lengths = np.array([len(item) for item in encoded], np.uint64)
    counts = -(-lengths.astype(np.int64) // 8)
    starts = np.cumsum(counts) - counts
    joined = b"".join([item.ljust(8 * count, b"\0") for item, count in zip(encoded, counts.tolist(), strict=True)])
    words = np.frombuffer(joined, "<u8")
    order = np.argsort(-counts, kind="stable")
    left = np.searchsorted(-counts[order], -np.arange(1, counts.max(initial=0) + 1), side="right")
    state = np.full(len(ids), seed, np.uint64)
    for column, used in enumerate(left.tolist()):
        rows = order[:used]
        state[rows] = splitmix64(state[rows] ^ words[starts[rows] + column])
    return splitmix64(state ^ lengths)


def splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The next number of the generator of that name, from each state."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
