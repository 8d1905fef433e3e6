"""``crovca doctor``: what this machine and this installation can do, and what to install for what."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Any

from packaging.requirements import Requirement
from typer import Exit, Option

from crovca.cli.options import Json
from crovca.cli.output import answer
from crovca.errors import CrovcaError

_PURPOSES = {
    "images": "encoders and photographs: embed, finetune, archive",
    "serve": "a page and an API in the browser: serve",
    "report": "reports with figures: evaluate --report, demo",
    "duplicates": "duplicates that were cut or turned: duplicates",
    "augment": "augmented views: embed --views, finetune",
    "heic": "photographs of phones (.heic)",
    "onnx": "graphs for other runtimes: export --onnx",
    "pg": "codes in PostgreSQL: index push",
    "milvus": "codes in Milvus: index push",
    "sqlite": "codes in a SQLite file: index push",
    "lancedb": "codes in a LanceDB folder: index push",
    "chdb": "codes in a ClickHouse folder: index push",
    "qdrant": "codes in a Qdrant folder: index push",
    "ray": "embedding on a cluster: embed --runner ray",
    "sentence-transformers": "codes as a module of sentence-transformers",
}


def doctor(
    path: Annotated[
        Path | None, Option(help="A folder where indexes are to lie: are its files locked and flushed?")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is installed and what is missing for what, cores, memory, GPU, and whether a folder can hold an index.

    Ends with status 1 where something that is needed is missing or too old.
    """
    core, extras = _requirements()
    needed = {str(one): _state(one) for one in core}
    optional = {
        name: [f"{one.name}: {state}" for one in ones if (state := _state(one)) is not None]
        for name, ones in extras.items()
    }
    wrong = [f"{name}: {state}" for name, state in needed.items() if state is not None]
    machine = _machine()
    folder = None if path is None else _folder(path)
    lines = [f"{name}: {value}" for name, value in machine.items()]
    lines += [f"needed and not right: {one}" for one in wrong] or ["what is needed is there"]
    for name, missing in optional.items():
        said = "there" if not missing else f"missing ({', '.join(missing)}); pip install 'crovca[{name}]'"
        lines.append(f"{_PURPOSES.get(name, name)}: {said}")
    if folder is not None:
        lines.append(f"{path}: {folder}")
    content = {"machine": machine, "wrong": wrong, "missing": optional, "folder": folder}
    answer(json, content, *lines)
    if wrong or (folder is not None and folder != _GOOD):
        raise Exit(1)


_GOOD = "can hold an index: files are locked, flushed and renamed"


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What crovca needs, and what each of its extras does."""
    core: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    for text in requires("crovca") or []:
        one = Requirement(text)
        if one.marker is None:
            core.append(one)
            continue
        for name in _PURPOSES:
            if one.marker.evaluate({"extra": name}) and not one.marker.evaluate({"extra": ""}):
                extras.setdefault(name, []).append(one)
    return core, extras


def _state(one: Requirement) -> str | None:
    """None where it is as required."""
    try:
        found = version(one.name)
    except PackageNotFoundError:
        return "not installed"
    return None if one.specifier.contains(found, prereleases=True) else f"{found}, needed is {one.specifier}"


def _machine() -> dict[str, Any]:
    import faiss
    import torch

    from crovca import __version__

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "crovca": __version__,
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "torch": torch.__version__,
        "faiss": f"{faiss.__version__} ({faiss.get_compile_options().strip()})",
        "cores": cores,
        "memory": f"{memory:.1f} GB",
        "gpu": gpu,
    }


def _folder(path: Path) -> str:
    """What an index needs of a disk, tried on a small one: network disks lack some of it."""
    import tempfile

    import numpy as np

    from crovca.codes import Codes
    from crovca.index.index import HashIndex

    try:
        with tempfile.TemporaryDirectory(prefix=".crovca-doctor-", dir=path) as folder:
            with HashIndex.create(Path(folder) / "index", bits=8) as index:
                index.add(np.arange(4), Codes(np.arange(4, dtype=np.uint8)[:, None], 8))
                index.delete(np.arange(2))
            with HashIndex.open(Path(folder) / "index", writable=True) as index:
                try:
                    HashIndex.open(Path(folder) / "index", writable=True).close()
                except CrovcaError:
                    pass
                else:
                    return "does not lock files: two writers would not see each other; keep indexes on another disk"
                if index.verify():
                    return "does not keep what is written; keep indexes on another disk"
    except (OSError, CrovcaError) as error:
        return f"cannot hold an index: {error}"
    return _GOOD
