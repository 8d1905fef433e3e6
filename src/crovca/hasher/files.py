"""Model folders (docs/formats.md): one format for every hasher. What is read may come from anybody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from crovca._version import __version__
from crovca.encoders.encoder import Encoder, TextEncoder
from crovca.encoders.lora import Adapter, adapt
from crovca.encoders.preprocessing import Preprocessing
from crovca.errors import ConfigError, CrovcaError, EncoderError, FileFormatError
from crovca.files import atomic_directory, check_output, sha256, write_json
from crovca.hasher.fine_tuning import FineTuning
from crovca.hasher.fit import plain
from crovca.hasher.fit_images import load_encoder
from crovca.hashing.base import Base
from crovca.hashing.config import TrainingConfig
from crovca.hashing.gate import Gate
from crovca.hashing.inputs import Coordinates
from crovca.hashing.network import HashCoder
from crovca.hashing.state import log_lines, parse_tensors, save_tensors
from crovca.hashing.towers import Tower, Towers

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

FORMAT_VERSION = 3
MARKER = "model.safetensors"
"""The file that tells a model's folder from others."""

_LARGEST_TEXT = 256 << 20  # bytes of config.json or log.jsonl
_MOST_NUMBERS = 1 << 24  # width of an embedding

_CONFIG = {"crovca_version": str, "parameters": dict, "training": dict, "towers": list, "fitted": dict, "sha256": dict}
_TOWER = {"modality": str, "width": int, "encoder": (dict, type(None))}
_ENCODER = {
    "source": str,
    "revision": (str, type(None)),
    "family": str,
    "output": str,
    "weights_sha256": str,
    "preprocessing": (dict, type(None)),
    "lora": (dict, type(None)),
}
_LORA = {"rank": int, "dropout": (int, float), "targets": list}
_FITTED = {
    "pairing": list,
    "classes": (list, type(None)),
    "neighbor_recall": (int, float, type(None)),
    "left_out": dict,
}


# --- writing ---


def save(hasher: Hasher, path: Path, *, force: bool, encoder: str | None = None) -> None:
    """Write a model folder, atomically: ``config.json``, ``model.safetensors``, ``log.jsonl``.

    ``encoder`` is what its encoder is called for others; None: as it was found here.
    """
    check_output(path, force=force, marker=MARKER)
    parameters = {name: value for name, value in hasher.get_params().items() if name != "device"}
    if hasher.fine_tuning is not None:
        named = {} if encoder in (None, str(hasher.fine_tuning.encoder)) else {"encoder": encoder, "revision": None}
        parameters["fine_tuning"] = {**asdict(hasher.fine_tuning), **named}
    config = {
        "crovca_version": __version__,
        "parameters": json.loads(json.dumps(parameters, default=plain)),
        "training": hasher.config_.to_dict(),
        "towers": [_described(tower, encoder) for tower in hasher.towers_],
        "fitted": {
            "pairing": list(hasher.pairing_),
            "classes": None if hasher.classes_ is None else hasher.classes_.tolist(),
            "neighbor_recall": hasher.neighbor_recall_,
            "left_out": hasher.left_out_,
        },
    }
    with atomic_directory(path) as folder:
        save_tensors(dict(hasher.towers_.state_dict()), folder / MARKER, {})
        (folder / "log.jsonl").write_text(log_lines(hasher.history_), encoding="utf-8")
        config["sha256"] = {name: sha256(folder / name) for name in (MARKER, "log.jsonl")}
        head = {"format_version": FORMAT_VERSION}
        write_json(folder / "config.json", {**head, **config, "checksum": checksum(config)})


