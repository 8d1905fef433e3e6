"""One function for all converters, as ``crovca convert`` calls it."""

from __future__ import annotations

from pathlib import Path

from crovca.encoders.converters import open_clip, simdinov2, torchvision_vit
from crovca.encoders.converters.checkpoints import Converted, read_checkpoint, write_folder
from crovca.encoders.encoder import Encoder
from crovca.errors import ConfigError

LAYOUTS = ("simdinov2", "open_clip", "torchvision")
"""Layouts of checkpoints that can be converted."""


def convert_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    layout: str,
    variant: str | None = None,
    activation: str = "auto",
    heads: int | None = None,
) -> tuple[Encoder, list[str]]:
    """Convert a checkpoint into a folder in the format of transformers.

    Args:
        checkpoint: the file; for open_clip also the folder with open_clip_config.json.
        output: the folder to write; what stands there is replaced (see ``files.check_output``).
        layout: one of ``LAYOUTS``.
        variant: of torchvision's weights: how their images are prepared.
        activation: of open_clip's.
        heads: attention heads, where they are not of 64 channels each.

    Returns:
        The encoder, loaded from the folder, and notes for the user.

    Raises:
        ConfigError: an unknown layout, or an option that does not go with it.
        FileFormatError: the checkpoint is damaged or not of that layout; nothing is written.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"a checkpoint's layout must be one of {list(LAYOUTS)}, got {layout!r}")
    if variant is not None and layout != "torchvision":
        raise ConfigError(f"a variant goes with torchvision's checkpoints, not with those of {layout}; leave it out")
    if activation != "auto" and layout != "open_clip":
        raise ConfigError(f"an activation goes with open_clip's checkpoints, not with those of {layout}; leave it out")
    converted = _converted(checkpoint, layout, variant, activation, heads)
    return write_folder(converted, output), list(converted.notes)


def _converted(checkpoint: Path, layout: str, variant: str | None, activation: str, heads: int | None) -> Converted:
    if layout == "open_clip":
        weights, folder = open_clip.find_checkpoint(checkpoint)
        return open_clip.convert(read_checkpoint(weights), folder, activation=activation, heads=heads)
    if checkpoint.is_dir():
        raise ConfigError(f"{checkpoint} is a folder; give the checkpoint's file")
    if layout == "torchvision":
        return torchvision_vit.convert(read_checkpoint(checkpoint), variant=variant, heads=heads)
    return simdinov2.convert(read_checkpoint(checkpoint), heads=heads)
