"""What README and examples promise is there; ``test_docs`` runs the snippets of all pages."""

import importlib.util
import os
import re
import shutil
from pathlib import Path

import pytest

from tests import patient_ray
from tests.started import ended

README = Path(__file__).parent.parent / "README.md"


EXAMPLES = {path.name: path for path in (README.parent / "examples").glob("*.py")}
MARKS = {"ray_data.py": pytest.mark.ray, "spark.py": pytest.mark.slow, "sklearn_pipeline.py": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in sorted(EXAMPLES)])
@pytest.mark.starts
def test_examples_run_and_are_short(name):
    path = EXAMPLES[name]
    assert len(path.read_text("utf-8").splitlines()) < 80
    compile(path.read_bytes(), name, "exec")
    if name == "ray_data.py":
        pytest.importorskip("ray")
    if name == "spark.py" and (importlib.util.find_spec("pyspark") is None or shutil.which("java") is None):
        pytest.skip("needs PySpark and Java: its syntax alone was checked")
    begun = [patient_ray.__file__, path] if name == "ray_data.py" else [path]
    status, said, errors = ended(begun, env={**os.environ, **patient_ray.ENVIRONMENT})
    assert status == 0, errors[-2000:]
    assert "Hasher.encode has them: False" not in said


@pytest.mark.parametrize("target", ["make demo", "make test"])
def test_the_two_commands_stand_in_the_readme_and_exist(target):
    makefile = (README.parent / "Makefile").read_text("utf-8")
    assert target in README.read_text("utf-8")
    assert re.search(rf"^{target.split()[1]}:", makefile, re.MULTILINE)
