"""Hashers of embeddings.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
>>> hasher = Hasher(bits=16, epochs=2).fit(X)
>>> hasher.encode(X[:3])
Codes(n=3, bits=16)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from crovca.codes import Codes
from crovca.data.embeddings import Embeddings, Rows, as_embeddings
from crovca.data.labels import ClassMembership, to_membership
from crovca.errors import ConfigError, InvalidInputError
from crovca.hasher.base import BaseHasher, config_errors, new_coders
from crovca.hashing.config import SETTLE_SHARE, SHORT_RUN, HashCoderSize, TrainingConfig
from crovca.hashing.neighbors import Neighborhood, find_shared_neighbors
from crovca.hashing.network import HashCoder, InputStatistics, Towers, calibrate, input_statistics
from crovca.hashing.start import start_from_classes, start_from_clusters
from crovca.hashing.state import Checkpoint, fingerprint, model_kind
from crovca.hashing.targets import ClassPrototypes, CrossView
from crovca.hashing.train import Observer, Silent
from crovca.hashing.views import Copies, Mixed, Modalities, NeighborViews, StoredViews, ViewSource

__all__ = ["CrossModalHasher", "Hasher"]

Pairing = Literal["views", "neighbors", "classes"]
_PAIRINGS = ("views", "neighbors", "classes")


class Hasher(BaseHasher):
    """Learns binary codes for embeddings of one kind, with or without labels (CroVCA, arXiv 2510.27584).

    Args:
        bits: length of the code, 1 to 4,096.
        nested: "auto" trains the prefixes of 16, 32, 64 and 128 bits (below ``bits``) as codes of their own;
            a sequence of lengths trains those; False trains ``bits`` alone, as in the paper.
        pairing: where an item's second view comes from. "auto": "classes" where ``fit`` is given labels, else
            "views" where there are stored views (n, v, d), else "neighbors". Several may be named
            together, ("views", "neighbors"): each item then takes its pair from one of them at random;
            with "classes" among them, the others give the views and the classes the teacher.
        hashcoder: "small" (2 layers) or "large" (3).
        epochs: passes over the data; "auto" spends 560 steps (1,400 with labels), but 5 to 100 epochs.
        batch_size: items in a step.
        learning_rate: of AdamW, falling along a cosine; "auto": 1e-3, with labels 3e-3.
        weight_decay: of AdamW; "auto": 5 where neighbors teach, 0.1 with labels, else 0.01.
        diversity_weight: lambda, the weight of the coding rate; "auto": 0.1, with labels 0.3.
        center: whether the mean embedding is subtracted before the network; "auto": with labels.
        logit_scale: standard deviation of a bit's logits at the first step; "auto": 1, with labels 2. The greater it
            is, the more the training is about the items whose bits are wrong.
        views: how many of the stored views make a step, where views are paired.
        neighbors: how many are drawn from: of twice as many nearest items those that share the most neighbors with
            the item.
        feature_dropout: share of the features dropped in a neighbor, or in the copies of a labeled item.
        prototypes: class prototypes: "running" means that settle after a twentieth of the steps, or those of the
            "batch" alone, as in the paper.
        start: where training starts: "random" weights, as in the paper, or weights that tell "classes" or "clusters"
            of items apart (``hashing.start``). "auto": "clusters" where neighbors teach; "classes" where labels do
            and the run has fewer than 400 steps; else "random".
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        seed: of everything random; the same seed gives the same model on one device.

    Attributes:
        n_features_in_: d, the width of the embeddings.
        lengths_: code lengths that were trained, ascending; the last is ``bits``.
        pairing_: the pairing that "auto" stood for.
        classes_: names of the classes, or None.
        neighbor_recall_: share of true neighbors that the search found, or None without one.
        history_: the log: loss, alignment, diversity and balance, every tenth step.
    """

    kind = "hasher"

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
        center: bool | Literal["auto"] = "auto",
        logit_scale: float | Literal["auto"] = "auto",
        views: int = 2,
        neighbors: int = 5,
        feature_dropout: float = 0.3,
        prototypes: Literal["running", "batch"] = "running",
        start: Literal["auto", "random", "classes", "clusters"] = "auto",
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
        self.center = center
        self.logit_scale = logit_scale
        self.views = views
        self.neighbors = neighbors
        self.feature_dropout = feature_dropout
        self.prototypes = prototypes
        self.start = start
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
    ) -> Self:
        """Learn from embeddings.

        Args:
            X: (n, d), or (n, v, d) with v views of each item: numpy, torch, a memory map, a store's values,
                or ``Embeddings``. Read in batches, never copied as a whole.
            y: labels (n,) of whole numbers or strings, or (n, C) multi-hot; None: unsupervised.
            checkpoint: folder for the state of the run; the same call goes on where it stopped. Remove it when the
                model is saved.
            checkpoint_seconds: how often the state is written.
            observer: is told how it goes.

        Raises:
            InvalidInputError: data that cannot be used; the message says which rows and what to do.
            ConfigError: parameters that contradict each other, or an unfinished run with others.
            TrainingError: the loss is not finite.
        """
        observer = observer or Silent()
        data = as_embeddings(X, y, what="X")
        labels = data.labels if y is not None else None
        pairing = self._resolve_pairing(data, labels, observer)
        config = self._config(len(data), pairing, observer)
        start = self._resolve_start(pairing, config.steps(len(data)))
        self.neighbor_recall_: float | None = None
        classes = to_membership(labels) if "classes" in pairing and labels is not None else None
        described = partial(fingerprint, data.values, labels)
        with self._checkpoint(checkpoint, checkpoint_seconds, config, described) as kept:
            inputs = input_statistics(data.values, center=config.center)
            source = self._source(data, pairing, inputs, observer, kept)
            teacher = self._teacher(classes, config, len(data))
            towers = Towers(new_coders([inputs], config))
            if kept is None or not kept.has_state:
                self._take(start, towers, teacher, data.values)
            self._train(towers, source, teacher, config, observer, kept)
            calibrate(self._coder(), data.values)
        self.n_features_in_ = data.width
        self.pairing_ = pairing
        self.classes_ = None if classes is None else classes.names
        return self

    def initialize(self, X: Any) -> Self:
        """Take random weights and learn nothing but the embeddings' scale and the bits' balance.

        The floor that training is measured against; takes and raises what ``fit`` does.
        """
        data = as_embeddings(X, what="X")
        config = self._config(len(data), (), Silent())
        towers = Towers(new_coders([input_statistics(data.values, center=config.center)], config))
        self.towers_ = towers.to(self._device()).eval()
        calibrate(self._coder(), data.values)
        self.lengths_, self.history_, self.n_features_in_ = config.lengths, [], data.width
        self.pairing_, self.classes_, self.neighbor_recall_ = (), None, None
        return self

    def logits(self, X: Any) -> npt.NDArray[np.float32]:
        """Logits float32 (n, bits) of embeddings (n, d); their signs are the codes (paper, Eq. 2)."""
        return self._logits(self._coder(), X, "X")

    def encode(self, X: Any, bits: int | None = None) -> Codes:
        """Codes of embeddings (n, d), or their first ``bits`` bits."""
        return self._encode(self._coder(), X, bits, "X")

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model to a folder, atomically; ``force`` replaces what is there."""
        self._fitted()
        classes = None if self.classes_ is None else self.classes_.tolist()
        fitted = {
            "n_features_in": self.n_features_in_,
            "pairing": list(self.pairing_),
            "classes": classes,
            "neighbor_recall": self.neighbor_recall_,
        }
        self._save(path, fitted, force=force)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read what ``save`` wrote. A model of images comes back as an ``ImageHasher``, which is a ``Hasher``."""
        if model_kind(path) == "image hasher":
            from crovca.hasher.images import ImageHasher

            return cast("Self", ImageHasher.load(path, device=device))
        with config_errors(path):
            hasher, fitted, finish = cls._load(path, device)
            finish(Towers(hasher._empty_coders([fitted["n_features_in"]])))
            hasher.n_features_in_ = fitted["n_features_in"]
            hasher.pairing_ = tuple(fitted["pairing"])
            hasher.classes_ = None if fitted["classes"] is None else np.asarray(fitted["classes"])
            hasher.neighbor_recall_ = fitted["neighbor_recall"]
        return hasher

    def _coder(self) -> HashCoder:
        coder = self._fitted().coders[0]
        assert isinstance(coder, HashCoder)
        return coder

    def _resolve_pairing(
        self, data: Embeddings, labels: npt.NDArray[Any] | None, observer: Observer
    ) -> tuple[str, ...]:
        wanted = self.pairing
        if wanted == "auto":
            if labels is not None:
                found, why = "classes", "there are labels"
            elif data.views > 1:
                found, why = "views", f"there are {data.views} stored views of each item and no labels"
            else:
                found, why = "neighbors", "there are embeddings alone"
            observer.message(f"pairing: {found}, because {why}")
            return (found,)
        named = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        unknown = [name for name in named if name not in _PAIRINGS]
        if unknown or not named or len(set(named)) < len(named):
            raise ConfigError(f"pairing must be 'auto' or some of {list(_PAIRINGS)}, got {wanted!r}")
        if "classes" in named and labels is None:
            raise InvalidInputError("pairing 'classes' needs labels; give them as y, or leave 'classes' out")
        return named

    def _source(
        self,
        data: Embeddings,
        pairing: tuple[str, ...],
        inputs: InputStatistics,
        observer: Observer,
        kept: Checkpoint | None,
    ) -> ViewSource:
        if not 0 <= self.feature_dropout <= 0.9:
            raise ConfigError(f"feature_dropout must lie in [0, 0.9], got {self.feature_dropout!r}")
        sources: list[ViewSource] = []
        if "views" in pairing:
            sources.append(StoredViews(data.values, self._views(pairing)))
        if "neighbors" in pairing:
            rows = self._neighbor_rows(data, observer, kept)
            sources.append(NeighborViews(data.values, rows, self.feature_dropout, inputs.center))
        if not sources:
            return Copies(data.values, dropout=self.feature_dropout, center=inputs.center)
        return sources[0] if len(sources) == 1 else Mixed(sources)

    def _views(self, pairing: tuple[str, ...]) -> int:
        if isinstance(self.views, bool) or not isinstance(self.views, int) or self.views < 2:
            raise ConfigError(f"views must be a whole number of at least 2, got {self.views!r}")
        if self.views > 2 and "neighbors" in pairing:
            raise ConfigError("views and neighbors together make pairs: views must be 2")
        return self.views

    def _neighbor_rows(
        self, data: Embeddings, observer: Observer, kept: Checkpoint | None
    ) -> npt.NDArray[np.int64]:
        if not isinstance(self.neighbors, int) or self.neighbors < 1:
            raise ConfigError(f"neighbors must be a whole number of at least 1, got {self.neighbors!r}")
        if kept is not None and (rows := kept.load_array("neighbors")) is not None:
            recall = kept.load_array("neighbor_recall")
            self.neighbor_recall_ = None if recall is None else float(recall)
            return rows
        found: Neighborhood = find_shared_neighbors(
            data.values,
            self.neighbors,
            degenerate=data.degenerate,
            device=self._device(),
            seed=self.seed,
            advance=lambda share: observer.advance("neighbors", share),
        )
        if found.cells is not None:
            observer.message(
                f"neighbors: {len(data):,} items in {found.cells:,} cells; "
                f"{100 * found.recall:.1f} % of the true neighbors found (measured on a sample)"
            )
        self.neighbor_recall_ = found.recall
        if kept is not None:
            kept.save_array("neighbor_recall", np.asarray(found.recall))
            kept.save_array("neighbors", found.rows)
        return found.rows

    def _resolve_start(self, pairing: Sequence[str], steps: int) -> str:
        taught = "classes" in pairing and self.prototypes == "running"
        if self.start == "auto":
            if "classes" in pairing:
                return "classes" if taught and steps < SHORT_RUN else "random"
            return "clusters" if "neighbors" in pairing else "random"
        if self.start not in ("random", "classes", "clusters"):
            raise ConfigError(f"start must be 'auto', 'random', 'classes' or 'clusters', got {self.start!r}")
        if self.start == "classes" and not taught:
            raise ConfigError("start='classes' needs labels and prototypes='running'; use another start")
        return self.start

    def _take(self, start: str, towers: Towers, teacher: nn.Module, values: Rows) -> None:
        """Give the network the weights, and classes the prototypes, that training starts with."""
        coder = towers.coders[0]
        assert isinstance(coder, HashCoder)
        if start == "classes":
            assert isinstance(teacher, ClassPrototypes)
            start_from_classes(coder, teacher, values)
        elif start == "clusters":
            start_from_clusters(coder, values, seed=self.seed)

    def _teacher(self, classes: ClassMembership | None, config: TrainingConfig, items: int) -> nn.Module:
        if classes is None:
            return CrossView()
        if self.prototypes not in ("running", "batch"):
            raise ConfigError(f"prototypes must be 'running' or 'batch', got {self.prototypes!r}")
        index = torch.from_numpy(classes.index)
        if self.prototypes == "batch":
            return ClassPrototypes(index, classes.count, config.bits, momentum=0.0)
        return ClassPrototypes(
            index,
            classes.count,
            config.bits,
            settle_after=max(1, round(SETTLE_SHARE * config.steps(items))),
            apart=config.lengths[0],
        )


class CrossModalHasher(BaseHasher):
    """Learns codes that images and texts (or any two kinds of embeddings) have in common.

    Args:
        bits, nested, hashcoder, epochs, batch_size, learning_rate, weight_decay, diversity_weight, center,
            device, seed: as for ``Hasher``.
        shared: both modalities, where their widths agree, go through the same layers, each with its own scale
            and normalization; False: a network each.

    Attributes:
        widths_: (d_images, d_texts).
        lengths_, history_: as for ``Hasher``.
    """

    kind = "cross-modal hasher"

    def __init__(
        self,
        bits: int = 256,
        *,
        shared: bool = False,
        nested: Literal["auto", False] | Sequence[int] = "auto",
        hashcoder: HashCoderSize = "small",
        epochs: int | Literal["auto"] = "auto",
        batch_size: int = 256,
        learning_rate: float | Literal["auto"] = "auto",
        weight_decay: float | Literal["auto"] = "auto",
        diversity_weight: float | Literal["auto"] = "auto",
        center: bool | Literal["auto"] = "auto",
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        self.bits = bits
        self.shared = shared
        self.nested = nested
        self.hashcoder = hashcoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.diversity_weight = diversity_weight
        self.center = center
        self.device = device
        self.seed = seed

    def fit(
        self,
        images: Any,
        texts: Any,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 15.0,
        observer: Observer | None = None,
    ) -> Self:
        """Learn from pairs: row i of ``images`` belongs to row i of ``texts``.

        Args:
            images: (n, d) or (n, v, d), as for ``Hasher.fit``.
            texts: (n, e) or (n, w, e), for example w captions of each image, one of them drawn at each step.
            checkpoint, checkpoint_seconds: as for ``Hasher.fit``.
            observer: as for ``Hasher.fit``.
        """
        observer = observer or Silent()
        values, config = self._begun(images, texts, observer)
        source = Modalities(values)
        with self._checkpoint(checkpoint, checkpoint_seconds, config, lambda: fingerprint(*values)) as kept:
            towers = self._new_towers(values, config)
            self._train(towers, source, CrossView(), config, observer, kept)
            self._calibrate(towers, values)
        return self

    def initialize(self, images: Any, texts: Any) -> Self:
        """Take the random weights that ``fit`` begins with, and train nothing.

        The batch normalizations have the statistics of these embeddings. It is what a trained model is compared with
        (paper, Figure 6).

        Args:
            images, texts: as for ``fit``.
        """
        values, config = self._begun(images, texts, Silent())
        towers = self._new_towers(values, config)
        self._calibrate(towers, values)
        self.towers_, self.lengths_, self.history_ = towers.to(self._device()).eval(), config.lengths, []
        return self

    def logits(self, *, images: Any = None, texts: Any = None) -> npt.NDArray[np.float32]:
        """Logits float32 (n, bits) of images, or of texts."""
        coder, values, what = self._side(images, texts)
        return self._logits(coder, values, what)

    def encode(self, *, images: Any = None, texts: Any = None, bits: int | None = None) -> Codes:
        """Codes of images, or of texts, or their first ``bits`` bits."""
        coder, values, what = self._side(images, texts)
        return self._encode(coder, values, bits, what)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the model to a folder, atomically; ``force`` replaces what is there."""
        self._fitted()
        self._save(path, {"widths": list(self.widths_)}, force=force)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Read what ``save`` wrote. A model of images and texts comes back as an ``ImageTextHasher``."""
        if model_kind(path) == "image-text hasher":
            from crovca.hasher.images import ImageTextHasher

            return cast("Self", ImageTextHasher.load(path, device=device))
        with config_errors(path):
            hasher, fitted, finish = cls._load(path, device)
            hasher.widths_ = (fitted["widths"][0], fitted["widths"][1])
            finish(Towers(hasher._empty_coders(hasher.widths_), shared=hasher.shared))
        return hasher

    def _begun(self, images: Any, texts: Any, observer: Observer) -> tuple[list[Rows], TrainingConfig]:
        """Checked pairs, and how they are trained on."""
        parts = [as_embeddings(images, what="images"), as_embeddings(texts, what="texts")]
        if self.shared and parts[0].width != parts[1].width:
            raise ConfigError(
                f"one network for both modalities needs one width, got images of {parts[0].width} and texts "
                f"of {parts[1].width}; use shared=False"
            )
        values = [part.values for part in parts]
        return values, self._config(len(Modalities(values)), ("modalities",), observer)

    def _new_towers(self, values: Sequence[Rows], config: TrainingConfig) -> Towers:
        inputs = [input_statistics(part, center=config.center) for part in values]
        return Towers(new_coders(inputs, config), shared=self.shared)

    def _calibrate(self, towers: Towers, values: Sequence[Rows]) -> None:
        self.widths_ = (values[0].shape[-1], values[1].shape[-1])
        for coder, part in zip(towers.coders, values, strict=True):
            assert isinstance(coder, HashCoder)
            calibrate(coder, part)

    def _side(self, images: Any, texts: Any) -> tuple[HashCoder, Any, str]:
        towers = self._fitted()
        if (images is None) == (texts is None):
            raise InvalidInputError("give either images or texts")
        coder = towers.coders[0] if images is not None else towers.coders[-1]
        assert isinstance(coder, HashCoder)
        return (coder, images, "images") if images is not None else (coder, texts, "texts")
