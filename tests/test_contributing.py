"""The worked examples of CONTRIBUTING.md are followed in a copy of the package: as many files, and they work."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.started import ended

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = re.findall(r"^### ([^\n]*?): (\d) files?[^\n]*\n(.*?)(?=^### |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"(?:^`(src/[^`\n]+)`\n)?^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

RUN = """
import pathlib, sys, traceback
for path in sorted(pathlib.Path("tries").iterdir()):
    try:
        exec(compile(path.read_text(), str(path), "exec"), {})
    except BaseException:
        print("failed", path.stem, traceback.format_exc())
    else:
        print("passed", path.stem)
"""


def change(path, text):
    """Do to a file what a diff without line numbers says."""
    content = path.read_text("utf-8")
    for hunk in text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert content.count(before) == 1, f"{path} holds this {content.count(before)} times:\n{before}"
        content = content.replace(before, after)
    path.write_text(content, "utf-8")


def follow(folder):
    """Write every example into a copy of the package below ``folder``; what each tries, by its title."""
    shutil.copytree(ROOT / "src", folder / "src")  # with what is compiled: it holds for files of the same time
    tries = {}
    for title, count, body in EXAMPLES:
        touched = set()
        for path, kind, text in BLOCK.findall(body):
            if not path:
                tries[title] = text
                continue
            touched.add(path)
            if kind == "diff":
                change(folder / path, text)
            else:
                assert not (folder / path).exists()
                (folder / path).write_text(text, "utf-8")
        assert len(touched) == int(count), f"{title}: {sorted(touched)}"
    return tries


def test_there_is_an_example_of_everything_and_its_files_are_as_many_as_it_says(tmp_path):
    assert [(title, int(count)) for title, count, _ in EXAMPLES] == [
        ("An encoder family", 1),
        ("A data set", 2),
        ("A baseline", 2),
        ("An engine of the index", 2),
        ("A server", 2),
        ("A score", 1),
        ("A term of the objective", 1),
        ("An option of `train`", 1),
    ]
    assert len(follow(tmp_path)) == len(EXAMPLES)


@pytest.mark.slow
@pytest.mark.starts
def test_every_example_works(tmp_path):
    (tmp_path / "tries").mkdir()
    for title, text in follow(tmp_path).items():
        (tmp_path / "tries" / f"{title}.py").write_text(text, "utf-8")
    (tmp_path / "run.py").write_text(RUN, "utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{ROOT}"}
    _, said, errors = ended([tmp_path / "run.py"], cwd=tmp_path, env=environment, forget=["crovca"])
    assert "failed" not in said, said
    assert said.count("passed") == len(EXAMPLES), said + errors
