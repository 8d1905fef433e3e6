"""Property tests draw the same examples at every run, and no machine is too slow for them."""

import pytest
from hypothesis import settings

settings.register_profile("crovca", deadline=None, derandomize=True)
settings.load_profile("crovca")


def pytest_collection_modifyitems(items):
    """A test whose fixture starts a server starts it too; databases: ``servers_contract/conftest.py``."""
    for item in items:
        if not {"hub", "service"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.starts)
