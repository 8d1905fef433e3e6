"""``crovca finetune``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crovca.cli.options import Force, Json, given, parse_lengths
from crovca.cli.output import Reporter, emit_json, stdout
from crovca.errors import ConfigError, CrovcaError
from crovca.files import check_output, remove
from crovca.hashing.config import PRESETS

if TYPE_CHECKING:
    from crovca.hasher import Hasher
    from crovca.hashing.process_group import ProcessGroup
    from crovca.hashing.train import Observer
    from crovca.sources.source import Source

__all__ = ["finetune"]


def finetune(
    context: typer.Context,
    images: Annotated[
        Path,
        typer.Argument(
            help="Folder, split file (.txt), Parquet, saved Hugging Face dataset, or WebDataset .tar files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model.", show_default=False)
    ] = Path("model"),
    encoder: Annotated[
        str, typer.Option(help="Folder of a model, or its id on the hub.", show_default=False)
    ] = "",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default=False)
    ] = None,
    bits: Annotated[int, typer.Option(help="Length of the code, 1 to 4096.")] = 256,
    nested: Annotated[
        str | None,
        typer.Option(
            help="Prefixes that become codes of their own [default: 16,32,64,128].", show_default=False
        ),
    ] = None,
    no_nested: Annotated[
        bool, typer.Option("--no-nested", help="Train one length alone, as in the paper.")
    ] = False,
    supervised: Annotated[
        bool,
        typer.Option("--supervised", help="Learn the classes: names of subfolders, or labels in IMAGES."),
    ] = False,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Images and texts: a text of each image, by its id or row by row (.txt, .csv, .parquet).",
            show_default=False,
        ),
    ] = None,
    captions: Annotated[
        bool, typer.Option("--captions", help="Images and texts: the captions in IMAGES.")
    ] = False,
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
    preset: Annotated[
        str | None,
        typer.Option(help=f"The paper's settings (one length): {', '.join(PRESETS)}.", show_default=False),
    ] = None,
    hashcoder: Annotated[
        Literal["small", "large"] | None,
        typer.Option(help="Network: small or large [default: small].", show_default=False),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Rank of LoRA; 0: the encoder stays frozen [default: 16].", show_default=False),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images [default: 5].", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Items in a step, over all processes [default: 256].", show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="At the first step [default: 0.001].", show_default=False)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="The encoder computes in: auto, float32, bfloat16 or float16.")
    ] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the encoder [default: on a GPU, in long runs].",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between writings of the state to OUTPUT.partial.")
    ] = 15.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Learn hash codes from images, or from images and texts, and adapt the encoder to them (LoRA).

    Every image is taught by another augmented view of itself; with --supervised by its class; with texts by its text. A
    run that was interrupted goes on from OUTPUT.partial when the same command is given again. Several GPUs:
    'torchrun --nproc-per-node 4 --no-python crovca finetune ...', or 'accelerate launch'.
    """
    from crovca.hasher import FineTuning, Hasher
    from crovca.hasher.processes import launched

    if nested is not None and no_nested:
        raise ConfigError("--nested and --no-nested contradict each other; give one of them")
    if texts is not None and captions:
        raise ConfigError("--texts and --captions contradict each other; give one of them")
    paired = texts is not None or captions
    if paired and supervised:
        raise ConfigError("--supervised does not go with texts: every image is taught by its own")
    if not encoder:
        raise ConfigError("give --encoder: the folder of a model, or its id on the hub")
    partial = output.with_name(f"{output.name}.partial")
    parameters = given(context, Hasher, FineTuning)
    if lora_rank == 0:
        parameters["lora_rank"] = None
    if nested is not None:
        parameters["nested"] = parse_lengths(nested, "--nested")
    if no_nested:
        parameters["nested"] = False

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
            source = _open(
                images, root, image_column, None if texts is not None else caption_column, observer
            )
            saving = {
                "checkpoint": partial,
                "checkpoint_seconds": checkpoint_every,
                "observer": observer,
                "process_group": process_group,
            }
            parameters["device"] = where
            hasher = _fit(source, parameters, preset, texts, caption_column, paired, supervised, saving)
        process_group.first(lambda: _save(hasher, output, partial, force))
        if process_group.rank == 0:
            _report(hasher, output, process_group, time.perf_counter() - started, reporter.notes, json)


def _open(
    images: Path,
    root: Path | None,
    image_column: str | None,
    caption_column: str | None,
    observer: Observer,
) -> Source[bytes]:
    from crovca.sources.opening import open_images

    source = open_images(images, root=root, image_column=image_column, caption_column=caption_column)
    for text in source.notes:
        observer.message(text)
    return source


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


def _save(hasher: Hasher, output: Path, partial: Path, force: bool) -> None:
    try:
        hasher.save(output, force=force)
    except CrovcaError:
        if not (partial / "state.safetensors").exists():
            remove(partial)
        raise
    remove(partial)


def _report(
    hasher: Hasher,
    output: Path,
    process_group: ProcessGroup,
    seconds: float,
    notes: list[str],
    json: bool,
) -> None:
    last = hasher.history_[-1]
    towers = hasher.towers_
    summary = {
        "model": str(output),
        "kind": " and ".join(hasher.modalities),
        "lengths": list(hasher.lengths_),
        "pairing": list(hasher.pairing_),
        "left_out": hasher.left_out_,
        "trained_parameters": towers.trained,
        "parameters": towers.total,
        "processes": process_group.size,
        "epochs": last["epoch"],
        "steps": last["steps"],
        "loss": last["loss"],
        **{name: last[name] for name in hasher.config_.weights},
        "seconds": round(seconds, 2),
        "notes": notes,
    }
    if json:
        emit_json(summary)
        return

    def say(text: str) -> None:
        stdout.print(text, highlight=False, soft_wrap=True, markup=False)

    lengths = ", ".join(map(str, hasher.lengths_))
    say(
        f"{output}: codes of {lengths} bits, trained in {seconds:.1f} s ({last['epoch']} epochs, "
        f"{last['steps']:,} steps; {towers.trained:,} of {towers.total:,} parameters; loss {last['loss']:.3f})"
    )
    say(f"next: crovca encode {output} IMAGES -o codes.npz")
