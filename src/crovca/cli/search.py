"""``crovca search`` and ``crovca dedup``."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from crovca.cli.options import Force, Json, open_embeddings
from crovca.cli.output import Console, emit_json, stdout
from crovca.errors import ConfigError, printable
from crovca.files import check_output, write_json
from crovca.index.engines.choice import ENGINES, check_engine
from crovca.metrics import get_metric, of_codes

if TYPE_CHECKING:
    from crovca.archive.queries import QueryModel
    from crovca.index.results import Neighbors

__all__ = ["dedup", "search"]

_NO_LIMIT = 1 << 20


def _checked_engine(engine: str) -> str:
    if engine != "auto":
        check_engine(engine)
    return engine


def _checked_metric(metric: str | None) -> str | None:
    """A score that codes are enough for."""
    if metric is not None:
        get_metric(metric, stored=True)
    return metric


def search(
    index: Annotated[
        list[Path], typer.Argument(help="Index, or several: they are searched as one.", show_default=False)
    ],
    image: Annotated[
        list[Path] | None, typer.Option(help="Image files to search by.", show_default=False)
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Texts to search by.", show_default=False)] = None,
    id: Annotated[
        list[str] | None, typer.Option("--id", help="Items to search by.", show_default=False)
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings to search by.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model for the queries [default: the index's].", show_default=False)
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Encoder of texts [default: the images' one].", show_default=False)
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Results for each query.")] = 10,
    metric: Annotated[
        str | None,
        typer.Option(
            "--scoring",
            metavar="|".join(of_codes()),
            callback=_checked_metric,
            help="[default: bce; for --id, hamming].",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help='SQL condition on id and metadata, like "year < 1960".', show_default=False),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Search by the first so many bits.", show_default=False)
    ] = None,
    engine: Annotated[
        str, typer.Option(callback=_checked_engine, help=f"How to search: auto, {', '.join(ENGINES)}.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Json = False,
) -> None:
    """Find the items nearest to images, texts, stored items or embeddings; exactly, but for --engine inverted."""
    from crovca.cli.index import parse_ids
    from crovca.index.index import HashIndex
    from crovca.index.shards import ShardedIndex

    given = [
        name
        for name, value in (("image", image), ("text", text), ("id", id), ("embeddings", embeddings))
        if value
    ]
    if len(given) != 1:
        raise ConfigError("give one kind of query: --image, --text, --id or --embeddings")
    if id:
        _refuse_with_ids(metric, engine, model, text_encoder)
    twice = [
        path for place, path in enumerate(index) if path.resolve() in {one.resolve() for one in index[:place]}
    ]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each index once")
    names: list[str]
    encoding = 0.0
    source: Any = HashIndex.open(index[0]) if len(index) == 1 else ShardedIndex.open(index)
    with closing(source) as opened:
        started = time.perf_counter()
        if id:
            names = list(id)
            found = opened.neighbors_of(parse_ids(id, opened), top_k, where=where, bits=bits)
        else:
            from crovca.archive.queries import QueryModel  # loads torch, for which --id has no use

            first = opened if len(index) == 1 else opened.shards[0]
            query = QueryModel.of_index(
                index[0], first.encoder, model=model, text_encoder=text_encoder, device=device
            )
            names, logits = _encode(query, image, text, embeddings)
            logits = logits[:, : first.bits]  # the index may hold the first bits of its model's codes
            encoding = time.perf_counter() - started
            started = time.perf_counter()
            found = opened.search(
                logits, top_k, metric=metric or "bce", where=where, bits=bits, engine=engine
            )
        seconds = time.perf_counter() - started
        rows = _metadata(found)
        engines, count = opened.engines(), len(opened)
    if json:
        emit_json(
            _as_json(
                names, found, rows, metric or ("hamming" if id else "bce"), (encoding, seconds), engines
            ),
            default=str,  # dates and the like
        )
        return
    for name, ids, distances, metadata in zip(names, found.ids, found.distances, rows, strict=True):
        _print_results(name, ids, distances, metadata)
    queries = "1 query" if len(names) == 1 else f"{len(names):,} queries"
    encoded = "" if id else f"encoded in {encoding:.1f} s, "
    stdout.print(
        f"{queries} over {_count(count, 'item')}: {encoded}searched in {seconds * 1000:.1f} ms",
        highlight=False,
    )


def dedup(
    index: Annotated[Path, typer.Argument(help="Folder of an index.", show_default=False)],
    radius: Annotated[int, typer.Option(help="Bits in which near duplicates may differ.")] = 0,
    bits: Annotated[
        int | None, typer.Option(help="Compare the first so many bits.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write all groups to this JSON file.", show_default=False),
    ] = None,
    show: Annotated[int, typer.Option(help="Groups to print.")] = 10,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find groups of near duplicates: items linked by steps of at most RADIUS bits."""
    from crovca.index.index import HashIndex

    if output is not None:
        check_output(output, force=force, inputs=[index])
    with HashIndex.open(index) as opened:
        started = time.perf_counter()
        found = opened.duplicates(radius, bits=bits)
        seconds = time.perf_counter() - started
        count = len(opened)
    content = {
        "index": str(index),
        "radius": radius,
        "items": count,
        "duplicates": found.items - len(found.groups),
        "seconds": round(seconds, 3),
        "groups": [
            {"ids": ids.tolist(), "distances": distances.tolist()}
            for ids, distances in zip(found.groups, found.distances, strict=True)
        ],
    }
    if output is not None:
        write_json(output, content)
    if json:
        emit_json(content)
        return
    for ids, distances in list(zip(found.groups, found.distances, strict=True))[:show]:
        shown = ", ".join(
            f"{one} ({distance})" for one, distance in zip(ids[1:9].tolist(), distances[1:9], strict=True)
        )
        more = f" and {len(ids) - 9:,} more" if len(ids) > 9 else ""
        stdout.print(f"{ids[0]}: {shown}{more}", highlight=False, soft_wrap=True, markup=False)
    if len(found.groups) > show:
        stdout.print(
            f"... and {_count(len(found.groups) - show, 'group')} more (--show, or -o FILE)", highlight=False
        )
    groups = _count(len(found.groups), "group")
    spare = found.items - len(found.groups)
    stdout.print(
        f"{groups}; {spare:,} of {_count(count, 'item')} could go ({seconds:.1f} s)", highlight=False
    )


