"""Parts of a self-contained HTML page: figures, pictures and neighbor grids inside one file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["THUMBNAIL", "as_page", "data_url", "figure", "grid", "line", "picture"]

THUMBNAIL = 96
"""Pixels of a picture's side, unless another is asked for."""


def as_page(title: str, heading: str, body: str) -> str:
    """The whole page; ``body`` is HTML, the others are text."""
    return _PAGE.format(title=html.escape(title), heading=html.escape(heading), body=body)


def figure(png: bytes, caption: str, *, wide: bool = False) -> str:
    """A PNG with its caption."""
    style = " class=wide" if wide else ""
    text = html.escape(caption)
    return f'<figure{style}><img alt="{text}" src="{data_url(png, "png")}"><figcaption>{text}</figcaption></figure>'


def grid(query: str, lines: Sequence[str]) -> str:
    """A query (HTML) beside its lines of neighbors."""
    return f"<div class=grid><div class=query>{query}</div><div>{''.join(lines)}</div></div>"


def line(name: str, pictures: Sequence[str]) -> str:
    """What one way of ranking found: its name and pictures."""
    return f"<div class=line><span>{html.escape(name)}</span>{''.join(pictures)}</div>"


def picture(
    image: Image | None, name: str, right: bool | None = None, *, side: int = THUMBNAIL, crop: bool = True
) -> str:
    """A picture, or a box that says that there is none.

    Args:
        image: the picture.
        name: shown where the mouse rests.
        right: a green frame for True, a red one for False, none for None.
        side: pixels.
        crop: to its middle square; False: whole, ``side`` is its longer side.
    """
    frame = "" if right is None else (" class=yes" if right else " class=no")
    title = html.escape(name, quote=True)
    if image is None:
        return f'<i{frame} title="{title}">no image</i>'
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
    return f'<img{frame} alt="{title}" title="{title}" src="{data_url(buffer.getvalue(), "jpeg")}">'


def data_url(content: bytes, kind: str) -> str:
    """An image file's bytes as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin-top: 2.5rem; }} section {{ border-bottom: 1px solid #e6e9ee; padding-bottom: 2rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} caption {{ text-align: left; color: #5b6675; padding: .3rem 0; }}
th, td {{ text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e6e9ee; }}
td:first-child {{ text-align: left; }} td.wide {{ text-align: center; }}
figure {{ display: inline-block; margin: 1rem .5rem 1rem 0; width: 530px; max-width: 100%; vertical-align: top; }}
figure.wide {{ width: 100%; }} figure img {{ width: 100%; }} figcaption {{ color: #5b6675; font-size: 13px; }}
.grid {{ display: flex; gap: 1rem; align-items: center; margin: 1rem 0; }}
.query {{ width: 110px; text-align: center; flex: none; }} .query p {{ margin: 0; }} .query .text {{ font-size: 18px; }}
.line {{ display: flex; gap: 4px; margin: 4px 0; align-items: center; }}
.line span {{ width: 130px; flex: none; font-size: 13px; color: #5b6675; }}
.grid img, .grid i {{ width: 72px; height: 72px; box-sizing: border-box; }}
.grid img, .grid i {{ border-radius: 4px; border: 3px solid transparent; }}
.grid i {{ display: inline-block; font-size: 11px; background: #eef1f5; color: #5b6675; text-align: center; }}
.grid .query img {{ width: 96px; height: 96px; }}
.large img {{ border: 4px solid transparent; max-width: 100%; }}
.yes {{ border-color: #2e8b57 !important; }} .no {{ border-color: #d1495b !important; }}
</style></head><body><h1>{heading}</h1>{body}</body></html>
"""
