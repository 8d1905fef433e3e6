"""Every benchmark by its name: open it, say what is there, pin it, rebuild what can be rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from crovca.datasets import cc3m, cifar10, coco, ddbh, flickr25k, flickr30k, imagenet, nuswide21
from crovca.datasets.structure import FILES, Dataset, Protocol
from crovca.datasets.tree import PINS, Tree
from crovca.errors import ConfigError, CrovcaError, FileFormatError, OutputExistsError
from crovca.files import atomic_file, check_output, read_json, sha256, write_json

_OPENERS: tuple[tuple[Protocol, Callable[[Tree], Dataset]], ...] = (
    (cifar10.PROTOCOL, cifar10.open_cifar10),
    (flickr25k.PROTOCOL, flickr25k.open_flickr25k),
    (nuswide21.PROTOCOL, nuswide21.open_nuswide21),
    (coco.PROTOCOL, coco.open_coco),
    (imagenet.PROTOCOL_100, imagenet.open_imagenet100),
    (imagenet.PROTOCOL_1K, imagenet.open_imagenet1k),
    (ddbh.FLICKR25K_PROTOCOL, ddbh.open_ddbh),
    (ddbh.NUSWIDE21_PROTOCOL, ddbh.open_ddbh),
    (ddbh.COCO_PROTOCOL, ddbh.open_ddbh),
    (flickr30k.PROTOCOL, flickr30k.open_flickr30k),
    (coco.TEXT_PROTOCOL, coco.open_coco_text),
    (imagenet.PROTOCOL_1K_TEXT, imagenet.open_imagenet1k_text),
    (cc3m.PROTOCOL, cc3m.open_cc3m),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol, _ in _OPENERS}
"""Every benchmark, in the order of the paper's Table 9."""

_REBUILDERS: Mapping[str, Callable[[Tree], list[str]]] = {
    "coco": coco.database_of_coco,
    "imagenet100": imagenet.database_of_imagenet100,
    "nuswide21": nuswide21.database_of_nuswide21,
}


@dataclass(frozen=True)
class Surveyed:
    """What ``survey`` found of a benchmark: "found", "absent" (no such folder), or "unusable" and the problem in one
    line.
    """

    protocol: Protocol
    folder: Path
    state: str
    problem: str = ""
    dataset: Dataset | None = None


def protocol_of(name: str) -> Protocol:
    """The protocol of that name."""
    if name not in PROTOCOLS:
        raise ConfigError(f"there is no dataset {name!r}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def open_dataset(name: str, folder: str | Path, *, protocol: Protocol | None = None) -> Dataset:
    """List a benchmark's items from the user's own copy, checked. No image is decoded.

    Args:
        name: one of ``PROTOCOLS``.
        folder: where it lies; each protocol's ``sources`` say what belongs there.
        protocol: what to check against instead, for example ``replace(PROTOCOLS["coco"], counts=...)``.

    Raises:
        ConfigError: there is no such benchmark.
        FileFormatError: something is missing, or differs from what the benchmark prescribes, in one line.
    """
    known = protocol_of(name)
    opener = next(opener for one, opener in _OPENERS if one.name == name)
    return opener(Tree(Path(folder), protocol or known))


def folder_of(name: str, data: Path) -> Path:
    """Where a benchmark is looked for below the folder of all datasets."""
    return data / protocol_of(name).folder


def survey(data: str | Path, *, protocols: Mapping[str, Protocol] | None = None) -> list[Surveyed]:
    """Look for every benchmark (or those of ``protocols``) in its folder below ``data``, and check what is there."""
    result = []
    for name, protocol in (PROTOCOLS if protocols is None else protocols).items():
        folder = Path(data) / protocol.folder
        if not folder.is_dir():
            result.append(Surveyed(protocol, folder, "absent"))
            continue
        try:
            dataset = open_dataset(name, folder, protocol=protocol)
        except CrovcaError as error:
            result.append(Surveyed(protocol, folder, "unusable", " ".join(str(error).split())))
        else:
            result.append(Surveyed(protocol, folder, "found", dataset=dataset))
    return result


def pin_checksums(dataset: Dataset) -> Path:
    """Write the SHA-256 of every split and annotation file that was read into ``crovca-checksums.json`` beside them.

    From then on ``open_dataset`` refuses a file that differs. Files pinned earlier and not read now stay pinned.
    """
    path = dataset.folder / PINS
    known = read_json(path, "pinned checksums").get("sha256", {}) if path.exists() else {}
    found = {name: sha256(dataset.folder / name) for name in dataset.files}
    write_json(path, {"format_version": 1, "sha256": dict(sorted((known | found).items()))})
    return path


def rebuild_database(name: str, folder: str | Path, *, protocol: Protocol | None = None) -> Path:
    """Write database.txt of coco, imagenet100 or nuswide21 from what it was made of.

    The lines hold the items and labels of the original; their order may differ, which matters to no ranking here.

    Raises:
        ConfigError: this benchmark's database cannot be rebuilt.
        OutputExistsError: there is a database.txt.
        FileFormatError: what it is made from is missing, or gives another number of items.
    """
    protocol = protocol or protocol_of(name)
    if name not in _REBUILDERS:
        raise ConfigError(f"the database of {name!r} cannot be rebuilt; only those of {', '.join(_REBUILDERS)} can")
    tree = Tree(Path(folder), protocol)
    output = tree.root / FILES["database"]
    if output.exists():
        raise OutputExistsError(f"{output} is there already; move it away to have it rebuilt")
    check_output(output, force=False)
    lines = _REBUILDERS[name](tree)
    expected = protocol.counts["database"]
    if expected is not None and len(lines) != expected:
        raise FileFormatError(
            f"{name}: rebuilding gives {len(lines):,} images for the database, expected {expected:,}; is something "
            f"missing in {tree.root}? nothing was written"
        )
    with atomic_file(output) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return output