def _refuse_with_ids(metric: str | None, engine: str, model: Path | None, text_encoder: str | None) -> None:
    """Nothing is encoded for --id, and codes are compared by Hamming distance."""
    if metric not in (None, "hamming"):
        raise ConfigError(f"an item has a code, no logits: --id goes with hamming, not {metric}")
    given = {"--engine": engine != "auto", "--model": model, "--text-encoder": text_encoder}
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} does not go with --id: an item is searched by its stored code")


def _encode(
    query: QueryModel, image: list[Path] | None, text: list[str] | None, embeddings: Path | None
) -> tuple[list[str], Any]:
    """Names and logits of the queries."""
    if image:
        return [str(path) for path in image], query.of_images(image)
    if text:
        return list(text), query.of_texts(text)
    assert embeddings is not None
    data = open_embeddings(embeddings)
    names = [str(row) for row in (range(len(data)) if data.ids is None else data.ids)]
    return names, query.of_embeddings(data.values[:])


def _metadata(found: Neighbors) -> list[Any]:
    """A table for each query's results, or None."""
    table, width = found.metadata(), found.ids.shape[1]
    if table is None:
        return [None] * len(found)
    return [table.slice(query * width, width) for query in range(len(found))]


def _count(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count:,} {what}s"


def _as_json(
    names: list[str],
    found: Any,
    rows: list[Any],
    metric: str,
    seconds: tuple[float, float],
    engines: list[dict[str, Any]],
) -> dict[str, Any]:
    results = []
    for name, ids, distances, metadata in zip(names, found.ids, found.distances, rows, strict=True):
        columns = [{}] * len(ids) if metadata is None else metadata.to_pylist()
        hits = [
            {"id": one, "distance": float(distance), **({"metadata": row} if row else {})}
            for one, distance, row in zip(ids.tolist(), distances, columns, strict=True)
        ]
        results.append({"query": name, "hits": hits})
    return {
        "scoring": metric,
        "exact": all(engine["exact"] for engine in engines),
        "engines": sorted({engine["engine"] for engine in engines}),
        "encode_seconds": round(seconds[0], 6),
        "seconds": round(seconds[1], 6),
        "results": results,
    }


def _print_results(name: str, ids: Any, distances: Any, metadata: Any) -> None:
    texts = [str(one) for one in ids.tolist()]
    table = Table(title=Text(printable(name)), title_justify="left", box=None, pad_edge=False)
    table.add_column("distance", justify="right", no_wrap=True)
    # An id is wanted whole: on a narrow terminal the other columns give way first, then it goes on in a second line.
    longest = max(map(len, texts), default=0)
    table.add_column("id", overflow="fold", min_width=max(2, min(longest, stdout.width - len("distance  "))))
    columns = [] if metadata is None else metadata.column_names
    for column in columns:
        table.add_column(column)
    rows = [{}] * len(ids) if metadata is None else metadata.to_pylist()
    for one, distance, row in zip(texts, distances, rows, strict=True):
        table.add_row(
            f"{distance:.4g}", one, *("" if row[column] is None else str(row[column]) for column in columns)
        )
    # What is read by another program has lines as long as they need to be.
    console = stdout if stdout.is_terminal else Console(width=_NO_LIMIT)
    console.print(table, markup=False)
