"""``crovca evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from crovca.cli.options import (
    EncoderPlace,
    Force,
    Json,
    Modality,
    Model,
    Root,
    parse_lengths,
    parse_top_k,
)
from crovca.cli.output import Reporter, emit_json, stdout
from crovca.files import check_output
from crovca.index.scoring import METRICS

if TYPE_CHECKING:
    from crovca.evaluation.evaluate import Evaluation
    from crovca.evaluation.report import ImageOf

__all__ = ["evaluate", "print_evaluation"]


def evaluate(
    model: Model,
    database: Annotated[
        Path,
        typer.Option(
            help="Embeddings (or images, as the model takes them) that are searched.", show_default=False
        ),
    ],
    query: Annotated[
        Path, typer.Option(help="Embeddings (or images) that are asked for.", show_default=False)
    ],
    bits: Annotated[
        str | None,
        typer.Option(
            help="Lengths to measure, like 16,32,64 [default: those that were trained].", show_default=False
        ),
    ] = None,
    top_k: Annotated[str, typer.Option(help="Cut-off rank of mAP@k: a number, or all.")] = "1000",
    report: Annotated[
        Path | None, typer.Option(help="Folder for an HTML page with figures.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="With --report: folder below which an item's id is its image's path.", show_default=False
        ),
    ] = None,
    query_modality: Annotated[
        Modality | None, typer.Option(help="Two modalities: what the queries are.", show_default=False)
    ] = None,
    database_modality: Annotated[
        Modality | None, typer.Option(help="Two modalities: what the database is.", show_default=False)
    ] = None,
    encoder: EncoderPlace = None,
    root: Root = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure how well codes retrieve, beside the float embeddings they come from.

    Prints mAP@k of every score at every length, chance level, the share of float neighbors that codes keep, ties,
    and how the bits are used. Items are relevant to a query if they share a label; without labels only the recall
    of float neighbors is measured. A database item with the query's own id is left out.
    """
    from crovca.cli.modality import encode_path
    from crovca.codes import check_bits
    from crovca.errors import ConfigError, InvalidInputError
    from crovca.evaluation import evaluate as evaluation
    from crovca.hasher import Hasher

    k = parse_top_k(top_k)
    image_of: ImageOf | None = None
    if report is not None:
        from crovca.evaluation.figures import require_report_packages

        require_report_packages()
        sources = [path for path in (model, database, query, images) if path is not None]
        check_output(report, force=force, inputs=sources, marker="metrics.json")
        if images is not None:
            from crovca.evaluation.report import image_folder

            image_of = image_folder(images)
    elif images is not None:
        raise ConfigError("--images goes with --report")
    hasher = Hasher.load(model, device=device, encoder=encoder)
    longest = hasher.lengths_[-1]
    lengths = hasher.lengths_ if bits is None else parse_lengths(bits, "--bits")
    for length in lengths:
        check_bits(length, at_most=longest)
    with Reporter() as reporter:
        found_database = encode_path(
            hasher, database, database_modality, "--database-modality", reporter, logits=True, root=root
        )
        found_query = encode_path(
            hasher, query, query_modality, "--query-modality", reporter, logits=True, root=root
        )
        theirs, ours = found_database.encoded, found_query.encoded
        if (
            database.resolve() == query.resolve() and theirs.ids is None
        ):  # one file: its rows are the same items
            numbers = np.arange(len(theirs))
            theirs, ours = replace(theirs, ids=numbers), replace(ours, ids=numbers)
        if image_of is not None and theirs.ids is None:
            raise InvalidInputError(
                f"--images needs ids in {database.name}: the paths of the images below {images}"
            )
        if theirs.labels is None or ours.labels is None:
            missing = database if theirs.labels is None else query
            reporter.message(f"no labels in {missing.name}: measuring the recall of float neighbors only")
        untrained = [length for length in lengths if length not in hasher.lengths_]
        if untrained:
            reporter.message(
                f"{untrained} bits were not trained (trained: {list(hasher.lengths_)}); measured as prefixes"
            )
        comparable = found_database.width == found_query.width
        result = evaluation.evaluate(
            ours,
            theirs,
            k=k,
            lengths=lengths,
            query_embeddings=found_query.embeddings if comparable else None,
            database_embeddings=found_database.embeddings if comparable else None,
            advance=reporter.stage,
        )
        if report is not None:
            from crovca.evaluation.report import Subject, write_report

            reporter.stage("report")
            subject = Subject(
                title=f"{model.name}: {database.name}, queries {query.name}",
                evaluation=result,
                query=ours,
                database=theirs,
                database_embeddings=found_database.embeddings,
                image_of=image_of,
            )
            write_report(report, [subject], force=force)
    if json:
        emit_json(result.to_dict())
        return
    print_evaluation(result, float_bytes=found_database.width * 4)
    if report is not None:
        stdout.print(f"report: {report / 'index.html'}", highlight=False, soft_wrap=True)


def print_evaluation(result: Evaluation, *, float_bytes: int) -> None:
    """Print an evaluation as a table, and what it means in words."""
    table = Table(
        title=f"mAP@{result.k} in %, {result.queries:,} queries on {result.database:,} items",
        title_justify="left",
    )
    for name in (
        "",
        "bytes",
        "Hamming",
        "asymmetric",
        "BCE",
        "sym. BCE",
        "cosine",
        "float top-10 in top-100",
    ):
        table.add_column(name, justify="left" if not name else "right")
    for name, ranked in result.floats.items():
        shown = "float, centered" if name.endswith("centered") else "float"
        table.add_row(shown, f"{float_bytes:,}", "", "", "", "", _percent(ranked.map), "")
    for length in result.lengths:
        maps = [length.map_of(metric) for metric in METRICS]
        recall = (length.float_neighbour_recall or {}).get("10@100")
        table.add_row(
            f"{length.bits} bits", str(-(-length.bits // 8)), *map(_percent, maps), "", _percent(recall)
        )
    stdout.print(table)
    if result.chance_map is not None:
        stdout.print(f"a random order scores {_percent(result.chance_map)}", highlight=False)
    if result.left_out:
        stdout.print(
            f"{result.left_out:,} queries stand in the database; their own item was left out", highlight=False
        )
    for length in result.lengths:
        codes = length.codes
        stdout.print(
            f"{length.bits} bits: {codes['distinct']:,} distinct codes, "
            f"{_percent(float(codes['collisions']))} % of the items share theirs; "
            f"ones in a bit {codes['balance_min']:.2f} to {codes['balance_max']:.2f}",
            highlight=False,
            soft_wrap=True,
        )
    stdout.print(f"measured in {result.seconds:.1f} s", highlight=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
