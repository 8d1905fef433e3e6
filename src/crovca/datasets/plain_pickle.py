"""Reads pickles of plain data and uint8 arrays, as CIFAR-10's "python version" is one.

A pickle is a program that may call whatever it names. Here every name but a few is refused, and those few are not what
they are in NumPy: they note down what an array would be made of, which is looked at afterwards.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError


class _Noted:
    """What a pickle would call: the arguments, and the state to set."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle._Unpickler):  # in Python: the C version takes memory for any number that a memo is given
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        # Classes of this reader alone: a pickle could set attributes of them.
        self.array, self.dtype, self.encoded = (type(name, (_Noted,), {}) for name in ("array", "dtype", "text"))
        self._known = {
            "numpy.core.multiarray _reconstruct": self.array,
            "numpy._core.multiarray _reconstruct": self.array,
            "numpy ndarray": self.array,
            "numpy dtype": self.dtype,
            "_codecs encode": self.encoded,
        }

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get(f"{module} {name}")
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")
        return found


def read_plain_pickle(content: bytes, where: str | Path) -> Any:
    """What a pickle of plain data holds; arrays in it are for ``as_uint8_array``."""
    try:
        return _Reader(content).load()
    except Exception as error:  # whatever an ill-formed program does to a stack
        raise FileFormatError(
            f"{where} is not a pickle of plain data ({error or type(error).__name__}); it may be damaged"
        ) from error


def as_bytes(value: Any) -> bytes:
    """Bytes from either Python: a string, or what Python 2's protocol makes of bytes (``_codecs.encode``)."""
    if isinstance(value, _Noted) and type(value).__name__ == "text" and value.arguments[1:] == ("latin1",):
        value = value.arguments[0]
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"expected bytes, got {type(value).__name__}")


def as_uint8_array(value: Any) -> npt.NDArray[np.uint8]:
    """The uint8 array that was noted down."""
    state = value.state if isinstance(value, _Noted) and type(value).__name__ == "array" else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("expected a numpy array")
    _, shape, dtype, fortran_order, data = state
    if not isinstance(dtype, _Noted) or dtype.arguments[:1] not in (("u1",), (b"u1",)):
        raise ValueError("expected an array of uint8")
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("expected a shape of whole numbers")
    return np.frombuffer(as_bytes(data), np.uint8).reshape(shape, order="F" if fortran_order else "C")
