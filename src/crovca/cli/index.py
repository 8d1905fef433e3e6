"""``crovca index``: build an index and keep it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Context, Option

from crovca.cli.options import Device, Force, Json, LeftOutFile, given
from crovca.cli.output import Reporter, answer, counted, tell_left_out
from crovca.errors import ConfigError
from crovca.files import read_lines

if TYPE_CHECKING:
    from crovca.index.reader import Reader
    from crovca.index.tuned import Tuned

index = typer.Typer(no_args_is_help=True, help="Build a search index, and add to, delete from or check one.")

_Index = Annotated[Path, Argument(help="Folder of an index.")]
_Source = Annotated[
    Path, Argument(help="Codes (.npz), embeddings (file or store), or images (folder, split file, .tar).")
]
_Model = Annotated[Path | None, Option(help="Folder that 'crovca train' wrote [default: the index's].")]
_Encoder = Annotated[str | None, Option(help="For images: folder of an encoder, or its id on the hub.")]
_Revision = Annotated[str | None, Option(help="Of the encoder on the hub.")]
_Metadata = Annotated[Path | None, Option(help="More columns, by a column 'id': .parquet or .csv.")]
_Keep = Annotated[
    Literal["float16", "int8", "none"] | None,
    Option(help="Keep the embeddings, for search --rescore: int8 is a byte a number [default: int8 if at hand]."),
]
_Target = Annotated[
    float | None,
    Option(
        "--target-recall",
        help="Find the fewest bits, and embeddings to read, that keep this share of the floats' nearest, like 0.95.",
    ),
]
_TopK = Annotated[int, Option("--top-k", "-k", help="How many nearest the recall is of.")]


@index.command("build")
def build(
    context: Context,
    source: _Source,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the index.")] = Path("index"),
    model: Annotated[
        Path | None, Option(help="Folder that 'crovca train' wrote [default: learn one, without labels].")
    ] = None,
    bits: Annotated[int | None, Option(help="Length of the codes [default: the model's, or 64].")] = None,
    encoder: _Encoder = None,
    revision: _Revision = None,
    metadata: _Metadata = None,
    keep: _Keep = None,
    target_recall: _Target = None,
    top_k: _TopK = 10,
    device: Device = "auto",
    force: Force = False,
    left_out: LeftOutFile = None,
    json: Json = False,
) -> None:
    """Build an index from codes, from embeddings, or straight from images.

    Embeddings are encoded by --model; without one, a model is learned from them and kept in the index. Images are
    embedded by --encoder into OUTPUT.embeddings, which stays: a run that was interrupted goes on from it, and with
    --force it is replaced where the images or the encoder are others than before.
    """
    from crovca.archive.ingest import build_index
    from crovca.hasher.files import has_encoder

    started = time.perf_counter()
    with Reporter() as reporter:
        made = build_index(**given(context, build_index), observer=reporter)
    tell_left_out(made.left_out, left_out)
    size = made.disk_bytes
    seconds = time.perf_counter() - started
    if not (output / "model").is_dir():
        how = "--id ID"
    else:
        images = made.encoder is not None or has_encoder(output / "model")
        how = "--image FILE" if images else "--embeddings FILE"
    content = {"index": str(output), "items": made.items, "bits": made.bits, "disk_bytes": size}
    if made.tuned is not None:
        content["tuned"] = made.tuned.to_dict()
    answer(
        json,
        {**content, "seconds": round(seconds, 3)},
        f"{output}: {counted(made.items)}, codes of {made.bits} bits ({_size(size['codes'])}; ids "
        f"{_size(size['ids'])}, metadata {_size(size['metadata'])}"
        + (f", embeddings {_size(size['originals'])}" if size["originals"] else "")
        + f"), in {seconds:.1f} s",
        *([] if made.tuned is None else [f"tuned: {made.tuned.sentence()}"]),
        f"next: crovca search {output} {how}",
    )


@index.command("add")
def add(
    context: Context,
    path: _Index,
    source: _Source,
    model: _Model = None,
    encoder: _Encoder = None,
    revision: _Revision = None,
    metadata: _Metadata = None,
    keep: _Keep = None,
    replace: Annotated[bool, Option("--replace", help="Replace items whose ids are in the index.")] = False,
    left_out: LeftOutFile = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Add items; --replace puts them in the place of those with the same ids.

    All ids are checked before anything is added. Items are then added durably, up to 262,144 at a time: should a later
    step fail, those of the earlier ones are in the index, and --replace goes over them.
    """
    from crovca.archive.ingest import add_items

    started = time.perf_counter()
    with Reporter() as reporter:
        made = add_items(path, **given(context, add_items), upsert=replace, observer=reporter)
    tell_left_out(made.left_out, left_out)
    seconds = round(time.perf_counter() - started, 3)
    content = {"index": str(path), "added": made.added, "replaced": made.replaced, "items": made.items}
    text = f"{counted(made.added)} added, {made.replaced:,} replaced; {made.items:,} now ({seconds:.1f} s)"
    answer(json, {**content, "seconds": seconds}, f"{path}: {text}")


