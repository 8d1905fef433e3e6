"""What a module of tests needs; an import that only asks whether a package is there takes seconds."""

from importlib.util import find_spec

import pytest


def needs(*packages):
    """Skip the module where one of them is not installed."""
    for package in packages:
        if find_spec(package) is None:
            pytest.skip(f"needs {package}", allow_module_level=True)
