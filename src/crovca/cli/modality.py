"""Which tower of a model some embeddings go through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from crovca.cli.options import Modality
from crovca.data.encoded import Encoded
from crovca.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from crovca.data.embeddings import Embeddings
    from crovca.hasher import CrossModalHasher, Hasher

__all__ = ["encode_with"]


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
        from crovca.codes import Codes

        codes = Codes.from_logits(found)
        result = Encoded(codes, data.ids, data.labels, found)
        return result if bits is None else result.prefix(bits)
    from crovca.hasher import Hasher

    codes = (
        hasher.encode(data.values, bits) if isinstance(hasher, Hasher) else hasher.encode(**values, bits=bits)
    )
    return Encoded(codes, data.ids, data.labels)


def _logits(hasher: Hasher | CrossModalHasher, values: Any) -> Any:
    from crovca.hasher import Hasher

    return hasher.logits(*values.values()) if isinstance(hasher, Hasher) else hasher.logits(**values)


def _given(
    hasher: Hasher | CrossModalHasher, data: Embeddings, path: Path, modality: Modality | None, option: str
) -> tuple[str]:
    from crovca.hasher import Hasher

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
