"""Models on the Hugging Face hub: a model's folder, and a card that says what is known of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from crovca._version import __version__
from crovca.encoders.families import ALIASES
from crovca.encoders.hub import fetched, local_folder
from crovca.errors import ConfigError, FileFormatError, InvalidInputError, ServerError, needed, one_line
from crovca.evaluation.situations import FIVE, column_value
from crovca.hasher import files

if TYPE_CHECKING:
    from crovca.hasher.hasher import Hasher

_FILES = ("config.json", files.MARKER, "log.jsonl")


def push(
    hasher: Hasher, repo_id: str, *, encoder: str | None, private: bool | None, revision: str | None, **card: Any
) -> str:
    """What ``Hasher.push_to_hub`` says."""
    hub = _hub()
    encoder = _encoder_id(hasher, encoder)
    text = model_card(hasher, repo_id, encoder=encoder, **card)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        files.save(hasher, folder, force=False, encoder=encoder)
        (folder / "README.md").write_text(text, encoding="utf-8")
        try:
            api = hub.HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            message = f"Codes of {hasher.bits} bits, by crovca {__version__}"
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message
                ).commit_url
            )
        except Exception as error:  # huggingface_hub and its HTTP library each have their own
            raise ServerError(
                f"{repo_id} cannot be pushed to the hub: {type(error).__name__}: {one_line(error)}; ids look like "
                "'owner/name', and writing needs a token ('hf auth login', or HF_TOKEN)"
            ) from error


def pull(source: str | Path, revision: str | None, encoder: str | Path | None) -> Path:
    """The folder of a model, fetched where it is not local; raises what ``Hasher.from_pretrained`` says."""
    if (folder := local_folder(source, revision)) is not None:
        return folder
    hub, name = _hub(), str(source)
    folder = fetched(name, revision, _FILES)
    if missing := [file for file in _FILES if not (folder / file).is_file()]:
        raise FileFormatError(f"{name} is no model of crovca: it has no {missing[0]}; check the id")
    for wanted in files.encoders(folder) if encoder is None else ():
        try:  # a model from elsewhere names no folder of this machine
            hub.utils.validate_repo_id(wanted)
            is_id = "/" in wanted or wanted in ALIASES
        except ValueError:
            is_id = False
        if not is_id:
            raise ConfigError(
                f"{name} names its encoder {wanted!r}, which is no id of the hub; say where it is: encoder="
            )
    return folder


def model_card(
    hasher: Hasher,
    repo_id: str,
    *,
    encoder: str | None = None,
    data: str | None = None,
    license: str | None = None,
    measures: Mapping[str, Any] | None = None,
    **metadata: Any,
) -> str:
    """The text of README.md, its metadata at its head; arguments as of ``Hasher.push_to_hub``."""
    towers = list(hasher._fitted())
    with_encoder = towers[0].encoder is not None
    header = {
        "library_name": "crovca",
        "license": license,
        "base_model": encoder,
        "pipeline_tag": "image-feature-extraction" if hasher.modalities == ("images",) else "feature-extraction",
        "tags": ["crovca", "hashing", "binary-codes"],
        **metadata,
    }
    identity = towers[0].encoder.identity if towers[0].encoder is not None else {}
    template = Environment(
        loader=PackageLoader("crovca", "hasher"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("card.md")
    return template.render(
        header=_hub().ModelCardData(**header).to_yaml(),
        repo_id=repo_id,
        hasher=hasher,
        towers=towers,
        with_encoder=with_encoder,
        encoder=encoder,
        weights=identity.get("weights_sha256"),
        data=data,
        license=license,
        rows=[] if measures is None else list(_table(measures)),
        labeled=measures is not None and measures["labeled"],
        version=__version__,
    )


def _table(measures: Mapping[str, Any]) -> Iterator[list[str]]:
    """The head and the rows of a table of the five measures, in %."""
    try:
        yield ["", *FIVE]
        found = [
            (f"{name}, {bits} bits", by_situation)
            for name, lengths in measures["methods"].items()
            for bits, by_situation in lengths.items()
        ]
        if measures["float"]:
            found.append(("floats", measures["float"]))
        for name, by_situation in found:
            values = [column_value(by_situation, column, labeled=measures["labeled"]) for column in FIVE]
            yield [name, *("-" if value is None else f"{100 * value:.1f}" for value in values)]
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidInputError(
            "measures must be what 'crovca evaluate --json' writes as five_measures, or FiveMeasures.to_dict(); "
            f"got {one_line(error)!r} wrong"
        ) from error


def _encoder_id(hasher: Hasher, encoder: str | None) -> str | None:
    """What others find the encoder under."""
    inside = next(iter(hasher._fitted())).encoder
    if encoder is not None or inside is None:
        return encoder
    source = str(inside.identity["source"])
    if Path(source).is_dir():
        raise ConfigError(
            f"the model's encoder lies in the folder {source}, which nobody else has; say under which id of the hub it "
            "is found: encoder='owner/name'"
        )
    return source


def _hub() -> Any:
    return needed("huggingface_hub", "images", "a model on the hub", package="huggingface-hub")
