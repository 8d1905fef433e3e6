"""Writing so that nothing is ever half written, and reading with clear errors.

A result is written under a temporary name beside its target, flushed to the disk, and renamed:
whoever looks sees the old content or the new, never a part.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import struct
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from crovca.errors import ConfigError, FileFormatError, OutputExistsError, StorageError

_MAX_JSON = 64 << 20  # bytes
_MAX_TEXT = 1 << 30
_MAX_MEMBERS = 1000  # arrays in an .npz
_FREE_BYTES, _MAX_RATIO = 1 << 30, 100  # larger arrays of an .npz are not compressed further than this
_BLOCK = 16 << 20
_DESCRIPTOR = 24  # bytes that may follow a member of a .zip


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
                try:
                    _sync(path.parent)
                except OSError:  # nothing stood here before, so nothing was written
                    remove(path)
                    raise
            elif path.exists() and not _exchange(temporary, path):
                path.replace(retired)
            if not new and not path.exists():
                temporary.replace(path)
        if not new:
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
        with _storage_errors(path):  # a link in its place would have a file made where it points
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            lock = os.fdopen(descriptor, "r+b", buffering=0)
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


def open_regular(path: Path, what: str = "") -> BufferedReader:
    """Open a file for reading; a pipe or a device, which might keep one waiting for ever, is refused.

    Raises:
        FileFormatError: there is none, or it is no regular file.
        StorageError: the operating system refused.
    """
    said = f"{what}: " if what else ""
    try:
        waitless = getattr(os, "O_NONBLOCK", 0)
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | waitless))  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        raise FileFormatError(f"{said}{path} does not exist") from None
    except IsADirectoryError:
        raise FileFormatError(f"{said}{path} is a folder, expected a file") from None
    except OSError as error:
        raise StorageError(f"{said}cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileFormatError(f"{said}{path} is a pipe or a device, expected a file")
    return file


def read_text(path: Path, what: str, *, most: int = _MAX_TEXT) -> str:
    """The text of a UTF-8 file of at most ``most`` bytes, without its byte order mark.

    Raises:
        FileFormatError: missing, no regular file, larger, or not UTF-8.
        StorageError: the operating system refused.
    """
    with open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise FileFormatError(f"{what}: {path} has {size:,} bytes, expected at most {most:,}")
        content = file.read(most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{what}: {path} is not UTF-8 text ({error.reason} at byte {error.start:,})") from error


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 file; see ``read_text`` and ``split_lines``."""
    return split_lines(read_text(path, what))


def split_lines(text: str) -> list[str]:
    r"""The lines of a text, which end at \n and \r\n only.

    ``str.splitlines`` also splits at characters that stand inside captions and names: U+2028, form feeds, NEL.
    """
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def parse_json(text: str | bytes, what: str) -> Any:
    """What a JSON text says; ``what`` names it in the error message.

    Raises:
        FileFormatError: it is not JSON, or nested deeper than any honest file.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise FileFormatError(f"{what} is not valid JSON ({reason}); it may be truncated") from None


def read_json(path: Path, what: str, *, most: int = _MAX_JSON) -> dict[str, Any]:
    """Read a JSON object from a file of at most ``most`` bytes; ``what`` names it in the error message.

    Raises:
        FileFormatError: missing, too large, not JSON, or not an object.
        StorageError: the operating system refused.
    """
    content = parse_json(read_text(path, what, most=most), f"{what}: {path}")
    if not isinstance(content, dict):
        raise FileFormatError(f"{what}: {path} holds a {type(content).__name__}, expected a JSON object")
    return content


def save_arrays(path: Path, **arrays: npt.NDArray[Any] | np.generic) -> None:
    """Write named arrays to an ``.npz``, atomically, without pickle."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an ``.npz``, sorted; raises as ``load_arrays``."""
    with _opened_npz(path) as members:
        return sorted(members[1])


