"""``crovca export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Option

from crovca.cli.options import EncoderPlace, Force, Json, Model
from crovca.cli.output import answer
from crovca.errors import ConfigError
from crovca.files import check_output


def export(
    model: Model,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the graphs.")] = Path("exported"),
    onnx: Annotated[bool, Option("--onnx", help="Write ONNX graphs.")] = False,
    encoder: EncoderPlace = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a model in a format that runs without crovca.

    --onnx: embedding_to_codes.onnx, and for a model of images image_to_codes.onnx. Their outputs are packed codes as
    crovca writes them, and the logits. OUTPUT/export.json says what they take.
    """
    if not onnx:
        raise ConfigError("name a format: --onnx")
    from crovca.hasher import Hasher
    from crovca.hasher.onnx import MARKER, export_onnx

    check_output(output, force=force, inputs=[model], marker=MARKER)
    started = time.perf_counter()
    described = export_onnx(Hasher.load(model, device="cpu", encoder=encoder), output, force=force)
    seconds = round(time.perf_counter() - started, 2)
    lines = [
        f"{output / name}: {graph['input']} {graph['dtype']} ({', '.join(map(str, graph['shape']))}) "
        f"to {described['bits']} packed bits"
        for name, graph in described["graphs"].items()
    ]
    answer(json, {"folder": str(output), **described, "seconds": seconds}, *lines)
