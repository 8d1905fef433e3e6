"""From a path to codes: the embeddings, images or texts that it holds, through the tower of a model that takes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crovca.codes import Codes, check_bits
from crovca.data.embeddings import Embeddings, Rows, load_embeddings
from crovca.data.encoded import Encoded
from crovca.embedding.blocks import counted
from crovca.errors import ConfigError, InvalidInputError
from crovca.hasher import Hasher
from crovca.hashing.towers import Modality as AnyModality
from crovca.hashing.train import Observer
from crovca.sources.opening import open_images, open_texts
from crovca.sources.source import Source

Modality = Literal["images", "texts"]


@dataclass(frozen=True)
class EncodedPath:
    """What a path's items became.

    Attributes:
        encoded: their codes, ids and labels.
        embeddings: (n, d), of the file or of the model's own encoder.
        bytes_of_floats: what an item's embedding takes.
        left_out: items that could not be read, by reason.
    """

    encoded: Encoded
    embeddings: Rows
    bytes_of_floats: int
    left_out: dict[str, int]

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        return int(self.embeddings.shape[-1])

    @property
    def items(self) -> Embeddings:
        """Embeddings, with the ids and labels of the codes."""
        return Embeddings(self.embeddings, self.encoded.labels, self.encoded.ids, np.empty(0, np.int64))


def encode_path(
    hasher: Hasher,
    path: Path,
    modality: Modality | None,
    option: str = "--modality",
    *,
    observer: Observer,
    bits: int | None = None,
    logits: bool = False,
    root: Path | None = None,
) -> EncodedPath:
    """Encode whatever the model takes: the embeddings of a file, or images and texts themselves.

    Args:
        hasher: the model.
        path: the items.
        modality: which of a model's two towers; None: as the items' kind or width decides.
        option: what messages call ``modality``.
        observer: is told how it goes, and what is left out.
        bits: length of the codes; None: the model's.
        logits: whether they are kept beside the codes.
        root: split files: the folder that their paths are relative to.

    Raises:
        CrovcaError: as ``encode_with``, ``open_images`` and ``open_texts``; or not one item can be read.
    """
    if len(hasher.modalities) == 1 and modality is not None:
        raise ConfigError(f"{option} is for models of two modalities; this model takes {hasher.modalities[0]}")
    if hasher.fine_tuning is not None:
        if len(hasher.modalities) == 1:
            modality = "images"
        return _encode_items(hasher, path, modality or _kind(path), observer, bits, logits, root)
    if root is not None:
        raise ConfigError(f"--root goes with models of images; {path} holds embeddings")
    data = load_embeddings(path)
    encoded = encode_with(hasher, data, path, modality, option, bits=bits, logits=logits)
    return EncodedPath(encoded, data.values, data.width * data.values.dtype.itemsize, {})


def _kind(path: Path) -> Modality:
    """Texts where nothing but texts can be meant."""
    return "texts" if path.suffix.lower() in (".csv", ".tsv") else "images"


def _encode_items(
    hasher: Hasher,
    path: Path,
    modality: Modality,
    observer: Observer,
    bits: int | None,
    logits: bool,
    root: Path | None,
) -> EncodedPath:
    length = hasher.lengths_[-1] if bits is None else check_bits(bits, at_most=hasher.lengths_[-1])
    source: Source[Any] = open_images(path, root=root) if modality == "images" else open_texts(path)
    found = hasher.encode_source(source, modality=modality, advance=lambda share: observer.advance("embedding", share))
    for text in source.notes:
        observer.message(text)
    left_out = dict(Counter(reason for reason, _ in found.faults.values()))
    if found.faults:
        row = min(found.faults)
        observer.message(
            f"{path}: {len(found.faults):,} of {len(source):,} {modality} are left out ({counted(left_out)}), the "
            f"first is {source.ids[row]}: {found.faults[row][1]}"
        )
    if not len(found.rows):
        raise InvalidInputError(f"{path}: none of the {len(source):,} {modality} could be read")
    kept = np.ascontiguousarray(found.logits[:, :length])
    encoded = Encoded(
        Codes.from_logits(kept),
        source.ids[found.rows],
        None if source.labels is None else source.labels[found.rows],
        kept if logits else None,
        hasher.fingerprint,
    )
    return EncodedPath(encoded, found.embeddings, 4 * found.embeddings.shape[1], left_out)


def encode_with(
    hasher: Hasher,
    data: Embeddings,
    path: Path,
    modality: Modality | None,
    option: str,
    *,
    bits: int | None = None,
    logits: bool = False,
) -> Encoded:
    """Encode the embeddings of a file, through the tower that ``modality`` names or that their width decides.

    Raises:
        ConfigError: both towers fit and ``option`` was not given, or it was given to a model with one tower.
        InvalidInputError: the embeddings have another shape than the model takes.
    """
    chosen = _chosen(hasher, data, path, modality, option)
    if not logits:
        codes = hasher.encode(data.values, bits, modality=chosen)
        return Encoded(codes, data.ids, data.labels, model=hasher.fingerprint)
    found = hasher.logits(data.values, modality=chosen)
    result = Encoded(Codes.from_logits(found), data.ids, data.labels, found, hasher.fingerprint)
    return result if bits is None else result.prefix(bits)


def _chosen(hasher: Hasher, data: Embeddings, path: Path, modality: Modality | None, option: str) -> AnyModality:
    wide = {name: hasher.width(name) for name in (hasher.modalities if modality is None else (modality,))}
    fitting = [name for name, width in wide.items() if (len(data), width) == tuple(data.values.shape)]
    if not fitting:
        takes = " or ".join(f"(n, {width})" + f" ({name})" * (name != "embeddings") for name, width in wide.items())
        raise InvalidInputError(
            f"{path}: the model takes embeddings of shape {takes}, got {tuple(data.values.shape)}"
            + ("; give one view of each item" if data.views > 1 else "")
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"{path}: images and texts are both {data.width} wide; say which these are with {option} images|texts"
        )
    return fitting[0]