def load_arrays(path: Path, *, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an ``.npz`` and no others, never unpickling anything.

    What an array says of its size is compared with the archive before memory is taken for it.

    Raises:
        FileFormatError: missing, empty, truncated or tampered file; missing key; object array; an archive that
            unpacks to many times its size.
        StorageError: the operating system refused.
    """
    with _opened_npz(path) as (archive, members):
        missing = [key for key in required if key not in members]
        if missing:
            raise FileFormatError(
                f"{path} has no array {missing[0]!r}; expected {list(required)}, found {sorted(members)}"
            )
        wanted = [key for key in (*required, *optional) if key in members]
        return {key: _read_member(archive, members[key], key) for key in wanted}


def open_npy(path: Path) -> npt.NDArray[Any]:
    """Memory-map an ``.npy`` file, whose size is what its header says.

    Raises:
        FileFormatError: missing, truncated, of another length, or not an array of plain values.
        StorageError: the operating system refused.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            shape, fortran, dtype = _npy_header(file, size, str(path))
            if 0 in shape:
                return np.empty(shape, dtype)
            order: Any = "F" if fortran else "C"
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
        except FileFormatError:
            raise
        except Exception as error:  # a damaged header: whatever Python's own parser says of it
            raise FileFormatError(f"{path} is not a readable .npy ({error}); it may be truncated") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content; raises as ``open_regular``."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened_npz(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An ``.npz`` and its arrays by name; whatever fails inside the block is a FileFormatError."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise FileFormatError(f"{path} is empty")
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                if len(infos) > _MAX_MEMBERS:
                    raise ValueError(f"{len(infos):,} members, expected at most {_MAX_MEMBERS:,}")
                members = {info.filename.removesuffix(".npy"): info for info in infos}
                if len(members) < len(infos):
                    raise ValueError("two arrays have one name")
                _check_owned(file, infos, archive.start_dir)
                yield archive, members
        except FileFormatError:
            raise
        except Exception as error:  # zipfile, zlib, numpy: each has its own errors for a damaged archive
            raise FileFormatError(
                f"{path} is not a readable .npz ({error or type(error).__name__}); it may be truncated"
            ) from error


def _check_owned(file: BufferedReader, infos: list[zipfile.ZipInfo], directory: int) -> None:
    """Every byte before an archive's directory belongs to a member: one whose entry was damaged is missed."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if not 0 <= info.header_offset - end <= _DESCRIPTOR:
            break
        file.seek(info.header_offset + 26)
        end = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + info.compress_size
    else:
        if 0 <= directory - end <= _DESCRIPTOR:
            return
    raise ValueError("its directory does not list all that it holds")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> npt.NDArray[Any]:
    """One array of an ``.npz``, read to its very end: there zipfile compares the checksum."""
    packed, size = info.compress_size, info.file_size
    assert archive.fp is not None
    if packed > os.fstat(archive.fp.fileno()).st_size or (not info.compress_type and packed != size):
        raise ValueError(f"{key!r} is longer than the archive")
    if size > _FREE_BYTES and size > _MAX_RATIO * packed:
        raise ValueError(
            f"{key!r} unpacks from {packed:,} to {size:,} bytes, as decompression bombs do; if it is sound, "
            "save it uncompressed (np.savez)"
        )
    with archive.open(info) as member:
        shape, fortran, dtype = _npy_header(member, size, f"{archive.filename}: {key!r}")
        count = math.prod(shape)
        values = np.empty(count, dtype)
        into = values.view(np.uint8).data if count and dtype.itemsize else memoryview(b"")
        for start in range(0, len(into), _BLOCK):
            block = member.read(len(into[start : start + _BLOCK]))
            into[start : start + len(block)] = block
            if len(block) < len(into[start : start + _BLOCK]):
                raise ValueError(f"{key!r} ends early")
        if member.read(1):
            raise ValueError(f"{key!r} is longer than its shape says")
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _npy_header(file: IO[bytes], size: int, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype from the header of an array of ``size`` bytes in all; ``file`` is then at its values.

    Raises:
        FileFormatError: objects, or raw bytes that might be anything.
        ValueError: not a header, or its sizes contradict ``size``. Others: whatever Python's own parser raises.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format, expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise FileFormatError(f"{what} is an object array, which is never unpickled; save plain numbers or strings")
    if dtype.kind == "V":
        raise FileFormatError(
            f"{what} holds raw values of {dtype.itemsize} bytes, as numpy writes bfloat16 and float8 (.npy has no "
            "name for them); save float32 or float16, or use .safetensors"
        )
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    needed = math.prod(shape) * dtype.itemsize
    if needed != size - file.tell():
        raise ValueError(f"shape {shape} of {dtype} takes {needed:,} bytes, the file has {size - file.tell():,}")
    return shape, fortran, dtype


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
