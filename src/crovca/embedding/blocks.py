"""From rows of a source to embeddings and faults: the one way in which items go through an encoder.

Stores (``pipeline``), fine-tuning and queries all read items, embed them batch by batch, and must go on where one of
them cannot be read. Threads read and decode ahead while the model works; blocks come in the order of the rows.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.embedding.items import read_cropped, read_whole
from crovca.encoders.augmentation import augment
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import EncoderError, InvalidInputError
from crovca.ids import id_hashes
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source

_BATCH = {"cpu": 32, "cuda": 256}
_LANES_AHEAD = 2  # batches that are decoded while every lane is busy


@dataclass(frozen=True)
class Block:
    """What became of some rows of a source.

    Attributes:
        rows: the m that were embedded, in the order that was asked for.
        embeddings: float32 (m, d), or (m, v, d) of several views; on the encoder's device.
        notes: what should be known about how each of the m was read, or None.
        faults: for each of the others, why it could not be read or embedded.
    """

    rows: list[int]
    embeddings: Tensor
    notes: list[str | None]
    faults: dict[int, Fault]


def embed_blocks(
    source: Source[Any],
    encoder: Encoder | TextEncoder,
    rows: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    batch_size: int | None = None,
    views: int = 1,
    seed: int = 0,
    lanes: int = 1,
    decoders: int | None = None,
    threads: int | None = None,
) -> Iterator[Block]:
    """Embed rows of a source, batch by batch, without gradients.

    Args:
        source: images (bytes, Pillow images or uint8 arrays, as ``items.as_images`` gives them) or texts.
        encoder: of images or of texts, as the source is.
        rows: numbers of items, in any order; None: all of them.
        batch_size: rows of a block; None: 32, on a GPU 256.
        views: 1: the image as it is; more: so many augmented ones, which depend on the item's id and ``seed`` alone.
        seed: of the views.
        lanes: batches that are in the model at once.
        decoders: threads that read and decode; None: as many as this process may use cores.
        threads: that the model computes with; None: as torch is set.

    Raises:
        InvalidInputError: the device has not enough memory for a batch.
    """
    chosen = range(len(source)) if rows is None else [int(row) for row in rows]
    size = batch_size or _BATCH[encoder.device.type]
    reading = ThreadPoolExecutor(decoders or cores(), "crovca-decode")
    computing = ThreadPoolExecutor(lanes, "crovca-lane", torch.set_num_threads, (threads or torch.get_num_threads(),))
    waiting: deque[Future[Block]] = deque()
    try:
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            items = [reading.submit(_prepare, source, encoder, views, row) for row in batch]
            waiting.append(computing.submit(_embed, source, encoder, views, seed, batch, items))
            if len(waiting) >= lanes + _LANES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in (computing, reading):
            pool.shutdown(wait=True, cancel_futures=True)


def counted(reasons: Mapping[str, int]) -> str:
    """ "3 truncated, 2 empty"."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_Prepared = tuple[Any, str | None] | UnreadableItem  # what the model takes, and a note
_Item = tuple[int, Any, str | None]


def _prepare(source: Source[Any], encoder: Encoder | TextEncoder, views: int, row: int) -> _Prepared:
    """Read an item and make of it what a batch is made of."""
    try:
        content = source.read(row)
        if isinstance(encoder, TextEncoder):
            return content, None
        if views == 1:
            return read_cropped(content, encoder.preprocessing)
        return read_whole(content, encoder.preprocessing.size)
    except UnreadableItem as fault:
        return fault
    except MemoryError:
        return UnreadableItem("no memory", "not enough memory to resize it")


def _embed(
    source: Source[Any],
    encoder: Encoder | TextEncoder,
    views: int,
    seed: int,
    batch: Sequence[int],
    items: Sequence[Future[_Prepared]],
) -> Block:
    good: list[_Item] = []
    faults: dict[int, Fault] = {}
    for row, item in zip(batch, items, strict=True):
        result = item.result()
        if isinstance(result, UnreadableItem):
            faults[row] = (result.reason, result.detail)
        else:
            good.append((row, *result))

    def model(some: Sequence[_Item]) -> Tensor:
        rows = [row for row, _, _ in some]
        return _model(encoder, [content for _, content, _ in some], views, seed, source.ids[rows])

    try:
        values = model(good) if good else None
    except EncoderError:  # not finite: find the items that it is about
        parts, several, good = [], good, []
        for one in several:
            try:
                parts.append(model([one]))
                good.append(one)
            except EncoderError:
                dtype = str(encoder.dtype).removeprefix("torch.")
                faults[one[0]] = ("not finite", f"the encoder's output in {dtype}")
        values = torch.cat(parts) if parts else None
    except torch.OutOfMemoryError:
        raise InvalidInputError(
            f"the device has not enough memory for batches of {len(batch)}; take a smaller batch size "
            "(a store is begun anew with a smaller --batch-size and --force)"
        ) from None
    if values is None:
        values = torch.zeros((0, encoder.width) if views == 1 else (0, views, encoder.width))
    return Block([row for row, _, _ in good], values, [note for _, _, note in good], faults)


def _model(encoder: Encoder | TextEncoder, contents: list[Any], views: int, seed: int, ids: npt.NDArray[Any]) -> Tensor:
    """Embeddings float32 (B, d) or (B, v, d)."""
    if isinstance(encoder, TextEncoder):
        return encoder.embed(contents)
    if views == 1:
        pixels = torch.from_numpy(np.stack(contents)).to(encoder.device)
        return encoder.embed(encoder.preprocessing.normalize(pixels))
    images = [torch.from_numpy(content).to(encoder.device) for content in contents]
    keys = id_hashes(ids, 0)
    drawn = (augment(images, encoder.preprocessing.size, keys=keys, view=view, seed=seed) for view in range(views))
    return torch.stack([encoder.embed(encoder.preprocessing.normalize(pixels)) for pixels in drawn], dim=1)
