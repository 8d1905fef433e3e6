"""Self-contained HTML pages: what stands on one is a list of blocks, and ``page.html`` shows them, escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 96
"""Pixels of a picture's side, unless another is asked for."""


class Block:
    """Something on a page; ``kind`` says to the template what."""

    @property
    def kind(self) -> str:
        """ "heading" of a ``Heading``."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Heading(Block):
    """A heading below the page's own."""

    text: str


@dataclass(frozen=True)
class Conclusion(Block):
    """What was found, in one sentence."""

    text: str


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets(Block):
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A value of a table that is marked: "best", or "level" with the best."""

    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.text} {'*' if self.mark == 'best' else '~'}"


@dataclass(frozen=True)
class Table(Block):
    """A table; on a narrow screen it is scrolled by itself."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Figure(Block):
    """A PNG with its caption; ``wide`` takes the whole width."""

    png: bytes
    caption: str
    wide: bool = False

    @property
    def source(self) -> str:
        """The PNG as an address."""
        return _data_url(self.png, "png")


@dataclass(frozen=True)
class Picture:
    """A picture of an item.

    Attributes:
        name: shown where the mouse rests.
        source: its address; None: there is none, which a box says.
        right: a green frame for True, a red one for False, none for None.
    """

    name: str
    source: str | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Line:
    """What one way of ranking found: its name and pictures."""

    name: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Grid(Block):
    """A query, as a picture with a text or as a text alone, beside its lines of neighbors."""

    picture: Picture | None
    text: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Large(Block):
    """One large picture."""

    title: str
    picture: Picture


@dataclass(frozen=True)
class Glossary(Block):
    """Words and what they mean."""

    entries: Sequence[tuple[str, str]]


def as_page(title: str, heading: str, blocks: Sequence[Block]) -> str:
    """The whole page, one file that needs no other."""
    return _template().get_template("page.html").render(title=title, heading=heading, blocks=blocks) + "\n"


def picture(
    image: Image | None, name: str, right: bool | None = None, *, side: int = THUMBNAIL, crop: bool = True
) -> Picture:
    """A picture inside the page, ``side`` pixels; there may be none.

    ``crop``: its middle square; else it is whole, and ``side`` its longer side.
    """
    if image is None:
        return Picture(name, None, right)
    from PIL import Image as images

    shown, size = image, (side, side)
    if crop:
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        shown = image.crop((left, top, left + edge, top + edge))
    else:
        scale = side / max(image.size)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    small = min(shown.size) < min(size) // 2
    method = images.Resampling.NEAREST if small else images.Resampling.LANCZOS
    buffer = io.BytesIO()
    shown.resize(size, method).convert("RGB").save(buffer, "JPEG", quality=85)
    return Picture(name, _data_url(buffer.getvalue(), "jpeg"), right)


def _data_url(content: bytes, kind: str) -> str:
    """An image file's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _template() -> Environment:
    return Environment(loader=PackageLoader("crovca", "evaluation"), autoescape=True, undefined=StrictUndefined)
