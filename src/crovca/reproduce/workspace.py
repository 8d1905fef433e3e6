"""Where recipes work: models and codes, on top of benchmarks and embeddings; each made once and kept below one folder.

::

    WORK/models/MODEL/seed-0/                      models; seed-0.partial while one is trained
    WORK/codes/MODEL/seed-0/DATASET-SPLIT.npz      codes and logits; DATASET-SPLIT.partial/ while they are made
    WORK/codes/MODEL/seed-0/DATASET-SPLIT.texts.npz   likewise of texts

and what ``inputs`` and ``pairs`` keep. What stands there whole is never made again. A model's name says all that it was
trained with, so that shortened runs never pass for the paper's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crovca.codes import Codes
from crovca.data.embeddings import Embeddings
from crovca.data.encoded import Encoded
from crovca.errors import ConfigError
from crovca.files import load_arrays, remove, save_arrays
from crovca.hasher import Hasher
from crovca.hasher.hasher import EncodedItems
from crovca.hashing.config import PRESETS, TrainingConfig
from crovca.reproduce.inputs import NESTED_LENGTHS, STATISTICS, Inputs, slice_source
from crovca.reproduce.pairs import fit_pairs, labels_of, listed_texts, text_embeddings, texts_of
from crovca.sources.opening import open_texts
from crovca.sources.source import Source

if TYPE_CHECKING:
    from crovca.reproduce.paper import Training

CHANGES = ("epochs", "batch_size", "learning_rate", "weight_decay", "diversity_weight")
"""Settings of the paper's Table 8 that a run may change."""
_PART = 8192  # images whose codes are written at once


