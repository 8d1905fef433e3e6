"""What a picture file says of itself without being asked: its size, when and where it was taken, and its sidecar."""

from __future__ import annotations

import datetime
import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from crovca.errors import CrovcaError
from crovca.files import read_text

_EXIF, _GPS = 0x8769, 0x8825
_TAKEN, _CHANGED, _ORIENTATION = 36867, 306, 274
_MOST_SIDECAR, _MOST_KEYS = 1 << 20, 100


def described(data: bytes) -> dict[str, Any]:
    """``width`` and ``height`` as a viewer shows it, ``taken`` (a time without zone), ``latitude`` and ``longitude``.

    What the file does not say, or says in a way that cannot be read, is None: the picture itself may be whole.
    """
    from PIL import Image

    found: dict[str, Any] = dict.fromkeys(("width", "height", "taken", "latitude", "longitude"))
    try:
        with Image.open(io.BytesIO(data)) as image:
            found["width"], found["height"] = image.size
            exif = image.getexif()
            if exif.get(_ORIENTATION) in (5, 6, 7, 8):
                found["width"], found["height"] = found["height"], found["width"]
            found["taken"] = _time(exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED))
            place = exif.get_ifd(_GPS)
            found["latitude"] = _degrees(place.get(2), place.get(1), 90)
            found["longitude"] = _degrees(place.get(4), place.get(3), 180)
    except Exception:  # headers and EXIF of any program: whatever a library raises of them
        pass
    return found


def _time(value: Any) -> datetime.datetime | None:
    parts = re.match(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", str(value or ""))
    try:
        return None if parts is None else datetime.datetime(*map(int, parts.groups()))  # type: ignore[arg-type]
    except ValueError:  # 0000:00:00
        return None


def _degrees(value: Any, side: Any, most: int) -> float | None:
    try:
        degrees, minutes, seconds = map(float, value)
        found = degrees + minutes / 60 + seconds / 3600
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not 0 <= found <= most:  # NaN is not
        return None
    return -found if str(side).strip().upper() in ("S", "W") else found


def sidecar(file: Path, taken: Collection[str]) -> dict[str, str]:
    """The texts, numbers and truth values of a JSON object beside a picture, as texts; {} where it is none.

    Names that are ``taken``, in lower case, are passed over.
    """
    try:
        content = json.loads(read_text(file, "sidecar", most=_MOST_SIDECAR))
    except (CrovcaError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    plain = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
        if isinstance(value, str | int | float) and key and key.lower() not in taken
    }
    distinct = {key.lower(): key for key in plain}
    return {key: plain[key] for key in list(distinct.values())[:_MOST_KEYS]}
