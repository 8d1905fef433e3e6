"""``crovca embed``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Context, Option

from crovca.cli import options
from crovca.cli.output import Reporter, answer, tell_left_out
from crovca.errors import ConfigError

if TYPE_CHECKING:
    from crovca.embedding.embed import Embedded


def embed(
    context: Context,
    images: Annotated[
        Path | None,
        Argument(help="Folder, split file (.txt), Parquet, saved Hugging Face dataset, or WebDataset .tar files."),
    ] = None,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the store.")] = Path("store"),
    encoder: options.OfEncoder = "",
    revision: options.Revision = None,
    texts: Annotated[
        Path | None, Option(help="Embed texts: .txt, .csv, .tsv, .parquet, or a store with captions.")
    ] = None,
    root: options.SplitRoot = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    resize_rounding: Annotated[
        Literal["down", "nearest"] | None, Option(help="Of a resized image's longer side [default: the encoder's own].")
    ] = None,
    views: Annotated[int, Option(help="1: the image as it is; more: so many augmented views, as in the paper.")] = 1,
    batch_size: Annotated[str, Option(help="Items in a batch, or auto.")] = "auto",
    dtype: Annotated[str, Option(help="The model computes in: auto, float32, bfloat16 or float16.")] = "auto",
    stored: Annotated[Literal["float16", "float32"], Option(help="The store holds these.")] = "float16",
    shard_size: Annotated[
        int | None, Option(help="Items in a part [default: 512 images or 4096 texts; 32768 on a GPU].")
    ] = None,
    workers: Annotated[int, Option(help="Processes on this machine, or actors of Ray.")] = 1,
    runner: Annotated[
        Literal["local", "rank", "ray"],
        Option(help="local; rank: this is one of a launcher's processes (torchrun, srun); ray."),
    ] = "local",
    device: options.Device = "auto",
    threads: Annotated[int | None, Option(help="Threads within a batch [default: 1 for images].")] = None,
    seed: Annotated[int, Option(help="The same seed gives the same views.")] = 0,
    force: Annotated[bool, Option("--force", help="Begin anew where a store exists.")] = False,
    left_out: options.LeftOutFile = None,
    json: options.Json = False,
) -> None:
    """Turn images or texts into embeddings with a foundation model.

    The store is written part by part. A run that was interrupted goes on when the same command is given again, and
    gives the same bytes as one that was not. What cannot be read is counted, and listed in STORE/part-*/errors.parquet.
    """
    from crovca.embedding.embed import embed as embed_items
    from crovca.embedding.job import Origin

    path = images or texts
    if path is None or (images is not None and texts is not None):
        raise ConfigError("give either IMAGES or --texts FILE")
    if not encoder:
        raise ConfigError("give --encoder: the folder of a model, or its id on the hub")
    modality: options.Modality = "images" if texts is None else "texts"
    place = None if root is None else str(root)
    with Reporter() as reporter:
        origin = Origin(modality, str(path), place, image_column, caption_column)
        settings = options.given(context, embed_items) | {"batch_size": options.parse_batch_size(batch_size)}
        found = embed_items(origin, store=output, resume=not force, observer=reporter, **settings)
    tell_left_out(found.left_out, left_out)
    _report(found, reporter.notes, json)


def _report(result: Embedded, notes: list[str], json: bool) -> None:
    from crovca.embedding.blocks import counted

    output, job, found = result.store, result.job, result.summary
    items, seconds = result.items_now, result.seconds
    content = {
        "store": str(output),
        "finished": found.finished,
        "items": job.items,
        "embedded": found.embedded,
        "broken": found.broken,
        "item_notes": found.notes,
        "parts": found.parts,
        "missing_parts": found.missing,
        **{name: getattr(job, name) for name in ("d", "v", "batch_size", "dtype", "stored", "device", "threads")},
        "items_now": items,
        "seconds": round(seconds, 3),
        "items_per_second": round(items / seconds, 2) if items else None,
        "notes": notes,
    }
    shape = f"{job.d} numbers" if job.v == 1 else f"{job.v} views of {job.d} numbers"
    rate = f", {items / seconds:,.1f} a second" if items else ""
    lines = [
        f"{output}: {found.embedded:,} of {job.items:,} {job.origin.modality} embedded, {shape} in {job.stored} "
        f"({seconds:.1f} s{rate})"
    ]
    if found.broken:
        lines.append(
            f"left out: {sum(found.broken.values()):,} ({counted(found.broken)}), "
            f"listed in {output}/part-*/errors.parquet"
        )
    if found.notes:
        lines.append(f"noted: {counted(found.notes)}")
    if found.finished:
        lines.append(f"next: crovca train {output} -o model, or crovca index build {output} -o index")
    else:
        missing = f"{found.missing:,} of {job.shards:,} parts are not there yet"
        lines.append(f"{missing}: whoever writes the last of them finishes the store")
    answer(json, content, *lines)
