"""``crovca reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from crovca.cli.options import Device, Json, parse_lengths, parse_names
from crovca.cli.output import Reporter, answer, emit_json, print_plain, say
from crovca.errors import ConfigError, reason_of

if TYPE_CHECKING:
    from crovca.reproduce.paper import Cell, Experiment
    from crovca.reproduce.run import Results, Row
    from crovca.reproduce.workspace import Workspace


def reproduce(
    name: Annotated[str | None, Argument(help="table1 to table7, table11, table12, figure3 to figure9.")] = None,
    data: Annotated[
        Path | None, Option(help="Folder of the datasets, each below it as 'crovca datasets' says.")
    ] = None,
    dataset: Annotated[str | None, Option(help="Only these datasets, with commas.")] = None,
    encoder: Annotated[str | None, Option(help="Only these encoders, like dinov2,dinov3-b.")] = None,
    bits: Annotated[str | None, Option(help="Only these code lengths, like 16,32.")] = None,
    weights: Annotated[
        list[str] | None,
        Option(
            help="NAME=FOLDER or NAME=HUB_ID: weights of an encoder, where they are not at their usual place. "
            "May be given several times."
        ),
    ] = None,
    work: Annotated[Path, Option(help="Folder for everything that is made; a rerun does only what is missing.")] = Path(
        "reproduce"
    ),
    seeds: Annotated[int, Option(help="How many seeds; the paper has one.")] = 1,
    nested: Annotated[
        bool, Option("--nested", help="Train one model of 16 to 256 bits instead of one a length.")
    ] = False,
    epochs: Annotated[int | None, Option(help="Instead of the paper's; the results say so.")] = None,
    batch_size: Annotated[int | None, Option(help="Likewise.")] = None,
    query: Annotated[
        str | None,
        Option(help="Figures 4, 5, 9: path of the query to ask with [default: the first of the paper's class]."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, Option(help="Encoders compute in: auto, float32, bfloat16 or float16.")] = "auto",
    json: Json = False,
    listed: Annotated[bool, Option("--list", help="Only list the cells, and what each needs.")] = False,
) -> None:
    """Measure the numbers of a table or figure of the paper again, beside the paper's own.

    Trains, encodes and evaluates on your own copies of the datasets; alone it lists the tables and figures. A
    number that cannot be measured is shown with its reason, and the others go on. A run that was interrupted goes on
    when the same command is given again.
    """
    from crovca.cli import reproduce_list
    from crovca.hashing.config import TrainingConfig
    from crovca.reproduce import paper

    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    if name is None:
        reproduce_list.print_experiments(json)
        return
    experiment = paper.experiment_of(name)
    cells = paper.cells(
        name,
        dataset=None if dataset is None else parse_names(dataset, "--dataset"),
        encoder=None if encoder is None else parse_names(encoder, "--encoder"),
        bits=None if bits is None else parse_lengths(bits, "--bits"),
    )
    chosen: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}
    training = {name: value for name, value in chosen.items() if value is not None}
    TrainingConfig(lengths=(16,), **{"epochs": 1, **training})  # refuses what cannot be trained with
    if listed:
        reproduce_list.print_cells(cells, seeds, json, nested=nested)
        return
    if data is None:
        raise ConfigError(
            f"give --data: the folder of the datasets ('crovca reproduce --list {name}' shows what is needed)"
        )
    if query is not None and experiment.kind != "pictures":
        raise ConfigError(f"--query goes with pictures; {name} has none")
    settings: dict[str, Any] = {
        "weights": _weights(weights or []),
        "device": device,
        "dtype": dtype,
        "training": training,
        "nested": nested,
    }
    _run(experiment, cells, (data, work), settings, range(seeds), query, json=json)


def _run(
    experiment: Experiment,
    cells: list[Cell],
    folders: tuple[Path, Path],
    settings: dict[str, Any],
    seeds: range,
    query: str | None,
    *,
    json: bool,
) -> None:
    from crovca.reproduce import run as runs
    from crovca.reproduce.workspace import Workspace

    _, work = folders
    reporter = Reporter()
    workspace = Workspace(*folders, **settings, observer=reporter)  # refuses wrong settings, before there is a folder
    if experiment.kind == "pictures":
        _draw(experiment, workspace, cells, query, reporter, json=json)
        return
    with runs.opened(work) as (kept, save), reporter:
        results = runs.reproduce(workspace, cells, list(seeds), kept=kept, save=save, advance=reporter.tell)
        files = []
        if experiment.kind == "curves" and results.measured():
            from crovca.reproduce.crossmodal import draw_curves

            files = draw_curves(experiment.name, workspace, results.measured())
    content = {
        "experiment": experiment.name,
        "title": experiment.title,
        "section": experiment.section,
        "changes": _changes(workspace),
        "seeds": list(seeds),
        "measured_now": results.measured_now,
        "kept": results.kept_before,
        "cells": [row.to_dict() for row in results.rows()],
        "files": [str(file) for file in files],
        "notes": reporter.notes,
    }
    if json:
        emit_json(content)
    else:
        _print(experiment, workspace, results)
        for file in files:
            say(f"drawn: {file}")
    if results.hopeless:
        raise typer.Exit(1)


def _draw(
    experiment: Experiment,
    workspace: Workspace,
    cells: list[Cell],
    query: str | None,
    reporter: Reporter,
    *,
    json: bool,
) -> None:
    """Draw a figure of pictures; one that fails is reported, with the status of a failure, as numbers are."""
    from crovca.reproduce import pictures
    from crovca.reproduce import run as runs

    pictures.check(experiment.name, cells, query)
    page, failed = None, None
    with runs.opened(workspace.work), reporter:
        try:
            page = pictures.draw(experiment.name, workspace, cells, seed=0, query=query)
        except pictures.QueryError:
            raise
        except Exception as error:
            failed = reason_of(error)
    content = {
        "experiment": experiment.name,
        "title": experiment.title,
        "changes": _changes(workspace),
        "files": [] if page is None else [str(file) for file in sorted(page.parent.iterdir())],
        "failed": failed,
        "notes": reporter.notes,
    }
    drawn = f"{experiment.name}: {experiment.title}: {page}"
    answer(
        json, content, *_not_the_papers(workspace), drawn if failed is None else f"failed: {experiment.name}: {failed}"
    )
    if failed is not None:
        raise typer.Exit(1)


def _weights(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, place) in zip(texts, pairs, strict=True):
        if not name or not place:
            raise ConfigError(f"--weights must be NAME=FOLDER or NAME=HUB_ID, got {text!r}")
    return {name: place for name, _, place in pairs}


def _changes(workspace: Workspace) -> list[str]:
    """In what the models differ from the paper's."""
    changes = [f"{name.replace('_', ' ')} {value}" for name, value in workspace.training.items()]
    return [*changes, "one nested model for all lengths"] if workspace.nested else changes


