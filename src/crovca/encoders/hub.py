"""Where a model's files are: a local folder, or the Hugging Face hub through its cache.

Whatever goes wrong ends in one line that says which model, why, and what to do.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crovca import files
from crovca.encoders.families import ALIASES
from crovca.encoders.library import hub
from crovca.errors import ConfigError, CrovcaError, EncoderError, FileFormatError, one_line

_DESCRIPTIONS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files.

    Attributes:
        name: as the user wrote it; a short name is written out to the hub id.
        folder: where config.json and the weights are.
        revision: the commit on the hub, None for a local folder.
    """

    name: str
    folder: Path
    revision: str | None

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        if (self.folder / "config.json").is_file():
            return files.read_json(self.folder / "config.json", self.name)
        raise EncoderError(f"{self.name} is no model of transformers: it has no config.json{self._instead()}")

    def _instead(self) -> str:
        names = {path.name for path in self.folder.iterdir()}
        if "open_clip_config.json" in names:
            return (
                "; it is in the format of open_clip: convert it with "
                f"'crovca convert {self.folder} --from open_clip -o NEW_FOLDER' and use that"
            )
        if "adapter_config.json" in names:
            return ", only a LoRA adapter"
        return "" if names else ", it is empty"


def locate(source: str | Path, revision: str | None = None) -> ModelFiles:
    """Find a model's files, fetching them from the hub where they are not local.

    Args:
        source: a local folder, a hub id ("facebook/dinov2-base") or a short name (``families.ALIASES``).
        revision: branch, tag or commit on the hub.

    Raises:
        ConfigError: as ``check_name``.
        EncoderError: the hub does not give it: gated, unknown, wrong revision, no network.
    """
    found = check_name(source, revision)
    if isinstance(found, Path):
        return ModelFiles(os.fspath(source), found, None)
    return _model(found[0], revision, found[1])


def check_name(source: str | Path, revision: str | None = None) -> Path | tuple[str, str]:
    """The folder that a name means, or the id on the hub and what to do where that is gated; nothing is fetched.

    Raises:
        ConfigError: neither a folder nor an id; a revision of a local folder; a short name that must be
            converted first.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if not name:
        raise ConfigError("the encoder's name is empty; expected a model's folder or an id of the hub")
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{name} is a file; give a folder in the format of transformers. Checkpoints of SimDINOv2, open_clip "
            "and torchvision become one with 'crovca convert'"
        )
    if (folder := local_folder(source, revision)) is not None:
        return folder
    how = ""
    if name in ALIASES:
        alias = ALIASES[name]
        if alias.hub_id is None:
            raise ConfigError(
                f"the encoder {name!r} has no weights that transformers can read; {alias.how}; "
                f"then use that folder as the encoder"
            )
        name, how = alias.hub_id, alias.how
    elif "/" not in name:
        raise ConfigError(
            f"there is no folder {name!r} and no encoder of that name; the short names are "
            f"{', '.join(sorted(ALIASES))}; ids of the hub look like 'facebook/dinov2-base'"
        )
    return name, how


def local_folder(source: str | Path, revision: str | None) -> Path | None:
    """The local folder of a model; None where ``source`` may be an id of the hub."""
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(f"{name} is a local folder, which has no revision {revision!r}; leave it out")
        return path
    if path.exists() or not isinstance(source, str) or path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"there is no folder {name!r}; expected a model's folder or an id of the hub")
    return None


def fetched(name: str, revision: str | None, patterns: Iterable[str], how: str = "") -> Path:
    """The folder of a repository's files of these names, through the cache of the hub; it is named after the commit.

    Raises:
        ConfigError, EncoderError: as ``locate``; ``how`` is what to do where it is gated.
    """
    library = hub()
    try:
        return Path(library.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except CrovcaError:
        raise
    except Exception as error:  # huggingface_hub, its HTTP library and the system each have their own
        raise _explained(name, revision, how, error) from error


def _model(name: str, revision: str | None, how: str) -> ModelFiles:
    folder = fetched(name, revision, (*_DESCRIPTIONS, *_SAFETENSORS), how)
    if (folder / "config.json").exists() and not any(folder.glob("model*.safetensors")):
        folder = fetched(name, folder.name, (*_DESCRIPTIONS, *_PICKLED), how)
    return ModelFiles(name, folder, folder.name)


def _explained(name: str, revision: str | None, how: str, error: Exception) -> CrovcaError:
    errors = importlib.import_module("huggingface_hub.errors")
    at = "" if revision is None else f" at revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return EncoderError(
            f"{name} is gated: its owners give access on request; {how.removeprefix('gated: ') or _ACCESS}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return EncoderError(f"{name} has no revision {revision!r}; leave it out, or take one from the model's page")
    if isinstance(error, errors.RepositoryNotFoundError):
        return EncoderError(
            f"there is no model {name!r} on the hub, or it is private and you are not logged in; "
            "check the id (a local folder of that name does not exist either), or log in with 'hf auth login'"
        )
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{name!r} is neither a folder nor an id of the hub ({_line(error)})")
    absent = isinstance(error, errors.LocalEntryNotFoundError)
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    if isinstance(error, errors.OfflineModeIsEnabled) or (absent and offline):
        return EncoderError(
            f"{name}{at} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or give a "
            "local folder"
        )
    if absent or isinstance(error, ConnectionError | TimeoutError) or _is_network(error):
        cause: BaseException = error  # the innermost: "Name or service not known" rather than lines of advice
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return EncoderError(
            f"{name}{at} is not in the local cache, and the hub cannot be reached ({_line(cause)}); check the "
            "network, or copy the model's folder here and give its path"
        )
    return EncoderError(f"cannot fetch {name}{at} from the hub: {_line(error)}")


_ACCESS = "ask for it on its page at huggingface.co, then log in with 'hf auth login'"


def _is_network(error: BaseException) -> bool:
    """Whether an HTTP library, one of several that huggingface_hub has had, did not get through."""
    return any(kind.__name__ in ("TransportError", "ConnectionError", "Timeout") for kind in type(error).__mro__)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


def weight_files(source: ModelFiles) -> list[Path]:
    """The files of weights that transformers will read: safetensors before .bin, whole before in parts."""
    for whole, index in (_SAFETENSORS[:2], _PICKLED[:2]):
        if (source.folder / whole).is_file():
            return [source.folder / whole]
        if (source.folder / index).is_file():
            return _parts(source, source.folder / index)
    raise FileFormatError(
        f"{source.name} has no weights: expected model.safetensors or pytorch_model.bin in {source.folder}"
    )


def _parts(source: ModelFiles, index: Path) -> list[Path]:
    parts = files.read_json(index, source.name).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise FileFormatError(f"{source.name}: {index} names no files of weights (weight_map)")
    names = sorted({str(part) for part in parts.values()})
    for name in names:
        if Path(name).name != name or not (source.folder / name).is_file():
            raise FileFormatError(f"{source.name}: {index.name} names {name!r}, which is not in {source.folder}")
    return [source.folder / name for name in names]


def weights_sha256(paths: list[Path]) -> str:
    """SHA-256 of one file of weights, or of the list of those of several."""
    if len(paths) == 1:
        return files.sha256(paths[0])
    listed = "".join(f"{files.sha256(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256(listed.encode()).hexdigest()
