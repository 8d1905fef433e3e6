"""WebDataset tars: the files of a sample have one name up to its first dot (``key.jpg``, ``key.cls``, ``key.txt``)."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.errors import FileFormatError, StorageError
from crovca.files import open_regular, parse_json
from crovca.sources.decode import IMAGE_SUFFIXES, MAX_BYTES, UnreadableItem
from crovca.sources.source import Fault, Source, build_source, is_clutter

_BLOCK = 512
_MAX_LABEL = 1000  # characters
_DAMAGED = (tarfile.TarError, ValueError, KeyError, OverflowError, EOFError)  # of headers, from anybody
_LABEL_KEYS = ("label", "labels", "cls", "class")
_CAPTION_KEYS = ("caption", "text")


@dataclass
class _Sample:
    """What was found of a sample: where its image is, what its other files say."""

    name: str
    tar: Path
    image: tuple[int, int] | None = None  # offset, size
    label: Any = None
    caption: str | None = None
    fault: Fault | None = None
    described: list[str] = field(default_factory=list)


def open_tars(paths: list[Path], root: Path | None) -> Source[bytes]:
    """Open tars as one source; an id is the image's path as if the tars were folders below ``root``.

    A damaged or cut tar gives what can be read of it, and one faulty item named like the tar for the rest.
    """
    samples: list[_Sample] = []
    for path in paths:
        prefix = f"{path.relative_to(root).as_posix()}/" if root is not None else ""
        samples.extend(_samples(path, prefix))
    if not samples:
        raise FileFormatError(f"{paths[0]}: no sample with an image in {len(paths)} tars")

    def fetch(row: int) -> bytes:
        sample = samples[row]
        assert sample.image is not None
        offset, size = sample.image
        if size > MAX_BYTES:
            raise UnreadableItem("too large", f"{size:,} bytes, the limit is {MAX_BYTES:,}")
        with sample.tar.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - offset
            if left < size:
                raise UnreadableItem("truncated", f"the tar ends after {max(left, 0):,} of {size:,} bytes")
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise UnreadableItem("truncated", f"the tar ends after {len(data)} of {size} bytes")
        return data

    good = [sample for sample in samples if sample.fault is None]
    labels, notes = _labels(samples, good)
    captioned = sum(sample.caption is not None for sample in good)
    if 0 < captioned < len(good):
        notes.append(f"captions are left out: {len(good) - captioned:,} of {len(good):,} samples have none")
    return build_source(
        "WebDataset",
        [sample.name for sample in samples],
        fetch,
        (f"{sample.name}\0{sample.image}\0{sample.label}\0{sample.caption}" for sample in samples),
        labels=labels,
        captions=[sample.caption or "" for sample in samples] if good and captioned == len(good) else None,
        faults={row: sample.fault for row, sample in enumerate(samples) if sample.fault is not None},
        notes=tuple(notes),
    )


def _samples(path: Path, prefix: str) -> list[_Sample]:
    """The samples of one tar, in its order."""
    samples: list[_Sample] = []
    current: tuple[str, _Sample] | None = None
    rest: str | None = None
    try:
        open_regular(path).close()
        with tarfile.open(path, "r:") as tar:
            try:
                end = -1
                for member in tar:
                    if member.size < 0 or member.offset <= end:
                        raise tarfile.ReadError(f"the header at byte {member.offset:,} leads back")
                    end = member.offset
                    if member.isdir() or any(map(is_clutter, PurePosixPath(member.name).parts[-2:])):
                        continue
                    name = member.name.removeprefix("./")
                    _, dot, extension = name.rpartition("/")[2].partition(".")
                    key = name[: len(name) - len(dot + extension)]
                    if current is None or current[0] != key:
                        current = key, _Sample(prefix + key, path)
                        samples.append(current[1])
                    _take(current[1], tar, member, extension.lower(), prefix + name)
            except _DAMAGED as error:
                rest = str(error)
            rest = rest or _unread(path, tar.offset)
    except _DAMAGED as error:
        rest = str(error)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    for sample in samples:
        if sample.image is None and sample.fault is None:
            sample.fault = ("missing", f"no image, only {', '.join(sample.described) or 'other files'}")
    if rest is not None:
        samples.append(_Sample(prefix.rstrip("/") or path.name, path, fault=("damaged", rest)))
    return samples


def _take(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, name: str) -> None:
    """Add a file to its sample."""
    sample.described.append(f".{extension}")
    if f".{extension}" in IMAGE_SUFFIXES:
        if sample.image is None:
            sample.name, sample.image = name, (member.offset_data, member.size)
            if not member.isreg():
                sample.fault = ("not a file", "a link or a device inside the tar")
        return
    if extension not in ("cls", "txt", "json") or member.size > 1 << 20 or not member.isreg():
        return
    file = tar.extractfile(member)
    text = b"" if file is None else file.read()
    try:
        content = text.decode("utf-8-sig").strip()
        if extension == "txt":
            sample.caption = content
        elif extension == "cls":
            plain = content.isascii() and content.isdecimal() and (content == "0" or content[0] != "0")
            sample.label = _label(int(content) if plain and len(content) < 19 else content)
        else:
            values = parse_json(content, "the sample")
            if isinstance(values, dict):
                _describe(sample, values)
    except ValueError:
        sample.fault = ("damaged", f".{extension} of the sample cannot be read")


def _describe(sample: _Sample, values: dict[str, Any]) -> None:
    for key in _LABEL_KEYS:
        if sample.label is None and isinstance(values.get(key), int | str | list):
            sample.label = _label(values[key])
    for key in _CAPTION_KEYS:
        if sample.caption is None and isinstance(values.get(key), str):
            sample.caption = values[key]


def _label(value: int | str | list[Any]) -> int | str | list[Any]:
    too_large = isinstance(value, int) and not -(2**63) <= value < 2**63
    if too_large or (isinstance(value, str) and len(value) > _MAX_LABEL):
        raise ValueError("a label that is too long")
    return int(value) if isinstance(value, bool) else value


def _labels(samples: list[_Sample], good: list[_Sample]) -> tuple[npt.NDArray[Any] | None, list[str]]:
    labeled = sum(sample.label is not None for sample in good)
    if not labeled:
        return None, []
    if labeled < len(good):
        return None, [f"labels are left out: {len(good) - labeled:,} of {len(good):,} samples have none"]
    kinds = {type(sample.label) for sample in good}
    if kinds == {list}:
        lengths = {len(sample.label) for sample in good}
        if len(lengths) != 1 or any(value not in (0, 1) for sample in good for value in sample.label):
            return None, ["labels are left out: lists that are not rows of 0 and 1 of one length"]
        nothing = [0] * lengths.pop()
        rows = [sample.label if sample.fault is None else nothing for sample in samples]
        return np.array(rows, np.bool_), []
    if list in kinds:
        return None, ["labels are left out: some samples have one label and others a list"]
    numbers = kinds == {int}
    values = [sample.label if sample.fault is None else (0 if numbers else "") for sample in samples]
    return (np.array(values, np.int64) if numbers else np.array([str(value) for value in values])), []


def _unread(path: Path, offset: int) -> str | None:
    """What stands after the last member that ``tarfile`` gave: it stops at a damaged header without a word."""
    size = path.stat().st_size
    if offset >= size:
        return None if offset == size or size == 0 else f"the tar ends at {size:,} bytes, inside a member"
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    return f"no member can be read from byte {offset:,} on" if any(block) else None
