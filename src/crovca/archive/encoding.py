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
from crovca.hasher import CrossModalHasher, Hasher, ImageHasher, ImageTextHasher
from crovca.hashing.train import Observer
from crovca.sources.opening import open_images, open_texts
from crovca.sources.source import Source

__all__ = ["EncodedPath", "encode_path", "encode_with"]

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


def encode_path(
    hasher: Hasher | CrossModalHasher,
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
    if isinstance(hasher, ImageHasher | ImageTextHasher):
        if isinstance(hasher, ImageHasher) and modality is not None:
            raise ConfigError(f"{option} is for models of two modalities; this model takes images")
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
    hasher: ImageHasher | ImageTextHasher,
    path: Path,
    modality: Modality,
    observer: Observer,
    bits: int | None,
    logits: bool,
    root: Path | None,
) -> EncodedPath:
    length = hasher.lengths_[-1] if bits is None else check_bits(bits, at_most=hasher.lengths_[-1])
    source: Source[Any]
    if modality == "images":
        source = open_images(path, root=root)
        found = hasher.encode_source(
            source, embeddings=True, advance=lambda share: observer.advance("embedding", share)
        )
    else:
        source = open_texts(path)
        assert isinstance(hasher, ImageTextHasher)
        found = hasher.encode_texts(source)
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
    assert found.embeddings is not None
    kept = np.ascontiguousarray(found.logits[:, :length])
    encoded = Encoded(
        Codes.from_logits(kept),
        source.ids[found.rows],
        None if source.labels is None else source.labels[found.rows],
        kept if logits else None,
    )
    return EncodedPath(encoded, found.embeddings, 4 * found.embeddings.shape[1], left_out)


def encode_with(
    hasher: Hasher | CrossModalHasher,
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
    given = _given(hasher, data, path, modality, option)
    values: Any = dict.fromkeys(given, data.values)
    if logits:
        found = _logits(hasher, values)
        codes = Codes.from_logits(found)
        result = Encoded(codes, data.ids, data.labels, found)
        return result if bits is None else result.prefix(bits)
    codes = (
        hasher.encode(data.values, bits) if isinstance(hasher, Hasher) else hasher.encode(**values, bits=bits)
    )
    return Encoded(codes, data.ids, data.labels)


def _logits(hasher: Hasher | CrossModalHasher, values: Any) -> Any:
    return hasher.logits(*values.values()) if isinstance(hasher, Hasher) else hasher.logits(**values)


def _given(
    hasher: Hasher | CrossModalHasher, data: Embeddings, path: Path, modality: Modality | None, option: str
) -> tuple[str]:
    if isinstance(hasher, Hasher):
        if modality is not None:
            raise ConfigError(f"{option} is for models of two modalities; this model has one")
        wide = {"X": hasher.n_features_in_}
    else:
        wide = dict(zip(("images", "texts"), hasher.widths_, strict=True))
        if modality is not None:
            wide = {modality: wide[modality]}
    fitting = [name for name, width in wide.items() if (len(data), width) == tuple(data.values.shape)]
    if not fitting:
        takes = " or ".join(f"(n, {width})" + f" ({name})" * (name != "X") for name, width in wide.items())
        raise InvalidInputError(
            f"{path}: the model takes embeddings of shape {takes}, got {tuple(data.values.shape)}"
            + ("; give one view of each item" if data.views > 1 else "")
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"{path}: images and texts are both {data.width} wide; say which these are with {option} images|texts"
        )
    return (fitting[0],)
