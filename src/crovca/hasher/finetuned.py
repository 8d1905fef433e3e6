"""What hashers with encoders in them share: adapting, training, files, and blocks of embeddings of images and texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crovca.data.embeddings import evenly_spaced
from crovca.embedding.items import as_images, name_of, plain, uncropped
from crovca.embedding.pool import ImagePool, counted, memory_places
from crovca.encoders.encoder import Encoder, TextEncoder, choose_device
from crovca.encoders.lora import Adapter, adapt
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import ConfigError, EncoderError, FileFormatError, InvalidInputError
from crovca.hasher.base import BaseHasher, new_coders
from crovca.hasher.towers import AdaptedTowers
from crovca.hashing.config import PRESETS, TrainingConfig
from crovca.hashing.network import HashCoder, InputStatistics, input_statistics, set_statistics
from crovca.hashing.process_group import ProcessGroup
from crovca.hashing.state import Checkpoint
from crovca.hashing.train import Observer
from crovca.sources.decode import UnreadableItem
from crovca.sources.source import Fault, Source

__all__ = [
    "Blocks",
    "EncodedImages",
    "FineTuned",
    "chosen_blocks",
    "image_blocks",
    "text_blocks",
    "texts_fingerprint",
    "texts_of",
]

_BATCH = {"cpu": 32, "cuda": 256}  # items that are embedded at once
_SCALE_SAMPLE, _STATISTICS_SAMPLE = 1024, 4096
_COMPILE_PAYS = 1000  # steps: compiling takes about a minute, and saves a part of each step


class EncodedImages(NamedTuple):
    """What became of the items of a source.

    Attributes:
        rows: (m,) those that could be read, ascending.
        logits: float32 (m, bits).
        embeddings: float32 (m, d) of the adapted encoder, or None.
        faults: why the others could not be read.
    """

    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32] | None
    faults: dict[int, Fault]


class FineTuned(BaseHasher):
    """What hashers with encoders in them share."""

    encoder: str | Path
    revision: str | None
    lora_rank: int | None
    lora_dropout: float
    crop_scale: float | None
    head_epochs: int
    gradient_checkpointing: bool
    compile: Literal["auto"] | bool | str
    dtype: str
    center = "auto"

    towers_: AdaptedTowers
    adapters_: tuple[Adapter | None, ...]
    left_out_: dict[str, int]
    modalities: tuple[str, ...] = ("images",)

    @classmethod
    def from_preset(cls, name: str, **parameters: Any) -> Self:
        """A hasher with the settings of one column of the paper's Table 8, those of LoRA and the crops included."""
        if name in PRESETS:
            preset = PRESETS[name]
            ours: dict[str, Any] = {"lora_rank": preset.lora_rank, "crop_scale": preset.crop_scale}
            if preset.lora_dropout is not None:
                ours["lora_dropout"] = preset.lora_dropout
            parameters = {**ours, **parameters}
        return super().from_preset(name, **parameters)

    def initialize(self, *_: Any, **__: Any) -> Self:
        """Refused: it is for embeddings, whose width is all that a HashCoder without training needs."""
        raise ConfigError(
            f"{type(self).__name__} has an encoder in it; a HashCoder at random weights takes embeddings: use "
            "Hasher or CrossModalHasher"
        )

    # --- training ---

    def _open(self, encoder: str | Path) -> list[Encoder | TextEncoder]:
        if not str(encoder):
            raise ConfigError("give an encoder: the folder of a model, or its id on the hub")
        kinds: dict[str, type[Encoder | TextEncoder]] = {"images": Encoder, "texts": TextEncoder}
        return [
            kinds[modality].load(
                encoder if isinstance(encoder, Path) else str(encoder),
                revision=self.revision,
                device=str(self._device()),
                dtype=self.dtype,
            )
            for modality in self.modalities
        ]

    def _adapt(self, encoders: Sequence[Encoder | TextEncoder]) -> tuple[Adapter | None, ...]:
        if self.lora_rank is None:
            return tuple(None for _ in encoders)
        return tuple(
            adapt(encoder, rank=self.lora_rank, dropout=self.lora_dropout, seed=self.seed + number)
            for number, encoder in enumerate(encoders)
        )

    @contextmanager
    def _pool(
        self, source: Source[Any], encoder: Encoder, process_group: ProcessGroup, *, whole: bool
    ) -> Iterator[ImagePool]:
        prepare = uncropped(encoder.preprocessing.size) if whole else plain(encoder.preprocessing)
        places = memory_places(encoder.device, share=process_group.local)
        with ImagePool(source, prepare, places=places) as pool:
            yield pool

    def _compiled(self, steps: int) -> str | None:
        wanted = self.compile
        if wanted == "auto":
            wanted = self._device().type == "cuda" and steps >= _COMPILE_PAYS
        if isinstance(wanted, str):
            return wanted
        return "inductor" if wanted else None

    def _run(
        self,
        sources: Sequence[Blocks],
        encoders: Sequence[Encoder | TextEncoder],
        views: Any,
        teacher: torch.nn.Module,
        config: TrainingConfig,
        observer: Observer,
        kept: Checkpoint | None,
        process_group: ProcessGroup,
    ) -> None:
        """Put the network together, train it, and set what is measured before and after."""
        resumed = kept is not None and process_group.first(lambda: kept.has_state)
        inputs = [
            InputStatistics(torch.zeros(encoder.width), torch.ones(()))
            if resumed  # they are in the state
            else input_statistics(
                _sample(blocks, len(views), _SCALE_SAMPLE, process_group), center=config.center
            )
            for encoder, blocks in zip(encoders, sources, strict=True)
        ]
        adapters = self._adapt(encoders)
        towers = AdaptedTowers(
            new_coders(inputs, config),
            encoders,
            adapters,
            head_epochs=self.head_epochs if self.lora_rank is not None else config.epochs,
            shared=getattr(self, "shared", False),
            process_group=process_group,
        )
        observer.message(
            f"{towers.trained:,} of {towers.total:,} parameters are trained "
            f"({100 * towers.trained / towers.total:.2f} %), {_layers(adapters)}"
        )
        frozen = [p for e in encoders for n, p in e.model.named_parameters() if ".lora_" not in n]
        assert not any(parameter.requires_grad for parameter in frozen)
        device = self._device()
        compiled = self._compiled(config.steps(len(views)))
        cuda = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=cuda),
            towers.prepared(compiled=compiled, checkpointing=self.gradient_checkpointing),
        ):
            self._train(
                towers,
                views,
                teacher,
                config,
                observer,
                kept,
                process_group=process_group,
                prefetch=2 if cuda else 0,
            )
        for coder, blocks in zip(towers.coders, sources, strict=True):
            assert isinstance(coder, HashCoder)
            sample = _sample(blocks, len(views), _STATISTICS_SAMPLE, process_group)
            set_statistics(coder, [torch.from_numpy(sample)])
        self.adapters_ = adapters

    def _readable(
        self,
        pool: ImagePool,
        kept: Checkpoint | None,
        observer: Observer,
        process_group: ProcessGroup,
        also: dict[int, Fault] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Rows that can be trained on; what is left out is said."""
        source = pool.source
        if kept is not None and (rows := kept.load_array("rows")) is not None:
            reasons = kept.load_array("left_out")
            self.left_out_ = (
                {} if reasons is None else dict(zip(*np.unique(reasons, return_counts=True), strict=True))
            )
            self.left_out_ = {str(reason): int(count) for reason, count in self.left_out_.items()}
            return rows
        mine = np.arange(len(source))[process_group.rank :: process_group.size]
        faults = dict(also or {})
        for part in process_group.collect(
            pool.readable(mine, lambda share: observer.advance("decoding", share))
        ):
            faults.update(part)
        rows = np.setdiff1d(np.arange(len(source)), np.array(sorted(faults), np.int64))
        if faults:
            first = min(faults)
            observer.message(
                f"{len(faults):,} of {len(source):,} items are left out ({counted(faults)}), the first is "
                f"{name_of(source, first)}: {faults[first][1]}"
            )
        if len(rows) < 2:
            raise InvalidInputError(
                f"training needs at least 2 items that can be read; of {len(source):,} there are {len(rows)}"
            )
        self.left_out_ = {}
        for reason, _ in faults.values():
            self.left_out_[reason] = self.left_out_.get(reason, 0) + 1
        if kept is not None:
            kept.save_array("left_out", np.array([reason for reason, _ in faults.values()], np.str_))
            kept.save_array("rows", rows)
        return rows

    def _begin(
        self,
        checkpoint: str | Path | None,
        seconds: float,
        config: TrainingConfig,
        data: Callable[[], str],
        encoders: Sequence[Encoder | TextEncoder],
        process_group: ProcessGroup,
    ) -> Any:
        return self._checkpoint(
            checkpoint,
            seconds,
            config,
            data,
            process_group=process_group,
            encoder=str(self.encoder),
            encoder_weights=[encoder.identity["weights_sha256"] for encoder in encoders],
            processes=process_group.size,
            device=choose_device(self.device).type,
        )

    # --- files ---

    def _described(self) -> dict[str, Any]:
        described = []
        for modality, encoder, adapter in zip(
            self.modalities, self.towers_.encoders, self.adapters_, strict=True
        ):
            entry: dict[str, Any] = {"modality": modality, **encoder.identity, "width": encoder.width}
            source = Path(str(entry["source"]))
            if source.is_dir():
                entry["source"] = str(source.resolve())
            if isinstance(encoder, Encoder):
                entry["preprocessing"] = encoder.preprocessing.to_dict()
            entry["lora"] = None
            if adapter is not None:
                entry["lora"] = {
                    "rank": adapter.rank,
                    "alpha": adapter.rank,
                    "dropout": adapter.dropout,
                    "targets": list(adapter.targets),
                }
            described.append(entry)
        return {"encoders": described, "left_out": self.left_out_}

    def _restored(
        self, path: str | Path, fitted: dict[str, Any], elsewhere: str | Path | None
    ) -> AdaptedTowers:
        """The encoders that a model was trained with, adapted; its weights are not read yet."""
        described = fitted["encoders"]
        if [entry["modality"] for entry in described] != list(self.modalities):
            raise FileFormatError(f"{path}: config.json names other encoders than {list(self.modalities)}")
        encoders, adapters = [], []
        for entry in described:
            encoder = self._reopened(path, entry, elsewhere)
            lora = entry["lora"]
            encoders.append(encoder)
            adapters.append(
                None
                if lora is None
                else adapt(encoder, rank=lora["rank"], dropout=lora["dropout"], targets=lora["targets"])
            )
        self.adapters_ = tuple(adapters)
        self.left_out_ = fitted["left_out"]
        coders = self._empty_coders([entry["width"] for entry in described])
        return AdaptedTowers(coders, encoders, adapters, shared=getattr(self, "shared", False))

    def _reopened(
        self, path: str | Path, entry: dict[str, Any], elsewhere: str | Path | None
    ) -> Encoder | TextEncoder:
        kind = Encoder if entry["modality"] == "images" else TextEncoder
        source = entry["source"] if elsewhere is None else elsewhere
        revision = entry["revision"] if elsewhere is None else None
        try:
            encoder = kind.load(source, revision=revision, device=str(self._device()), dtype=self.dtype)
        except (ConfigError, EncoderError) as error:
            raise type(error)(
                f"{path} needs its encoder {entry['source']}: {error}; if it lies elsewhere, name its folder "
                "(--encoder, or encoder=)"
            ) from error
        if encoder.identity["weights_sha256"] != entry["weights_sha256"]:
            raise FileFormatError(
                f"{path} was trained with other weights of {source} (sha256 {entry['weights_sha256'][:12]}…, now "
                f"{str(encoder.identity['weights_sha256'])[:12]}…); give the encoder that it was trained with"
            )
        if encoder.width != entry["width"]:
            raise FileFormatError(
                f"{path} was trained with embeddings of {entry['width']} numbers, {source} gives {encoder.width}"
            )
        if isinstance(encoder, Encoder):
            encoder.preprocessing = Preprocessing.from_dict(entry["preprocessing"])
        return encoder

    # --- use ---

    def _image_encoder(self) -> Encoder:
        self._fitted()
        encoder = self.towers_.encoders[0]
        assert isinstance(encoder, Encoder)
        return encoder

    def encode_source(
        self,
        images: Any,
        *,
        embeddings: bool = False,
        advance: Callable[[float], None] = lambda _: None,
    ) -> EncodedImages:
        """Logits of every image that can be read, and what is wrong with the others.

        Args:
            images: a source, the path of one, or a list, as ``encode`` takes it.
            embeddings: give the adapted encoder's embeddings as well.
            advance: told what share is done.
        """
        encoder = self._image_encoder()
        source = as_images(images)
        coder = self.towers_.coders[0]
        assert isinstance(coder, HashCoder)
        rows, logits, floats, faults, done = [], [], [], {}, 0
        blocks = image_blocks(source, encoder)
        for block, values, wrong in blocks(np.arange(len(source))):
            rows += block
            faults.update(wrong)
            if len(block):
                with torch.no_grad():
                    logits.append(coder(values).float().cpu().numpy())
                if embeddings:
                    floats.append(values.cpu().numpy())
            done += len(block) + len(wrong)
            advance(done / max(len(source), 1))
        none = np.zeros((0, coder.bits), np.float32)
        return EncodedImages(
            np.array(rows, np.int64),
            np.concatenate([none, *logits]),
            np.concatenate([np.zeros((0, encoder.width), np.float32), *floats]) if embeddings else None,
            faults,
        )

    def _of_images(self, images: Any, *, embeddings: bool = False) -> EncodedImages:
        source = as_images(images)
        found = self.encode_source(source, embeddings=embeddings)
        if found.faults:
            row = min(found.faults)
            more = f" (and {len(found.faults) - 1} more cannot be read)" if len(found.faults) > 1 else ""
            reason, detail = found.faults[row]
            raise InvalidInputError(f"{name_of(source, row)} cannot be read: {reason}: {detail}{more}")
        return found


# --- blocks of embeddings -------------------------------------------------------------------------------------------

_Block = tuple[list[int], Tensor, dict[int, Fault]]
Blocks = Callable[[npt.NDArray[np.int64]], Iterator[_Block]]
"""From rows to blocks: the rows that could be read, their embeddings (m, d) on the device, and the faults of others."""


def image_blocks(source: Source[Any], encoder: Encoder) -> Blocks:
    """Embeddings of a source's images, resized and cropped as the encoder has it."""

    def blocks(rows: npt.NDArray[np.int64]) -> Iterator[_Block]:
        with ImagePool(source, plain(encoder.preprocessing)) as pool:
            for part, images in pool.blocks(rows, _BATCH[encoder.device.type]):
                good, pixels, faults = [], [], {}
                for row, image in zip(part.tolist(), images, strict=True):
                    if isinstance(image, UnreadableItem):
                        faults[row] = (image.reason, image.detail)
                    else:
                        good.append(row)
                        pixels.append(image)
                values = torch.zeros(0, encoder.width)
                if pixels:
                    batch = torch.stack(pixels).to(encoder.device)
                    values = encoder.embed(encoder.preprocessing.normalize(batch))
                yield good, values, faults

    return blocks


def text_blocks(texts: Sequence[str], encoder: TextEncoder) -> Blocks:
    """Embeddings of texts."""

    def blocks(rows: npt.NDArray[np.int64]) -> Iterator[_Block]:
        size = _BATCH[encoder.device.type]
        for start in range(0, len(rows), size):
            part = rows[start : start + size].tolist()
            yield part, encoder.embed([texts[row] for row in part]), {}

    return blocks


def chosen_blocks(blocks: Blocks, rows: npt.NDArray[np.int64]) -> Blocks:
    """The same, of some rows alone: number i is ``rows[i]``."""
    return lambda numbers: blocks(rows[numbers])


def _sample(blocks: Blocks, items: int, most: int, process_group: ProcessGroup) -> npt.NDArray[np.float32]:
    """Embeddings of at most ``most`` evenly spaced items; each process computes its part, all get the whole."""
    rows = evenly_spaced(items, most)
    mine = [values.cpu().numpy() for _, values, _ in blocks(process_group.share(rows))]
    parts = process_group.collect(np.concatenate(mine) if mine else None)
    return np.concatenate([part for part in parts if part is not None])


# --- texts ------------------------------------------------------------------------------------------------------------


def texts_of(
    source: Source[Any], texts: Sequence[str] | Sequence[Sequence[str]] | None
) -> tuple[list[list[str]], dict[int, Fault]]:
    """The texts of each image, and the images that have none."""
    given: Any = source.captions if texts is None else texts
    if given is None:
        raise InvalidInputError(
            f"these images (a {source.kind}) have no captions of their own; give the texts as well"
        )
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise InvalidInputError(
            f"texts must be a list of strings, or of lists of them; got {type(given).__name__}"
        )
    if len(given) != len(source):
        raise InvalidInputError(
            f"there are {len(source):,} images and texts of {len(given):,} items; they must be pairs"
        )
    found, faults = [], {}
    for row, item in enumerate(given):
        several = [item] if isinstance(item, str) else list(item if item is not None else [])
        if not all(isinstance(text, str) for text in several):
            raise InvalidInputError(f"texts must be strings, or lists of them; item {row} is {item!r:.80}")
        several = [text for text in several if text.strip()]
        if not several:
            faults[row] = ("empty", "no text belongs to it")
        found.append(several)
    return found, faults


def texts_fingerprint(texts: Sequence[Sequence[str]]) -> str:
    """SHA-256 over all texts."""
    digest = hashlib.sha256()
    for several in texts:
        digest.update("\0".join([*several, ""]).encode("utf-8", "surrogatepass") + b"\1")
    return digest.hexdigest()


def _layers(adapters: Sequence[Adapter | None]) -> str:
    count = sum(len(adapter.targets) for adapter in adapters if adapter is not None)
    if not count:
        return "the encoder is frozen"
    rank = next(adapter.rank for adapter in adapters if adapter is not None)
    return f"LoRA of rank {rank} in {count} layers of the encoder"