class Workspace(Inputs):
    """Models and codes of the paper's recipes.

    Args:
        data, work, weights, device, dtype, protocols, observer: as for ``Inputs``.
        training: changes to the paper's settings, of ``CHANGES``; they are part of every model's name.
        nested: one model of ``NESTED_LENGTHS`` instead of one for each length.
    """

    def __init__(
        self,
        data: str | Path,
        work: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        nested: bool = False,
        **inputs: Any,
    ) -> None:
        super().__init__(data, work, **inputs)
        self.training, self.nested = dict(training or {}), nested
        self._model: tuple[Path, Any] | None = None
        self._failed: dict[Path, Exception] = {}
        unknown = [name for name in self.training if name not in CHANGES]
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}; expected some of {', '.join(CHANGES)}")
        given = {name: value for name, value in self.training.items() if value != "auto"}
        TrainingConfig(lengths=NESTED_LENGTHS[:1], **{"epochs": 1, **given})  # refuses what is out of range

    def name_of(self, training: Training) -> str:
        """The name of a model: everything that it is trained with."""
        parts = [training.encoder, training.dataset, training.setting]
        if training.setting == "random":
            return "-".join([*parts, f"{training.preset}-{training.bits}bits"])
        bits = "nested" if self.nested else f"{training.bits}bits"
        changes = [f"{name}={value}" for name, value in sorted(self.training.items())]
        return "-".join([*parts, training.fitting, training.preset, bits, *changes])

    def model(self, training: Training, seed: int) -> Any:
        """A fitted hasher: read where it is kept, else trained, going on where an earlier run stopped."""
        bits = NESTED_LENGTHS[-1] if self.nested else training.bits
        if "text" in self.protocols[training.dataset].task:

            def pair(checkpoint: Path | None = None, **_: Any) -> Any:
                parameters = self.parameters(training.encoder, bits, seed)
                return fit_pairs(self, training, parameters, checkpoint)

            return pair() if training.setting == "random" else self.keep(training, seed, pair)
        if training.setting == "random":
            values = self.embeddings(training.encoder, training.dataset, STATISTICS)
            size = PRESETS[training.preset].hashcoder
            parameters: dict[str, Any] = {"nested": False, "faithfulness": "kinds", "hashcoder": size, "epochs": 1}
            return Hasher(training.bits, **parameters, device=self.device, seed=seed).initialize(values)

        def fit(**saving: Any) -> Hasher:
            frozen = {"lora_rank": None} if training.fitting == "probing" else {}
            chosen = {**self.parameters(training.encoder, bits, seed), **frozen}
            source = self.source(training.dataset, "train")
            labels = source.labels if training.setting == "supervised" else None
            return Hasher.for_images(preset=training.preset, **chosen).fit(source, labels, **saving)

        return self.keep(training, seed, fit)

    def parameters(self, encoder: str, bits: int, seed: int) -> dict[str, Any]:
        """What a hasher of images (and texts) is made with, besides its preset."""
        return {
            "encoder": self.fetched(encoder),
            "bits": bits,
            "nested": NESTED_LENGTHS[:-1] if self.nested else False,
            "seed": seed,
            "device": self.device,
            "dtype": self.dtype,
            **self.training,
        }

    def keep(self, training: Training, seed: int, fit: Callable[..., Any]) -> Any:
        """The model of a training, from its folder, or from ``fit(checkpoint=..., observer=...)`` and then saved."""
        self.require_same_weights(training.encoder)
        folder = self.work / "models" / self.name_of(training) / f"seed-{seed}"
        if self._model is None or self._model[0] != folder:
            self._model = None  # two encoders at once may not fit into the memory of a GPU
            if not folder.exists():
                self._train(training.encoder, folder, fit)
            elsewhere = self.weights.get(training.encoder)
            frozen = training.setting == "pairs" and training.fitting == "probing"
            self._model = (folder, Hasher.load(folder, device=self.device, encoder=None if frozen else elsewhere))
        return self._model[1]

    def _train(self, encoder: str, folder: Path, fit: Callable[..., Any]) -> None:
        """Train and save; what failed once is not tried again for the next number that needs it."""
        if folder in self._failed:
            raise self._failed[folder]
        partial = folder.with_name(f"{folder.name}.partial")
        self.observer.message(f"training {folder.parent.name}, {folder.name}")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            fitted = fit(checkpoint=partial, observer=self.observer)
            for tower in fitted.towers_:
                if tower.encoder is not None:
                    self.note_weights(encoder, tower.encoder.identity)
            fitted.save(folder)
        except Exception as error:
            self._failed[folder] = error
            raise
        remove(partial)

    # --- codes ---

    def encoded(self, training: Training, seed: int, dataset: str, split: str) -> Encoded:
        """Codes and logits of a split's images, of ``training.bits`` bits. What cannot be read is left out."""
        self.require_same_weights(training.encoder)
        name, _ = self.split(dataset, split)
        found = self._codes(
            training,
            seed,
            f"{dataset}/{name}",
            lambda: self.embeddings(training.encoder, dataset, split),
            lambda: self.source(dataset, split),
        )
        items = len(self.source(dataset, split))
        if len(found) < items:
            self.left_out.setdefault(f"{dataset}/{name}", {"unreadable": items - len(found)})
        return found

    def encoded_texts(self, training: Training, seed: int, dataset: str, split: str) -> Encoded:
        """Codes and logits of the texts of a split, of ``training.bits`` bits."""
        self.require_same_weights(training.encoder)
        texts = texts_of(self.dataset(dataset), split)
        found = self._codes(
            training,
            seed,
            f"{dataset}/{split}.texts",
            lambda: text_embeddings(self, training.encoder, dataset, split),
            lambda: open_texts(listed_texts(self, dataset, split)),
        )
        assert found.ids is not None
        return replace(found, labels=labels_of(found.ids, texts.ids, texts.labels))

    def _codes(
        self,
        training: Training,
        seed: int,
        where: str,
        embeddings: Callable[[], Embeddings],
        source: Callable[[], Source[Any]],
    ) -> Encoded:
        """Codes from their file; else made, from embeddings where the encoder is frozen, and kept there."""
        folder = self.work / "codes" / self.name_of(training) / f"seed-{seed}"
        path = folder / f"{where.replace('/', '-')}.npz"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            hasher, partial = self.model(training, seed), path.with_suffix(".partial")
            modality = hasher.modalities[-1 if where.endswith(".texts") else 0]
            if training.setting == "random" or training.fitting == "probing":
                items = embeddings()
                logits = hasher.logits_of_embeddings(items, modality=modality)
                Encoded(Codes.from_logits(logits), items.ids, items.labels, logits).save(path)
            else:
                encode = partial_of(hasher.encode_source, modality=modality)
                self.encode_parts(encode, source(), partial, where).save(path)
            remove(partial)
        return Encoded.load(path).prefix(training.bits)

    def encode_parts(
        self, encode: Callable[[Source[Any]], EncodedItems], source: Source[Any], partial: Path, where: str
    ) -> Encoded:
        """Codes of a source's items, written part by part into a folder, so that a run that was killed goes on.

        The folder may be removed when the codes are saved. ``where`` is what messages call the items.
        """
        partial.mkdir(parents=True, exist_ok=True)
        rows, logits = [], []
        reasons: Counter[str] = Counter()
        for start in range(0, len(source), _PART):
            file = partial / f"{start:09d}.npz"
            if not file.exists():
                part = slice_source(source, start, start + _PART)
                found = encode(part)
                wrong = np.array([reason for reason, _ in found.faults.values()], np.str_)
                save_arrays(file, rows=found.rows + start, logits=found.logits, reasons=wrong)
            arrays = load_arrays(file, required=("rows", "logits", "reasons"))
            rows.append(arrays["rows"])
            logits.append(arrays["logits"])
            reasons.update(arrays["reasons"].tolist())
            self.observer.advance("encoding", min(start + _PART, len(source)) / len(source))
        self.note_left_out(where, reasons)
        chosen, values = np.concatenate(rows), np.concatenate(logits)
        labels = None if source.labels is None else source.labels[chosen]
        return Encoded(Codes.from_logits(values), source.ids[chosen], labels, values)
