"""Images that are read again and again: decoded by threads, and kept as bytes as far as the memory goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.embedding.blocks import cores
from crovca.embedding.items import Prepare, name_of
from crovca.errors import InvalidInputError
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source

Place = tuple[torch.device, int]
"""A device, and how many bytes of images may lie in its memory."""
_BLOCK = 64


class ImagePool:
    """Decoded images of a source. What it gives does not depend on how many of them it keeps.

    Args:
        source: the items.
        prepare: makes uint8 (H, W, 3) of an item.
        places: where images are kept, the first that has room; none: every image is decoded whenever it is asked for.
        threads: that read and decode; None: as many as this process may use cores.
    """

    def __init__(
        self, source: Source[Any], prepare: Prepare, *, places: Sequence[Place] = (), threads: int | None = None
    ) -> None:
        self.source = source
        self._prepare = prepare
        self._places = tuple(place for place, _ in places)
        self._room = [room for _, room in places]
        self._kept: dict[int, Tensor] = {}
        self._threads = ThreadPoolExecutor(threads or cores(), "crovca-decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._kept.clear()

    @property
    def kept(self) -> int:
        """How many images are in memory."""
        return len(self._kept)

    def images(self, rows: npt.NDArray[np.int64], device: torch.device) -> list[Tensor]:
        """The images of these rows: uint8 (H, W, 3), on the device."""
        found = self._finish(self._begin(rows))
        for row, image in zip(rows.tolist(), found, strict=True):
            if isinstance(image, UnreadableItem):
                raise InvalidInputError(f"{name_of(self.source, row)}: {image}")
        return [image.to(device, non_blocking=True) for image in found if isinstance(image, Tensor)]

    def readable(
        self, rows: npt.NDArray[np.int64], advance: Callable[[float], None] = lambda _: None
    ) -> dict[int, Fault]:
        """Decode images once, keep those that there is room for, and say which cannot be read, and why."""
        faults: dict[int, Fault] = {}
        parts = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        begun = [self._begin(part) for part in parts[:1]]
        for number, part in enumerate(parts):
            begun += [self._begin(following) for following in parts[number + 1 : number + 2]]  # decoded meanwhile
            for row, image in zip(part.tolist(), self._finish(begun.pop(0)), strict=True):
                if isinstance(image, UnreadableItem):
                    faults[row] = (image.reason, image.detail)
            advance(min(1.0, (number + 1) * _BLOCK / len(rows)))
        return faults

    def _begin(self, rows: npt.NDArray[np.int64]) -> list[tuple[int, Tensor | Future[Any]]]:
        return [
            (row, self._kept[row] if row in self._kept else self._threads.submit(self._decode, row))
            for row in rows.tolist()
        ]

    def _finish(self, begun: list[tuple[int, Tensor | Future[Any]]]) -> list[Tensor | UnreadableItem]:
        found: list[Tensor | UnreadableItem] = []
        for row, ready in begun:
            image = ready if isinstance(ready, Tensor) else ready.result()
            if not isinstance(ready, Tensor) and isinstance(image, Tensor):
                image = self._keep(row, image)
            found.append(image)
        return found

    def _decode(self, row: int) -> Tensor | UnreadableItem:
        try:
            return torch.from_numpy(self._prepare(self.source.read(row)))
        except UnreadableItem as fault:
            return fault
        except MemoryError:
            return UnreadableItem("no memory", "not enough memory to decode it")

    def _keep(self, row: int, image: Tensor) -> Tensor:
        if row in self._kept:
            return self._kept[row]
        for number, place in enumerate(self._places):
            if image.numel() <= self._room[number]:
                self._room[number] -= image.numel()
                image = image.to(place)
                self._kept[row] = image
                break
        return image


def memory_places(device: torch.device, *, share: int = 1) -> list[Place]:
    """Where decoded images may lie: in a quarter of a GPU's free memory, then in half of the machine's.

    The machine's is divided among ``share`` processes.
    """
    places: list[Place] = []
    if device.type == "cuda":
        places.append((device, torch.cuda.mem_get_info(device)[0] // 4))  # each process has a GPU of its own
    return [*places, (torch.device("cpu"), _free_memory() // 2 // share)]


def _free_memory() -> int:
    """Bytes that are free on this machine, within the limit of its container."""
    free = 2**31
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            free = min(free, max(0, int(limit) - used))
    except (OSError, StopIteration, ValueError):  # not Linux, or no container
        pass
    return free
