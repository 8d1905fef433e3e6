"""Reads the plain data in a pickle without unpickling it.

CIFAR-10's "python version" is pickled, and a pickle is a program: loading it can run anything. Here its opcodes are
read one by one (``pickletools.genops``, which executes nothing). Lists, dictionaries, strings and numbers are built;
a call is never made but noted down as ``Call``; no name is ever looked up. A NumPy array is then recognized by
its note.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError

__all__ = ["Call", "as_bytes", "as_uint8_array", "read_inert_pickle"]

_MARK = object()


@dataclass
class Call:
    """A call that a pickle asks for, and that was not made: the function's name, its arguments, the state to set."""

    name: str
    arguments: Any = ()
    state: Any = None


def read_inert_pickle(content: bytes, where: str | Path) -> Any:
    """Build what a pickle of plain data describes; every call in it stays a ``Call``.

    Raises:
        FileFormatError: it is damaged, or has opcodes that plain data does not need.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except Exception as error:  # whatever an ill-formed program does to a stack
        raise FileFormatError(
            f"{where} is not a pickle of plain data ({error}); it may be damaged"
        ) from error
    raise FileFormatError(f"{where} is not a whole pickle; it may be truncated")


def as_bytes(value: Any) -> bytes:
    """Bytes from either Python: a string of Python 2 (its bytes were read as Latin-1), or ``_codecs.encode`` of one.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Call) and value.name == "_codecs encode" and value.arguments[1:] == ("latin1",):
        value = value.arguments[0]
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"expected bytes, got {type(value).__name__}")


def as_uint8_array(value: Any) -> npt.NDArray[np.uint8]:
    """The uint8 array that a note ``numpy.core.multiarray._reconstruct`` with its state describes.

    Raises:
        ValueError: it describes something else.
    """
    known = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
    if not isinstance(value, Call) or value.name not in known or not isinstance(value.state, tuple):
        raise ValueError("expected a numpy array")
    _, shape, dtype, fortran_order, data = value.state
    if not isinstance(dtype, Call) or dtype.name != "numpy dtype" or dtype.arguments[0] not in ("u1", b"u1"):
        raise ValueError("expected an array of uint8")
    order: Any = "F" if fortran_order else "C"
    return np.frombuffer(as_bytes(data), np.uint8).reshape(shape, order=order)


class _Machine:
    """The stack and the memo of a pickle, for the opcodes of plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _TUPLES:
            size = _TUPLES[name]
            self.stack[len(self.stack) - size :] = [tuple(self.stack[len(self.stack) - size :])]
        elif name in _IGNORED:
            pass
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise ValueError(f"opcode {name} is not plain data")

    def popped(self) -> list[Any]:
        """What stands above the last mark; both are taken off."""
        mark = max(row for row, value in enumerate(self.stack) if value is _MARK)
        above = self.stack[mark + 1 :]
        del self.stack[mark:]
        return above

    def put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = Call(self.stack[-1].name, arguments)

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.stack.pop()
    machine.extend([value])


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key, value])


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(Call(f"{module} {name}"))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "BINPUT": lambda machine, slot: machine.put(slot),
    "LONG_BINPUT": lambda machine, slot: machine.put(slot),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": lambda machine, slot: machine.stack.append(machine.memo[slot]),
    "LONG_BINGET": lambda machine, slot: machine.stack.append(machine.memo[slot]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.popped())),
    "APPEND": _append,
    "APPENDS": lambda machine, _: machine.extend(machine.popped()),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.update(machine.popped()),
    "GLOBAL": lambda machine, name: machine.stack.append(Call(name)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
