"""Arrows point one way (docs/architecture.md), and what must stay light does."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import crovca

SOURCE = Path(crovca.__file__).parent

# From the ground up: a room may import from rooms further down the list, and from itself.
LEVELS = [
    ["errors"],
    ["files"],
    ["codes"],
    ["config"],
    ["search"],
    ["data"],
    ["evaluation"],
    ["hashing", "encoders"],
    ["finetuning"],
    ["hasher"],
    ["queries"],
    ["baselines"],
    ["experiments"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FORBIDDEN_PACKAGES = {"torchvision", "timm", "open_clip", "pickle"}


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """Names of modules that a file imports, wherever in it; those for type checking alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    room = room_of(path)
    for name in imported(path):
        assert name.split(".")[0] not in FORBIDDEN_PACKAGES, name
        parts = name.split(".")
        if parts[0] == "crovca" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} imports {name}"


def test_the_rule_sees_what_it_forbids(tmp_path):
    """The test above would fail on a wrong import, a local one too."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from crovca import hasher\n    import crovca.cli.main\n")
    assert {"crovca.hasher", "crovca.cli.main"} <= set(imported(file))


@pytest.mark.parametrize(
    "modules",
    [
        "crovca",
        "crovca.codes",
        "crovca.hashing.config",
        "crovca.index.scoring",
        "crovca.evaluation.metrics, crovca.evaluation.evaluate, crovca.evaluation.report",
        "crovca.data.embeddings, crovca.data.store, crovca.data.encoded",
        "crovca.datasets, crovca.cli.datasets",
        "crovca.reproduce.paper, crovca.reproduce.cost, crovca.cli.reproduce_list",
        "crovca.cli.main",
    ],
)
def test_torch_is_not_imported(modules):
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_what_is_importable():
    assert crovca.__all__ == sorted(crovca.__all__)
    for name in crovca.__all__:
        assert getattr(crovca, name) is not None
    assert set(dir(crovca)) == {*crovca.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'hashes'"):
        crovca.hashes  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_all_lists_every_public_name_of_a_module(path):
    name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    if path.name == "__init__.py":
        return
    for exported in module.__all__:
        assert hasattr(module, exported), f"{name}.{exported}"
