"""From what people search with to logits: images, texts and embeddings, through an index's model and encoder.

An index remembers what made its codes: a copy of the hasher (``INDEX/model``), and the name, revision,
checksum and preprocessing of the encoder. A query takes the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crovca.errors import ConfigError, FileFormatError, InvalidInputError
from crovca.hasher import Hasher

if TYPE_CHECKING:
    from crovca.encoders.encoder import Encoder, TextEncoder

__all__ = ["MODEL_FOLDER", "QueryModel", "describe_encoder"]

MODEL_FOLDER = "model"

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
        """The model that an index was built with, or another one.

        Raises:
            ConfigError: neither holds a model.
        """
        folder = model or index / MODEL_FOLDER
        if model is None and not folder.is_dir():
            raise ConfigError(
                f"{index} holds no model (it was built from codes), so queries cannot be encoded; "
                "give --model, or search by --id"
            )
        return cls(Hasher.load(folder, device=device), encoder, text_encoder=text_encoder, device=device)

    def of_embeddings(self, embeddings: npt.ArrayLike, *, texts: bool = False) -> Logits:
        """Logits float32 (q, bits) of embeddings (q, d) of images, or of texts."""
        return self.hasher.logits_of_embeddings(
            embeddings, modality=self.hasher.modalities[-1 if texts else 0]
        )

    def of_images(self, files: Sequence[Path]) -> Logits:
        """Logits of image files.

        Raises:
            ConfigError: it is not known which encoder to take.
            FileFormatError: a file is not an image that can be read, or the encoder is not the one of the index.
        """
        if self.hasher.fine_tuning is not None:
            return self.hasher.logits(list(files), modality="images")
        import torch

        from crovca.sources.decode import UnreadableItem, decode
        from crovca.sources.source import read_file

        encoder = self._image_encoder()
        pixels = []
        for file in files:
            try:
                decoded = decode(read_file(file), smallest=encoder.preprocessing.smallest_decode)
            except UnreadableItem as fault:
                raise FileFormatError(f"{file}: {fault}") from fault
            pixels.append(encoder.preprocessing.crop_image(decoded.image, decoded.size))
        batch = encoder.preprocessing.normalize(torch.from_numpy(np.stack(pixels)))
        return self.of_embeddings(encoder.embed(batch).cpu().numpy())

    def of_texts(self, texts: Sequence[str]) -> Logits:
        """Logits of texts."""
        if self.hasher.modalities[-1] == "images":
            raise ConfigError("this index's model takes images only, so it cannot be searched by text")
        if self.hasher.fine_tuning is not None:
            return self.hasher.logits(list(texts), modality="texts")
        return self.of_embeddings(self._texts().embed(list(texts)).cpu().numpy(), texts=True)

    def _image_encoder(self) -> Encoder:
        from crovca.encoders.encoder import Encoder
        from crovca.encoders.preprocessing import Preprocessing

        if self._described is None:
            raise ConfigError(
                "this index does not know which encoder made its embeddings; "
                "embed the query yourself and give --embeddings"
            )
        described = self._described
        encoder = Encoder.load(
            described["encoder"],
            revision=described["revision"],
            device=self._device,
            dtype=described["dtype"],
        )
        encoder.preprocessing = Preprocessing.from_dict(self._described["preprocessing"])
        before, now = self._described["identity"]["weights_sha256"], encoder.identity["weights_sha256"]
        if before != now:
            raise FileFormatError(
                f"the encoder {self._described['encoder']} has other weights now than when the index was built; "
                "search with the old ones, or build the index anew"
            )
        return encoder

    def _texts(self) -> TextEncoder:
        from crovca.encoders.encoder import TextEncoder

        source = self._text_encoder
        if source is None and self._described is not None:
            source = self._described["encoder"]
        if source is None:
            raise ConfigError("it is not known which encoder makes embeddings of texts; give --text-encoder")
        encoder = TextEncoder.load(source, device=self._device, dtype="float32")
        expected = self.hasher.width(self.hasher.modalities[-1])
        if encoder.width != expected:
            raise InvalidInputError(
                f"{source} makes embeddings of texts {encoder.width} wide, the model takes {expected}; "
                "give the --text-encoder that it was trained with"
            )
        return encoder
