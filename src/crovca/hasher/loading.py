"""Reading a model of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crovca.errors import ConfigError
from crovca.hasher.embeddings import CrossModalHasher, Hasher
from crovca.hasher.images import ImageHasher, ImageTextHasher
from crovca.hashing.state import model_kind

__all__ = ["load_hasher"]

_KINDS = (Hasher, CrossModalHasher, ImageHasher, ImageTextHasher)


def load_hasher(
    path: str | Path, *, device: str = "auto", encoder: str | Path | None = None
) -> Hasher | CrossModalHasher:
    """Read a model of any kind.

    Args:
        path: folder that ``save`` wrote.
        device: "auto", "cpu" or "cuda".
        encoder: for a model of images: where its encoder is now, if not where it was.
    """
    kind: Any = {kind.kind: kind for kind in _KINDS}.get(model_kind(path) or "", Hasher)
    if issubclass(kind, ImageHasher | ImageTextHasher):
        return kind.load(path, device=device, encoder=encoder)
    if encoder is not None:
        raise ConfigError(f"{path} is a model of embeddings, which has no encoder; leave it out")
    return kind.load(path, device=device)
