"""``crovca encode``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from crovca.cli.options import Force, Json, Modality, Model, open_embeddings
from crovca.cli.output import emit_json, stdout
from crovca.files import check_output

__all__ = ["encode"]


def encode(
    model: Model,
    data: Annotated[Path, typer.Argument(help="Embeddings to encode.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the codes (.npz).", show_default=False)
    ] = Path("codes.npz"),
    bits: Annotated[
        int | None, typer.Option(help="Cut the codes to this length [default: all].", show_default=False)
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Keep the float logits beside the codes.")] = False,
    modality: Annotated[
        Modality | None,
        typer.Option(help="For a model of two modalities: images or texts.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn embeddings into packed codes, with their ids and labels."""
    from crovca.cli.modality import encode_with
    from crovca.hasher import load_hasher

    check_output(output, force=force, inputs=[model, data])
    hasher = load_hasher(model, device=device)
    embeddings = open_embeddings(data)
    started = time.perf_counter()
    encoded = encode_with(hasher, embeddings, data, modality, "--modality", bits=bits, logits=logits)
    seconds = time.perf_counter() - started
    encoded.save(output)
    size = encoded.codes.bytes_per_item
    if json:
        emit_json(
            {
                "codes": str(output),
                "items": len(encoded),
                "bits": encoded.codes.bits,
                "bytes_per_item": size,
                "seconds": round(seconds, 3),
            }
        )
        return
    stdout.print(
        f"{output}: {len(encoded):,} codes of {encoded.codes.bits} bits, {size} bytes an item "
        f"(the embeddings have {embeddings.width * embeddings.values.dtype.itemsize:,}), in {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