@index.command("delete")
def delete(
    path: _Index,
    ids: Annotated[
        list[str] | None, Argument(help="Ids to delete; write -- before one that begins with -, as in: INDEX -- -5.")
    ] = None,
    where: Annotated[str | None, Option(help="Delete what this SQL condition selects.")] = None,
    ids_from: Annotated[Path | None, Option(help="Text file with an id a line.")] = None,
    json: Json = False,
) -> None:
    """Delete items by id or by a condition. Ids that are not in the index are passed over."""
    from crovca.index.index import HashIndex

    if sum(one is not None and one != [] for one in (ids, where, ids_from)) != 1:
        raise ConfigError("give IDS, or --where, or --ids-from")
    with HashIndex.open(path, writable=True) as opened:
        if where is not None:
            chosen: Any = opened.select(where)
        else:
            listed = list(ids or []) if ids_from is None else [line for line in read_lines(ids_from, "ids") if line]
            chosen = parse_ids(listed, opened)
        gone = opened.delete(chosen)
        left = len(opened)
    hint = f" ('crovca index compact {path}' frees their space)" if gone else ""
    content = {"index": str(path), "deleted": gone, "items": left}
    answer(json, content, f"{path}: {counted(gone)} deleted, {left:,} left{hint}")


@index.command("compact")
def compact(path: _Index, json: Json = False) -> None:
    """Write everything into one segment, without what is deleted; what is cut short goes on the next time."""
    from crovca.index.index import HashIndex

    started = time.perf_counter()
    with HashIndex.open(path, writable=True) as opened:
        dropped = opened.compact()
        size = opened.stats()["disk_bytes"]
    seconds = round(time.perf_counter() - started, 3)
    content = {"index": str(path), "dropped": dropped, "disk_bytes": size, "seconds": seconds}
    text = f"{counted(dropped, 'deleted item')} dropped; {_size(sum(size.values()))} now ({seconds:.1f} s)"
    answer(json, content, f"{path}: {text}")


@index.command("verify")
def verify(path: _Index, json: Json = False) -> None:
    """Compare every file with its checksum; exits with 1 where something is damaged."""
    from crovca.index.index import HashIndex

    with HashIndex.open(path, skip_damaged=True) as opened:
        problems = opened.verify()
        count = len(opened)
    found = f"{path}: {counted(len(problems), 'problem')}" if problems else f"{path}: {counted(count)}, all whole"
    content = {"index": str(path), "problems": problems, "items": count}
    answer(json, content, *(f"damaged: {line}" for line in problems), found)
    if problems:
        raise typer.Exit(1)


