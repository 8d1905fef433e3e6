"""Property tests draw the same examples at every run, no machine is too slow for them, and long tests are known."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("crovca", deadline=None, derandomize=True)
settings.load_profile("crovca")

SLOW = Path(__file__).with_name("slow.txt")
_SECONDS = 0.3


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests in slow.txt are ``slow``, and a test whose fixture starts a server ``starts`` it (databases:
    ``servers_contract/conftest.py``). What takes longest comes first: so no process waits for another at the end.
    """
    slow = set(SLOW.read_text("utf-8").splitlines())
    for item in items:
        if _function(item.nodeid) in slow:
            item.add_marker(pytest.mark.slow)
        if not {"hub", "service"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.starts)
    pages = ("tests/test_docs.py::test_blocks_run", "tests/test_docs.py::test_the_site", "tests/test_contributing.py")
    items.sort(key=lambda item: not (item.get_closest_marker("ray") or item.nodeid.startswith(pages)))


def pytest_terminal_summary(terminalreporter):
    """CROVCA_SLOW=write make test: slow.txt has those of the tests that were run that took 0.3 seconds and more."""
    if os.environ.get("CROVCA_SLOW") != "write":
        return
    took = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                took[_function(report.nodeid)] += report.duration
    kept = set(SLOW.read_text("utf-8").splitlines()) - set(took)
    kept |= {name for name, seconds in took.items() if seconds >= _SECONDS}
    SLOW.write_text("".join(f"{name}\n" for name in sorted(kept)), "utf-8")


def _function(nodeid):
    return nodeid.partition("[")[0]
