"""``crovca train``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from crovca.cli import options
from crovca.cli.output import Reporter, answer
from crovca.errors import ConfigError, CrovcaError
from crovca.files import check_output, remove

if TYPE_CHECKING:
    from crovca.hasher import Hasher


def train(
    context: Context,
    data: Annotated[Path | None, Argument(help="Embeddings: .npz, .npy, .parquet, .safetensors, or a store.")] = None,
    output: options.ModelFolder = Path("model"),
    images: Annotated[Path | None, Option(help="Two modalities: embeddings of the images.")] = None,
    texts: Annotated[Path | None, Option(help="Two modalities: embeddings of the texts, row by row.")] = None,
    bits: options.Bits = 256,
    nested: options.Nested = None,
    no_nested: options.NoNested = False,
    unsupervised: Annotated[bool, Option("--unsupervised", help="Leave labels in DATA unused.")] = False,
    pairing: Annotated[
        str,
        Option(
            help="Where the second view comes from: auto, views, neighbors or classes; or several: views,neighbors."
        ),
    ] = "auto",
    preset: options.Preset = None,
    hashcoder: options.NetworkSize = None,
    faithfulness: Annotated[
        str | None,
        Option(
            help="What codes are for: more of the learned kinds, the floats' order, or both: "
            "kinds, balanced, order, or a number [default: balanced]."
        ),
    ] = None,
    epochs: Annotated[int | None, Option(help="Passes over the data [default: by size].")] = None,
    batch_size: Annotated[int | None, Option(help="Items in a step [default: 256].")] = None,
    shared: Annotated[bool, Option("--shared", help="Two modalities of one width: one network for both.")] = False,
    device: options.Device = "auto",
    checkpoint_every: options.CheckpointEvery = 15.0,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Learn hash codes from embeddings.

    With labels in DATA the classes are learned; without, pairs come from stored views or nearest neighbors.
    A run that was interrupted goes on from OUTPUT.partial when the same command is given again.
    """
    if (images is None) != (texts is None) or (data is None) == (images is None):
        raise ConfigError("give either DATA, or both --images and --texts")
    lengths = nested_lengths(nested, no_nested)
    inputs = [path for path in (data, images, texts) if path is not None]
    check_output(output, force=force, inputs=inputs, marker="model.safetensors")
    partial = output.with_name(f"{output.name}.partial")
    from crovca.hasher import Hasher

    parameters = options.given(context, Hasher)
    if faithfulness is not None:
        parameters["faithfulness"] = _number_or_name(faithfulness)
    if lengths is not None:
        parameters["nested"] = lengths

    started = time.perf_counter()
    with Reporter() as reporter:
        if data is not None:
            if shared:
                raise ConfigError("--shared goes with --images and --texts")
            hasher, learned = _of_one_kind(data, parameters, pairing, unsupervised, preset, reporter)
        else:
            if pairing != "auto" or unsupervised:
                raise ConfigError("--pairing and --unsupervised do not go with --images and --texts: rows are pairs")
            assert images is not None
            assert texts is not None
            hasher = Hasher.for_pairs(preset=preset, **parameters)
            paths = {"X": images, "texts": texts}
            learned = {name: options.open_embeddings(path, with_ids=False) for name, path in paths.items()}
        if force:  # an earlier run is not gone on with
            remove(partial)
        hasher.fit(**learned, observer=reporter, checkpoint=partial, checkpoint_seconds=checkpoint_every)
    save_model(hasher, output, partial, force)
    seconds = round(time.perf_counter() - started, 2)
    answer(
        json,
        {**trained(hasher, output), "seconds": seconds, "notes": reporter.notes},
        f"{output}: codes of {', '.join(map(str, hasher.lengths_))} bits, trained in {seconds} s ({steps(hasher)})",
        f"next: crovca encode {output} DATA -o codes.npz",
    )


def nested_lengths(nested: str | None, no_nested: bool) -> tuple[int, ...] | bool | None:
    """The hasher's ``nested`` as two options say it; None: as it is by default."""
    if nested is not None and no_nested:
        raise ConfigError("--nested and --no-nested contradict each other; give one of them")
    if nested is not None:
        return options.parse_lengths(nested, "--nested")
    return False if no_nested else None


def save_model(hasher: Hasher, output: Path, partial: Path, force: bool) -> None:
    """Save a model, and remove the state of its run; that stays where the model cannot be saved."""
    try:
        hasher.save(output, force=force)
    except CrovcaError:
        if not (partial / "state.safetensors").exists():
            remove(partial)
        raise
    remove(partial)


def trained(hasher: Hasher, output: Path) -> dict[str, Any]:
    """What JSON says of a trained model."""
    last = hasher.history_[-1]
    return {
        "model": str(output),
        "kind": " and ".join(hasher.modalities),
        "lengths": list(hasher.lengths_),
        "pairing": list(hasher.pairing_),
        "epochs": last["epoch"],
        "steps": last["steps"],
        "loss": last["loss"],
        **{name: last[name] for name in hasher.config_.weights},
    }


def steps(hasher: Hasher) -> str:
    """How long a model was trained, and how well, in words."""
    last = hasher.history_[-1]
    return f"{last['epoch']} epochs, {last['steps']:,} steps; loss {last['loss']:.3f}"


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _of_one_kind(
    data: Path, parameters: dict[str, Any], pairing: str, unsupervised: bool, preset: str | None, reporter: Reporter
) -> tuple[Hasher, dict[str, Any]]:
    """A hasher, and what it is to learn from: embeddings, with labels where they are used."""
    from crovca.hasher import Hasher

    named = pairing.split(",")
    if unsupervised and "classes" in named:
        raise ConfigError("--unsupervised and --pairing classes contradict each other; give one of them")
    parameters["pairing"] = named[0] if len(named) == 1 else tuple(named)
    hasher = Hasher.from_preset(preset, **parameters) if preset else Hasher(**parameters)
    embeddings = options.open_embeddings(data, with_ids=False)
    use_labels = embeddings.labels is not None and not unsupervised and (pairing == "auto" or "classes" in named)
    if embeddings.labels is not None:
        if use_labels and pairing == "auto":
            reporter.message(f"{data.name} has labels: learning its classes (--unsupervised leaves them unused)")
        elif not use_labels:
            reporter.message(f"the labels in {data.name} are not used")
    return hasher, {"X": embeddings, "y": embeddings.labels if use_labels else None}
