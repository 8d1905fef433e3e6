"""Values that threads share and build once; and what a forked process does before it goes on.

A fork copies locks as they are: one that another thread held stays closed for ever in the child. So whoever owns a
lock registers (``after_fork``) and gets a new one there; and a fork waits for imports that run (``imported``).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock, RLock
from types import ModuleType
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Forked(Protocol):
    """Something that has to be put in order in a forked child."""

    def forked(self) -> None:
        """Called in the child, before anything else runs there."""


_owners: WeakSet[Forked] = WeakSet()
_importing = RLock()


def after_fork(owner: Forked) -> None:
    """Have ``owner.forked()`` called in each child process that is forked from this one."""
    _owners.add(owner)


def imported(name: str) -> ModuleType:
    """A module that is imported when it is first needed. Half imported it would be of no use to a forked child."""
    with _importing:
        return importlib.import_module(name)


def _in_child() -> None:
    _importing.release()  # the thread that forked is the one that goes on here
    # The threads of OpenMP (FAISS) and PyTorch are not in the child, and a parallel region of the thread that forked
    # would wait for them for ever. One thread needs no others.
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for owner in list(_owners):
        owner.forked()


os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_in_child)


class _Entry(Generic[V]):
    """A value, once it is there; ``lock`` is held by the thread that builds it."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.value: list[V] = []
        self.error: Exception | None = None


class Memo(Generic[K, V]):
    """The last few values by key. Who asks for a value that another thread builds waits for that one only."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._lock = Lock()  # of the entries; held for moments
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        after_fork(self)

    def forked(self) -> None:
        """See ``Forked``: what another thread was building will not be finished here."""
        self._lock = Lock()
        self._entries = OrderedDict(item for item in self._entries.items() if item[1].value)

    def get(self, key: K, build: Callable[[], V]) -> V:
        """The value of a key, built where there is none. A failure is told to all who waited, and not remembered."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry()
            self._entries.move_to_end(key)
            while len(self._entries) > self._kept:
                self._entries.popitem(last=False)
        if entry.value:
            return entry.value[0]
        with entry.lock:
            if entry.error is not None:
                raise entry.error
            if not entry.value:
                try:
                    entry.value.append(build())
                except BaseException as error:
                    with self._lock:
                        if self._entries.get(key) is entry:
                            del self._entries[key]
                    if isinstance(error, Exception):  # an interrupt is meant for one thread
                        entry.error = error
                    raise
            return entry.value[0]

    def items(self) -> list[tuple[K, V]]:
        """What is there, the last used last."""
        with self._lock:
            return [(key, entry.value[0]) for key, entry in self._entries.items() if entry.value]
