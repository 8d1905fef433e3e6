"""``crovca datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from crovca.cli.options import Force, Json
from crovca.cli.output import Reporter, emit_json, note, print_table, say
from crovca.errors import ConfigError

if TYPE_CHECKING:
    from crovca.datasets.registry import Surveyed
    from crovca.datasets.structure import Dataset, Protocol


def datasets(
    name: Annotated[str | None, Argument(help="One dataset, with everything known of it.")] = None,
    data: Annotated[Path | None, Option(help="Folder with a folder for each dataset: look what is there.")] = None,
    folder: Annotated[Path | None, Option(help="The folder of dataset NAME itself.")] = None,
    splits: Annotated[
        Path | None, Option(help="Write its split files here, for 'crovca embed OUT/query.txt --root FOLDER'.")
    ] = None,
    export: Annotated[Path | None, Option(help="cifar10: write the archive's images here as PNG files.")] = None,
    rebuild: Annotated[
        bool, Option("--rebuild", help="coco, imagenet100, nuswide21: make the missing database.txt.")
    ] = False,
    pin: Annotated[bool, Option("--pin", help="Write down checksums of its files; later, others are refused.")] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """The field's benchmarks: where to get them, and whether your copy is whole.

    Nothing is downloaded. Counts, labels, known checksums and the presence of every image are checked.
    """
    from crovca.datasets.registry import folder_of, survey

    acting = splits is not None or export is not None or rebuild or pin
    if name is None:
        if acting or folder is not None:
            raise ConfigError("--folder, --splits, --export, --rebuild and --pin go with the NAME of a dataset")
        _list(None if data is None else survey(_existing(data)), json)
        return
    if data is not None and folder is not None:
        raise ConfigError("give either --data (the folder of all datasets) or --folder (that of this one)")
    if data is not None:
        folder = folder_of(name, _existing(data))
    if folder is None:
        if acting:
            raise ConfigError("say where the dataset is: --folder DIR, or --data with DIR/NAME below it")
        _describe(name, None, {}, json)
        return
    dataset, written = _act(name, folder, splits, export, rebuild, pin, force)
    _describe(name, dataset, written, json)


def _act(
    name: str, folder: Path, splits: Path | None, export: Path | None, rebuild: bool, pin: bool, force: bool
) -> tuple[Dataset, dict[str, str]]:
    """Do what was asked for, and open the dataset; what was written, by the option that asked for it."""
    from crovca.datasets.cifar10 import export_cifar10
    from crovca.datasets.registry import open_dataset, pin_checksums, protocol_of, rebuild_database
    from crovca.datasets.splits import export_splits
    from crovca.files import check_output

    written: dict[str, Path] = {}
    if splits is not None:
        check_output(splits, force=force, inputs=[folder], marker="protocol.json")
    if export is not None:
        if name != "cifar10":
            raise ConfigError(f"--export is for cifar10, whose archives hold no image files; {name} has them")
        with Reporter() as reporter:
            cifar10 = protocol_of("cifar10")
            written["export"] = export_cifar10(folder, export, protocol=cifar10, progress=reporter.advance)
        folder = export  # from here on that is the copy to speak of
    if rebuild:
        written["rebuild"] = rebuild_database(name, folder)
    dataset = open_dataset(name, folder)
    if splits is not None:
        written["splits"] = export_splits(dataset, splits, force=force)
        if not dataset.embeddable:
            note("the images are in an archive: these lists need the files that --export writes, as their --root")
    if pin:
        written["pin"] = pin_checksums(dataset)
    return dataset, {option: str(path) for option, path in written.items()}


def _existing(data: Path) -> Path:
    if not data.is_dir():
        raise ConfigError(f"--data: there is no folder {data}")
    return data


def _list(found: list[Surveyed] | None, json: bool) -> None:
    from crovca.datasets.registry import PROTOCOLS

    if json:
        rows = [_facts(protocol) for protocol in PROTOCOLS.values()]
        for row, state in zip(rows, found or [], strict=False):
            row |= {"folder": str(state.folder), "state": state.state, "problem": state.problem or None}
        emit_json({"datasets": rows})
        return
    if found is None:
        lines = [
            (one.name, one.task, one.metric, *(_count(one, split) for split in ("train", "database", "query")))
            for one in PROTOCOLS.values()
        ]
        print_table(("name", "searched", "metric", "train", "database", "query"), lines, right=False)
        say("crovca datasets NAME says where to get each of its files; --data DIR what is there.")
        return
    states = []
    for state in found:
        detail = state.problem or f"expected in {state.folder}"
        if state.dataset is not None:
            sizes = (f"{split} {len(items):,}" for split, items in state.dataset.splits.items())
            detail = "; ".join([", ".join(sizes), *state.dataset.notes])
        states.append((state.protocol.name, state.state, detail))
    print_table(("name", "state", "what was found, or is wrong"), states, right=False)


def _describe(name: str, dataset: Dataset | None, written: dict[str, str], json: bool) -> None:
    from crovca.datasets.registry import protocol_of

    protocol = protocol_of(name)
    if json:
        emit_json({**_facts(protocol), **_contents(dataset), "written": written})
        return
    lines = [f"{protocol.title} ({protocol.name}): {protocol.task}", f"metric: {protocol.metric}"]
    if protocol.relevance is not None:
        lines[-1] += f"; an item answers a query if: {protocol.relevance}"
    counts = [f"{split} {_count(protocol, split)}" for split in protocol.counts]
    lines.append(f"prescribed: {', '.join(counts)}")
    if dataset is None:
        lines.append(f"to put into the folder {protocol.folder}/:")
        lines += [
            f"  {source.path}{'' if source.needed else ' (optional)'}  {source.url}" for source in protocol.sources
        ]
        lines.append(f"license: {protocol.license}")
        lines += [f"note: {text}" for text in protocol.notes]
        if not protocol.checksums:
            lines.append("checksums: none are published; --pin writes down those of your files")
    else:
        lines.append(f"found in {dataset.folder}, complete:")
        for split, items in dataset.splits.items():
            texts = "" if items.captions is None else f", {len(items.captions):,} captions"
            lines.append(f"  {split}: {len(items):,} items{texts}")
        lines += [f"note: {text}" for text in dataset.notes]
    lines += [f"written ({option}): {path}" for option, path in written.items()]
    say(*lines)


def _count(protocol: Protocol, split: str) -> str:
    if split not in protocol.counts:
        return "-"
    count = protocol.counts[split]
    return "all that are there" if count is None else f"{count:,}"


def _facts(protocol: Protocol) -> dict[str, Any]:
    names = ("name", "title", "task", "metric", "k", "relevance", "classes")
    return {
        **{name: getattr(protocol, name) for name in names},
        "counts": dict(protocol.counts),
        "sources": [{"path": source.path, "url": source.url, "needed": source.needed} for source in protocol.sources],
        "checksums": dict(protocol.checksums),
        "licence": protocol.license,
        "notes": list(protocol.notes),
    }


def _contents(dataset: Dataset | None) -> dict[str, Any]:
    if dataset is None:
        return {"found": None}
    splits = {
        name: {"items": len(split), "captions": None if split.captions is None else len(split.captions)}
        for name, split in dataset.splits.items()
    }
    return {
        "found": {
            "folder": str(dataset.folder),
            "splits": splits,
            "files": list(dataset.files),
            "embeddable": dataset.embeddable,
            "notes": list(dataset.notes),
        }
    }
