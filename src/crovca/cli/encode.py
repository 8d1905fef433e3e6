"""``crovca encode``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from crovca.cli.options import Device, EncoderPlace, Force, Json, Modality, Model, Root
from crovca.cli.output import Reporter, answer
from crovca.files import check_output


def encode(
    model: Model,
    data: Annotated[Path, Argument(help="Embeddings; for a model of images, a folder, split file, ... of images.")],
    output: Annotated[Path, Option("--output", "-o", help="File for the codes (.npz).")] = Path("codes.npz"),
    bits: Annotated[int | None, Option(help="Cut the codes to this length [default: all].")] = None,
    logits: Annotated[bool, Option("--logits", help="Keep the float logits beside the codes.")] = False,
    modality: Annotated[Modality | None, Option(help="For a model of two modalities: images or texts.")] = None,
    encoder: EncoderPlace = None,
    root: Root = None,
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn embeddings into packed codes, with their ids and labels.

    A model of images (crovca finetune) takes images, and texts with --modality texts.
    """
    from crovca.archive.encoding import encode_path
    from crovca.hasher import Hasher

    check_output(output, force=force, inputs=[model, data])
    hasher = Hasher.load(model, device=device, encoder=encoder)
    started = time.perf_counter()
    with Reporter() as reporter:
        found = encode_path(hasher, data, modality, observer=reporter, bits=bits, logits=logits, root=root)
    encoded = found.encoded
    seconds = time.perf_counter() - started
    encoded.save(output)
    size, length = encoded.codes.bytes_per_item, encoded.codes.bits
    content = {
        "codes": str(output),
        "items": len(encoded),
        "bits": length,
        "bytes_per_item": size,
        "left_out": found.left_out,
        "seconds": round(seconds, 3),
    }
    text = (
        f"{output}: {len(encoded):,} codes of {length} bits, {size} bytes an item "
        f"(the embeddings have {found.bytes_of_floats:,}), in {seconds:.1f} s"
    )
    answer(json, content, text)
