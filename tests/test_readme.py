"""What README and examples promise is there; ``test_docs`` runs the snippets of all pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("path", sorted((README.parent / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run_and_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) < 80
    subprocess.run([sys.executable, str(path)], check=True, capture_output=True)


@pytest.mark.parametrize("target", ["make demo", "make test"])
def test_the_two_commands_stand_in_the_readme_and_exist(target):
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert target in README.read_text("utf-8")
    assert re.search(rf"^{target.split()[1]}:", makefile, re.MULTILINE)