def _not_the_papers(workspace: Workspace) -> list[str]:
    changes = _changes(workspace)
    return [f"NOT the paper's settings: {', '.join(changes)}"] if changes else []


def _print(experiment: Experiment, workspace: Workspace, results: Results) -> None:
    rows = results.rows()
    count = len(results.seeds)
    short = any(len(row.found) < row.asked for row in rows if row.found)
    several = f"mean ± standard deviation of {'up to ' * short}{count} seeds"
    seeds = "one seed" if count == 1 else several
    say(f"{experiment.name}: {experiment.title} (section {experiment.section}), percent, {seeds}")
    say(*_not_the_papers(workspace))
    others = any(row.cell.published_by for row in rows)
    lines, before = [], None
    for row in rows:
        name, paper, *ours = _line(row)
        authors = [row.cell.published_by] if others else []
        lines.append(["" if row.cell.row == before else row.cell.row, name, paper, *authors, *ours])
        before = row.cell.row
    head = ["row", "column", "paper", *(["published by"] if others else []), "ours", "difference"]
    print_plain(head, lines, right=("paper", "ours", "difference"))
    for note in dict.fromkeys(row.cell.note for row in rows if row.cell.note and row.cell.measurement):
        say(f"note: {note}")
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for why, seeds_failed in _by_reason(row).items():
            reasons.setdefault(why, []).append(f"{row.cell.row}, {row.cell.column}{seeds_failed}")
    for reason, cells in reasons.items():
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        say(f"failed: {'; '.join(cells[:3])}{more}: {reason}")
    for where, found in workspace.left_out.items():
        say(f"left out, as they could not be read: {sum(found.values()):,} of {where}")
    if results.measured():
        say(
            f"measured now: {results.measured_now:,}, kept from earlier runs: {results.kept_before:,}; "
            f"all numbers, seed by seed: {workspace.work / 'results.json'}"
        )
    elif results.keys:
        say("nothing was measured")


def _by_reason(row: Row) -> dict[str, str]:
    """For each reason why seeds failed, which they are: nothing where all did for the same."""
    found: dict[str, list[int]] = {}
    for seed, why in row.reasons.items():
        found.setdefault(why, []).append(seed)
    return {
        why: "" if len(seeds) == row.asked else f" (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
        for why, seeds in found.items()
    }


def _line(row: Row) -> tuple[str, str, str, str]:
    cell = row.cell
    paper = "-" if cell.value is None else f"{cell.value:.1f}"
    if cell.measurement is None:
        return cell.column, paper, "", ""
    if row.mean is None:
        return cell.column, paper, "failed", ""
    spread = "" if row.spread is None else f" ± {row.spread:.1f}"
    count = f" ({len(row.found)} of {row.asked} seeds)" if len(row.found) < row.asked else ""
    difference = "" if row.difference is None else f"{row.difference:+.1f}"
    return cell.column, paper, f"{row.mean:.1f}{spread}{count}", difference
