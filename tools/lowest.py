"""Print a constraints file with the lowest versions that pyproject.toml allows of the core, and of extras named."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]
found: dict[str, set[str]] = {}
for requirement in sum(extras, project["dependencies"]):
    name, lowest = re.findall(r"^([\w.-]+)(?:\[.*\])?>=([\w.]+)$", requirement)[0]
    if name == "torch":  # as constraints.txt has it: other builds are gigabytes
        (lowest,) = re.findall(r"^torch==(.+)$", Path("constraints.txt").read_text(), re.M)
    found.setdefault(name, set()).add(lowest)
for name, versions in found.items():
    (lowest,) = versions  # two extras that say different things of a package: make them say one
    print(f"{name}=={lowest}")
