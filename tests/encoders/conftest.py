"""The real photographs, where there are any."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and models beside the repository."""
    folder = Path(__file__).parents[3] / "shared"
    if not (folder / "data" / "caltech100" / "images").is_dir():
        pytest.skip(f"needs the real photographs of {folder / 'data'}")
    return folder
