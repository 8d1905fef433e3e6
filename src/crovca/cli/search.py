"""``crovca search`` and ``crovca dedup``."""

from __future__ import annotations

import time
import webbrowser
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from crovca.cli.index import parse_ids
from crovca.cli.options import Device, Force, Json, open_embeddings
from crovca.cli.output import Console, answer, counted, emit_json, note, say, stdout
from crovca.data.columns import rows_of
from crovca.errors import ConfigError, printable
from crovca.files import check_output, write_json
from crovca.index.engines.choice import ENGINES, check_engine
from crovca.metrics import get_metric, of_codes

if TYPE_CHECKING:
    from crovca.archive.queries import QueryModel
    from crovca.index.results import Neighbors

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
    index: Annotated[list[Path], Argument(help="Index or archive, or several: they are searched as one.")],
    image: Annotated[list[Path] | None, Option(help="Image files to search by.")] = None,
    text: Annotated[list[str] | None, Option(help="Texts to search by.")] = None,
    id: Annotated[list[str] | None, Option("--id", help="Items to search by.")] = None,
    embeddings: Annotated[Path | None, Option(help="Embeddings to search by.")] = None,
    model: Annotated[Path | None, Option(help="Model for the queries [default: the index's].")] = None,
    text_encoder: Annotated[str | None, Option(help="Encoder of texts [default: the images' one].")] = None,
    top_k: Annotated[int, Option("--top-k", "-k", help="Results for each query.")] = 10,
    metric: Annotated[
        str | None,
        Option(
            "--scoring",
            metavar="|".join(of_codes()),
            callback=_checked_metric,
            help="[default: bce; for --id, hamming].",
        ),
    ] = None,
    where: Annotated[str | None, Option(help='SQL condition on id and metadata, like "year < 1960".')] = None,
    bits: Annotated[int | None, Option(help="Search by the first so many bits.")] = None,
    rescore: Annotated[
        str | None,
        Option(
            metavar="N|tuned",
            help="Read N times as many of the embeddings that the index keeps, and order by them; 'tuned': as 'crovca "
            "index tune' found. [default: tuned, where it was]",
        ),
    ] = None,
    engine: Annotated[
        str, Option(callback=_checked_engine, help=f"How to search: auto, {', '.join(ENGINES)}.")
    ] = "auto",
    html: Annotated[Path | None, Option(help="Write a page of pictures.")] = None,
    root: Annotated[
        Path | None, Option(help="For --html: folder that ids are paths below [default: archive's].")
    ] = None,
    open: Annotated[bool, Option("--open", help="Show the page of --html in a browser.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Find the items nearest to images, texts, stored items or embeddings; exactly, but for --engine inverted."""
    from crovca.archive.folder import index_folder
    from crovca.index.index import HashIndex
    from crovca.index.shards import ShardedIndex

    given = [
        name for name, value in (("image", image), ("text", text), ("id", id), ("embeddings", embeddings)) if value
    ]
    if len(given) != 1:
        raise ConfigError("give one kind of query: --image, --text, --id or --embeddings")
    if id:
        _refuse_with_ids(metric, engine, model, text_encoder)
    twice = [path for place, path in enumerate(index) if path.resolve() in {one.resolve() for one in index[:place]}]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each index once")
    root = _root(index, html, root, open)
    index = [index_folder(path) for path in index]
    names: list[str]
    encoding = 0.0
    source: Any = HashIndex.open(index[0]) if len(index) == 1 else ShardedIndex.open(index)
    with closing(source) as opened:
        started = time.perf_counter()
        if id:
            names = list(id)
            found = opened.neighbors_of(parse_ids(id, opened), top_k, where=where, bits=bits)
        else:
            from crovca.archive.ingest import encoder_of
            from crovca.archive.queries import QueryModel  # loads torch, for which --id has no use
            from crovca.index.origin import Origin

            first = opened if len(index) == 1 else opened.shards[0]
            query = QueryModel.of_index(index[0], first.encoder, model=model, text_encoder=text_encoder, device=device)
            names, asked, texts = _queries(query, image, text, embeddings)
            logits = query.of_embeddings(asked, texts=texts)
            logits = logits[:, : first.bits]  # the index may hold the first bits of its model's codes
            encoding = time.perf_counter() - started
            started = time.perf_counter()
            oversampling = _oversampling(rescore, opened, bits, metric)
            found = opened.search(
                logits,
                top_k,
                embeddings=None if oversampling is None else asked,
                rescore=oversampling,
                metric=metric or "bce",
                where=where,
                bits=bits,
                engine=engine,
                origin=Origin(query.hasher.fingerprint, None if embeddings is None else encoder_of(embeddings)),
            )
        seconds = time.perf_counter() - started
        rows = _metadata(found)
        engines, count = opened.engines(), len(opened)
    if html is not None:
        _write_page(html, names, found, rows, root, image)
        if open:
            webbrowser.open(html.resolve().as_uri())
    if json:
        emit_json(
            _as_json(names, found, rows, found.metric, (encoding, seconds), engines),
            default=str,  # dates and the like
        )
        return
    for name, ids, distances, metadata in zip(names, found.ids, found.distances, rows, strict=True):
        _print_results(name, ids, distances, metadata)
    queries = "1 query" if len(names) == 1 else f"{len(names):,} queries"
    encoded = "" if id else f"models loaded and encoded in {encoding:.1f} s, "
    say(f"{queries} over {counted(count)}: {encoded}searched in {seconds * 1000:.1f} ms")


def dedup(
    index: Annotated[Path, Argument(help="Folder of an index, or an archive.")],
    radius: Annotated[int, Option(help="Bits in which near duplicates may differ.")] = 0,
    bits: Annotated[int | None, Option(help="Compare the first so many bits.")] = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Write all groups to this JSON file.")] = None,
    show: Annotated[int, Option(help="Groups to print.")] = 10,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find groups of items whose codes are near: linked by steps of at most RADIUS bits. Candidates, not proof."""
    from crovca.archive.folder import index_folder
    from crovca.index.index import HashIndex

    if output is not None:
        check_output(output, force=force, inputs=[index])
    with HashIndex.open(index_folder(index)) as opened:
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
    lines = []
    for ids, distances in list(zip(found.groups, found.distances, strict=True))[:show]:
        near = zip(ids[1:9].tolist(), distances[1:9], strict=True)
        more = f" and {len(ids) - 9:,} more" if len(ids) > 9 else ""
        lines.append(f"{ids[0]}: {', '.join(f'{one} ({distance})' for one, distance in near)}{more}")
    if len(found.groups) > show:
        lines.append(f"... and {counted(len(found.groups) - show, 'group')} more (--show, or -o FILE)")
    what = f"{found.items:,} of {counted(count)} have another within {radius} bits; codes are no proof: look at them"
    answer(json, content, *lines, f"{counted(len(found.groups), 'group')}; {what} ({seconds:.1f} s)")


def _root(index: list[Path], html: Path | None, root: Path | None, open: bool) -> Path | None:
    """Where pictures lie; refuses what cannot be shown before anything is searched."""
    from crovca.archive.folder import root_of

    if html is None:
        if root is not None or open:
            raise ConfigError("--root and --open go with --html PAGE")
        return None
    check_output(html, force=True, inputs=index)
    found = root or root_of(index[0])
    if found is None:
        raise ConfigError(
            f"{index[0]} does not know where its pictures lie: give --root, the folder that ids are below"
        )
    return found


def _write_page(
    html: Path, names: list[str], found: Any, rows: list[Any], root: Path | None, image: list[Path] | None
) -> None:
    from crovca.archive.folder import columns_to_show
    from crovca.archive.gallery import Picture, Section, write_gallery

    sections = []
    for number, (name, ids, distances, metadata) in enumerate(
        zip(names, found.ids.tolist(), found.distances, rows, strict=True)
    ):
        facts: list[dict[str, Any]] = [{}] * len(ids) if metadata is None else rows_of(metadata)
        pictures = [
            Picture(str(id), f"{distance:.4g}", {key: row[key] for key in columns_to_show(list(row))})
            for id, distance, row in zip(ids, distances, facts, strict=True)
        ]
        sections.append(Section(name, pictures, image[number] if image else None))
    what = f"Nearest first; the numbers are distances ({found.metric})."
    write_gallery(html, "crovca search", sections, root, note=what)
    note(f"{html} shows them")


def _refuse_with_ids(metric: str | None, engine: str, model: Path | None, text_encoder: str | None) -> None:
    """Nothing is encoded for --id, and codes are compared by Hamming distance."""
    if metric not in (None, "hamming"):
        raise ConfigError(f"an item has a code, no logits: --id goes with hamming, not {metric}")
    given = {"--engine": engine != "auto", "--model": model, "--text-encoder": text_encoder}
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} does not go with --id: an item is searched by its stored code")


def _queries(
    query: QueryModel, image: list[Path] | None, text: list[str] | None, embeddings: Path | None
) -> tuple[list[str], Any, bool]:
    """Names and embeddings of the queries, and whether they are texts."""
    if image:
        return [str(path) for path in image], query.embed_images(image), False
    if text:
        return list(text), query.embed_texts(text), True
    assert embeddings is not None
    data = open_embeddings(embeddings)
    names = [str(row) for row in (range(len(data)) if data.ids is None else data.ids)]
    return names, data.values[:], False


def _oversampling(text: str | None, opened: Any, bits: int | None, metric: str | None) -> Any:
    """What --rescore says; where nothing is said, and nothing else about how to search, what was tuned."""
    if text is None:
        return "tuned" if bits is None and metric is None and opened.view().tuned is not None else None
    if text == "tuned":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--rescore must be a number like 4, or 'tuned'; got {text!r}") from None


def _metadata(found: Neighbors) -> list[Any]:
    """A table for each query's results, or None."""
    table, width = found.metadata(), found.ids.shape[1]
    if table is None:
        return [None] * len(found)
    return [table.slice(query * width, width) for query in range(len(found))]


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
        columns = [{}] * len(ids) if metadata is None else rows_of(metadata)
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
    from crovca.archive.folder import columns_to_show

    texts = [str(one) for one in ids.tolist()]
    table = Table(title=Text(printable(name)), title_justify="left", box=None, pad_edge=False)
    table.add_column("distance", justify="right", no_wrap=True)
    # An id is wanted whole: on a narrow terminal the other columns give way first, then it goes on in a second line.
    longest = max(map(len, texts), default=0)
    table.add_column("id", overflow="fold", min_width=max(2, min(longest, stdout.width - len("distance  "))))
    rows = [{}] * len(ids) if metadata is None else rows_of(metadata)
    columns = [] if metadata is None else columns_to_show(metadata.column_names)
    columns = [column for column in columns if any(row[column] is not None for row in rows)]
    for column in columns:
        table.add_column(column)
    for one, distance, row in zip(texts, distances, rows, strict=True):
        table.add_row(f"{distance:.4g}", one, *("" if row[column] is None else str(row[column]) for column in columns))
    # What is read by another program has lines as long as they need to be.
    console = stdout if stdout.is_terminal else Console(width=_NO_LIMIT)
    console.print(table, markup=False)
