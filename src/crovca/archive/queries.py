"""From what people search with to logits: images, texts and embeddings, through an index's model and encoder.

An index remembers what made its codes: a copy of the hasher (``INDEX/model``), and the name, revision,
checksum and preprocessing of the encoder. A query takes the same way; encoders are loaded when the first query needs
them, and kept (``load_once``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crovca.embedding.blocks import embed_blocks
from crovca.embedding.items import as_images
from crovca.encoders.encoder import Encoder, TextEncoder, load_once
from crovca.encoders.families import FAMILIES
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import ConfigError, FileFormatError, InvalidInputError
from crovca.hasher import Hasher
from crovca.index.manifest import Manifest

Logits = npt.NDArray[np.float32]


def describe_encoder(job: Mapping[str, Any]) -> dict[str, Any]:
    """What an index keeps of the encoder: the parts of a store's job (docs/formats.md) that decide an embedding."""
    described = {name: job[name] for name in ("encoder", "revision", "identity", "preprocessing", "dtype")}
    if Path(described["encoder"]).is_dir():  # an index is searched from other folders, too
        described["encoder"] = str(Path(described["encoder"]).resolve())
    return described


class QueryModel:
    """Makes logits of queries.

    Args:
        hasher: the model that made the codes.
        encoder: what ``describe_encoder`` gave, or None where embeddings came from elsewhere.
        text_encoder: folder or id of the encoder of texts; None: the text tower of the images' encoder.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(
        self,
        hasher: Hasher,
        encoder: Mapping[str, Any] | None = None,
        *,
        text_encoder: str | None = None,
        device: str = "auto",
    ) -> None:
        self.hasher = hasher
        self._described = encoder
        self._text_encoder = text_encoder
        self._device = device
        self._images: Encoder | None = None  # once it was found to be the index's

    @classmethod
    def of_index(
        cls,
        index: Path,
        encoder: Mapping[str, Any] | None,
        *,
        model: Path | None = None,
        text_encoder: str | None = None,
        device: str = "auto",
    ) -> QueryModel:
        """The model that an index was built with, or another one."""
        folder = model or index / Manifest.load(index).model
        if model is None and not folder.is_dir():
            raise ConfigError(
                f"{index} holds no model (it was built from codes), so queries cannot be encoded; "
                "give --model, or search by --id"
            )
        return cls(Hasher.load(folder, device=device), encoder, text_encoder=text_encoder, device=device)

    @property
    def takes_texts(self) -> bool:
        """Whether texts can be asked: the model takes more than images, and there is an encoder of texts."""
        if self.hasher.modalities[-1] == "images":
            return False
        if self.hasher.fine_tuning is not None or self._text_encoder is not None:
            return True
        families = {family.name for family in FAMILIES if family.text is not None}
        return self._described is not None and self._described["identity"].get("family") in families

    def of_embeddings(self, embeddings: npt.ArrayLike, *, texts: bool = False) -> Logits:
        """Logits float32 (q, bits) of embeddings (q, d) of images, or of texts."""
        return self.hasher.logits_of_embeddings(embeddings, modality=self.hasher.modalities[-1 if texts else 0])

    def embed_images(self, files: Sequence[Path]) -> npt.NDArray[np.float32]:
        """Embeddings float32 (q, d) of image files."""
        if self.hasher.fine_tuning is not None:
            return self.hasher.embed(list(files), modality="images")
        encoder, source = self._image_encoder(), as_images([os.fspath(file) for file in files])
        found = []
        for block in embed_blocks(source, encoder):
            for row, (reason, detail) in block.faults.items():
                name = "the picture" if isinstance(files[row], bytes) else files[row]
                raise FileFormatError(f"{name}: {reason}: {detail}")
            found.append(block.embeddings.float().cpu().numpy())
        return np.concatenate(found)

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings float32 (q, d) of texts."""
        if self.hasher.modalities[-1] == "images":
            raise ConfigError(
                "this index's model takes images only, so it cannot be searched by text: search by an image or an id, "
                "or build it with an encoder of both, such as siglip2"
            )
        if self.hasher.fine_tuning is not None:
            return self.hasher.embed(list(texts), modality="texts")
        return np.asarray(self._text_tower().embed(list(texts)).float().cpu().numpy())

    def _image_encoder(self) -> Encoder:
        if self._images is not None:
            return self._images
        if self._described is None:
            raise ConfigError(
                "this index does not know which encoder made its embeddings; "
                "embed the query yourself and give --embeddings"
            )
        described = self._described
        encoder = load_once(
            Encoder, described["encoder"], revision=described["revision"], device=self._device, dtype=described["dtype"]
        )
        before, now = described["identity"]["weights_sha256"], encoder.identity["weights_sha256"]
        if before != now:
            raise FileFormatError(
                f"the encoder {described['encoder']} has other weights now than when the index was built; "
                "search with the old ones, or build the index anew"
            )
        self._images = replace(encoder, preprocessing=Preprocessing.from_dict(described["preprocessing"]))
        return self._images

    def _text_tower(self) -> TextEncoder:
        source = self._text_encoder
        if source is None and self._described is not None:
            source = self._described["encoder"]
        if source is None:
            raise ConfigError("it is not known which encoder makes embeddings of texts; give --text-encoder")
        encoder = load_once(TextEncoder, source, device=self._device, dtype="float32")
        expected = self.hasher.width(self.hasher.modalities[-1])
        if encoder.width != expected:
            raise InvalidInputError(
                f"{source} makes embeddings of texts {encoder.width} wide, the model takes {expected}; "
                "give the --text-encoder that it was trained with"
            )
        return encoder