def checksum(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, however it is written down."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _described(tower: Tower, called: str | None) -> dict[str, Any]:
    described: dict[str, Any] = {"modality": tower.modality, "width": tower.coder.width, "encoder": None}
    if tower.encoder is not None:
        entry: dict[str, Any] = {**tower.encoder.identity, "preprocessing": None, "lora": None}
        if called not in (None, entry["source"]):
            entry |= {"source": called, "revision": None}
        elif Path(str(entry["source"])).is_dir():
            entry["source"] = str(Path(str(entry["source"])).resolve())
        if isinstance(tower.encoder, Encoder):
            entry["preprocessing"] = tower.encoder.preprocessing.to_dict()
        if tower.lora is not None:
            lora = tower.lora
            entry["lora"] = {"rank": lora.rank, "dropout": lora.dropout, "targets": list(lora.targets)}
        described["encoder"] = entry
    return described


# --- reading ---


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[dict[str, Any]]]:
    """Read a model folder: its configuration, weights and log, each of them what its checksum says."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise FileFormatError(f"model {path} {what}; expected a folder that 'crovca train' or .save wrote")
    with config_errors(path):
        config = _config_of(path)
        contents = {}
        for name in (MARKER, "log.jsonl"):
            contents[name] = _content(path / name, None if name == MARKER else _LARGEST_TEXT)
            if hashlib.sha256(contents[name]).hexdigest() != config["sha256"].get(name):
                raise FileFormatError(
                    f"{path / name} does not match its checksum in config.json; it is truncated or was changed"
                )
        log = [_json(line, path / "log.jsonl") for line in contents["log.jsonl"].splitlines()]
        for entry in log:
            if not isinstance(entry, dict) or not all(type(value) in (int, float) for value in entry.values()):
                raise FileFormatError(f"{path / 'log.jsonl'} holds a line that is no log of training")
        return config, parse_tensors(contents[MARKER], path / MARKER)[0], log


def has_encoder(path: Path) -> bool:
    """Whether a model takes images, told from its config.json; False where there is no model."""
    if not (path / "config.json").exists():
        return False
    with config_errors(path):
        return _config_of(path)["parameters"]["fine_tuning"] is not None


def encoders(path: Path) -> list[str]:
    """Where a model says that its encoders are."""
    with config_errors(path):
        described = [tower["encoder"] for tower in _config_of(path)["towers"]]
        return [str(encoder["source"]) for encoder in described if encoder is not None]


def _config_of(path: Path) -> dict[str, Any]:
    """A model's configuration: it is what its checksum says, and has the parts that it must have."""
    file = path / "config.json"
    config = _json(_content(file, _LARGEST_TEXT), file)
    if not isinstance(config, dict):
        raise FileFormatError(f"{file} holds no JSON object")
    version = config.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise FileFormatError(
            f"{path}: model of format version {version!r}, this crovca reads {FORMAT_VERSION}; "
            + ("upgrade crovca" if newer else "train it again")
        )
    if config.pop("checksum", None) != checksum(config):
        raise FileFormatError(f"{file} does not match its checksum; it is truncated or was changed")
    _require(config, _CONFIG, "config.json")
    return config


