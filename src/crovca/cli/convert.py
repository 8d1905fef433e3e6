"""``crovca convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from crovca.cli.options import Force, Json
from crovca.cli.output import answer, note
from crovca.files import check_output


def convert(
    checkpoint: Annotated[
        Path, Argument(help="Checkpoint; for open_clip also the folder with its open_clip_config.json.")
    ],
    layout: Annotated[
        Literal["simdinov2", "open_clip", "torchvision"], Option("--from", help="Who wrote the checkpoint.")
    ],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the encoder.")],
    variant: Annotated[
        Literal["imagenet1k_v1", "swag_e2e", "swag_linear"] | None, Option(help="Which of torchvision's weights.")
    ] = None,
    activation: Annotated[
        Literal["auto", "gelu", "quick_gelu"],
        Option(help="Of open_clip's weights; auto: as open_clip_config.json says."),
    ] = "auto",
    heads: Annotated[int | None, Option(help="Attention heads [default: one for 64 channels].")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn a checkpoint that transformers cannot read into an encoder's folder, exactly."""
    from crovca.encoders.convert import convert_checkpoint

    check_output(output, force=force, inputs=[checkpoint], marker="preprocessor_config.json")
    encoder, notes = convert_checkpoint(
        checkpoint, output, layout=layout, variant=variant, activation=activation, heads=heads
    )
    for text in notes:
        note(text)
    height, width = encoder.preprocessing.size
    answer(
        json,
        {"encoder": str(output), "width": encoder.width, "image_size": [height, width], **encoder.identity},
        f"{output}: {encoder.family.name}, embeddings of {encoder.width} from images of {width} x {height}; "
        f"use it as --encoder {output}",
    )
