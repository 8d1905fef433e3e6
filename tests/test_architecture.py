"""What must stay light does, and public names are importable. Arrows between rooms are held by ``lint-imports``."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import crovca

SOURCE = Path(crovca.__file__).parent

FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


LIGHT = [
    "crovca",
    "crovca.codes",
    "crovca.hashing.config",
    "crovca.index.scoring",
    "crovca.evaluation.metrics", "crovca.evaluation.evaluate", "crovca.evaluation.report",
    "crovca.data.embeddings", "crovca.data.store", "crovca.data.encoded",
    "crovca.datasets", "crovca.cli.datasets",
    "crovca.reproduce.paper", "crovca.cli.reproduce_list",
    "crovca.cli.main",
    "crovca.service.run", "crovca.service.agents",
]  # fmt: skip


@pytest.mark.starts
def test_torch_is_not_imported():
    """One after the other: the first that imports it is named."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *LIGHT], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


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
    for exported in getattr(module, "__all__", ()):  # without one, what has no underscore is public
        assert hasattr(module, exported), f"{name}.{exported}"