def parameters_of(config: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The constructor's parameters, all of them and no others; their values are not checked."""
    parameters = dict(config["parameters"])
    _require(parameters, dict.fromkeys([name for name in names if name != "device"], object), "parameters")
    for name in ("nested", "pairing", "modalities"):
        if isinstance(parameters[name], list):
            parameters[name] = tuple(parameters[name])
    if parameters["fine_tuning"] is not None:
        known = {part.name: object for part in fields(FineTuning)}
        _require(parameters["fine_tuning"], known, "parameters.fine_tuning")
        parameters["fine_tuning"] = FineTuning(**parameters["fine_tuning"])
    return parameters


def fitted_of(fitted: dict[str, Any]) -> dict[str, Any]:
    """What the fit had found."""
    _require(fitted, _FITTED, "fitted")
    classes, recall, left_out = fitted["classes"], fitted["neighbor_recall"], fitted["left_out"]
    if not all(isinstance(name, str) for name in fitted["pairing"]):
        raise FileFormatError("fitted.pairing is no list of names")
    if recall is not None and not 0 <= recall <= 1:
        raise FileFormatError(f"fitted.neighbor_recall must lie in [0, 1], got {recall!r}")
    if not all(type(count) is int and count >= 0 for count in left_out.values()):
        raise FileFormatError("fitted.left_out holds no counts")
    if classes is not None and {type(name) for name in classes} not in ({int}, {str}, set()):
        raise FileFormatError("fitted.classes holds no names of classes")
    return {
        "pairing": tuple(fitted["pairing"]),
        "classes": None if classes is None else np.asarray(classes),
        "neighbor_recall": recall,
        "left_out": left_out,
    }


def towers_of(
    hasher: Hasher,
    config: dict[str, Any],
    training: TrainingConfig,
    weights: dict[str, Tensor],
    path: Path,
    elsewhere: str | Path | None,
) -> Towers:
    """The network with its weights; ``elsewhere`` is where the encoder is now, if not where it was.

    Shapes are compared before anything is allocated or an encoder is loaded.
    """
    described = config["towers"]
    for number, entry in enumerate(described):
        _require(entry, _TOWER, f"towers[{number}]")
    if [entry["modality"] for entry in described] != list(hasher.modalities):
        raise FileFormatError(f"{path}: config.json names other towers than {list(hasher.modalities)}")
    if any((entry["encoder"] is None) != (hasher.fine_tuning is None) for entry in described):
        raise FileFormatError(f"{path}: config.json does not say which encoders the model has")
    if elsewhere is not None and hasher.fine_tuning is None:
        raise ConfigError(f"{path} is a model of embeddings, which has no encoder; leave it out")
    if (training.faithfulness is None) != (hasher._dial(config["fitted"]["pairing"]) is None):
        raise FileFormatError(f"{path}: config.json contradicts itself: its training is of another model")
    if training.lengths[-1] != hasher.bits or training.hashcoder != hasher.hashcoder:
        raise FileFormatError(f"{path}: config.json contradicts itself: its training is of another model")
    coders = [_coder_of(entry, number, training, weights, path) for number, entry in enumerate(described)]
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FileFormatError(f"{path}: the weights {name!r} are not finite")
    towers = []
    for coder, entry in zip(coders, described, strict=True):
        encoder, adapter = _encoder_of(hasher, entry, path, elsewhere)
        towers.append(Tower(coder, entry["modality"], encoder, adapter))
    network = Towers(towers, shared=hasher.shared)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise FileFormatError(f"{path}: the weights do not fit the configuration: {reason}") from error
    return network


def _coder_of(
    entry: dict[str, Any], number: int, training: TrainingConfig, weights: dict[str, Tensor], path: Path
) -> HashCoder:
    """A HashCoder for a tower's weights, which are of its shapes and not set yet."""
    width = entry["width"]
    if not 1 <= width <= _MOST_NUMBERS:
        raise FileFormatError(f"{path}: config.json names embeddings of {width} numbers")
    prefix = f"towers.{number}.coder."
    with torch.device("meta"):
        coder = HashCoder(width, training.bits, training.hashcoder)
        if training.faithfulness is not None:
            components, centroids = weights[f"{prefix}inputs.components"], weights[f"{prefix}gate.centroids"]
            coder = HashCoder(
                width,
                training.bits,
                training.hashcoder,
                inputs=Coordinates(torch.empty(width), torch.empty(len(components), width)),
                base=Base(torch.empty(training.bits, len(components))),
                gate=Gate(torch.empty(centroids.shape), torch.empty(()), torch.empty(())),
                hidden=training.hidden,
                gate_power=training.gate_power,
            )
    expected = {f"{prefix}{name}": (value.shape, value.dtype) for name, value in coder.state_dict().items()}
    if expected != {n: (v.shape, v.dtype) for n, v in weights.items() if n.startswith(prefix)}:
        raise FileFormatError(f"{path}: the weights do not fit the configuration: tower {number}")
    return coder.to_empty(device="cpu")


def _encoder_of(
    hasher: Hasher, tower: dict[str, Any], path: Path, elsewhere: str | Path | None
) -> tuple[Encoder | TextEncoder | None, Adapter | None]:
    """The encoder that a tower was trained with, adapted; the adapter's weights are not set yet."""
    entry = tower["encoder"]
    if entry is None:
        return None, None
    _require(entry, _ENCODER, "towers.encoder")
    source = entry["source"] if elsewhere is None else elsewhere
    revision = entry["revision"] if elsewhere is None else None
    try:
        encoder = load_encoder(hasher, tower["modality"], source, revision)
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
    if encoder.width != tower["width"]:
        raise FileFormatError(
            f"{path} was trained with embeddings of {tower['width']} numbers, {source} gives {encoder.width}"
        )
    if isinstance(encoder, Encoder):
        encoder.preprocessing = Preprocessing.from_dict(entry["preprocessing"])
    lora = entry["lora"]
    if lora is None:
        return encoder, None
    _require(lora, _LORA, "towers.encoder.lora")
    return encoder, adapt(encoder, rank=lora["rank"], dropout=lora["dropout"], targets=lora["targets"])


@contextmanager
def config_errors(path: str | Path) -> Iterator[None]:
    """One clear error for whatever a changed config.json leads to."""
    try:
        yield
    except CrovcaError:
        raise
    except KeyError as error:
        raise FileFormatError(f"{path}: config.json is incomplete: {error} is missing") from error
    except (
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        ArithmeticError,
        RuntimeError,  # torch's, and RecursionError
        MemoryError,
    ) as error:
        raise FileFormatError(f"{path}: config.json holds what does not fit: {error}") from error


def _require(values: Any, kinds: Mapping[str, Any], where: str) -> None:
    """Exactly these keys, each of its type; a bool is no number."""
    if not isinstance(values, dict):
        raise FileFormatError(f"{where} must be a JSON object, got {type(values).__name__}")
    if missing := sorted(set(kinds) - set(values)):
        raise FileFormatError(f"config.json is incomplete: {missing[0]!r} is missing in {where}")
    if unknown := sorted(set(values) - set(kinds)):
        raise FileFormatError(f"unknown configuration key {unknown[0]!r} in {where}; was it written by a newer crovca?")
    for name, kind in kinds.items():
        value = values[name]
        if kind is not object and (not isinstance(value, kind) or isinstance(value, bool)):
            raise FileFormatError(f"{name} in {where} is of type {type(value).__name__}, which does not fit")


def _content(path: Path, most: int | None) -> bytes:
    """The bytes of a regular file of at most so many bytes."""
    if not path.is_file():
        what = "is no file" if path.exists() else "is missing"
        raise FileFormatError(f"{path.parent}: {path.name} {what}; copy the whole folder")
    if most is not None and path.stat().st_size > most:
        raise FileFormatError(f"{path} is too large: {path.stat().st_size:,} bytes, expected at most {most:,}")
    return path.read_bytes()


def _json(content: bytes, path: Path) -> Any:
    """JSON as it is written by ``json.dumps``: no NaN, no key twice, not too deep."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key stands twice")
        return values

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON ({str(error)[:200]}); it may be truncated") from error
