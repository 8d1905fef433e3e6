"""One page of pictures that needs nothing else: small copies are inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crovca import files
from crovca.errors import CrovcaError, MissingDependencyError
from crovca.sources.decode import UnreadableItem, decode
from crovca.sources.source import read_file

if TYPE_CHECKING:
    from jinja2 import Template

_SIDE = 256  # pixels of the longer side


@dataclass(frozen=True)
class Picture:
    """A picture on the page: its path below the root, what stands under it first, and what more is known, by name."""

    id: str
    title: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Pictures under a heading; ``picture`` is a file that was asked with, where there is one."""

    heading: str
    pictures: Sequence[Picture]
    picture: Path | None = None


def write_gallery(page: Path, title: str, sections: Sequence[Section], root: Path | None, *, note: str = "") -> None:
    """Write the page, atomically, with a note under its title.

    Ids are paths below ``root``; None: no pictures are shown, only what is known of them.
    """
    if find_spec("jinja2") is None:
        raise MissingDependencyError("jinja2", "report", "a page of pictures")
    shown = [
        {
            "heading": section.heading,
            "asked": None if section.picture is None else _inline(section.picture.parent, section.picture.name),
            "pictures": [
                {"id": one.id, "title": one.title, "facts": _told(one.facts), "image": _inline(root, one.id)}
                for one in section.pictures
            ],
        }
        for section in sections
    ]
    text = _template().render(title=title, note=note, sections=shown)
    with files.atomic_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("crovca", "archive")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("gallery.html")


def _told(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items() if value is not None}


def _inline(root: Path | None, name: str) -> str | None:
    """A small copy as a data address; None where there is no picture. Never follows a name out of the root."""
    if root is None:
        return None
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        return None
    try:
        small = decode(read_file(path), smallest=_small).image
    except (UnreadableItem, CrovcaError, OSError, ValueError):
        return None
    small.thumbnail((_SIDE, _SIDE))
    kept = io.BytesIO()
    small.save(kept, "WEBP", quality=75)
    return "data:image/webp;base64," + base64.b64encode(kept.getvalue()).decode()


def _small(size: tuple[int, int]) -> tuple[int, int]:
    share = min(1.0, _SIDE / max(*size, 1))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))
