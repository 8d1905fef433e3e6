"""``crovca compare``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typer import Option

from crovca.cli.options import Force, Json, Report, check_report, open_embeddings, parse_lengths, parse_names
from crovca.cli.output import Reporter, emit_json, print_table, say
from crovca.errors import ConfigError
from crovca.files import check_output, locked, write_json

if TYPE_CHECKING:
    from crovca.compare.results import Comparison
    from crovca.data.embeddings import Embeddings


def compare(
    database: Annotated[Path, Option(help="Embeddings that are searched.")],
    query: Annotated[Path, Option(help="Embeddings that are asked for.")],
    train: Annotated[Path | None, Option(help="Embeddings that are learned from [default: the database].")] = None,
    bits: Annotated[str, Option(help="Code lengths, like 16,32,64.")] = "16,32,64",
    methods: Annotated[
        str, Option(help="Methods with commas, like crovca,itq,pq; or all. A wrong name lists them.")
    ] = "all",
    labels: Annotated[
        bool | None,
        Option("--labels/--no-labels", help="Whether labels are used [default: where both files have them]."),
    ] = None,
    seeds: Annotated[int, Option(help="How many seeds; methods without chance are run once.")] = 3,
    epochs: Annotated[
        int | None, Option(help="Passes over the data, alike for all learned methods [default: as in crovca train].")
    ] = None,
    hold_out_classes: Annotated[
        float,
        Option(
            help="Share of the classes (without labels: of k-means cells) that is not learned, for the measures new "
            "and mixed; 0: do not measure these. With --train they are not measured either."
        ),
    ] = 0.5,
    output: Annotated[
        Path | None, Option("-o", "--output", help="JSON file of results: a rerun does only what is missing.")
    ] = None,
    report: Report = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare methods on your own embeddings by five measures, and mark the best.

    Fits every method at every length on the database (or on other items: --train) and again on half of its classes,
    and measures mAP@1000 for what was learned (seen), for other classes (new) and for those among everything (mixed),
    how much of the floats' order is kept, how many codes are distinct, times and sizes. An item is relevant if it
    shares a label; without labels the floats' order judges everywhere. A method that fails is shown with its reason.
    """
    from crovca.compare.methods import choose_methods
    from crovca.compare.results import conclusion, read_kept
    from crovca.compare.run import compare as run

    lengths = parse_lengths(bits, "--bits")
    names = None if methods == "all" else parse_names(methods, "--methods")
    if names is not None:
        choose_methods(names, labeled=labels is not False)
    inputs = [path for path in (database, query, train) if path is not None]
    if output is not None:
        check_output(output, force=True, inputs=inputs)
    if report is not None:
        check_report(report, inputs, force=force)
    theirs, ours = open_embeddings(database), open_embeddings(query)
    learned = None if train is None else open_embeddings(train)
    if database.resolve() == query.resolve() and theirs.ids is None:  # one file: its rows are the same items
        theirs = ours = replace(theirs, ids=np.arange(len(theirs)))
    with Reporter() as reporter, nullcontext() if output is None else locked(output):
        kept = None
        if output is not None and output.exists() and not force:
            kept = read_kept(output)
        theirs, ours = _with_labels(labels, theirs, ours, database, query, reporter)
        if learned is not None and learned.labels is None and theirs.labels is not None:
            reporter.message(f"no labels in {train}: methods that learn from labels are left out")

        def save(state: Comparison) -> None:
            if output is not None:
                write_json(output, state.to_dict())

        state = run(
            theirs,
            ours,
            train=learned,
            lengths=lengths,
            methods=names,
            seeds=seeds,
            epochs=epochs,
            hold_out=hold_out_classes or None,
            kept=kept,
            save=save,
            advance=reporter.tell,
        )
        save(state)
        if report is not None:
            from crovca.compare.report import write_comparison

            reporter.stage("report")
            write_comparison(report, state, force=force)
    if json:
        emit_json({**state.to_dict(), "conclusion": conclusion(state)})
        return
    _print(state)
    if report is not None:
        say(f"report: {report / 'index.html'}")


def _with_labels(
    wanted: bool | None, theirs: Embeddings, ours: Embeddings, database: Path, query: Path, reporter: Reporter
) -> tuple[Embeddings, Embeddings]:
    missing = [path.name for path, side in ((database, theirs), (query, ours)) if side.labels is None]
    if wanted and missing:
        raise ConfigError(f"--labels: there are none in {missing[0]}; use --no-labels, or give files with labels")
    if wanted is False:
        return replace(theirs, labels=None), replace(ours, labels=None)
    if missing:
        reporter.message(f"no labels in {' and '.join(dict.fromkeys(missing))}: comparing recall of float neighbors")
    if theirs.ids is None or ours.ids is None:
        same = _identical(theirs, ours)
        if same:
            reporter.message(
                f"{same:,} queries are in the database number for number, and without ids on both sides each "
                "counts as an answer to itself; give ids to leave them out"
            )
    if max(theirs.views, ours.views) > 1:
        reporter.message("items have several views: every method sees their mean")
    return theirs, ours


def _identical(theirs: Embeddings, ours: Embeddings) -> int:
    """How many queries have the embedding of a database item."""
    known = {row.tobytes() for row in np.asarray(theirs.values[:], np.float32)}
    return sum(row.tobytes() in known for row in np.asarray(ours.values[:], np.float32))


def _print(state: Comparison) -> None:
    from crovca.compare.report import by_size, five_table
    from crovca.compare.results import BEST, LEVEL, columns_of, conclusion, failures
    from crovca.evaluation.situations import FIVE

    columns = [column for column in columns_of(state) if column.name in FIVE]
    for size, rows in by_size(state):
        table = five_table(state, size, rows, columns, times=True)
        print_table(table.head, table.rows, table.caption)
    seeds = "one seed" if state.seeds == 1 else f"mean ± sample standard deviation of {state.seeds} seeds"
    say(
        f"{state.described()}; {seeds} (Hashing-Baseline: 10 rotations; a method without chance is run once)",
        f"{BEST} best, {LEVEL} not told from it by the spread of seeds, of those that learn with labels or without",
        *(f"{column.title}: {column.meaning}" for column in columns),
        *(f"failed: {sentence}" for sentence in failures(state.rows())),
        conclusion(state),
    )
