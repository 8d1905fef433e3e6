"""Where the parts of an archive lie, for whoever reads one: nothing here loads an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crovca.errors import ConfigError, FileFormatError
from crovca.files import read_json

MARKER = "archive.json"
OF_SYNC = ("modified", "sidecar", "sha256")
"""Columns that are sync's own: when a file and its sidecar were changed, in ns, and its content hash."""


def root_of(path: Path) -> Path | None:
    """The folder of pictures of an archive; None of anything else."""
    if not (path / MARKER).is_file():
        return None
    root = read_json(path / MARKER, "archive").get("root")
    if not isinstance(root, str):
        raise FileFormatError(f"{path / MARKER} does not say where its pictures lie; it is damaged")
    return Path(root)


def index_folder(path: Path) -> Path:
    """Where the index is: of an archive in it, else the path itself."""
    if not (path / MARKER).is_file():
        return path
    if not (path / "index").is_dir():
        raise ConfigError(f"{path} holds nothing yet; fill it with: crovca archive sync {path}")
    return path / "index"


def columns_to_show(names: Sequence[str]) -> list[str]:
    """Columns of metadata that a person wants to see: not sync's own, nor those that say the id again."""
    hidden = {*OF_SYNC, "folder", "file"} if set(OF_SYNC) <= set(names) else set()
    return [name for name in names if name not in hidden]
