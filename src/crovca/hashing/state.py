"""Going on after an interruption (docs/formats.md)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from crovca import files
from crovca.data.embeddings import Rows, chunks
from crovca.errors import ConfigError, FileFormatError, StorageError
from crovca.hashing.process_group import ALONE, ProcessGroup


class Checkpoint:
    """The folder ``MODEL.partial``: the state of an unfinished run.

    It holds the settings it was started with, so that a run is never continued with others, and one file
    with the state, replaced atomically.

    Args:
        folder: created where it does not exist.
        settings: whatever decides the result; compared with what the folder was made with.
        every_seconds: how often ``save_if_due`` writes.
        process_group: processes that train together. The first alone touches the folder; the others hear from it.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, every_seconds: float, process_group: ProcessGroup = ALONE
    ) -> None:
        self.folder = folder
        self._every, self._last, self._world = every_seconds, time.monotonic(), process_group
        process_group.first(lambda: self._begin(json.loads(json.dumps(settings))))

    def _begin(self, settings: dict[str, Any]) -> None:
        folder = self.folder
        described = folder / "settings.json"
        if folder.is_symlink():
            raise ConfigError(f"{folder} is a symbolic link, into which nothing is written; remove it")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {folder}: {error.strerror}") from error
        if described.exists() and (self.has_state or self.has_arrays):
            known = files.read_json(described, "unfinished run")
            changed = [key for key in {**known, **settings} if known.get(key) != settings.get(key)]
            if changed:
                key = changed[0]
                raise ConfigError(
                    f"{folder} is an unfinished run with {key} = {known.get(key)!r}, now it is "
                    f"{settings.get(key)!r}; give the same command again to finish it, or --force to restart"
                )
        else:
            try:
                files.write_json(described, settings)
            except StorageError:
                self.remove()
                raise

    @property
    def _state(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def has_arrays(self) -> bool:
        """Whether something is kept that took long to compute."""
        return any(self.folder.glob("*.npy"))

    @property
    def has_state(self) -> bool:
        """Whether there is a state to go on from."""
        return self._state.exists()

    def save_if_due(
        self, step: int, log: list[dict[str, Any]], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the state after ``step`` steps and the log, if the last time is ``every_seconds`` ago."""
        if self._world.rank > 0 or time.monotonic() - self._last < self._every:
            return
        tensors = {
            f"{part}.{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
        }
        for number, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in entries.items()}
        with files.atomic_file(self._state) as temporary:
            save_tensors(tensors, temporary, {"step": str(step), "log": json.dumps(log)})
        with files.atomic_file(self.folder / "log.jsonl") as temporary:
            temporary.write_text(log_lines(log), encoding="utf-8")
        self._last = time.monotonic()

    def restore(
        self, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> tuple[int, list[dict[str, Any]]] | None:
        """Load the state, if there is one; return the steps done and the log."""
        content = self._world.first(lambda: self._state.read_bytes() if self._state.exists() else None)
        if content is None:
            return None
        try:
            tensors, metadata = parse_tensors(content, self._state)
            for part, module in modules.items():
                module.load_state_dict(_with_prefix(tensors, f"{part}."))
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _with_prefix(tensors, "optimizer.").items():
                number, name = key.split(".", 1)
                state.setdefault(int(number), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            return int(metadata["step"]), json.loads(metadata["log"])
        except (FileFormatError, RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FileFormatError(f"{self._state} cannot be used ({reason}); --force restarts the run") from error

    def load_array(self, name: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """An array that was kept with ``save_array``, or None."""
        path = self.folder / f"{name}.npy"

        def read() -> np.ndarray[Any, np.dtype[Any]] | None:
            if not path.exists():
                return None
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise FileFormatError(f"{path} is damaged ({error}); --force restarts the run") from error

        return self._world.first(read)

    def save_array(self, name: str, values: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Keep an array that took long to compute."""
        if self._world.rank > 0:
            return
        with files.atomic_file(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)

    def remove(self) -> None:
        """Remove the folder: the run is finished."""
        if self._world.rank == 0:
            files.remove(self.folder)


def fingerprint(*arrays: Rows | None) -> str:
    """SHA-256 over the shapes, dtypes and all numbers of arrays: tells other data from the same."""
    digest = hashlib.sha256()
    for values in arrays:
        if values is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(values.shape)}{values.dtype}".encode())
        for _, part in chunks(values):
            digest.update(part.tobytes())
    return digest.hexdigest()


def log_lines(log: list[dict[str, Any]]) -> str:
    """A log as lines of JSON."""
    return "".join(json.dumps(entry) + "\n" for entry in log)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a .safetensors."""
    # Copies: networks may share their layers, and a file may not.
    separate = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    try:
        save_file(separate, path, metadata)
    except SafetensorError as error:  # wraps the operating system's error in a text
        raise StorageError(f"cannot write {path.name}: {error}; nothing was written") from error


def parse_tensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), header.get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a readable .safetensors ({error}); it may be truncated") from error


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
