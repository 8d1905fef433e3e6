"""``crovca archive``: a folder of pictures, and an index that keeps in step with it."""

from __future__ import annotations

import time
from csv import writer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from crovca.cli.options import Device, Json, LeftOutFile, OfEncoder, Revision
from crovca.cli.output import Reporter, answer, counted, say, tell_left_out
from crovca.errors import ConfigError
from crovca.files import atomic_file, check_output

if TYPE_CHECKING:
    from crovca.archive.archive import Archive
    from crovca.archive.duplicates import Group

archive = typer.Typer(no_args_is_help=True, help="Keep a folder of pictures and an index of it in step.")

_Archive = Annotated[Path, Argument(help="Folder that 'crovca archive init' made.")]
_FIRST = 10


@archive.command("init")
def init(
    root: Annotated[Path, Argument(help="Folder of pictures; ids are paths below it.")],
    encoder: OfEncoder,
    output: Annotated[Path, Option("--output", "-o", help="Folder for the archive.")] = Path("archive"),
    revision: Revision = None,
    bits: Annotated[int, Option(help="Length of the codes.")] = 64,
    metadata: Annotated[
        Path | None, Option(help="More columns, by a column 'id' (path below ROOT): .csv or .parquet.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an archive of a folder. 'crovca archive sync' fills it, and keeps it in step."""
    from crovca.archive.archive import Archive

    made = Archive.create(root, encoder, output, revision=revision, bits=bits, metadata=metadata)
    content = {"archive": str(output), "root": str(made.root), "encoder": made.encoder, "bits": bits}
    answer(json, content, f"{output}: an archive of {made.root}", f"next: crovca archive sync {output}")


@archive.command("sync")
def sync(
    path: _Archive,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    watch: Annotated[float | None, Option(help="Do it again every so many seconds, until Ctrl-C.")] = None,
    allow_empty: Annotated[
        bool, Option("--allow-empty", help="The folder may have become empty: remove everything.")
    ] = False,
    left_out: LeftOutFile = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Embed what is new or changed, keep what was moved, remove what is gone, and name the files that cannot be read.

    Killed at any moment, it goes on when it is given again.
    """
    from crovca.archive.archive import Archive

    if watch is not None and (dry_run or watch < 1):
        raise ConfigError("--watch takes at least 1 second, and does not go with --dry-run")
    if left_out is not None:
        check_output(left_out, force=True, inputs=[path])
    opened = Archive.open(path)
    if dry_run:
        _tell_plan(opened, allow_empty, left_out, json)
        return
    while True:
        with Reporter() as reporter:
            done = opened.sync(device=device, allow_empty=allow_empty, observer=reporter)
        counts = done.plan.counts()
        if watch is None or sum(counts.values()) > counts["unchanged"]:
            tell_left_out(done.left_out, left_out)
            content = {"archive": str(path), "items": done.items, **counts, "left_out": len(done.left_out)}
            answer(
                json,
                {**content, "seconds": round(done.seconds, 3)},
                f"{path}: {done.items:,} pictures; {_counted(counts)}; {len(done.left_out):,} left out "
                f"({done.seconds:.1f} s)",
                *([f"next: crovca serve {path}"] if counts["new"] and not counts["unchanged"] else []),
            )
        if watch is None:
            return
        time.sleep(watch)


@archive.command("refit")
def refit(path: _Archive, device: Device = "auto", json: Json = False) -> None:
    """Learn codes anew from all that is in the archive now; the old ones serve until then."""
    from crovca.archive.folder import index_folder
    from crovca.archive.refit import refit

    started = time.perf_counter()
    with Reporter() as reporter:
        done = refit(index_folder(path), device=device, observer=reporter)
    seconds = round(time.perf_counter() - started, 3)
    content = {"archive": str(path), "items": done.items, "bits": done.bits, "seconds": seconds}
    answer(json, content, f"{path}: learned anew from {done.items:,} pictures ({seconds:.1f} s)")


@archive.command("info")
def info(path: _Archive, json: Json = False) -> None:
    """What an archive is of, and what it holds."""
    from crovca.archive.archive import Archive
    from crovca.index.index import HashIndex

    opened = Archive.open(path)
    stats: dict[str, Any] = {"items": 0, "metadata": {}, "disk_bytes": {}}
    if opened.index.is_dir():
        with HashIndex.open(opened.index) as index:
            stats = {name: index.stats()[name] for name in stats}
    content = {"archive": str(path), "root": str(opened.root), "encoder": opened.encoder, "bits": opened.bits}
    answer(
        json,
        {**content, **stats, "left_out": len(opened.left_out())},
        f"{path}: {stats['items']:,} pictures of {opened.root}, codes of {opened.bits} bits",
        f"encoder: {opened.encoder}",
        f"on disk: {sum(stats['disk_bytes'].values()) / 1e6:,.1f} MB",
        f"columns: {', '.join(stats['metadata']) or 'none yet'}",
        f"left out: {len(opened.left_out()):,}",
    )


def duplicates(
    path: _Archive,
    csv: Annotated[Path | None, Option(help="Write all groups to this CSV file.")] = None,
    html: Annotated[Path | None, Option(help="Write a page with the pictures of each group.")] = None,
    not_duplicates: Annotated[
        list[str] | None, Option(help="Ids of pictures that are none, whatever they look like: give it for each.")
    ] = None,
    json: Json = False,
) -> None:
    """Find pictures that an archive has several times, and propose which of them to keep. Deletes nothing.

    Copies (saved anew, smaller, brighter, marked, cut or turned a little) and bursts are confirmed by their pixels.
    """
    from crovca.archive.archive import Archive
    from crovca.archive.duplicates import decide, find

    opened = Archive.open(path)
    for output in (csv, html):
        if output is not None:
            check_output(output, force=True, inputs=[path])
    if not_duplicates is not None:
        for at, one in enumerate(not_duplicates[:-1] or not_duplicates):
            decide(opened, one, not_duplicates[at + 1 :], same=False)
        answer(json, {"archive": str(path), "apart": not_duplicates}, f"kept apart: {', '.join(not_duplicates)}")
        return
    started = time.perf_counter()
    with Reporter() as reporter:
        found = find(opened, observer=reporter)
    if csv is not None:
        _write_groups(csv, found.groups)
    if html is not None:
        _write_page(html, opened, found.groups)
    copies = [group for group in found.groups if group.items[0].kind != "burst"]
    surplus = sum(one.kind == "copy" for group in copies for one in group.items)
    seconds = time.perf_counter() - started
    lines = [f"{group.keep}: {', '.join(f'{one.id} ({one.kind}, {one.similarity:.3f})' for one in group.items)}"
             for group in found.groups[:_FIRST]]  # fmt: skip
    if len(found.groups) > _FIRST:
        lines.append(f"... and {len(found.groups) - _FIRST:,} groups more (--html, --csv or --json show all)")
    if found.undecided:
        lines.append(
            f"{found.undecided:,} pairs could not be decided: for pictures that were cut or turned install OpenCV, "
            "pip install 'crovca[duplicates]'"
        )
    content = {
        "archive": str(path),
        "pictures": found.pictures,
        "candidates": found.candidates,
        "compared": found.compared,
        "undecided": found.undecided,
        "groups": [{"keep": group.keep, "items": [vars(one) for one in group.items]} for group in found.groups],
    }
    answer(
        json,
        content,
        *lines,
        f"{counted(len(copies), 'group')} of copies, of which {counted(surplus, 'picture')} could go, and "
        f"{counted(len(found.groups) - len(copies), 'burst')}, among {counted(found.pictures, 'picture')} "
        f"({seconds:.1f} s)",
    )


def _write_groups(file: Path, groups: list[Group]) -> None:
    """One row for each picture of a group."""
    with (
        atomic_file(file) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as to,
    ):
        rows = writer(to)
        rows.writerow(["group", "keep", "id", "kind", "similarity"])
        for number, group in enumerate(groups, start=1):
            rows.writerow([number, "yes", group.keep, "", ""])
            rows.writerows([number, "no", one.id, one.kind, one.similarity] for one in group.items)


def _write_page(file: Path, opened: Archive, groups: list[Group]) -> None:
    from crovca.archive.gallery import Picture, Section, write_gallery
    from crovca.index.index import HashIndex

    ids = [id for group in groups for id in (group.keep, *(one.id for one in group.items))]
    facts: dict[str, dict[str, Any]] = {}
    if ids:
        with HashIndex.open(opened.index) as index:
            table = index.get(ids).metadata
        assert table is not None
        facts = dict(zip(ids, table.select(["width", "height", "size", "taken"]).to_pylist(), strict=True))
    sections = [
        Section(
            f"{len(group.items) + 1} pictures, {'a burst' if group.items[0].kind == 'burst' else 'the same'}",
            [
                Picture(group.keep, "keep", facts[group.keep]),
                *(Picture(one.id, f"{one.kind}, {one.similarity:.3f}", facts[one.id]) for one in group.items),
            ],
        )
        for group in groups
    ]
    note = "The first of each group is the one to keep. Numbers are cosines of the embeddings; nothing was deleted."
    write_gallery(file, "Duplicates", sections, opened.root, note=note)


def _tell_plan(opened: Archive, allow_empty: bool, left_out: Path | None, json: bool) -> None:
    plan = opened.plan(allow_empty=allow_empty)
    counts = plan.counts()
    gone = sorted(set(plan.gone) - set(plan.moved.values()))
    moved = [f"{old} to {new}" for new, old in plan.moved.items()]
    named = {"new": plan.new, "changed": plan.changed, "moved": moved, "removed": gone}
    if not json:
        for what, names in named.items():
            for name in names[:_FIRST]:
                say(f"{what}: {name}")
            if len(names) > _FIRST:
                say(f"{what}: ... and {len(names) - _FIRST:,} more")
    tell_left_out(sorted(plan.left_out.values(), key=lambda one: one.id), left_out)
    to_do = _counted({**counts, "unchanged": 0})
    content = {"archive": str(opened.path), **counts, "left_out": len(plan.left_out), "files": named}
    answer(json, content, f"would be done: {to_do}; {len(plan.left_out):,} left out")


def _counted(counts: dict[str, int]) -> str:
    """What there was of each kind; "touched" is a file with a new date and the same content."""
    words = {"touched": "with a new date only"}
    found = [f"{count:,} {words.get(name, name)}" for name, count in counts.items() if count]
    return ", ".join(found) or "nothing"
