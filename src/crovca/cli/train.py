"""``crovca train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crovca.cli.options import Force, Json, given, open_embeddings, parse_lengths
from crovca.cli.output import Reporter, emit_json, stdout
from crovca.errors import ConfigError, CrovcaError
from crovca.files import check_output, remove
from crovca.hashing.config import PRESETS

if TYPE_CHECKING:
    from crovca.hasher import Hasher

__all__ = ["train"]


def train(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Embeddings: .npz, .npy, .parquet, .safetensors, or a store.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model.", show_default=False)
    ] = Path("model"),
    images: Annotated[
        Path | None, typer.Option(help="Two modalities: embeddings of the images.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="Two modalities: embeddings of the texts, row by row.", show_default=False),
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
    unsupervised: Annotated[
        bool, typer.Option("--unsupervised", help="Leave labels in DATA unused.")
    ] = False,
    pairing: Annotated[
        str,
        typer.Option(
            help="Where the second view comes from: auto, views, neighbors or classes; or several: views,neighbors."
        ),
    ] = "auto",
    preset: Annotated[
        str | None,
        typer.Option(help=f"The paper's settings (one length): {', '.join(PRESETS)}.", show_default=False),
    ] = None,
    hashcoder: Annotated[
        Literal["small", "large"] | None,
        typer.Option(help="Network: small or large [default: small].", show_default=False),
    ] = None,
    faithfulness: Annotated[
        str | None,
        typer.Option(
            help="What codes are for: more of the learned kinds, the floats' order, or both: "
            "kinds, balanced, order, or a number [default: balanced].",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data [default: by size].", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Items in a step [default: 256].", show_default=False)
    ] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Two modalities of one width: one network for both.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between writings of the state to OUTPUT.partial.")
    ] = 15.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model.")] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Learn hash codes from embeddings.

    With labels in DATA the classes are learned; without, pairs come from stored views or nearest neighbors.
    A run that was interrupted goes on from OUTPUT.partial when the same command is given again.
    """
    if (images is None) != (texts is None) or (data is None) == (images is None):
        raise ConfigError("give either DATA, or both --images and --texts")
    if nested is not None and no_nested:
        raise ConfigError("--nested and --no-nested contradict each other; give one of them")
    inputs = [path for path in (data, images, texts) if path is not None]
    check_output(output, force=force, inputs=inputs, marker="model.safetensors")
    partial = output.with_name(f"{output.name}.partial")
    from crovca.hasher import Hasher

    parameters = given(context, Hasher)
    if faithfulness is not None:
        parameters["faithfulness"] = _number_or_name(faithfulness)
    if nested is not None:
        parameters["nested"] = parse_lengths(nested, "--nested")
    if no_nested:
        parameters["nested"] = False
    saving: dict[str, Any] = {"checkpoint": partial, "checkpoint_seconds": checkpoint_every}

    started = time.perf_counter()
    with Reporter() as reporter:
        if data is not None:
            if shared:
                raise ConfigError("--shared goes with --images and --texts")
            hasher = _train_one(data, parameters, pairing, unsupervised, preset, saving, force, reporter)
        else:
            if pairing != "auto" or unsupervised:
                raise ConfigError(
                    "--pairing and --unsupervised do not go with --images and --texts: rows are pairs"
                )
            assert images is not None
            assert texts is not None
            hasher = _train_two(images, texts, parameters, preset, saving, force, reporter)
    try:
        hasher.save(output, force=force)
    except CrovcaError:
        if not (partial / "state.safetensors").exists():
            remove(partial)
        raise
    remove(partial)

    last = hasher.history_[-1]
    summary = {
        "model": str(output),
        "kind": " and ".join(hasher.modalities),
        "lengths": list(hasher.lengths_),
        "pairing": list(hasher.pairing_),
        "epochs": last["epoch"],
        "steps": last["steps"],
        "loss": last["loss"],
        **{name: last[name] for name in hasher.config_.weights},
        "seconds": round(time.perf_counter() - started, 2),
        "notes": reporter.notes,
    }
    if json:
        emit_json(summary)
        return
    lengths = ", ".join(map(str, hasher.lengths_))
    stdout.print(
        f"{output}: codes of {lengths} bits, trained in {summary['seconds']} s "
        f"({last['epoch']} epochs, {last['steps']:,} steps; loss {last['loss']:.3f})",
        highlight=False,
        soft_wrap=True,
    )
    stdout.print(f"next: crovca encode {output} DATA -o codes.npz", highlight=False, soft_wrap=True)


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _train_one(
    data: Path,
    parameters: dict[str, Any],
    pairing: str,
    unsupervised: bool,
    preset: str | None,
    saving: dict[str, Any],
    force: bool,
    reporter: Reporter,
) -> Hasher:
    from crovca.hasher import Hasher

    named = pairing.split(",")
    if unsupervised and "classes" in named:
        raise ConfigError("--unsupervised and --pairing classes contradict each other; give one of them")
    parameters["pairing"] = named[0] if len(named) == 1 else tuple(named)
    hasher = Hasher.from_preset(preset, **parameters) if preset else Hasher(**parameters)
    embeddings = open_embeddings(data, with_ids=False)
    if force:  # an earlier run is not gone on with
        remove(saving["checkpoint"])
    use_labels = (
        embeddings.labels is not None and not unsupervised and (pairing == "auto" or "classes" in named)
    )
    if embeddings.labels is not None:
        if use_labels and pairing == "auto":
            reporter.message(
                f"{data.name} has labels: learning its classes (--unsupervised leaves them unused)"
            )
        elif not use_labels:
            reporter.message(f"the labels in {data.name} are not used")
    return hasher.fit(embeddings, embeddings.labels if use_labels else None, observer=reporter, **saving)


def _train_two(
    images: Path,
    texts: Path,
    parameters: dict[str, Any],
    preset: str | None,
    saving: dict[str, Any],
    force: bool,
    reporter: Reporter,
) -> Hasher:
    from crovca.hasher import Hasher

    hasher = Hasher.for_pairs(preset=preset, **parameters)
    pictures, words = open_embeddings(images, with_ids=False), open_embeddings(texts, with_ids=False)
    if force:
        remove(saving["checkpoint"])
    return hasher.fit(pictures, texts=words, observer=reporter, **saving)
