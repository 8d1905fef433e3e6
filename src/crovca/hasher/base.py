"""What all hashers share: parameters to settings, the run, blocks of logits, files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

import crovca
from crovca.codes import Codes, check_bits
from crovca.data.embeddings import Embeddings, Rows, chunks
from crovca.errors import (
    ConfigError,
    CrovcaError,
    CrovcaWarning,
    FileFormatError,
    InvalidInputError,
    NotFittedError,
    StorageError,
    TrainingError,
)
from crovca.hashing.config import (
    PRESETS,
    HashCoderSize,
    TrainingConfig,
    default_epochs,
    nested_lengths,
    recipe,
)
from crovca.hashing.network import HashCoder, InputStatistics, Towers
from crovca.hashing.process_group import ALONE, ProcessGroup
from crovca.hashing.state import Checkpoint, read_model, write_model
from crovca.hashing.train import Observer, train
from crovca.hashing.views import ViewSource

__all__ = ["BaseHasher", "config_errors", "new_coders"]

_BLOCK = 8192


class BaseHasher(BaseEstimator):  # type: ignore[misc]
    """Parameters to settings, the run, blocks of logits, files."""

    kind: str
    bits: int
    nested: Any
    hashcoder: HashCoderSize
    epochs: int | Literal["auto"]
    batch_size: int
    learning_rate: float | Literal["auto"]
    weight_decay: float | Literal["auto"]
    diversity_weight: float | Literal["auto"]
    center: bool | Literal["auto"]
    logit_scale: float | Literal["auto"] = "auto"
    device: str
    seed: int

    towers_: Towers
    lengths_: tuple[int, ...]
    history_: list[dict[str, Any]]

    @classmethod
    def from_preset(cls, name: str, **parameters: Any) -> Self:
        """A hasher with the settings of one column of the paper's Table 8: one length, batch prototypes.

        Args:
            name: "small", "imagenet1k", "text-small" or "cc3m".
            **parameters: of the constructor; they win over the preset's.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; expected one of {list(PRESETS)}")
        preset = PRESETS[name]
        settings: dict[str, Any] = {
            "nested": False,
            "hashcoder": preset.hashcoder,
            "epochs": preset.epochs,
            "batch_size": preset.batch_size,
            "learning_rate": preset.learning_rate,
            "weight_decay": preset.weight_decay,
            "diversity_weight": preset.diversity_weight,
            "views": preset.views,
            "center": False,
            "logit_scale": 1.0,
            "prototypes": "batch",
            "start": "random",
        }
        known = cls._get_param_names()
        return cls(**{**{key: value for key, value in settings.items() if key in known}, **parameters})

    def _config(self, items: int, pairing: Sequence[str], observer: Observer) -> TrainingConfig:
        bits = check_bits(self.bits)
        if items < 2:
            raise InvalidInputError(f"training needs at least 2 items, got {items}")
        if isinstance(self.batch_size, int) and items < self.batch_size:
            observer.message(f"batches of {items}: there are fewer items than batch_size = {self.batch_size}")
        epochs = self.epochs
        if epochs == "auto":
            epochs = default_epochs(items, self.batch_size, supervised="classes" in pairing)
        automatic = recipe(pairing)
        return TrainingConfig(
            lengths=nested_lengths(bits, self.nested),
            epochs=epochs,
            hashcoder=self.hashcoder,
            batch_size=self.batch_size,
            learning_rate=_or(self.learning_rate, automatic.learning_rate),
            weight_decay=_or(self.weight_decay, automatic.weight_decay),
            diversity_weight=_or(self.diversity_weight, automatic.diversity_weight),
            center=_or(self.center, automatic.center),
            logit_scale=_or(self.logit_scale, automatic.logit_scale),
            seed=self.seed,
        )

    def _device(self) -> torch.device:
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"unknown device {name!r}; use 'auto', 'cpu' or 'cuda'")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"there is no device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices; "
                "use 'auto' or 'cpu'"
            )
        return device

    @contextmanager
    def _checkpoint(
        self,
        folder: str | Path | None,
        seconds: float,
        config: TrainingConfig,
        data: Callable[[], str],
        *,
        process_group: ProcessGroup = ALONE,
        **more: Any,
    ) -> Iterator[Checkpoint | None]:
        """The folder of an unfinished run; it stays only where going on could end better."""
        if folder is None:
            yield None
            return
        described = {**self.get_params(), **config.to_dict(), "device": str(self._device())}
        settings = {"crovca_version": crovca.__version__, **json.loads(json.dumps(described, default=_plain))}
        settings |= {"data": data(), **more}
        kept = Checkpoint(Path(folder), settings, every_seconds=seconds, process_group=process_group)
        try:
            yield kept
        except (InvalidInputError, ConfigError, TrainingError):
            kept.remove()
            raise
        except StorageError:
            if not kept.has_state:
                kept.remove()
            raise

    def _train(
        self,
        towers: Towers,
        source: ViewSource,
        teacher: nn.Module,
        config: TrainingConfig,
        observer: Observer,
        checkpoint: Checkpoint | None,
        *,
        process_group: ProcessGroup = ALONE,
        prefetch: int = 0,
    ) -> None:
        self.history_ = train(
            towers,
            source,
            teacher,
            config,
            device=self._device(),
            observer=observer,
            checkpoint=checkpoint,
            process_group=process_group,
            prefetch=prefetch,
        )
        self.towers_ = towers
        self.lengths_ = config.lengths

    def _empty_coders(self, widths: Sequence[int]) -> list[HashCoder]:
        return [HashCoder(width, self.lengths_[-1], self.hashcoder) for width in widths]

    def _fitted(self) -> Towers:
        if not hasattr(self, "towers_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit or load first")
        return self.towers_

    def _blocks(self, coder: HashCoder, values: Any, what: str) -> Iterator[npt.NDArray[np.float32]]:
        rows = _as_rows(values, what)
        if len(rows.shape) != 2 or rows.shape[1] != coder.width:
            raise InvalidInputError(
                f"{what} must have shape (n, {coder.width}), as the hasher was trained with, "
                f"got {tuple(rows.shape)}"
            )
        device = next(coder.parameters()).device
        for part, block in chunks(rows, _BLOCK):
            with torch.no_grad():
                tensor = torch.from_numpy(np.array(block, np.float32)).to(device)
                wrong = (~torch.isfinite(tensor).all(dim=1)).nonzero().flatten()
                if len(wrong):
                    raise InvalidInputError(
                        f"{what} holds NaN or infinity in row {part.start + int(wrong[0])}; remove or repair it"
                    )
                yield coder(tensor).float().cpu().numpy()

    def _logits(self, coder: HashCoder, values: Any, what: str) -> npt.NDArray[np.float32]:
        blocks = list(self._blocks(coder, values, what))
        return np.concatenate(blocks) if blocks else np.zeros((0, coder.bits), np.float32)

    def _encode(self, coder: HashCoder, values: Any, bits: int | None, what: str) -> Codes:
        length = self._length(bits)
        blocks = [Codes.from_logits(block[:, :length]) for block in self._blocks(coder, values, what)]
        return Codes.concatenate(blocks) if blocks else Codes.from_bits(np.zeros((0, length), np.bool_))

    def _length(self, bits: int | None) -> int:
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

    def _save(self, path: str | Path, fitted: dict[str, Any], *, force: bool) -> None:
        towers = self._fitted()
        parameters = {name: value for name, value in self.get_params().items() if name != "device"}
        config = {
            "kind": self.kind,
            "crovca_version": crovca.__version__,
            "parameters": json.loads(json.dumps(parameters, default=_plain)),
            "fitted": {"lengths": list(self.lengths_), **fitted},
        }
        write_model(Path(path), dict(towers.state_dict()), config, self.history_, force=force)

    @classmethod
    def _load(cls, path: str | Path, device: str) -> tuple[Self, dict[str, Any], Callable[[Towers], None]]:
        """Read a model: an unfitted hasher, what its fit had found, and how to give it its weights.

        Called within ``config_errors``.
        """
        config, weights, log = read_model(Path(path))
        kind, parameters, fitted = config["kind"], config["parameters"], config["fitted"]
        unknown = sorted(set(config) - {"kind", "crovca_version", "parameters", "fitted"})
        unknown += sorted(set(parameters) - set(cls._get_param_names()))
        if kind != cls.kind:
            raise FileFormatError(f"{path} is a {kind} model, expected a {cls.kind} model")
        if unknown:
            raise ConfigError(
                f"{path}: unknown configuration key {unknown[0]!r}; was it written by a newer crovca?"
            )
        nested = parameters.get("nested")
        if isinstance(nested, list):
            parameters["nested"] = tuple(nested)
        if isinstance(parameters.get("pairing"), list):
            parameters["pairing"] = tuple(parameters["pairing"])
        hasher = cls(**parameters, device=device)
        hasher.lengths_ = tuple(fitted["lengths"])
        hasher.history_ = log

        def finish(towers: Towers) -> None:
            try:
                towers.load_state_dict(weights)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise FileFormatError(
                    f"{path}: the weights do not fit the configuration: {reason}"
                ) from error
            hasher.towers_ = towers.to(hasher._device()).eval()

        return hasher, fitted, finish


