"""Hashers of images, and of images and texts: an encoder, adapted with LoRA, and a HashCoder in one model.

>>> hasher = ImageHasher("facebook/dinov2-base", bits=16)          # doctest: +SKIP
>>> hasher.fit("photos/").save("model")                             # doctest: +SKIP
>>> Hasher.load("model").encode(["a.jpg", "b.jpg"])                 # doctest: +SKIP
Codes(n=2, bits=16)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from crovca.codes import Codes
from crovca.data.embeddings import Embeddings
from crovca.data.labels import check_labels, to_membership
from crovca.embedding.items import as_images
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.errors import ConfigError, InvalidInputError
from crovca.hasher.base import config_errors
from crovca.hasher.embeddings import CrossModalHasher, Hasher
from crovca.hasher.finetuned import (
    EncodedImages,
    FineTuned,
    chosen_blocks,
    image_blocks,
    text_blocks,
    texts_fingerprint,
    texts_of,
)
from crovca.hasher.image_views import ImagesAndTexts, ImageViews, recipe_of
from crovca.hashing.config import HashCoderSize
from crovca.hashing.network import HashCoder
from crovca.hashing.process_group import ALONE, ProcessGroup
from crovca.hashing.state import fingerprint
from crovca.hashing.targets import CrossView
from crovca.hashing.train import Observer, Silent
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Source

__all__ = ["ImageHasher", "ImageTextHasher"]


class ImageHasher(FineTuned, Hasher):
    """Learns binary codes of images by adapting an encoder to them (paper, section 4.1).

    Args:
        encoder: folder of a model, or its id on the hub.
        bits, nested, hashcoder, batch_size, views, prototypes, device, seed: as for ``Hasher``.
        revision: of the encoder: branch, tag or commit on the hub.
        epochs: passes over the images; "auto": as for ``Hasher``.
        learning_rate, weight_decay, diversity_weight: "auto": 1e-3, 0.01 and 0.1, the paper's.
        lora_rank: of LoRA; None: the encoder stays as it is (probing).
        lora_dropout: of LoRA.
        crop_scale: smallest share of an image's area that a view shows.
        head_epochs: in so many epochs, the first, the HashCoder learns alone.
        gradient_checkpointing: compute the encoder's activations twice instead of keeping them: less memory.
        compile: whether the encoder is compiled for training, or the backend of torch.compile; "auto": on a GPU, in
            runs of at least 1,000 steps.
        dtype: that the encoder computes in, as for ``Encoder.load``.

    Attributes:
        n_features_in_: width of the encoder's embeddings.
        lengths_, pairing_, classes_, history_: as for ``Hasher``.
        left_out_: how many images could not be read, by reason.
    """

    kind = "image hasher"

    def __init__(
        self,
        encoder: str | Path = "",
        bits: int = 256,
        *,
        revision: str | None = None,
        nested: Literal["auto", False] | Sequence[int] = "auto",
        hashcoder: HashCoderSize = "small",
        epochs: int | Literal["auto"] = 5,
        batch_size: int = 256,
        learning_rate: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        diversity_weight: float | Literal["auto"] = "auto",
        views: int = 2,
        prototypes: Literal["running", "batch"] = "running",
        lora_rank: int | None = 16,
        lora_dropout: float = 0.1,
        crop_scale: float | None = 0.4,
        head_epochs: int = 1,
        gradient_checkpointing: bool = False,
        compile: Literal["auto"] | bool | str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.encoder = encoder
        self.bits = bits
        self.revision = revision
        self.nested = nested
        self.hashcoder = hashcoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.diversity_weight = diversity_weight
        self.views = views
        self.prototypes = prototypes
        self.lora_rank = lora_rank
        self.lora_dropout = lora_dropout
        self.crop_scale = crop_scale
        self.head_epochs = head_epochs
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.dtype = dtype
        self.device = device
        self.seed = seed

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 15.0,
        observer: Observer | None = None,
        process_group: ProcessGroup = ALONE,
    ) -> Self:
        """Learn from images. Those that cannot be read are left out, and said.

        Args:
            X: a source or the path of one (``sources.opening``); or a list of paths, bytes, Pillow images or uint8
                arrays (H, W, 3).
            y: labels, as for ``Hasher.fit``; None: unsupervised, every view is taught by the other.
            checkpoint, checkpoint_seconds, observer: as for ``Hasher.fit``.
            process_group: processes that train together (``hasher.processes.launched``).

        Raises:
            CrovcaError: as ``Hasher.fit``, and what ``Encoder.load`` raises.
        """
        observer = observer or Silent()
        source = as_images(X)
        labels = None if y is None else check_labels(np.asarray(y), len(source))
        recipe = recipe_of(self.crop_scale)
        if recipe is None:
            raise ConfigError("images alone are taught by augmented views: crop_scale must not be None")
        self._views(())
        config = self._config(len(source), ("images",), observer)
        encoders = self._open(self.encoder)
        encoder = encoders[0]
        assert isinstance(encoder, Encoder)
        data = lambda: source.fingerprint + ("" if labels is None else fingerprint(labels))  # noqa: E731
        with (
            self._begin(checkpoint, checkpoint_seconds, config, data, encoders, process_group) as kept,
            self._pool(source, encoder, process_group, whole=True) as pool,
        ):
            rows = self._readable(pool, kept, observer, process_group)
            classes = None if labels is None else to_membership(labels[rows])
            teacher = self._teacher(classes, config, len(rows))
            views = ImageViews(
                pool, rows, encoder.preprocessing, encoder.device, draw=self.views, recipe=recipe
            )
            blocks = chosen_blocks(image_blocks(source, encoder), rows)
            self._run([blocks], encoders, views, teacher, config, observer, kept, process_group)
        self.n_features_in_ = encoder.width
        self.pairing_ = ("views",) if classes is None else ("views", "classes")
        self.classes_ = None if classes is None else classes.names
        return self

    def embed(self, X: Any) -> npt.NDArray[np.float32]:
        """Embeddings float32 (n, d) of images, by the adapted encoder."""
        found = self._of_images(X, embeddings=True).embeddings
        assert found is not None
        return found

    def logits(self, X: Any) -> npt.NDArray[np.float32]:
        """Logits float32 (n, bits) of images.

        Args:
            X: a list of paths, bytes, Pillow images or uint8 arrays (H, W, 3); a source, or the path of one.

        Raises:
            InvalidInputError: one cannot be read (which, and why), or these are no images.
        """
        return self._of_images(X).logits

    def encode(self, X: Any, bits: int | None = None) -> Codes:
        """Codes of images, or their first ``bits`` bits; takes and raises what ``logits`` does."""
        length = self._length(bits)
        return Codes.from_logits(self.logits(X)[:, :length])

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model to a folder, atomically: adapter, HashCoder, and which encoder they belong to."""
        self._fitted()
        classes = None if self.classes_ is None else self.classes_.tolist()
        fitted = {"pairing": list(self.pairing_), "classes": classes, **self._described()}
        self._save(path, fitted, force=force)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", encoder: str | Path | None = None) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the model.
            device: "auto", "cpu" or "cuda".
            encoder: where the encoder is now, if not where it was.

        Raises:
            FileFormatError: damaged, or the encoder's weights are not those that it was trained with.
            ConfigError, EncoderError: the encoder is not there.
        """
        with config_errors(path):
            hasher, fitted, finish = cls._load(path, device)
            finish(hasher._restored(path, fitted, encoder))
            hasher.n_features_in_ = hasher.towers_.encoders[0].width
            hasher.pairing_ = tuple(fitted["pairing"])
            hasher.classes_ = None if fitted["classes"] is None else np.asarray(fitted["classes"])
        return hasher


class ImageTextHasher(FineTuned, CrossModalHasher):
    """Learns codes that images and texts have in common, by adapting both towers of an encoder (paper, appendix A.1).

    Args:
        encoder: a model with an image tower and a text tower (CLIP, SigLIP).
        bits, nested, hashcoder, batch_size, shared, device, seed: as for ``CrossModalHasher``.
        crop_scale: smallest share of an image's area that its view shows; None: images are not augmented.
        revision, epochs, learning_rate, weight_decay, diversity_weight, lora_rank, lora_dropout, head_epochs,
            gradient_checkpointing, compile, dtype: as for ``ImageHasher``.

    Attributes:
        widths_: of the two towers' embeddings.
        lengths_, history_, left_out_: as for ``ImageHasher``.
    """

    kind = "image-text hasher"
    modalities = ("images", "texts")

    def __init__(
        self,
        encoder: str | Path = "",
        bits: int = 256,
        *,
        revision: str | None = None,
        shared: bool = False,
        nested: Literal["auto", False] | Sequence[int] = "auto",
        hashcoder: HashCoderSize = "small",
        epochs: int | Literal["auto"] = 5,
        batch_size: int = 256,
        learning_rate: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        diversity_weight: float | Literal["auto"] = "auto",
        lora_rank: int | None = 16,
        lora_dropout: float = 0.1,
        crop_scale: float | None = 0.4,
        head_epochs: int = 1,
        gradient_checkpointing: bool = False,
        compile: Literal["auto"] | bool | str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.encoder = encoder
        self.bits = bits
        self.revision = revision
        self.shared = shared
        self.nested = nested
        self.hashcoder = hashcoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.diversity_weight = diversity_weight
        self.lora_rank = lora_rank
        self.lora_dropout = lora_dropout
        self.crop_scale = crop_scale
        self.head_epochs = head_epochs
        self.gradient_checkpointing = gradient_checkpointing
        self.compile = compile
        self.dtype = dtype
        self.device = device
        self.seed = seed

    def fit(
        self,
        images: Any,
        texts: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 15.0,
        observer: Observer | None = None,
        process_group: ProcessGroup = ALONE,
    ) -> Self:
        """Learn from pairs: image i belongs to text i. Pairs of which one cannot be used are left out, and said.

        Args:
            images: as for ``ImageHasher.fit``.
            texts: one of each image, or several of which one is drawn at each step; None: the source's captions.
            checkpoint, checkpoint_seconds, observer, process_group: as for ``ImageHasher.fit``.
        """
        observer = observer or Silent()
        source = as_images(images)
        words, wrong = texts_of(source, texts)
        recipe = recipe_of(self.crop_scale)
        config = self._config(len(source), ("modalities",), observer)
        encoders = self._open(self.encoder)
        if self.shared and encoders[0].width != encoders[1].width:
            raise ConfigError(
                f"one network for both modalities needs one width, got images of {encoders[0].width} and texts "
                f"of {encoders[1].width}; use shared=False"
            )
        encoder, text_encoder = encoders
        assert isinstance(encoder, Encoder)
        assert isinstance(text_encoder, TextEncoder)
        data = lambda: source.fingerprint + texts_fingerprint(words)  # noqa: E731
        with (
            self._begin(checkpoint, checkpoint_seconds, config, data, encoders, process_group) as kept,
            self._pool(source, encoder, process_group, whole=recipe is not None) as pool,
        ):
            rows = self._readable(pool, kept, observer, process_group, wrong)
            chosen = [words[row] for row in rows]
            pictures = ImageViews(pool, rows, encoder.preprocessing, encoder.device, draw=1, recipe=recipe)
            views = ImagesAndTexts(pictures, chosen)
            blocks = [
                chosen_blocks(image_blocks(source, encoder), rows),
                text_blocks([several[0] for several in chosen], text_encoder),
            ]
            self._run(blocks, encoders, views, CrossView(), config, observer, kept, process_group)
        self.widths_ = (encoder.width, text_encoder.width)
        return self

    def logits(self, *, images: Any = None, texts: Any = None) -> npt.NDArray[np.float32]:
        """Logits float32 (n, bits) of images (as for ``ImageHasher.logits``), or of a list of texts."""
        self._side(images, texts)
        if images is not None:
            return self._of_images(images).logits
        return self._of_texts(texts)

    def encode(self, *, images: Any = None, texts: Any = None, bits: int | None = None) -> Codes:
        """Codes of images, or of texts, or their first ``bits`` bits."""
        length = self._length(bits)
        return Codes.from_logits(self.logits(images=images, texts=texts)[:, :length])

    def encode_texts(self, texts: Source[str]) -> EncodedImages:
        """Logits and embeddings of every text of a source that can be read, and what is wrong with the others."""
        words, faults = [], {}
        for row in range(len(texts)):
            try:
                words.append((row, texts.read(row)))
            except UnreadableItem as fault:
                faults[row] = (fault.reason, fault.detail)
        embeddings = self.embed_texts([text for _, text in words])
        coder = self.towers_.coders[-1]
        assert isinstance(coder, HashCoder)
        logits = self._logits(coder, embeddings, "texts")
        return EncodedImages(np.array([row for row, _ in words], np.int64), logits, embeddings, faults)

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings float32 (n, d) of texts, by the adapted text tower."""
        self._fitted()
        encoder = self.towers_.encoders[1]
        assert isinstance(encoder, TextEncoder)
        if (
            not isinstance(texts, Sequence)
            or isinstance(texts, str)
            or not all(isinstance(t, str) for t in texts)
        ):
            got = (
                "embeddings" if isinstance(texts, np.ndarray | Tensor | Embeddings) else type(texts).__name__
            )
            raise InvalidInputError(
                f"texts must be a list of strings, which this model embeds itself; got {got}"
            )
        parts = [values.cpu().numpy() for _, values, _ in text_blocks(texts, encoder)(np.arange(len(texts)))]
        return np.concatenate([np.zeros((0, encoder.width), np.float32), *parts])

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model to a folder, atomically: adapters, HashCoders, and which encoder they belong to."""
        self._fitted()
        self._save(path, self._described(), force=force)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", encoder: str | Path | None = None) -> Self:
        """Read what ``save`` wrote; takes and raises what ``ImageHasher.load`` does."""
        with config_errors(path):
            hasher, fitted, finish = cls._load(path, device)
            finish(hasher._restored(path, fitted, encoder))
            hasher.widths_ = (hasher.towers_.encoders[0].width, hasher.towers_.encoders[1].width)
        return hasher

    def _of_texts(self, texts: Any) -> npt.NDArray[np.float32]:
        coder = self.towers_.coders[-1]
        assert isinstance(coder, HashCoder)
        return self._logits(coder, self.embed_texts(texts), "texts")
