"""Learning from images, or images and texts, through encoders that are adapted: what is handed to the training loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from crovca.data.embeddings import evenly_spaced
from crovca.data.labels import check_labels, to_membership
from crovca.embedding.blocks import counted, embed_blocks
from crovca.embedding.items import as_images, as_texts, name_of, plain, uncropped
from crovca.embedding.pool import ImagePool, memory_places
from crovca.encoders.augmentation import RECIPE
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.lora import Adapter, adapt
from crovca.errors import ConfigError, InvalidInputError
from crovca.hasher.fine_tuning import FineTuning
from crovca.hasher.fit import Fitted, Run, kept_run, require_one_width, teacher_of
from crovca.hasher.image_views import ImagesAndTexts, ImageViews
from crovca.hashing.config import TrainingConfig
from crovca.hashing.inputs import Scaling, input_statistics
from crovca.hashing.network import new_coders, set_statistics
from crovca.hashing.objective import HashObjective
from crovca.hashing.process_group import ProcessGroup
from crovca.hashing.state import Checkpoint, fingerprint
from crovca.hashing.towers import Tower, Towers
from crovca.hashing.train import train
from crovca.sources.source import Fault, Source

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

_SCALE_SAMPLE, _STATISTICS_SAMPLE = 1024, 4096
_COMPILE_PAYS = 1000  # steps: compiling takes about a minute, and saves a part of each step


class _Items(NamedTuple):
    """Rows of a source that are trained on, and the encoder that they go through."""

    source: Source[Any]
    encoder: Encoder | TextEncoder
    rows: npt.NDArray[np.int64]

    def sample(self, most: int, process_group: ProcessGroup) -> npt.NDArray[np.float32]:
        """Embeddings of at most ``most`` evenly spaced items; each process computes its part, all get the whole."""
        rows = process_group.share(self.rows[evenly_spaced(len(self.rows), most)])
        mine = [block.embeddings.cpu().numpy() for block in embed_blocks(self.source, self.encoder, rows)]
        own = np.concatenate(mine) if mine else np.zeros((0, self.encoder.width), np.float32)
        return np.concatenate(process_group.collect(own))


def fit_images(hasher: Hasher, X: Any, y: Any, texts: Any, run: Run) -> Fitted:
    """Adapt encoders to images, or to images and texts; takes and raises what ``Hasher.fit`` does."""
    settings = hasher.fine_tuning
    assert settings is not None
    paired = len(hasher.modalities) > 1
    source = as_images(X)
    labels = None if y is None else check_labels(np.asarray(y), len(source))
    if (paired and labels is not None) or (not paired and texts is not None):
        raise InvalidInputError(
            "images are taught by labels or by texts, not by both: Hasher.for_images, Hasher.for_pairs"
        )
    words, wrong = _texts_of(source, texts) if paired else (None, {})
    recipe = None if settings.crop_scale is None else replace(RECIPE, area=(settings.crop_scale, 1.0))
    if recipe is None and not paired:
        raise ConfigError("images alone are taught by augmented views: crop_scale must not be None")
    config = hasher._config(len(source), ("modalities",) if paired else ("images",), run.observer)
    encoders = [load_encoder(hasher, modality, settings.encoder, settings.revision) for modality in hasher.modalities]
    require_one_width(hasher, [encoder.width for encoder in encoders])
    encoder = encoders[0]
    assert isinstance(encoder, Encoder)

    def data() -> str:
        more = _texts_fingerprint(words) if words is not None else "" if labels is None else fingerprint(labels)
        return source.fingerprint + more

    more = {
        "encoder": str(settings.encoder),
        "encoder_weights": [encoder.identity["weights_sha256"] for encoder in encoders],
        "processes": run.process_group.size,
        "device": hasher._device().type,
    }
    prepare = plain(encoder.preprocessing) if recipe is None else uncropped(encoder.preprocessing.size)
    places = memory_places(encoder.device, share=run.process_group.local)
    with kept_run(hasher, run, config, data, **more) as kept, ImagePool(source, prepare, places=places) as pool:
        rows, left_out = _readable(pool, kept, run, wrong)
        classes = None if labels is None else to_membership(labels[rows])
        draw = 1 if paired else hasher.views
        pictures = ImageViews(pool, rows, encoder.preprocessing, encoder.device, draw=draw, recipe=recipe)
        views: ImageViews | ImagesAndTexts = pictures
        items = [_Items(source, encoder, rows)]
        if words is not None:
            chosen = [words[row] for row in rows]
            views = ImagesAndTexts(pictures, chosen)
            items.append(_Items(as_texts([several[0] for several in chosen]), encoders[1], np.arange(len(rows))))
        objective = HashObjective(teacher_of(hasher, classes, config, len(rows)), config)
        towers = _towers(hasher, settings, items, config, kept, run)
        device = hasher._device()
        cuda = [device] if device.type == "cuda" else []
        compiled = _compiled(settings, device, config.steps(len(rows)))
        with (
            torch.random.fork_rng(devices=cuda),
            towers.prepared(compiled=compiled, checkpointing=settings.gradient_checkpointing),
        ):
            history = train(
                towers,
                views,
                objective,
                config,
                device=device,
                observer=run.observer,
                checkpoint=kept,
                process_group=run.process_group,
                prefetch=2 if cuda else 0,
            )
        for coder, part in zip(towers.coders, items, strict=True):
            sample = part.sample(_STATISTICS_SAMPLE, run.process_group)
            set_statistics(coder, [torch.from_numpy(sample)])
    pairing = ("modalities",) if paired else ("views",) if classes is None else ("views", "classes")
    names = None if classes is None else classes.names
    return Fitted(towers, config, pairing, history, names, left_out=left_out)


def load_encoder(hasher: Hasher, modality: str, source: Any, revision: str | None) -> Encoder | TextEncoder:
    """The encoder of a modality, on the hasher's device; raises what ``Encoder.load`` does."""
    assert hasher.fine_tuning is not None
    kind: type[Encoder | TextEncoder] = Encoder if modality == "images" else TextEncoder
    return kind.load(source, revision=revision, device=str(hasher._device()), dtype=hasher.fine_tuning.dtype)


