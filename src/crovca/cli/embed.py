"""``crovca embed``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crovca.cli.options import Json
from crovca.cli.output import Reporter, emit_json, stdout
from crovca.data.store import MANIFEST
from crovca.errors import ConfigError, OutputExistsError
from crovca.files import check_output, remove

if TYPE_CHECKING:
    from crovca.embedding.job import Job, Origin
    from crovca.embedding.pipeline import Summary
    from crovca.embedding.runners import Rank
    from crovca.encoders.encoder import Encoder, TextEncoder

__all__ = ["embed"]


def embed(
    images: Annotated[
        Path | None,
        typer.Argument(
            help="Folder, split file (.txt), Parquet, saved Hugging Face dataset, or WebDataset .tar files.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the store.", show_default=False)
    ] = Path("store"),
    encoder: Annotated[
        str, typer.Option(help="Folder of a model, or its id on the hub.", show_default=False)
    ] = "",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Embed texts: .txt, .csv, .tsv, .parquet, or a store with captions.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Split file: folder that its paths are relative to [default: its own].", show_default=False
        ),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Parquet: column of the images [default: found].", show_default=False)
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Tables: column of the captions [default: found].", show_default=False)
    ] = None,
    resize_rounding: Annotated[
        Literal["down", "nearest"] | None,
        typer.Option(
            help="Of a resized image's longer side [default: the encoder's own].", show_default=False
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(help="1: the image as it is; more: so many augmented views, as in the paper.")
    ] = 1,
    batch_size: Annotated[str, typer.Option(help="Items in a batch, or auto.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="The model computes in: auto, float32, bfloat16 or float16.")
    ] = "auto",
    stored: Annotated[Literal["float16", "float32"], typer.Option(help="The store holds these.")] = "float16",
    shard_size: Annotated[
        int | None, typer.Option(help="Items in a part [default: 4096; 32768 on a GPU].", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine, or actors of Ray.")] = 1,
    runner: Annotated[
        Literal["local", "rank", "ray"],
        typer.Option(help="local; rank: this is one of a launcher's processes (torchrun, srun); ray."),
    ] = "local",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads within a batch [default: 1 for images].", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same views.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where a store exists.")] = False,
    json: Json = False,
) -> None:
    """Turn images or texts into embeddings with a foundation model.

    The store is written part by part. A run that was interrupted goes on when the same command is given again, and
    gives the same bytes as one that was not. What cannot be read is counted, and listed in STORE/part-*/errors.parquet.
    """
    from crovca.embedding.job import Origin, begin_job, read_job
    from crovca.embedding.pipeline import finish, make_worker, missing_shards, plan_job, summarize
    from crovca.embedding.runners import find_rank

    if (images is None) == (texts is None):
        raise ConfigError("give either IMAGES or --texts FILE")
    if not encoder:
        raise ConfigError("give --encoder: the folder of a model, or its id on the hub")
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    rank = find_rank() if runner == "rank" else None
    if rank is not None and (force or workers > 1):
        raise ConfigError(
            "--force and --workers do not go with --runner rank: remove the store first; start more ranks"
        )
    path = images or texts
    assert path is not None
    _check_store(path, output, force)
    origin = Origin(
        "images" if texts is None else "texts",
        str(path),
        None if root is None else str(root),
        image_column,
        caption_column,
    )
    begun = None if force else read_job(output)
    with Reporter() as reporter:
        source = origin.open()
        for text in source.notes:
            reporter.message(text)
        asked = {"dtype": dtype, "device": device}
        if begun is not None:  # what is chosen is chosen once
            asked = {
                name: getattr(begun, name) if value == "auto" else value for name, value in asked.items()
            }
        tower = _load(origin, encoder, revision, asked, rank)
        if resize_rounding is not None:
            _set_rounding(tower, resize_rounding)
        chosen = {"v": views, "seed": seed, "stored": stored, "shard_size": shard_size, "threads": threads}
        chosen["batch_size"] = _parse_batch_size(batch_size)
        job = plan_job(origin, source, tower, encoder, revision, chosen, begun)
        if force:
            remove(output)  # not before everything else was found to be in order
        job = begin_job(output, job)
        _note_versions(job, reporter)
        missing = missing_shards(output, job)
        mine = missing if rank is None else rank.shards(missing)
        before = job.items - sum(len(job.rows(shard)) for shard in mine)
        if before and rank is None:
            reporter.message(
                f"{output}: {job.shards - len(missing):,} of {job.shards:,} parts are done already"
            )
        started = time.perf_counter()
        advance = _Meter(reporter, before, job.items, origin.modality)
        if mine:
            _run(runner, workers, job, output, mine, advance, lambda: make_worker(job, source, tower))
        seconds = time.perf_counter() - started
        finish(output, job)
    _report(output, job, summarize(output, job), advance.items, seconds, reporter.notes, json)


class _Meter:
    """Counts items, and shows them."""

    def __init__(self, reporter: Reporter, before: int, total: int, what: str) -> None:
        self.items = 0
        self._reporter, self._before, self._total, self._what = reporter, before, total, what
        self._started = time.perf_counter()

    def __call__(self, items: int) -> None:
        self.items += items
        rate = self.items / max(time.perf_counter() - self._started, 1e-9)
        self._reporter.embedded(self._before + self.items, self._total, rate, self._what)


def _check_store(path: Path, output: Path, force: bool) -> None:
    """Refuse an output that is none of ours, before any work is done."""
    from crovca.data.store import JOB

    if output.is_dir() and (output / JOB).exists() and not force:
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    marker = JOB if (output / JOB).exists() else MANIFEST
    if output.exists() and not force and (output / marker).exists():
        raise OutputExistsError(
            f"{output} is a store of something else; give another output, or --force to replace it"
        )
    check_output(output, force=force, inputs=[path], marker=marker)


def _load(
    origin: Origin, encoder: str, revision: str | None, asked: dict[str, str], rank: Rank | None
) -> Encoder | TextEncoder:
    from crovca.encoders.encoder import Encoder, TextEncoder, choose_device

    where = str(choose_device(asked["device"]))
    if rank is not None and where == "cuda":
        import torch

        where = f"cuda:{rank.local % torch.cuda.device_count()}"
    kind = Encoder if origin.modality == "images" else TextEncoder
    return kind.load(encoder, revision=revision, device=where, dtype=asked["dtype"])


def _set_rounding(tower: Encoder | TextEncoder, rounding: Literal["down", "nearest"]) -> None:
    from crovca.encoders.encoder import Encoder

    if not isinstance(tower, Encoder):
        raise ConfigError("--resize-rounding goes with images")
    tower.preprocessing = replace(tower.preprocessing, resize_rounding=rounding)


def _run(
    runner: str, workers: int, job: Job, output: Path, shards: list[int], advance: _Meter, worker: Any
) -> None:
    from crovca.embedding import runners

    if runner == "ray":
        runners.run_ray(job, output, shards, advance, workers)
    elif runner == "local" and workers > 1:
        runners.run_processes(job, output, shards, advance, workers)
    else:
        runners.run_here(worker(), output, shards, advance)


def _note_versions(job: Job, reporter: Reporter) -> None:
    from crovca.embedding.pipeline import versions

    now = versions()
    changed = [
        f"{name} {old} (now {now.get(name)})" for name, old in job.versions.items() if now.get(name) != old
    ]
    if changed:
        reporter.message(
            f"the store was begun with {', '.join(changed)}: its last bits may differ between parts"
        )


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--batch-size must be a whole number of at least 1, or auto; got {text!r}")


def _report(
    output: Path, job: Job, found: Summary, items: int, seconds: float, notes: list[str], json: bool
) -> None:
    from crovca.embedding.pipeline import counted

    what = job.origin.modality
    if json:
        emit_json(
            {
                "store": str(output),
                "finished": found.finished,
                "items": job.items,
                "embedded": found.embedded,
                "broken": found.broken,
                "item_notes": found.notes,
                "parts": found.parts,
                "missing_parts": found.missing,
                "d": job.d,
                "v": job.v,
                "batch_size": job.batch_size,
                "dtype": job.dtype,
                "stored": job.stored,
                "device": job.device,
                "threads": job.threads,
                "items_now": items,
                "seconds": round(seconds, 3),
                "items_per_second": round(items / seconds, 2) if items else None,
                "notes": notes,
            }
        )
        return

    def say(text: str) -> None:
        stdout.print(text, highlight=False, soft_wrap=True, markup=False)

    shape = f"{job.d} numbers" if job.v == 1 else f"{job.v} views of {job.d} numbers"
    rate = f", {items / seconds:,.1f} a second" if items else ""
    say(
        f"{output}: {found.embedded:,} of {job.items:,} {what} embedded, {shape} in {job.stored} "
        f"({seconds:.1f} s{rate})"
    )
    if found.broken:
        say(
            f"left out: {sum(found.broken.values()):,} ({counted(found.broken)}), "
            f"listed in {output}/part-*/errors.parquet"
        )
    if found.notes:
        say(f"noted: {counted(found.notes)}")
    if not found.finished:
        say(
            f"{found.missing:,} of {job.shards:,} parts are not there yet: "
            "whoever writes the last of them finishes the store"
        )
        return
    say(f"next: crovca train {output} -o model, or crovca index build {output} -o index")
