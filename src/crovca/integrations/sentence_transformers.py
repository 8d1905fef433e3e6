"""A hasher as a module of ``sentence-transformers``: floats are its logits, ``precision="ubinary"`` its codes.

    model = with_codes(SentenceTransformer("all-MiniLM-L6-v2"), hasher)
    model.encode(texts, precision="ubinary")  # the packed codes that hasher.encode makes of the model's embeddings
    model.save_pretrained("coder")
    load("coder")

Since version 6 sentence-transformers imports no class of another package that a folder names, unless it is told to
trust all that is named: ``SentenceTransformer("coder", trust_remote_code=True)``. ``load`` trusts this one class.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Self

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from torch import Tensor

from crovca.errors import ConfigError
from crovca.hasher import Hasher
from crovca.hashing.towers import Modality

_FOLDER = "hasher"


class HashCoderModule(Module):
    """The last module of a model: embeddings to logits, of which the signs are the codes.

    ``encode(convert_to_numpy=True)`` gives logits float32 (n, bits), ``encode(precision="ubinary")`` packed codes uint8
    (n, ceil(bits / 8)), both those of ``Hasher.logits`` and ``Hasher.encode`` for the same embeddings.

    Args:
        hasher: fitted, of embeddings.
        bits: cut to so many; None: all.
        modality: which of two modalities' embeddings the model makes; None where there is one.

    Raises:
        ConfigError: the hasher has an encoder of its own, or codes of another length than asked for.
    """

    config_keys: list[str] = ["bits", "modality"]  # noqa: RUF012 -- as sentence-transformers declares it

    def __init__(self, hasher: Hasher, bits: int | None = None, modality: Modality | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if hasher.fine_tuning is not None:
            raise ConfigError(
                "the hasher has an encoder of its own; give one that was fitted on the model's embeddings"
            )
        self.hasher = hasher
        self.bits = hasher.bits if bits is None else bits
        if not 1 <= self.bits <= hasher.bits:
            raise ConfigError(f"the hasher's codes have {hasher.bits} bits, {self.bits} cannot be taken")
        self.modality = modality
        self.coder = hasher._tower(modality).coder

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Put logits (B, bits) in the place of the embeddings (B, d)."""
        embeddings = features["sentence_embedding"].float()
        features["sentence_embedding"] = self.coder(embeddings)[:, : self.bits]
        return features

    def train(self, mode: bool = True) -> Self:
        """The hasher has been fitted: it stays as it is."""
        return super().train(False)

    def get_embedding_dimension(self) -> int:
        """Length of the codes; sentence-transformers asks for it."""
        return self.bits

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write it below a model's folder: config.json, and the hasher as ``Hasher.save`` does."""
        self.save_config(output_path)
        self.hasher.save(Path(output_path) / _FOLDER, force=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Self:  # type: ignore[override]
        """Read what ``save`` wrote, from a folder or the hub.

        Raises:
            FileFormatError: the hasher is damaged.
        """
        known = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: options[name] for name in known if name in options}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **where)
        folder = str(cls.load_dir_path(model_name_or_path, subfolder=f"{subfolder}/{_FOLDER}", **where))
        return cls(Hasher.load(folder, device="cpu"), **config)


def with_codes(
    model: SentenceTransformer, hasher: Hasher, bits: int | None = None, *, modality: Modality | None = None
) -> SentenceTransformer:
    """A model that ends in a hasher's codes; the given one stays as it is, and both share their weights.

    Raises:
        ConfigError: the hasher was not fitted on embeddings of this width.
    """
    module = HashCoderModule(hasher, bits, modality)
    width = model.get_embedding_dimension()
    if width != module.coder.width:
        raise ConfigError(
            f"the model makes embeddings of {width} numbers, the hasher takes {module.coder.width}; fit it on "
            "model.encode(texts)"
        )
    changed = copy.copy(model)
    changed._modules = {**model._modules, str(len(model)): module}
    return changed


class _Known(SentenceTransformer):
    """Takes ``HashCoderModule`` without importing what a folder names."""

    _module_classes: ClassVar = {f"{__name__}.HashCoderModule": HashCoderModule}  # type: ignore[misc]


def load(path: str | Path, **options: Any) -> SentenceTransformer:
    """A model that ``with_codes`` made, from a folder or the hub; no code of others is run.

    Args:
        path: the folder, or an id of the hub.
        **options: of ``SentenceTransformer``.

    Raises:
        FileFormatError: the hasher is damaged.
        ConfigError: the model has no codes.
    """
    model = _Known(str(path), **options)
    if not any(isinstance(module, HashCoderModule) for module in model):
        raise ConfigError(
            f"{path}: a model without codes; give one that with_codes(model, hasher) made, or give it some"
        )
    return model