@index.command("info")
def info(
    path: _Index,
    engines: Annotated[bool, Option("--engines", help="Build the engines, to tell their time and memory.")] = False,
    json: Json = False,
) -> None:
    """What an index holds: items, metadata, sizes on disk, the curve of its tuning; with --engines also time and
    memory of searching."""
    from crovca.index.index import HashIndex
    from crovca.index.tuned import settings_of

    with HashIndex.open(path) as opened:
        if engines:
            opened.prepare()
        stats = opened.stats()
        stats["encoder"] = None if opened.encoder is None else opened.encoder["encoder"]
        stats["model"] = opened.model_folder.is_dir()
        stats["fingerprint"] = opened.origin.model
        tuned = None if stats["tuned"] is None else settings_of(stats["tuned"])
    disk = ", ".join(f"{name} {_size(size)}" for name, size in stats["disk_bytes"].items() if size)
    columns = ", ".join(f"{name} ({kind})" for name, kind in stats["metadata"].items())
    mark = f" ({stats['fingerprint'][:12]})" if stats["fingerprint"] else ""
    kept = "none" if stats["keep"] == "none" else f"{stats['keep']}, {stats['width'] or '?'} numbers an item"
    lines = [
        f"{path}: {counted(stats['items'])} ({stats['deleted']:,} deleted), codes of {stats['bits']} bits, "
        + (f"ids {stats['id_type']}" if stats["id_type"] else "no items yet"),
        f"on disk: {disk}",
        f"segments: {len(stats['segments'])}; generation {stats['generation']}",
        f"in memory beside the mapped files: {_size(stats['memory_bytes'])}",
        f"metadata: {columns or 'none'}",
        f"model: {'kept' if stats['model'] else 'none'}{mark}; encoder: {stats['encoder'] or 'unknown'}",
        f"embeddings: {kept}",
        *([] if tuned is None else tuned_lines(tuned, stats["items"])),
    ]
    for engine in stats["engines"]:
        recall = f", recall@100 {engine['recall_at_100']:.3f}" if "recall_at_100" in engine else ""
        lines.append(
            f"engine {engine['engine']} ({', '.join(engine['metrics'])}): {counted(engine['rows'], 'row')} of "
            f"{engine['bits']} bits, "
            f"{_size(engine['bytes'])} beyond the codes, built in {engine['build_seconds']:.2f} s{recall}"
        )
    answer(json, {"index": str(path), **stats}, *lines)


