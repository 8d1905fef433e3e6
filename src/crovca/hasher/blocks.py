"""From rows to embeddings and faults: blocks of images and texts through an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.embeddings import evenly_spaced
from crovca.embedding.items import plain
from crovca.embedding.pool import ImagePool
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.hashing.process_group import ProcessGroup
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source

__all__ = ["Blocks", "as_texts", "chosen_blocks", "image_blocks", "item_blocks", "sample_of", "text_blocks"]

_BATCH = {"cpu": 32, "cuda": 256}  # items that are embedded at once

Block = tuple[list[int], Tensor, dict[int, Fault]]
Blocks = Callable[[npt.NDArray[np.int64]], Iterator[Block]]
"""From rows to blocks: the rows that could be read, their embeddings (m, d) on the device, and the faults of others."""


def item_blocks(source: Source[Any], encoder: Encoder | TextEncoder) -> Blocks:
    """Embeddings of a source's images or texts, whichever the encoder is of."""
    return image_blocks(source, encoder) if isinstance(encoder, Encoder) else text_blocks(source, encoder)


def image_blocks(source: Source[Any], encoder: Encoder) -> Blocks:
    """Embeddings of a source's images, resized and cropped as the encoder has it."""

    def blocks(rows: npt.NDArray[np.int64]) -> Iterator[Block]:
        with ImagePool(source, plain(encoder.preprocessing)) as pool:
            for part, images in pool.blocks(rows, _BATCH[encoder.device.type]):
                good, pixels, faults = [], [], {}
                for row, image in zip(part.tolist(), images, strict=True):
                    if isinstance(image, UnreadableItem):
                        faults[row] = (image.reason, image.detail)
                    else:
                        good.append(row)
                        pixels.append(image)
                values = torch.zeros(0, encoder.width)
                if pixels:
                    batch = torch.stack(pixels).to(encoder.device)
                    values = encoder.embed(encoder.preprocessing.normalize(batch))
                yield good, values, faults

    return blocks


def text_blocks(source: Source[str], encoder: TextEncoder) -> Blocks:
    """Embeddings of a source's texts."""

    def blocks(rows: npt.NDArray[np.int64]) -> Iterator[Block]:
        size = _BATCH[encoder.device.type]
        for start in range(0, len(rows), size):
            good, texts, faults = [], [], {}
            for row in rows[start : start + size].tolist():
                try:
                    texts.append(source.read(row))
                    good.append(row)
                except UnreadableItem as fault:
                    faults[row] = (fault.reason, fault.detail)
            yield good, encoder.embed(texts) if texts else torch.zeros(0, encoder.width), faults

    return blocks


def chosen_blocks(blocks: Blocks, rows: npt.NDArray[np.int64]) -> Blocks:
    """The same, of some rows alone: number i is ``rows[i]``."""
    return lambda numbers: blocks(rows[numbers])


def sample_of(blocks: Blocks, items: int, most: int, process_group: ProcessGroup) -> npt.NDArray[np.float32]:
    """Embeddings of at most ``most`` evenly spaced items; each process computes its part, all get the whole."""
    rows = evenly_spaced(items, most)
    mine = [values.cpu().numpy() for _, values, _ in blocks(process_group.share(rows))]
    parts = process_group.collect(np.concatenate(mine) if mine else None)
    return np.concatenate([part for part in parts if part is not None])


def as_texts(texts: Sequence[str]) -> Source[str]:
    """A list of texts as a source."""
    return Source("list", np.arange(len(texts)), texts.__getitem__, "")