def _towers(
    hasher: Hasher,
    settings: FineTuning,
    items: Sequence[_Items],
    config: TrainingConfig,
    kept: Checkpoint | None,
    run: Run,
) -> Towers:
    """The network as training begins; what is measured of the embeddings is in the state of a run that goes on."""
    resumed = kept is not None and run.process_group.first(lambda: kept.has_state)
    encoders = [part.encoder for part in items]
    inputs = [
        Scaling.blank(part.encoder.width)
        if resumed
        else input_statistics(part.sample(_SCALE_SAMPLE, run.process_group), center=config.center)
        for part in items
    ]
    adapters: list[Adapter | None] = [
        None
        if settings.lora_rank is None
        else adapt(encoder, rank=settings.lora_rank, dropout=settings.lora_dropout, seed=hasher.seed + number)
        for number, encoder in enumerate(encoders)
    ]
    coders = new_coders(inputs, config.bits, config.hashcoder, logit_scale=config.logit_scale, seed=config.seed)
    towers = Towers(
        [Tower(*parts) for parts in zip(coders, hasher.modalities, encoders, adapters, strict=True)],
        shared=hasher.shared,
        head_epochs=settings.head_epochs,
        process_group=run.process_group,
    )
    run.observer.message(
        f"{towers.trained:,} of {towers.total:,} parameters are trained "
        f"({100 * towers.trained / towers.total:.2f} %), {_layers(adapters)}"
    )
    frozen = [p for encoder in encoders for n, p in encoder.model.named_parameters() if ".lora_" not in n]
    assert not any(parameter.requires_grad for parameter in frozen)
    return towers


def _compiled(settings: FineTuning, device: torch.device, steps: int) -> str | None:
    wanted = settings.compile
    if wanted == "auto":
        wanted = device.type == "cuda" and steps >= _COMPILE_PAYS
    if isinstance(wanted, str):
        return wanted
    return "inductor" if wanted else None


def _readable(
    pool: ImagePool, kept: Checkpoint | None, run: Run, also: dict[int, Fault]
) -> tuple[npt.NDArray[np.int64], dict[str, int]]:
    """Rows that can be trained on, and how many others there are, by reason; what is left out is said."""
    source, group = pool.source, run.process_group
    if kept is not None and (rows := kept.load_array("rows")) is not None:
        before = kept.load_array("left_out")
        return rows, dict(Counter([] if before is None else before.tolist()))
    mine = np.arange(len(source))[group.rank :: group.size]
    faults = dict(also)
    for part in group.collect(pool.readable(mine, lambda share: run.observer.advance("decoding", share))):
        faults.update(part)
    rows = np.setdiff1d(np.arange(len(source)), np.array(sorted(faults), np.int64))
    reasons = [reason for reason, _ in faults.values()]
    if faults:
        first = min(faults)
        run.observer.message(
            f"{len(faults):,} of {len(source):,} items are left out ({counted(Counter(reasons))}), the first is "
            f"{name_of(source, first)}: {faults[first][1]}"
        )
    if len(rows) < 2:
        raise InvalidInputError(
            f"training needs at least 2 items that can be read; of {len(source):,} there are {len(rows)}"
        )
    if kept is not None:
        kept.save_array("left_out", np.array(reasons, np.str_))
        kept.save_array("rows", rows)
    return rows, dict(Counter(reasons))


def _texts_of(source: Source[Any], texts: Any) -> tuple[list[list[str]], dict[int, Fault]]:
    """The texts of each image, and the images that have none."""
    given: Any = source.captions if texts is None else texts
    if given is None:
        raise InvalidInputError(f"these images (a {source.kind}) have no captions of their own; give the texts as well")
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        raise InvalidInputError(f"texts must be a list of strings, or of lists of them; got {type(given).__name__}")
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


def _texts_fingerprint(texts: Sequence[Sequence[str]]) -> str:
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