def new_coders(inputs: Sequence[InputStatistics], config: TrainingConfig) -> list[HashCoder]:
    """New networks, one for each kind of input, with weights from the seed."""
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(
        devices=[]
    ):  # layers draw weights from torch's own stream before they get these
        return [
            HashCoder(
                len(part.center),
                config.bits,
                config.hashcoder,
                inputs=part,
                logit_scale=config.logit_scale,
                generator=generator,
            )
            for part in inputs
        ]


@contextmanager
def config_errors(path: str | Path) -> Iterator[None]:
    """One clear error for whatever a changed config.json leads to."""
    try:
        yield
    except CrovcaError:
        raise
    except KeyError as error:
        raise FileFormatError(f"{path}: config.json is incomplete: {error} is missing") from error
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: config.json holds what does not fit: {error}") from error


def _plain(value: Any) -> Any:
    """numpy numbers, paths and other sequences as JSON knows them."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else list(value)


def _or(value: Any, automatic: Any) -> Any:
    return automatic if value == "auto" else value


def _as_rows(values: Any, what: str) -> Rows:
    """Anything with rows, without reading it: for encoding, where each block is checked as it comes."""
    if isinstance(values, Embeddings):
        return values.values
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    rows = values if hasattr(values, "shape") and hasattr(values, "dtype") else np.asarray(values)
    if rows.dtype.kind not in "fiub":
        raise InvalidInputError(f"{what} must hold real numbers, got {rows.dtype}")
    checked: Rows = rows
    return checked
