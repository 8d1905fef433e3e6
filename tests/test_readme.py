"""Snippets of README and guide do what they say: Python runs in order in one namespace, `crovca` lines as commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crovca.cli.main import main
from tests.encoders import tiny

README = Path(__file__).parent.parent / "README.md"
GUIDE = README.parent / "docs" / "guide.md"


def make_photos(folder):
    """``photos`` and ``encoder`` of the README: small images, and a small random model."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("transformers")
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), dtype=np.uint8)
    for number, content in enumerate(pixels):
        image.fromarray(content).save(folder / "photos" / f"{number}.jpg")
    model, processor, _ = tiny.models()["DINOv2"]
    tiny.save(model, folder / "encoder", processor)


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_snippets_run(tmp_path, monkeypatch, capsys, page):
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path)
    namespace = {}
    ran = 0
    for kind, text in re.findall(r"```(python|console)\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        if kind == "python":
            exec(compile(text, str(page), "exec"), namespace)
            ran += 1
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = line.removeprefix("$ ").split("  #")[0].strip()
            if line.startswith("$ crovca"):
                with pytest.raises(SystemExit) as exit_:  # in this process: starting one takes seconds
                    main(shlex.split(command)[1:])
                assert exit_.value.code == 0, f"{command}: {capsys.readouterr().err}"
                ran += 1
    assert ran >= 5


@pytest.mark.parametrize(
    "page", sorted([README, README.parent / "CONTRIBUTING.md", *README.parent.glob("docs/**/*.md")]), ids=str
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((README.parent / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run_and_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) < 80
    subprocess.run([sys.executable, str(path)], check=True, capture_output=True)


@pytest.mark.parametrize("target", ["make demo", "make test"])
def test_the_two_commands_stand_in_the_readme_and_exist(target):
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert target in README.read_text("utf-8")
    assert re.search(rf"^{target.split()[1]}:", makefile, re.MULTILINE)
