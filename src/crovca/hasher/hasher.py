"""The one hasher: towers by modality, a frozen training configuration, one file format."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from crovca.codes import Codes, check_bits
from crovca.data.embeddings import Embeddings, Rows, chunks
from crovca.embedding.blocks import embed_blocks
from crovca.embedding.items import as_images, as_texts, name_of
from crovca.encoders.encoder import choose_device
from crovca.errors import ConfigError, CrovcaWarning, InvalidInputError, NotFittedError
from crovca.hasher import files, hub
from crovca.hasher.drift import Drift, drift
from crovca.hasher.fine_tuning import FineTuning
from crovca.hasher.fit import Fitted, Run, fit_embeddings, initialize
from crovca.hasher.fit_images import fit_images
from crovca.hasher.quality import quality
from crovca.hashing.config import (
    FAITHFULNESS,
    PRESETS,
    HashCoderSize,
    TrainingConfig,
    default_epochs,
    nested_lengths,
    recipe,
)
from crovca.hashing.process_group import ALONE, ProcessGroup
from crovca.hashing.towers import Modality, Tower, Towers
from crovca.hashing.train import Observer, Silent
from crovca.sources.source import Fault, Source

Float32 = npt.NDArray[np.float32]
Pairing = Literal["views", "neighbors", "classes"]

_logger = logging.getLogger(__name__)

_BLOCK = 1024  # few enough to stay in the processor's cache between the layers
_MODALITIES = (("embeddings",), ("images",), ("images", "texts"))


class EncodedItems(NamedTuple):
    """What became of the items of a source.

    Attributes:
        rows: (m,) those that could be read, ascending.
        logits: float32 (m, bits).
        embeddings: float32 (m, d) of the adapted encoder.
        faults: why the others could not be read.
    """

    rows: npt.NDArray[np.int64]
    logits: Float32
    embeddings: Float32
    faults: dict[int, Fault]


class Hasher(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learns binary codes (CroVCA, arXiv 2510.27584): of embeddings, with or without labels; of pairs; of images.

    ``Hasher(bits)`` takes embeddings. ``Hasher.for_pairs`` takes two kinds of embeddings whose rows are pairs, or
    images and their texts; ``Hasher.for_images`` takes images. Where there are several modalities, ``logits`` and
    ``encode`` are told which one they are given.

    Args:
        bits: length of the code, 1 to 4,096.
        nested: "auto" trains the prefixes of 16, 32, 64 and 128 bits (below ``bits``) as codes of their own;
            a sequence of lengths trains those; False trains ``bits`` alone, as in the paper.
        pairing: where an item's second view comes from. "auto": "classes" where ``fit`` is given labels, else
            "views" where there are stored views (n, v, d), else "neighbors". Several may be named
            together, ("views", "neighbors"): each item then takes its pair from one of them at random;
            with "classes" among them, the others give the views and the classes the teacher.
        hashcoder: "small" (2 layers) or "large" (3).
        epochs: passes over the data; "auto": as many as spend about 560 steps, with labels half as many again, a few
            more for more items: 20 for 7,000 items, 7 for 30,000, at most 25 (with labels 30). For codes without a
            base as many as spend 560 steps (1,400 with labels), but 5 to 100.
        batch_size: items in a step.
        learning_rate: of AdamW, falling along a cosine; "auto": 1e-3, with labels 2e-3; without a base 1e-3,
            with labels or stored views 3e-3.
        weight_decay: of AdamW; "auto": 0.01; without a base 5 where neighbors or stored views teach, 0.1 with labels.
        diversity_weight: lambda, the weight of the coding rate; "auto": 0.3; without a base 0.1, with labels 0.3.
        faithfulness: of codes of embeddings of one kind: whether they are for finding more of the "kinds" of things
            that they were learned from, as in the paper, or keep the "order" of the floats, for things of any kind; or
            "balanced" between them, the default. A number is how much more the order counts than in "balanced" (1;
            "order" is 4), beside a closed-form base; "kinds" has no such base (docs/architecture.md).
        terms: more terms of the objective (``hashing.objective.TERMS``) and their weights.
        center: whether the mean embedding is subtracted before the network; "auto": beside a
            base, and with labels.
        logit_scale: standard deviation of a bit's logits at the first step; "auto": 1.5, with labels 2; without a
            base 1, with labels 2. The greater it is, the more the training is about the items whose bits are wrong.
        views: how many views make a step, where stored or augmented views are paired.
        neighbors: how many are drawn from: of twice as many nearest items those that share the most neighbors with
            the item.
        feature_dropout: share of the features dropped in a neighbor, or in the copies of a labeled item.
        prototypes: class prototypes: "running" means that settle after a twentieth of the steps, or those of the
            "batch" alone, as in the paper.
        start: where training starts: "random" weights, as in the paper, or weights that tell "classes" or "clusters"
            of items apart (``hashing.start``). "auto": "random" beside a base; without one "clusters" where neighbors
            teach, "classes" where labels do and the run has fewer than 400 steps, else "random".
        modalities: ("embeddings",), ("images",) or ("images", "texts"): a tower for each.
        shared: both modalities, where their widths agree, go through the same layers, each with its own scale
            and normalization; False: a network each.
        fine_tuning: the encoder that images and texts go through; None: items are embeddings.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        seed: of everything random; the same seed gives the same model on one device.

    Attributes:
        towers_: the network, a tower for each modality.
        config_: the configuration that the training had.
        n_features_in_: d, the width of the (first modality's) embeddings.
        lengths_: code lengths that were trained, ascending; the last is ``bits``.
        pairing_: the pairing that "auto" stood for.
        classes_: names of the classes, or None.
        neighbor_recall_: share of true neighbors that the search found, or None without one.
        left_out_: how many images could not be read, by reason.
        history_: the log: loss, the terms of the objective and balance, every tenth step.
    """

    towers_: Towers
    config_: TrainingConfig
    n_features_in_: int
    lengths_: tuple[int, ...]
    pairing_: tuple[str, ...]
    classes_: npt.NDArray[Any] | None
    neighbor_recall_: float | None
    left_out_: dict[str, int]
    history_: list[dict[str, Any]]

    def __init__(
        self,
        bits: int = 256,
        *,
        nested: Literal["auto", False] | Sequence[int] = "auto",
        pairing: Literal["auto"] | Pairing | Sequence[Pairing] = "auto",
        hashcoder: HashCoderSize = "small",
        epochs: int | Literal["auto"] = "auto",
        batch_size: int = 256,
        learning_rate: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        diversity_weight: float | Literal["auto"] = "auto",
        faithfulness: Literal["kinds", "balanced", "order"] | float = "balanced",
        terms: Mapping[str, float] | None = None,
        center: bool | Literal["auto"] = "auto",
        logit_scale: float | Literal["auto"] = "auto",
        views: int = 2,
        neighbors: int = 5,
        feature_dropout: float = 0.3,
        prototypes: Literal["running", "batch"] = "running",
        start: Literal["auto", "random", "classes", "clusters"] = "auto",
        modalities: Sequence[Modality] = ("embeddings",),
        shared: bool = False,
        fine_tuning: FineTuning | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.bits = bits
        self.nested = nested
        self.pairing = pairing
        self.hashcoder = hashcoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.diversity_weight = diversity_weight
        self.faithfulness = faithfulness
        self.terms = terms
        self.center = center
        self.logit_scale = logit_scale
        self.views = views
        self.neighbors = neighbors
        self.feature_dropout = feature_dropout
        self.prototypes = prototypes
        self.start = start
        self.modalities = modalities
        self.shared = shared
        self.fine_tuning = fine_tuning
        self.device = device
        self.seed = seed

    # --- ways to make one ---

    @classmethod
    def from_preset(cls, name: str, **parameters: Any) -> Self:
        """A hasher of embeddings with the settings of one column of the paper's Table 8: one length, batch prototypes.

        Args:
            name: "small", "imagenet1k", "text-small" or "cc3m".
            **parameters: of the constructor; they win over the preset's.
        """
        return cls(**{**_preset(name), **parameters})

    @classmethod
    def for_images(cls, encoder: str | Path, bits: int = 256, *, preset: str | None = None, **parameters: Any) -> Self:
        """A hasher that takes images, and adapts an encoder to them (paper, section 4.1).

        Args:
            encoder: folder of a model, or its id on the hub.
            bits: length of the code.
            preset: a column of the paper's Table 8, the settings of LoRA and the crops included.
            **parameters: of the constructor and of ``FineTuning``; they win over the preset's. By default 5 epochs.
        """
        return cls(bits, modalities=("images",), **_with_encoder(encoder, preset, parameters))

    @classmethod
    def for_pairs(
        cls, bits: int = 256, *, encoder: str | Path | None = None, preset: str | None = None, **parameters: Any
    ) -> Self:
        """A hasher of images and texts (or any two kinds of embeddings), for codes that they have in common.

        Args:
            bits: length of the code.
            encoder: a model with an image tower and a text tower (CLIP, SigLIP), both of which are adapted (paper,
                appendix A.1); None: items are embeddings.
            preset: a column of the paper's Table 8.
            **parameters: of the constructor, and with an encoder of ``FineTuning``; they win over the preset's.
        """
        if encoder is not None:
            parameters = _with_encoder(encoder, preset, parameters)
        elif preset is not None:
            parameters = {**_preset(preset), **parameters}
        return cls(bits, modalities=("images", "texts"), **parameters)

    # --- learning ---

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        texts: Any = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 15.0,
        observer: Observer | None = None,
        process_group: ProcessGroup = ALONE,
    ) -> Self:
        """Learn from embeddings, from pairs, or from images. Images that cannot be read are left out, and said.

        Args:
            X: embeddings (n, d), or (n, v, d) with v views of each item: numpy, torch, a memory map, a store's values,
                or ``Embeddings``, read in batches, never copied as a whole. With an encoder images: a source or the
                path of one (``sources.opening``), or a list of paths, bytes, Pillow images or uint8 arrays (H, W, 3).
            y: labels (n,) of whole numbers or strings, or (n, C) multi-hot; None: unsupervised.
            texts: of pairs, row i belongs to row i of X: embeddings (n, e), or (n, w, e) with w captions of each image,
                one of them drawn at each step. With an encoder strings, or lists of them; None: the source's captions.
            checkpoint: folder for the state of the run; the same call goes on where it stopped. Remove it when the
                model is saved.
            checkpoint_seconds: how often the state is written.
            observer: is told how it goes.
            process_group: processes that train together on images (``hasher.processes.launched``).

        Raises:
            InvalidInputError: data that cannot be used; the message says which rows and what to do.
            ConfigError: parameters that contradict each other, or an unfinished run with others.
            TrainingError: the loss is not finite.
            CrovcaError: with an encoder, what ``Encoder.load`` raises.
        """
        self._check()
        _refuse_sparse(X, "X")
        run = Run(observer or Silent(), checkpoint, checkpoint_seconds, process_group)
        how = fit_embeddings if self.fine_tuning is None else fit_images
        started = time.perf_counter()
        _logger.info("learning %d bits of %s", self.bits, " and ".join(self.modalities))
        self._take(how(self, X, y, texts, run))
        steps, seconds = self.history_[-1]["steps"], time.perf_counter() - started
        _logger.info("learned %d bits in %d steps, %.1f s", self.bits, steps, seconds)
        return self

    def initialize(self, X: Any, texts: Any = None) -> Self:
        """Take the random weights that ``fit`` begins with, and learn nothing but scales and the bits' balance.

        The floor that training is measured against (paper, Figure 6); takes and raises what ``fit`` does.
        """
        self._check()
        if self.fine_tuning is not None:
            raise ConfigError(
                "a HashCoder at random weights takes embeddings: use a Hasher without an encoder, Hasher(...) or "
                "Hasher.for_pairs(...)"
            )
        return self._take(initialize(self, X, texts))

    # --- use ---

    def logits(self, X: Any, *, modality: Modality | None = None) -> Float32:
        """Logits float32 (n, bits); their signs are the codes (paper, Eq. 2).

        Args:
            X: embeddings (n, d). With an encoder images, as ``fit`` takes them, or a list of texts.
            modality: which of several modalities these are; None where there is one.

        Raises:
            InvalidInputError: another shape, NaN or infinity; an image that cannot be read (which, and why).
        """
        tower = self._tower(modality)
        if tower.encoder is None:
            return self.logits_of_embeddings(X, modality=modality)
        return self._encode_all(X, modality).logits

    def encode(self, X: Any, bits: int | None = None, *, modality: Modality | None = None) -> Codes:
        """Codes of what ``logits`` takes, or their first ``bits`` bits; raises what it does."""
        length = self._length(bits)
        tower = self._tower(modality)
        if tower.encoder is not None:
            return Codes.from_logits(self._encode_all(X, modality).logits[:, :length])
        parts = [Codes.from_logits(block[:, :length]) for block in self._blocks(tower, X)]
        return Codes.concatenate(parts) if parts else Codes.from_bits(np.zeros((0, length), np.bool_))

    def transform(self, X: Any) -> npt.NDArray[np.uint8]:
        """The bits as numbers, uint8 (n, bits) of 0 and 1, for the next step of a ``Pipeline``."""
        return self.encode(X).unpack()

    def score(self, X: Any, y: Any = None) -> float:
        """How well the codes order these items, in [0, 1]: what ``GridSearchCV`` maximizes.

        Every item is asked for among the others by asymmetric Hamming distance. With labels it is mAP@1000; without,
        the share of an item's 10 nearest embeddings (centered cosine) that stand among the first 100 codes.

        Args:
            X: as for ``logits``; without labels embeddings.
            y: labels (n,) or (n, C), or None.
        """
        return quality(self, X, y)

    def embed(self, X: Any, *, modality: Modality | None = None) -> Float32:
        """Embeddings float32 (n, d) of images or texts, by the adapted encoder."""
        return self._encode_all(X, modality).embeddings

    def logits_of_embeddings(self, X: Any, *, modality: Modality | None = None) -> Float32:
        """Logits float32 (n, bits) of embeddings (n, d), past the encoder where there is one."""
        tower = self._tower(modality)
        blocks = list(self._blocks(tower, X))
        return np.concatenate(blocks) if blocks else np.zeros((0, tower.coder.bits), np.float32)

    def encode_source(
        self, items: Any, *, modality: Modality | None = None, advance: Callable[[float], None] = lambda _: None
    ) -> EncodedItems:
        """Logits and embeddings of every image or text that can be read, and what is wrong with the others.

        Args:
            items: a source, the path of one of images, or a list, as ``encode`` takes it.
            modality: which of several modalities these are; None where there is one.
            advance: told what share is done.
        """
        tower = self._tower(modality)
        if tower.encoder is None:
            raise ConfigError("this model takes embeddings; it has no encoder that could make them of items")
        source = self._source(items, tower)
        rows: list[int] = []
        faults: dict[int, Fault] = {}
        embeddings, logits = [], []
        for block in embed_blocks(source, tower.encoder):
            rows += block.rows
            faults.update(block.faults)
            if block.rows:
                with torch.no_grad():
                    logits.append(tower.coder(block.embeddings).float().cpu().numpy())
                embeddings.append(block.embeddings.cpu().numpy())
            advance((len(rows) + len(faults)) / len(source))
        return EncodedItems(
            np.array(rows, np.int64),
            np.concatenate([np.zeros((0, tower.coder.bits), np.float32), *logits]),
            np.concatenate([np.zeros((0, tower.encoder.width), np.float32), *embeddings]),
            faults,
        )

    def width(self, modality: Modality | None = None) -> int:
        """d, the width of a modality's embeddings."""
        return self._tower(modality).coder.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides a code: tells another model from the same, saved or not."""
        towers = self._fitted()
        digest = hashlib.sha256(repr(self.lengths_).encode())
        for name, value in sorted(towers.state_dict().items()):
            values = value.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy knows no bfloat16
        for tower in towers:
            if tower.encoder is not None:
                digest.update(str(tower.encoder.identity["weights_sha256"]).encode())
        return digest.hexdigest()

    def drift(self, X: Any, *, modality: Modality | None = None) -> Drift:
        """How far embeddings (n, d) lie from what was learned (``hasher.drift``).

        Raises:
            ConfigError: the model keeps nothing of what it learned from (faithfulness="kinds", pairs, images).
            InvalidInputError: another shape, NaN or infinity.
        """
        coder = self._tower(modality).coder
        return drift(coder, [block for _, block in chunks(_as_rows(X, "X"), _BLOCK)])

    # --- files ---

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model to a folder, atomically; ``force`` replaces what is there.

        Of an encoder it holds the adapter, and which weights it belongs to.
        """
        self._fitted()
        files.save(self, Path(path), force=force)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", encoder: str | Path | None = None) -> Self:
        """Read what ``save`` wrote.

        Args:
            path: the model.
            device: "auto", "cpu" or "cuda".
            encoder: where the encoder is now, if not where it was.

        Raises:
            FileFormatError: damaged, changed, or the encoder's weights are not those that it was trained with.
            ConfigError, EncoderError: the encoder is not there.
        """
        config, weights, history = files.read(Path(path))
        with files.config_errors(path):
            parameters = files.parameters_of(config, cls._get_param_names())
            hasher = cls(**parameters, device=device)
            hasher._check()
            hasher._device()
            training = TrainingConfig.from_dict(config["training"])
            hasher._config(2, config["fitted"]["pairing"], Silent())
            towers = files.towers_of(hasher, config, training, weights, Path(path), encoder)
            fitted = files.fitted_of(config["fitted"])
        return hasher._take(Fitted(towers.to(hasher._device()).eval(), training, history=history, **fitted))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        data: str | None = None,
        measures: Mapping[str, Any] | None = None,
        license: str | None = None,
        encoder: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        **metadata: Any,
    ) -> str:
        """Write the model to the Hugging Face hub, with a card that is made anew of what is known of it.

        Args:
            repo_id: "owner/name"; made where it is not there yet. Log in first ('hf auth login', or HF_TOKEN).
            data: what it learned from, in words.
            measures: the five measures: of ``FiveMeasures.to_dict()`` or ``crovca evaluate --json`` (five_measures).
            license: of the model, as the hub calls it ("apache-2.0").
            encoder: id on the hub of the encoder inside, where it was loaded from a folder; of a model of embeddings
                the encoder that made them.
            private: who can see a new repository; None: as the account has it.
            revision: a branch; made where it is not there yet.
            **metadata: more lines for the card's head, as ``datasets=["owner/name"]`` or ``language="en"``.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: the encoder inside was loaded from a folder, and its id was not given.
            ServerError: the hub cannot be reached, or refused, the card's metadata included.
            MissingDependencyError: huggingface_hub is not installed.
        """
        return hub.push(
            self, repo_id, encoder=encoder, private=private, revision=revision, data=data, measures=measures,
            license=license, **metadata,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        encoder: str | Path | None = None,
    ) -> Self:
        """Read what ``push_to_hub`` or ``save`` wrote. Of the hub the model's three files are fetched, and no code.

        Args:
            id_or_folder: "owner/name" on the hub, or a folder.
            revision: branch, tag or commit on the hub.
            device, encoder: as for ``load``.

        Raises:
            EncoderError: the hub does not give it: gated, unknown, wrong revision, no network.
            ConfigError: neither a folder nor an id; the model's encoder is no id of the hub.
            FileFormatError: as ``load``; no model of crovca.
        """
        return cls.load(hub.pull(id_or_folder, revision, encoder), device=device, encoder=encoder)

    # --- inside ---

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are bits, whatever the embeddings are
        return tags

    def _check(self) -> None:
        """Refuse parameters that cannot be, whatever the data."""
        check_bits(self.bits)
        if tuple(self.modalities) not in _MODALITIES:
            raise ConfigError(f"modalities must be one of {list(_MODALITIES)}, got {self.modalities!r}")
        if self.fine_tuning is not None and not isinstance(self.fine_tuning, FineTuning):
            raise ConfigError(f"fine_tuning must be a FineTuning or None, got {self.fine_tuning!r}")
        takes_items = tuple(self.modalities) == ("images",)
        if takes_items != (self.fine_tuning is not None) and len(self.modalities) == 1:
            raise ConfigError("images need an encoder, and embeddings have none: Hasher(...), Hasher.for_images(...)")
        for name, least in (("views", 2), ("neighbors", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if isinstance(self.feature_dropout, bool) or not 0 <= self.feature_dropout <= 0.9:
            raise ConfigError(f"feature_dropout must lie in [0, 0.9], got {self.feature_dropout!r}")
        for name, choices in (
            ("prototypes", ("running", "batch")),
            ("start", ("auto", "random", "classes", "clusters")),
            ("shared", (False, True)),
        ):
            if getattr(self, name) not in choices:
                listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
                raise ConfigError(f"{name} must be {listed}, got {getattr(self, name)!r}")

    def _config(self, items: int, pairing: Sequence[str], observer: Observer) -> TrainingConfig:
        """The configuration of a training on so many items."""
        if items < 2:
            raise InvalidInputError(f"training needs at least 2 items, got {items}")
        if isinstance(self.batch_size, int) and items < self.batch_size:
            observer.message(f"batches of {items}: there are fewer items than batch_size = {self.batch_size}")
        dial = self._dial(pairing)
        automatic = recipe(pairing, items, base=dial is not None)
        epochs = self.epochs
        if epochs == "auto":
            supervised = "classes" in pairing
            epochs = default_epochs(items, self.batch_size, supervised=supervised, base=dial is not None)
        chosen = {
            name: getattr(automatic if getattr(self, name) == "auto" else self, name)
            for name in ("learning_rate", "weight_decay", "diversity_weight", "center", "logit_scale")
        }
        return TrainingConfig(
            lengths=nested_lengths(check_bits(self.bits), self.nested),
            epochs=epochs,
            hashcoder=self.hashcoder,
            batch_size=self.batch_size,
            faithfulness=None if dial is None else dial * automatic.faithfulness,
            base_weight=automatic.base_weight,
            base_power=automatic.base_power,
            gate_quantile=automatic.gate_quantile,
            gate_power=automatic.gate_power / max(1.0, dial or 0.0),
            terms=tuple((self.terms or {}).items()),
            seed=self.seed,
            **chosen,
        )

    def _dial(self, pairing: Sequence[str]) -> float | None:
        """How much the floats' order counts; None: no base, as for images and for modalities that share a network."""
        wanted = self.faithfulness
        if isinstance(wanted, str):
            known = wanted in ("kinds", *FAITHFULNESS)
        else:
            known = isinstance(wanted, int | float) and not isinstance(wanted, bool) and 0 <= wanted < math.inf
        if not known:
            raise ConfigError(
                f"faithfulness must be 'kinds', 'balanced', 'order' or a number of at least 0, got {wanted!r}"
            )
        if wanted == "kinds" or self.fine_tuning is not None or self.shared:
            return None
        return FAITHFULNESS[wanted] if isinstance(wanted, str) else wanted

    def _device(self) -> torch.device:
        return choose_device(self.device)

    def _take(self, fitted: Fitted) -> Self:
        self.towers_ = fitted.towers
        self.config_ = fitted.config
        self.lengths_ = fitted.config.lengths
        self.n_features_in_ = fitted.towers.coders[0].width
        self.pairing_ = fitted.pairing
        self.classes_ = fitted.classes
        self.neighbor_recall_ = fitted.neighbor_recall
        self.left_out_ = fitted.left_out
        self.history_ = fitted.history
        return self

    def _fitted(self) -> Towers:
        if not hasattr(self, "towers_"):
            raise NotFittedError("this Hasher is not fitted yet; call fit or load first")
        return self.towers_

    def _tower(self, modality: str | None) -> Tower:
        towers = self._fitted()
        names = [tower.modality for tower in towers]
        if modality is None and len(names) == 1:
            return next(iter(towers))
        if modality not in names:
            got = "none was named" if modality is None else f"got {modality!r}"
            takes = " and ".join(names)
            raise InvalidInputError(f"this model takes {takes}: say which these are (modality=), {got}")
        return towers[modality]

    def _blocks(self, tower: Tower, values: Any) -> Iterator[Float32]:
        """Logits of embeddings, block by block."""
        what = "X" if tower.modality == "embeddings" else tower.modality
        rows, coder = _as_rows(values, what), tower.coder
        if len(rows.shape) != 2 or rows.shape[1] != coder.width:
            raise InvalidInputError(
                f"{what} must have shape (n, {coder.width}), as the hasher was trained with, got {tuple(rows.shape)}"
            )
        device = coder.norm.weight.device
        for part, block in chunks(rows, _BLOCK):
            # Half floats are copied as they are: torch makes float32 of them faster than numpy.
            held = np.array(block, None if block.dtype == np.float16 else np.float32)
            with torch.no_grad():
                tensor = torch.from_numpy(held).to(device).float()
                if not torch.isfinite(tensor.sum(dim=1)).all():  # a sum is cheaper than looking at every number
                    wrong = (~torch.isfinite(tensor).all(dim=1)).nonzero().flatten()
                    if len(wrong):
                        raise InvalidInputError(
                            f"{what} holds NaN or infinity in row {part.start + int(wrong[0])}; remove or repair it"
                        )
                yield coder(tensor).float().cpu().numpy()

    def _source(self, items: Any, tower: Tower) -> Source[Any]:
        """Images or texts as a source."""
        if tower.modality == "images":
            return as_images(items)
        if isinstance(items, Source):
            return items
        if not isinstance(items, Sequence) or isinstance(items, str) or not all(isinstance(t, str) for t in items):
            got = "embeddings" if isinstance(items, np.ndarray | Tensor | Embeddings) else type(items).__name__
            raise InvalidInputError(f"texts must be a list of strings, which this model embeds itself; got {got}")
        return as_texts(items)

    def _encode_all(self, items: Any, modality: Modality | None) -> EncodedItems:
        """As ``encode_source``, but an item that cannot be read is an error."""
        tower = self._tower(modality)
        source = self._source(items, tower) if tower.encoder is not None else items
        found = self.encode_source(source, modality=modality)
        if found.faults:
            row = min(found.faults)
            more = f" (and {len(found.faults) - 1} more cannot be read)" if len(found.faults) > 1 else ""
            reason, detail = found.faults[row]
            raise InvalidInputError(f"{name_of(source, row)} cannot be read: {reason}: {detail}{more}")
        return found

    def _length(self, bits: int | None) -> int:
        self._fitted()
        if bits is None:
            return self.lengths_[-1]
        bits = check_bits(bits, at_most=self.lengths_[-1])
        if bits not in self.lengths_:
            warnings.warn(
                f"{bits} bits is not a length this hasher was trained for {list(self.lengths_)}; "
                "a prefix of that length works, but less well",
                CrovcaWarning,
                stacklevel=3,
            )
        return bits


def _preset(name: str) -> dict[str, Any]:
    """A column of the paper's Table 8 as parameters."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; expected one of {list(PRESETS)}")
    preset = PRESETS[name]
    names = ("hashcoder", "epochs", "batch_size", "learning_rate", "weight_decay", "diversity_weight", "views")
    paper = {
        "nested": False,
        "faithfulness": "kinds",
        "center": False,
        "logit_scale": 1.0,
        "prototypes": "batch",
        "start": "random",
    }
    return {**paper, **{key: getattr(preset, key) for key in names}}


def _with_encoder(encoder: str | Path, preset: str | None, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the constructor, of which those of ``FineTuning`` become one."""
    named = {part.name for part in fields(FineTuning)}
    ours = {key: value for key, value in parameters.items() if key in named}
    theirs = {key: value for key, value in parameters.items() if key not in named}
    automatic: dict[str, Any] = {"epochs": 5}
    settings: dict[str, Any] = {}
    if preset is not None:
        automatic = _preset(preset)
        column = PRESETS[preset]
        settings = {"lora_rank": column.lora_rank, "crop_scale": column.crop_scale}
        if column.lora_dropout is not None:
            settings["lora_dropout"] = column.lora_dropout
    return {**automatic, **theirs, "fine_tuning": replace(FineTuning(encoder), **{**settings, **ours})}


def _refuse_sparse(values: Any, what: str) -> None:
    if hasattr(values, "tocsr"):
        raise InvalidInputError(f"{what} is sparse, which is not supported; give {what}.toarray()")


def _as_rows(values: Any, what: str) -> Rows:
    """Anything with rows, without reading it: for encoding, where each block is checked as it comes."""
    if isinstance(values, Embeddings):
        return values.values
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    _refuse_sparse(values, what)
    rows = values if hasattr(values, "shape") and hasattr(values, "dtype") else np.asarray(values)
    if rows.dtype.kind not in "fiub":
        raise InvalidInputError(f"{what} must hold real numbers, got {rows.dtype}")
    checked: Rows = rows
    return checked
