"""Options that several commands have, and how their text is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option

from crovca.errors import ConfigError
from crovca.files import check_output
from crovca.hashing.config import PRESETS

if TYPE_CHECKING:
    from crovca.data.embeddings import Embeddings

Json = Annotated[bool, Option("--json", help="Print one JSON object; progress goes to standard error.")]
Force = Annotated[bool, Option("--force", help="Replace an output that exists.")]
Model = Annotated[Path, Argument(help="Folder that 'crovca train' or 'finetune' wrote.")]
Modality = Literal["images", "texts"]
EncoderPlace = Annotated[
    str | None, Option(help="A model of images: where its encoder is now [default: where it was].")
]
Device = Annotated[str, Option(help="auto, cpu or cuda.")]
Report = Annotated[Path | None, Option(help="Folder for an HTML page with figures.")]
Root = Annotated[
    Path | None, Option(help="Split files of images: folder that their paths are relative to [default: their own].")
]

SplitRoot = Annotated[Path | None, Option(help="Split file: folder that its paths are relative to [default: its own].")]
OfEncoder = Annotated[str, Option(help="Folder of a model, or its id on the hub.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit on the hub.")]
ImageColumn = Annotated[str | None, Option(help="Parquet: column of the images [default: found].")]
CaptionColumn = Annotated[str | None, Option(help="Tables: column of the captions [default: found].")]

LeftOutFile = Annotated[
    Path | None, Option("--left-out", help="Write the names of all items that were left out, and why, to this .csv.")
]

# of training
ModelFolder = Annotated[Path, Option("--output", "-o", help="Folder for the model.")]
Bits = Annotated[int, Option(help="Length of the code, 1 to 4096.")]
Nested = Annotated[str | None, Option(help="Prefixes that become codes of their own [default: 16,32,64,128].")]
NoNested = Annotated[bool, Option("--no-nested", help="Train one length alone, as in the paper.")]
Preset = Annotated[str | None, Option(help=f"The paper's settings (one length): {', '.join(PRESETS)}.")]
NetworkSize = Annotated[Literal["small", "large"] | None, Option(help="Network: small or large [default: small].")]
CheckpointEvery = Annotated[float, Option(help="Seconds between writings of the state to OUTPUT.partial.")]
Seed = Annotated[int, Option(help="The same seed gives the same model.")]


def given(context: Context, *makers: Callable[..., Any]) -> dict[str, Any]:
    """The options of this call that these constructors have as parameters, but for those that are left to them (None).

    So an option that has a parameter's name needs nothing but to be an argument of its command.
    """
    names = {name for maker in makers for name in signature(maker).parameters}
    return {name: value for name, value in context.params.items() if name in names and value is not None}


def open_embeddings(path: Path, *, with_ids: bool = True) -> Embeddings:
    """``load_embeddings``, imported when it is used: the help texts do not wait for it."""
    from crovca.data.embeddings import load_embeddings

    return load_embeddings(path, with_ids=with_ids)


def check_report(report: Path, inputs: Sequence[Path] = (), *, force: bool) -> None:
    """Refuse a report that cannot be written, before anything is run."""
    from crovca.evaluation.figures import require_report_packages

    require_report_packages()
    check_output(report, force=force, inputs=inputs, marker="metrics.json")


def parse_lengths(text: str, option: str) -> tuple[int, ...]:
    """Read "16,32,64"."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"{option} must be whole numbers with commas, like 16,32,64; got {text!r}") from None


def parse_names(text: str, option: str) -> list[str]:
    """Read "itq,pq"."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ConfigError(f"{option} must be names with commas, got {text!r}")
    return names


def parse_top_k(text: str) -> int | None:
    """Read "1000" or "all"."""
    return _number_or(text, "--top-k", "all")


def parse_batch_size(text: str) -> int | None:
    """Read "256" or "auto"."""
    return _number_or(text, "--batch-size", "auto")


def _number_or(text: str, option: str, word: str) -> int | None:
    if text == word:
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"{option} must be a whole number of at least 1, or {word!r}; got {text!r}")
