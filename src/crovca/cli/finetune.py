"""``crovca finetune``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from crovca.cli import options
from crovca.cli.output import Reporter, answer
from crovca.cli.train import nested_lengths, save_model, steps, trained
from crovca.errors import ConfigError
from crovca.files import check_output, remove

if TYPE_CHECKING:
    from crovca.hasher import Hasher
    from crovca.hashing.process_group import ProcessGroup
    from crovca.hashing.train import Observer
    from crovca.sources.source import Source


def finetune(
    context: Context,
    images: Annotated[
        Path, Argument(help="Folder, split file (.txt), Parquet, saved Hugging Face dataset, or WebDataset .tar files.")
    ],
    output: options.ModelFolder = Path("model"),
    encoder: options.OfEncoder = "",
    revision: options.Revision = None,
    bits: options.Bits = 256,
    nested: options.Nested = None,
    no_nested: options.NoNested = False,
    supervised: Annotated[
        bool, Option("--supervised", help="Learn the classes: names of subfolders, or labels in IMAGES.")
    ] = False,
    texts: Annotated[
        Path | None,
        Option(help="Images and texts: a text of each image, by its id or row by row (.txt, .csv, .parquet)."),
    ] = None,
    captions: Annotated[bool, Option("--captions", help="Images and texts: the captions in IMAGES.")] = False,
    root: options.SplitRoot = None,
    image_column: options.ImageColumn = None,
    caption_column: options.CaptionColumn = None,
    preset: options.Preset = None,
    hashcoder: options.NetworkSize = None,
    lora_rank: Annotated[int | None, Option(help="Rank of LoRA; 0: the encoder stays frozen [default: 16].")] = None,
    epochs: Annotated[int | None, Option(help="Passes over the images [default: 5].")] = None,
    batch_size: Annotated[int | None, Option(help="Items in a step, over all processes [default: 256].")] = None,
    learning_rate: Annotated[float | None, Option(help="At the first step [default: 0.001].")] = None,
    dtype: Annotated[str, Option(help="The encoder computes in: auto, float32, bfloat16 or float16.")] = "auto",
    gradient_checkpointing: Annotated[
        bool, Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    compile: Annotated[
        bool | None, Option("--compile/--no-compile", help="Compile the encoder [default: on a GPU, in long runs].")
    ] = None,
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 15.0,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Learn hash codes from images, or from images and texts, and adapt the encoder to them (LoRA).

    Every image is taught by another augmented view of itself; with --supervised by its class; with texts by its text. A
    run that was interrupted goes on from OUTPUT.partial when the same command is given again. Several GPUs:
    'torchrun --nproc-per-node 4 --no-python crovca finetune ...', or 'accelerate launch'.
    """
    from crovca.hasher import FineTuning, Hasher
    from crovca.hasher.processes import launched
    from crovca.sources.opening import open_images

    lengths = nested_lengths(nested, no_nested)
    if texts is not None and captions:
        raise ConfigError("--texts and --captions contradict each other; give one of them")
    paired = texts is not None or captions
    if paired and supervised:
        raise ConfigError("--supervised does not go with texts: every image is taught by its own")
    if not encoder:
        raise ConfigError("give --encoder: the folder of a model, or its id on the hub")
    partial = output.with_name(f"{output.name}.partial")
    parameters = options.given(context, Hasher, FineTuning)
    if lora_rank == 0:
        parameters["lora_rank"] = None
    if lengths is not None:
        parameters["nested"] = lengths

    started = time.perf_counter()
    with launched(device) as (process_group, where):
        reporter = Reporter()
        observer: Observer = reporter
        if process_group.rank > 0:
            from crovca.hashing.train import Silent

            observer = Silent()

        def prepare() -> None:
            inputs = [path for path in (images, texts) if path is not None]
            check_output(output, force=force, inputs=inputs, marker="model.safetensors")
            if force:
                remove(partial)

        process_group.first(prepare)
        with reporter:
            source = open_images(
                images,
                root=root,
                image_column=image_column,
                caption_column=None if texts is not None else caption_column,
            )
            for note in source.notes:
                observer.message(note)
            saving = {
                "checkpoint": partial,
                "checkpoint_seconds": checkpoint_every,
                "observer": observer,
                "process_group": process_group,
            }
            parameters["device"] = where
            hasher = _fit(source, parameters, preset, texts, caption_column, paired, supervised, saving)
        process_group.first(lambda: save_model(hasher, output, partial, force))
        if process_group.rank == 0:
            _report(hasher, output, process_group, time.perf_counter() - started, reporter.notes, json)


def _fit(
    source: Source[bytes],
    parameters: dict[str, Any],
    preset: str | None,
    texts: Path | None,
    caption_column: str | None,
    paired: bool,
    supervised: bool,
    saving: dict[str, Any],
) -> Hasher:
    from crovca.hasher import Hasher

    if paired:
        words = None if texts is None else pair_texts(source, texts, caption_column)
        return Hasher.for_pairs(preset=preset, **parameters).fit(source, texts=words, **saving)
    if supervised and source.labels is None:
        raise ConfigError(
            f"--supervised needs labels, and this {source.kind} has none; put the images of each class into a folder "
            "of its own, or list them in a split file with labels"
        )
    if source.labels is not None and not supervised:
        saving["observer"].message("there are labels, which are not used; --supervised learns the classes")
    hasher = Hasher.for_images(preset=preset, **parameters)
    return hasher.fit(source, source.labels if supervised else None, **saving)


def pair_texts(source: Source[bytes], texts: Path, caption_column: str | None) -> list[list[str]]:
    """The texts of each image: those that have its id, one or several; texts without ids belong row by row."""
    from crovca.errors import InvalidInputError
    from crovca.sources.opening import open_texts

    found = open_texts(texts, caption_column=caption_column)
    words = list(found.captions or [])
    if found.ids.dtype.kind in "iu" and source.ids.dtype.kind not in "iu":
        if len(words) != len(source):
            raise InvalidInputError(
                f"{texts} holds {len(words):,} texts for {len(source):,} images; give as many, row by row, or a table "
                "with a column 'id' of the images' ids (paths below the folder)"
            )
        return [[text] for text in words]
    places = {name: row for row, name in enumerate(source.ids.tolist())}
    pairs: list[list[str]] = [[] for _ in range(len(source))]
    for name, text in zip(found.ids.tolist(), words, strict=True):
        if name in places:
            pairs[places[name]].append(text)
    if not any(pairs):
        raise InvalidInputError(
            f"no text in {texts} has the id of an image: the texts' are like {str(found.ids[0])!r}, the images' like "
            f"{str(source.ids[0])!r}"
        )
    return pairs


def _report(
    hasher: Hasher, output: Path, process_group: ProcessGroup, seconds: float, notes: list[str], json: bool
) -> None:
    towers = hasher.towers_
    content = {
        **trained(hasher, output),
        "left_out": hasher.left_out_,
        "trained_parameters": towers.trained,
        "parameters": towers.total,
        "processes": process_group.size,
        "seconds": round(seconds, 2),
        "notes": notes,
    }
    answer(
        json,
        content,
        f"{output}: codes of {', '.join(map(str, hasher.lengths_))} bits, trained in {seconds:.1f} s "
        f"({towers.trained:,} of {towers.total:,} parameters; {steps(hasher)})",
        f"next: crovca encode {output} IMAGES -o codes.npz",
    )
