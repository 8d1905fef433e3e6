"""Options that several commands have, and how their text is read."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crovca.errors import ConfigError

if TYPE_CHECKING:
    from crovca.data.embeddings import Embeddings

__all__ = [
    "EncoderPlace",
    "Force",
    "Json",
    "Modality",
    "Model",
    "Root",
    "given",
    "open_embeddings",
    "parse_lengths",
    "parse_top_k",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to standard error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Model = Annotated[
    Path, typer.Argument(help="Folder that 'crovca train' or 'finetune' wrote.", show_default=False)
]
Modality = Literal["images", "texts"]
EncoderPlace = Annotated[
    str | None,
    typer.Option(
        help="A model of images: where its encoder is now [default: where it was].", show_default=False
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Split files of images: folder that their paths are relative to [default: their own].",
        show_default=False,
    ),
]


def given(context: typer.Context, *makers: Callable[..., Any]) -> dict[str, Any]:
    """The options of this call that these constructors have as parameters, but for those that are left to them (None).

    So an option that has a parameter's name needs nothing but to be an argument of its command.
    """
    names = {name for maker in makers for name in signature(maker).parameters}
    return {name: value for name, value in context.params.items() if name in names and value is not None}


def open_embeddings(path: Path, *, with_ids: bool = True) -> Embeddings:
    """``load_embeddings``, imported when it is used: the help texts do not wait for it."""
    from crovca.data.embeddings import load_embeddings

    return load_embeddings(path, with_ids=with_ids)


def parse_lengths(text: str, option: str) -> tuple[int, ...]:
    """Read "16,32,64"."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(
            f"{option} must be whole numbers with commas, like 16,32,64; got {text!r}"
        ) from None


def parse_top_k(text: str) -> int | None:
    """Read "1000" or "all"."""
    if text == "all":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--top-k must be a whole number of at least 1, or 'all'; got {text!r}")
