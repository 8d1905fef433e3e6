"""``crovca evaluate``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from typer import Option

from crovca.cli import options
from crovca.cli.output import Reporter, emit_json, print_table, say

if TYPE_CHECKING:
    from crovca.evaluation.evaluate import Evaluation
    from crovca.evaluation.report import ImageOf
    from crovca.evaluation.situations import FiveMeasures
    from crovca.hasher import Hasher


def evaluate(
    model: options.Model,
    database: Annotated[Path, Option(help="Embeddings (or images, as the model takes them) that are searched.")],
    query: Annotated[Path, Option(help="Embeddings (or images) that are asked for.")],
    bits: Annotated[
        str | None, Option(help="Lengths to measure, like 16,32,64 [default: those that were trained].")
    ] = None,
    top_k: Annotated[str, Option(help="Cut-off rank of mAP@k: a number, or all.")] = "1000",
    report: options.Report = None,
    images: Annotated[
        Path | None, Option(help="With --report: folder below which an item's id is its image's path.")
    ] = None,
    query_modality: Annotated[options.Modality | None, Option(help="Two modalities: what the queries are.")] = None,
    database_modality: Annotated[options.Modality | None, Option(help="Two modalities: what the database is.")] = None,
    hold_out_classes: Annotated[
        float | None,
        Option(
            help="Also measure things that were not learned: a model with the same parameters is learned without this "
            "share of the classes (without labels: of k-means cells), and asked for them. Try 0.5."
        ),
    ] = None,
    seed: Annotated[int, Option(help="Which classes are held out.")] = 0,
    encoder: options.EncoderPlace = None,
    root: options.Root = None,
    device: options.Device = "auto",
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure how well codes retrieve, beside ITQ and the float embeddings they come from.

    Prints five measures at every length: seen, new and mixed (with --hold-out-classes), the order of the floats that
    codes keep, and how many codes are distinct; then mAP@k by every score, the chance level, and how the bits are used.
    Items are relevant to a query if they share a label; without labels only the floats' order is measured. A database
    item with the query's own id is left out.
    """
    from crovca.archive.encoding import encode_path
    from crovca.codes import check_bits
    from crovca.compare.beside import learn_like, measure_beside
    from crovca.errors import ConfigError, InvalidInputError
    from crovca.evaluation import evaluate as evaluation
    from crovca.hasher import Hasher

    k = options.parse_top_k(top_k)
    image_of: ImageOf | None = None
    if report is not None:
        options.check_report(report, [path for path in (model, database, query, images) if path], force=force)
        if images is not None:
            from crovca.evaluation.report import image_folder

            image_of = image_folder(images)
    elif images is not None:
        raise ConfigError("--images goes with --report")
    hasher = Hasher.load(model, device=device, encoder=encoder)
    _check_hold_out(hasher, hold_out_classes)
    longest = hasher.lengths_[-1]
    lengths = hasher.lengths_ if bits is None else options.parse_lengths(bits, "--bits")
    for length in lengths:
        check_bits(length, at_most=longest)
    with Reporter() as reporter:
        encode = partial(encode_path, hasher, observer=reporter, logits=True, root=root)
        found_database = encode(database, database_modality, "--database-modality")
        found_query = encode(query, query_modality, "--query-modality")
        theirs, ours = found_database.encoded, found_query.encoded
        # one file: its rows are the same items
        if database.resolve() == query.resolve() and theirs.ids is None:
            numbers = np.arange(len(theirs))
            theirs, ours = replace(theirs, ids=numbers), replace(ours, ids=numbers)
        if image_of is not None and theirs.ids is None:
            raise InvalidInputError(f"--images needs ids in {database.name}: the paths of the images below {images}")
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
        assert ours.logits is not None
        assert theirs.logits is not None
        five = measure_beside(
            replace(found_database, encoded=theirs).items, replace(found_query, encoded=ours).items,
            (ours.logits, theirs.logits), lengths,
            relearn=None if hold_out_classes is None else learn_like(hasher, lengths),
            hold_out=hold_out_classes, seed=seed, k=k or len(theirs), advance=reporter.stage,
        )  # fmt: skip
        if report is not None:
            from crovca.evaluation.report import Subject, write_report

            reporter.stage("report")
            subject = Subject(
                title=f"{model.name}: {database.name}, queries {query.name}",
                evaluation=result,
                five=five,
                query=ours,
                database=theirs,
                database_embeddings=found_database.embeddings,
                image_of=image_of,
            )
            write_report(report, [subject], force=force)
    if json:
        emit_json({**result.to_dict(), "five_measures": five.to_dict()})
        return
    _print(result, five, float_bytes=found_database.width * 4)
    if report is not None:
        say(f"report: {report / 'index.html'}")


def _check_hold_out(hasher: Hasher, hold_out: float | None) -> None:
    from crovca.errors import ConfigError

    if hold_out is None:
        return
    if not 0 < hold_out < 1:
        raise ConfigError(f"--hold-out-classes is a share between 0 and 1, got {hold_out}; try 0.5")
    if hasher.modalities != ("embeddings",):
        raise ConfigError(
            "--hold-out-classes learns anew from embeddings, and this model takes images or two modalities; embed "
            "the items (crovca embed) and train a model on that"
        )


def _print(result: Evaluation, five: FiveMeasures, *, float_bytes: int) -> None:
    """Print the tables of a report, and what they mean in words."""
    from crovca.evaluation.report import five_table, percent, scores_table, summary

    table = five_table(five, result.k)
    print_table(table.head, table.rows, table.caption)
    say(*(f"{column.title}: {column.meaning}" for column in five.columns()))
    if len(five.counts) == 1:
        say("new and mixed: give --hold-out-classes 0.5")
    table = scores_table(result, float_bytes)
    print_table(table.head, table.rows, table.caption)
    for length in result.lengths:
        codes = length.codes
        say(
            f"{length.bits} bits: {codes['distinct']:,} distinct codes, "
            f"{percent(float(codes['collisions']))} % of the items share theirs; "
            f"ones in a bit {codes['balance_min']:.2f} to {codes['balance_max']:.2f}"
        )
    say(summary(result))
