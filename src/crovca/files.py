"""Writing so that nothing is ever half written, and reading with clear errors.

A result is written under a temporary name beside its target, flushed to the disk, and renamed:
whoever looks sees the old content or the new, never a part.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import ConfigError, FileFormatError, OutputExistsError, StorageError

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_output",
    "load_arrays",
    "locked",
    "read_json",
    "remove",
    "save_arrays",
    "sha256",
    "write_json",
]


def check_output(path: Path, *, force: bool, inputs: Sequence[Path] = (), marker: str | None = None) -> None:
    """Refuse an output that exists (unless ``force``) or that cannot be created.

    Called before any work is done, so that an hour of training never ends in a refusal.

    Args:
        path: where the result will stand.
        force: whether an earlier result may be replaced.
        inputs: what the command reads: it is never replaced, nor a folder that it lies in.
        marker: the output is a folder, and an earlier one has a file of this name: no other folder is replaced.
    """
    if path.name in ("", ".."):
        raise ConfigError(f"{path} cannot be an output; give the name of a new file or folder")
    for source in inputs:
        if source.resolve() == path.resolve() or path.resolve() in source.resolve().parents:
            raise OutputExistsError(f"{path} would replace the input {source}; give another output")
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists already; give another output, or --force to replace it")
    if path.is_dir() and (marker is None or (any(path.iterdir()) and not (path / marker).exists())):
        raise OutputExistsError(f"{path} is a folder of something else, which --force does not replace")
    if path.is_file() and marker is not None:
        raise OutputExistsError(f"{path} is a file, which --force does not replace with a folder")
    parent = path.parent
    if not parent.is_dir():
        raise StorageError(f"cannot write {path}: the folder {parent} does not exist; create it first")
    if not os.access(parent, os.W_OK):
        raise StorageError(f"cannot write {path}: no permission to write into {parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends well, it takes the place of ``path``."""
    temporary = _temporary(path)
    try:
        with _storage_errors(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        _confirm(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block ends well, it takes the place of ``path``.

    A folder that stood at ``path`` is exchanged for the new one in one step where the system can do that (Linux),
    and then removed.

    Args:
        path: the folder.
        new: replace nothing but an empty folder, whoever made what stands there, and however late.

    Raises:
        OutputExistsError: something stands at ``path`` that is to be ``new``.
        StorageError: it cannot be written.
    """
    temporary = _temporary(path)
    retired = temporary.with_name(temporary.name + "-old")
    try:
        with _storage_errors(path):
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _sync(temporary)
            if new:
                _move_to_new(temporary, path)
            elif path.exists() and not _exchange(temporary, path):
                path.replace(retired)
            if not new and not path.exists():
                temporary.replace(path)
        _confirm(path)
    finally:
        if retired.exists() and not path.exists():  # the second rename failed: put the old one back
            retired.replace(path)
        remove(temporary)
        remove(retired)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, elsewhere: str = "another output") -> Iterator[None]:
    """Nobody else who asks for the same ``path`` gets it meanwhile; the lock is the file ``.NAME.lock`` beside it.

    Args:
        path: a file.
        elsewhere: what an error says to give instead.

    Raises:
        StorageError: somebody has it, or the lock cannot be written.
    """
    import fcntl  # which Windows does not have

    beside = path.with_name(f".{path.name}.lock")
    while True:
        with _storage_errors(path):
            lock = beside.open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(f"another run writes {path}; wait for it, or give {elsewhere}") from None
            if not _is_at(lock.fileno(), beside):  # whoever had it removed the file after it was opened here
                continue
            try:
                yield
            finally:
                beside.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that stands at ``path`` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented UTF-8 JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object; ``what`` names it in the error message."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{what}: {path} does not exist") from None
    except OSError as error:
        raise StorageError(f"{what}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise FileFormatError(f"{what}: {path} is not valid JSON ({error}); it may be truncated") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{what}: {path} holds a {type(content).__name__}, expected a JSON object")
    return content


def save_arrays(path: Path, **arrays: npt.NDArray[Any] | np.generic) -> None:
    """Write named arrays to an ``.npz``, atomically, without pickle."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_arrays(path: Path, *, required: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read every array of an ``.npz``, never unpickling anything.

    Raises:
        FileFormatError: missing, empty, truncated or tampered file; missing key; object array.
    """
    try:
        if path.stat().st_size == 0:
            raise FileFormatError(f"{path} is empty")
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            missing = [key for key in required if key not in keys]
            if missing:
                raise FileFormatError(
                    f"{path} has no array {missing[0]!r}; expected {list(required)}, found {sorted(keys)}"
                )
            return {key: _read_array(archive, key) for key in keys}
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist") from None
    except FileFormatError:
        raise
    except PermissionError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # zipfile, zlib, numpy: each has its own errors for a damaged archive
        raise FileFormatError(f"{path} is not a readable .npz ({error}); it may be truncated") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_array(archive: zipfile.ZipFile, key: str) -> npt.NDArray[Any]:
    """One array of an ``.npz``, read to its very end: there zipfile compares the checksum."""
    with archive.open(f"{key}.npy") as member:
        try:
            values = np.lib.format.read_array(member, allow_pickle=False)
        except ValueError as error:
            if "Object arrays" not in str(error):
                raise
            raise FileFormatError(
                f"{archive.filename}: {key!r} is an object array, which is never unpickled; "
                "save plain numbers or strings"
            ) from error
        if member.read(1):
            raise ValueError(f"{key!r} is longer than its shape says")
    return values


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _temporary(path: Path) -> Path:
    # A name that nobody else holds: two processes may write the same target at once.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}; nothing was written") from error


def _move_to_new(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)  # which no system does onto a folder that is not empty
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(f"{path} exists already, and is not replaced") from error
        raise


def _confirm(path: Path) -> None:
    """Flush the folder in which ``path`` was renamed. By then it has happened, so a failure is another one."""
    try:
        _sync(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} was written, but the disk did not confirm it ({error.strerror or error}): it stands there now, "
            "and may be gone after a loss of power; check the disk"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
