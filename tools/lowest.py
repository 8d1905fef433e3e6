"""Print a constraints file with the lowest version that pyproject.toml allows of every core dependency."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    name, lowest = re.findall(r"^([\w.-]+)(?:\[.*\])?>=([\w.]+)$", requirement)[0]
    if name == "torch":  # as constraints.txt has it: other builds are gigabytes
        (lowest,) = re.findall(r"^torch==(.+)$", Path("constraints.txt").read_text(), re.M)
    print(f"{name}=={lowest}")
