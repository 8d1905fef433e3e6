"""Which tower of a model some embeddings go through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crovca.cli.options import Modality, open_embeddings
from crovca.cli.output import Reporter
from crovca.codes import Codes, check_bits
from crovca.data.encoded import Encoded
from crovca.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from crovca.data.embeddings import Embeddings, Rows
    from crovca.hasher import Hasher
    from crovca.hashing.towers import Modality as AnyModality
    from crovca.sources.source import Source

__all__ = ["EncodedPath", "encode_path", "encode_with"]


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
    hasher: Hasher,
    path: Path,
    modality: Modality | None,
    option: str,
    reporter: Reporter,
    *,
    bits: int | None = None,
    logits: bool = False,
    root: Path | None = None,
) -> EncodedPath:
    """Encode whatever the model takes: the embeddings of a file, or images and texts themselves.

    Raises:
        CrovcaError: as ``encode_with``, ``open_images`` and ``open_texts``; or not one item can be read.
    """
    if len(hasher.modalities) == 1 and modality is not None:
        raise ConfigError(
            f"{option} is for models of two modalities; this model takes {hasher.modalities[0]}"
        )
    if hasher.fine_tuning is not None:
        if len(hasher.modalities) == 1:
            modality = "images"
        return _encode_items(hasher, path, modality or _kind(path), reporter, bits, logits, root)
    if root is not None:
        raise ConfigError(f"--root goes with models of images; {path} holds embeddings")
    data = open_embeddings(path)
    encoded = encode_with(hasher, data, path, modality, option, bits=bits, logits=logits)
    return EncodedPath(encoded, data.values, data.width * data.values.dtype.itemsize, {})


def _kind(path: Path) -> Modality:
    """Texts where nothing but texts can be meant."""
    return "texts" if path.suffix.lower() in (".csv", ".tsv") else "images"


def _encode_items(
    hasher: Hasher,
    path: Path,
    modality: Modality,
    reporter: Reporter,
    bits: int | None,
    logits: bool,
    root: Path | None,
) -> EncodedPath:
    import numpy as np

    from crovca.sources.opening import open_images, open_texts

    length = hasher.lengths_[-1] if bits is None else check_bits(bits, at_most=hasher.lengths_[-1])
    source: Source[Any] = open_images(path, root=root) if modality == "images" else open_texts(path)
    found = hasher.encode_source(
        source, modality=modality, advance=lambda share: reporter.advance("embedding", share)
    )
    for text in source.notes:
        reporter.message(text)
    left_out = dict(Counter(reason for reason, _ in found.faults.values()))
    if found.faults:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        row = min(found.faults)
        reporter.message(
            f"{path}: {len(found.faults):,} of {len(source):,} {modality} are left out ({reasons}), the first is "
            f"{source.ids[row]}: {found.faults[row][1]}"
        )
    if not len(found.rows):
        raise InvalidInputError(f"{path}: none of the {len(source):,} {modality} could be read")
    kept = np.ascontiguousarray(found.logits[:, :length])
    encoded = Encoded(
        Codes.from_logits(kept),
        source.ids[found.rows],
        None if source.labels is None else source.labels[found.rows],
        kept if logits else None,
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
        return Encoded(hasher.encode(data.values, bits, modality=chosen), data.ids, data.labels)
    found = hasher.logits(data.values, modality=chosen)
    result = Encoded(Codes.from_logits(found), data.ids, data.labels, found)
    return result if bits is None else result.prefix(bits)


def _chosen(
    hasher: Hasher, data: Embeddings, path: Path, modality: Modality | None, option: str
) -> AnyModality:
    wide = {name: hasher.width(name) for name in (hasher.modalities if modality is None else (modality,))}
    fitting = [name for name, width in wide.items() if (len(data), width) == tuple(data.values.shape)]
    if not fitting:
        takes = " or ".join(
            f"(n, {width})" + f" ({name})" * (name != "embeddings") for name, width in wide.items()
        )
        raise InvalidInputError(
            f"{path}: the model takes embeddings of shape {takes}, got {tuple(data.values.shape)}"
            + ("; give one view of each item" if data.views > 1 else "")
        )
    if len(fitting) > 1:
        raise ConfigError(
            f"{path}: images and texts are both {data.width} wide; say which these are with {option} images|texts"
        )
    return fitting[0]
