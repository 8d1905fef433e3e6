"""``crovca search`` and ``crovca dedup``."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.table import Table

from crovca.cli.options import Force, Json, open_embeddings
from crovca.cli.output import emit_json, stdout
from crovca.errors import ConfigError
from crovca.files import check_output, write_json

__all__ = ["dedup", "search"]

_Scoring = Literal["bce", "asymmetric_hamming", "hamming"]
_Engine = Literal["auto", "exact", "scan", "buckets", "inverted", "accelerator"]


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
    scoring: Annotated[
        _Scoring | None, typer.Option(help="[default: bce; for --id, hamming].", show_default=False)
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help='SQL condition on id and metadata, like "year < 1960".', show_default=False),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Search by the first so many bits.", show_default=False)
    ] = None,
    engine: Annotated[_Engine, typer.Option(help="How to search.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Json = False,
) -> None:
    """Find the items nearest to images, texts, stored items or embeddings; exactly, but for --engine inverted."""
    from crovca.cli.index import parse_ids
    from crovca.search.index import HashIndex
    from crovca.search.shards import ShardedIndex

    given = [
        name
        for name, value in (("image", image), ("text", text), ("id", id), ("embeddings", embeddings))
        if value
    ]
    if len(given) != 1:
        raise ConfigError("give one kind of query: --image, --text, --id or --embeddings")
    opened: Any = HashIndex.open(index[0]) if len(index) == 1 else ShardedIndex.open(index)
    first = opened if len(index) == 1 else opened.shards[0]
    names: list[str]
    encoding = 0.0
    if id:
        if engine != "auto" or model is not None or text_encoder is not None:
            raise ConfigError(
                "--engine, --model and --text-encoder do not go with --id: stored codes are compared"
            )
        if scoring not in (None, "hamming"):
            raise ConfigError(f"an item has a code, no logits: --id goes with hamming, not {scoring}")
        names = list(id)
        started = time.perf_counter()
        found = opened.neighbours_of(parse_ids(id, opened), top_k, where=where, bits=bits)
    else:
        from crovca.queries import QueryModel

        started = time.perf_counter()
        query = QueryModel.of_index(
            index[0], first.encoder, model=model, text_encoder=text_encoder, device=device
        )
        if image:
            names, logits = [str(path) for path in image], query.of_images(image)
        elif text:
            names, logits = list(text), query.of_texts(text)
        else:
            assert embeddings is not None
            data = open_embeddings(embeddings)
            names = [str(row) for row in (range(len(data)) if data.ids is None else data.ids)]
            logits = query.of_embeddings(data.values[:])
        encoding = time.perf_counter() - started
        started = time.perf_counter()
        found = opened.search(logits, top_k, scoring=scoring or "bce", where=where, bits=bits, engine=engine)
    seconds = time.perf_counter() - started
    rows = _metadata_of(opened, found.ids)
    items = len(opened)
    opened_engines = opened.engines()
    opened.close()
    if json:
        emit_json(
            _as_json(names, found, rows, scoring or ("hamming" if id else "bce"), seconds, opened_engines)
        )
        return
    for name, ids, scores, metadata in zip(names, found.ids, found.scores, rows, strict=True):
        _print_results(name, ids, scores, metadata)
    queries = "1 query" if len(names) == 1 else f"{len(names):,} queries"
    stdout.print(
        f"{queries} over {items:,} items: encoded in {encoding:.1f} s, searched in {seconds * 1000:.1f} ms",
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
    from crovca.search.index import HashIndex

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
            f"... and {len(found.groups) - show:,} groups more (--show, or -o FILE)", highlight=False
        )
    groups = "1 group" if len(found.groups) == 1 else f"{len(found.groups):,} groups"
    spare = found.items - len(found.groups)
    stdout.print(f"{groups}; {spare:,} of {count:,} items could go ({seconds:.1f} s)", highlight=False)


def _as_json(
    names: list[str], found: Any, rows: list[Any], scoring: str, seconds: float, engines: list[dict[str, Any]]
) -> dict[str, Any]:
    results = []
    for name, ids, scores, metadata in zip(names, found.ids, found.scores, rows, strict=True):
        columns = [{}] * len(ids) if metadata is None else metadata.to_pylist()
        hits = [
            {"id": one, "distance": float(score), **({"metadata": row} if row else {})}
            for one, score, row in zip(ids.tolist(), scores, columns, strict=True)
        ]
        results.append({"query": name, "hits": hits})
    content = {
        "scoring": scoring,
        "exact": all(engine["exact"] for engine in engines),
        "engines": sorted({engine["engine"] for engine in engines}),
        "seconds": round(seconds, 6),
        "results": results,
    }
    return json_module.loads(json_module.dumps(content, default=str))  # dates and the like as text


def _metadata_of(opened: Any, ids: Any) -> list[Any]:
    """The metadata of each row of ids, or None; read once for all."""
    if not ids.size:
        return [None] * len(ids)
    unique, places = np.unique(ids, return_inverse=True)
    table = opened.get(unique).metadata
    return [None if table is None else table.take(row) for row in places.reshape(ids.shape)]


def _print_results(name: str, ids: Any, scores: Any, metadata: Any) -> None:
    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    table.add_column("distance", justify="right")
    table.add_column("id", no_wrap=True, overflow="ignore" if not stdout.is_terminal else "fold")
    columns = [] if metadata is None else metadata.column_names
    for column in columns:
        table.add_column(column)
    rows = [{}] * len(ids) if metadata is None else metadata.to_pylist()
    for one, score, row in zip(ids.tolist(), scores, rows, strict=True):
        table.add_row(
            f"{score:.4g}", str(one), *("" if row[column] is None else str(row[column]) for column in columns)
        )
    stdout.print(table, markup=False)