@index.command("push")
def push(
    context: Context,
    path: _Index,
    to: Annotated[
        str,
        Option(
            help="postgresql://user@host/database?table=codes, milvus://host:19530/codes, "
            "duckdb:///path/to/file?table=codes, sqlite:///path/to/file?table=codes or "
            "lancedb:///path/to/folder?table=codes, chdb:///path/to/folder?table=codes (ClickHouse), "
            "qdrant:///path/to/folder?table=codes."
        ),
    ],
    batch_size: Annotated[int, Option(help="Items sent at a time.")] = 65536,
    force: Annotated[
        bool, Option("--force", help="Take over a table or collection that holds another index's items.")
    ] = False,
    embeddings: Annotated[
        bool,
        Option(
            "--embeddings", help="Push the kept embeddings along, for rescoring there; a push without removes them."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Bring a database to the state of an index. Only differences are sent; a stopped push goes on."""
    from crovca.index.index import HashIndex
    from crovca.servers.push import push_to

    started = time.perf_counter()
    with Reporter() as reporter, HashIndex.open(path) as opened:
        done = push_to(
            opened,
            to,
            **given(context, push_to),
            progress=lambda items, total: reporter.advance("pushing", items / max(total, 1)),
        )
    seconds = round(time.perf_counter() - started, 3)
    text = f"{done.items:,} items are there; {done.written:,} written, {done.deleted:,} deleted"
    text += ", nothing had changed" if done.unchanged else ""
    text += f", went on after {done.resumed_at:,}" if done.resumed_at else ""
    content = {"index": str(path), **asdict(done), "seconds": seconds}
    answer(json, content, f"{path}: {text} ({seconds:.1f} s)")


@index.command("export")
def export(
    path: _Index,
    engine: Annotated[str, Option("--for", help="elasticsearch, opensearch or vespa.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder for the files.")] = Path("exported"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an index for an engine that computes the scores itself: schema, items and a query to fill in."""
    from crovca.index.index import HashIndex
    from crovca.servers.export import export

    with HashIndex.open(path) as opened:
        done = export(opened, engine, output, force=force)
    content = {"index": str(path), "for": engine, "output": str(output), **asdict(done)}
    answer(
        json, content, f"{output}: {done.items:,} items for {engine}; {output / 'README.md'} says what to do with them"
    )


def tuned_lines(tuned: Tuned, items: int) -> list[str]:
    """What was chosen, and the curve it was chosen from."""
    lines = [f"tuned: {tuned.sentence()}"]
    if abs(items - tuned.items) > tuned.items / 4:
        lines.append(f"  there were {tuned.items:,} items then; 'crovca index tune' makes it anew")
    for bits in sorted({point.bits for point in tuned.curve}):
        row = [point for point in tuned.curve if point.bits == bits]
        curve = "  ".join(
            f"{'bits alone' if point.oversampling is None else f'x{point.oversampling:g}'} {point.recall:.3f}"
            for point in row
        )
        lines.append(f"  {bits:>4} bits: {curve}")
    return lines


@index.command("tune")
def tune(
    path: _Index,
    target_recall: Annotated[
        float, Option("--target-recall", help="Share of the floats' nearest to keep, like 0.95.")
    ] = 0.95,
    top_k: _TopK = 10,
    embeddings: Annotated[
        Path | None, Option(help="The items' embeddings, by id [default: those that are kept].")
    ] = None,
    json: Json = False,
) -> None:
    """Find the fewest bits, and embeddings to read, that reach a recall, on a sample of the index itself;
    'crovca search --rescore tuned' uses them. Exits with 1 where nothing reaches it."""
    from crovca.archive.refit import by_id
    from crovca.cli.options import open_embeddings
    from crovca.index.index import HashIndex
    from crovca.index.tuning import tune

    with Reporter() as reporter, HashIndex.open(path, writable=True) as opened:
        floats = None if embeddings is None else by_id(open_embeddings(embeddings), embeddings)
        found = tune(
            opened, target_recall, top_k, embeddings=floats, advance=lambda share: reporter.advance("measuring", share)
        )
        opened.keep_tuned(found)
    answer(json, {"index": str(path), **found.to_dict()}, *tuned_lines(found, found.items))
    if not found.reached:
        raise typer.Exit(1)


@index.command("check")
def check(path: _Index, new: Annotated[Path, Argument(help="Embeddings of new items.")], json: Json = False) -> None:
    """Whether an index's model serves new items: how many lie outside of what it has learned, and what its codes keep
    of their neighbors."""
    from crovca.archive.refit import check_index

    found = check_index(path, new)
    content = {"index": str(path), "items": found.items, "outside": found.drift.outside}
    content |= {"outside_before": found.outside_before, "recall": found.recall}
    content |= {"recall_before": found.recall_before, "refit": found.advised}
    answer(json, content, found.sentence(path))


@index.command("refit")
def refit(
    context: Context,
    path: _Index,
    embeddings: Annotated[
        Path | None, Option(help="Embeddings of all items, by id, of any encoder [default: those that are kept].")
    ] = None,
    model: Annotated[Path | None, Option(help="Take this model; learn none.")] = None,
    bits: Annotated[int | None, Option(help="Length of the new codes [default: as before].")] = None,
    keep: Annotated[
        Literal["float16", "int8", "none"] | None,
        Option(help="What is kept of the embeddings from now on [default: as before]."),
    ] = None,
    device: Device = "auto",
    force: Annotated[bool, Option("--force", help="Begin anew where a run was stopped.")] = False,
    json: Json = False,
) -> None:
    """Learn anew from what is in an index, and give everything new codes, in one step: the old ones serve until then.
    The same command goes on where it was stopped."""
    from crovca.archive.refit import refit

    started = time.perf_counter()
    with Reporter() as reporter:
        made = refit(path, **given(context, refit), observer=reporter)
    seconds = round(time.perf_counter() - started, 3)
    content = {"index": str(path), "items": made.items, "bits": made.bits, "keep": made.keep, "seconds": seconds}
    lines = [f"{path}: {counted(made.items)} have new codes of {made.bits} bits ({seconds:.1f} s)"]
    if made.tuned is not None:
        content["tuned"] = made.tuned.to_dict()
        lines.append(f"tuned: {made.tuned.sentence()}")
    answer(json, content, *lines)


def parse_ids(texts: list[str], opened: Reader) -> Any:
    """Ids from the command line, of the kind that the index has, or the indexes have."""
    if opened.id_type != "int64":
        return texts
    numbers = []
    for text in texts:
        try:
            number = int(text)
        except ValueError:
            raise ConfigError(f"the ids of this index are whole numbers, got {text!r}") from None
        if not -(2**63) <= number < 2**63:
            raise ConfigError(f"the ids of this index are whole numbers of 64 bits, got {text!r}")
        numbers.append(number)
    return numbers


def _size(size: int) -> str:
    """In MiB, or in KiB what is less than one."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
