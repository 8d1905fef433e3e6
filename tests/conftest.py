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
_LONGEST = (
    "milvus", "tests/test_docs.py", "tests/test_readme.py", "tests/test_contributing.py",
    "tests/embedding/test_pipeline.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests in slow.txt are ``slow``, and a test whose fixture starts a server ``starts`` it (databases:
    ``servers_contract/conftest.py``). Files that take longest come first: so no process waits for another at the end.
    """
    slow = set(SLOW.read_text("utf-8").splitlines())
    slow_tests = Counter()
    for item in items:
        if _function(item.nodeid) in slow:
            item.add_marker(pytest.mark.slow)
            slow_tests[group_of(item.nodeid)] += 1
        if not {"hub", "service"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.starts)

    def place(item):
        group = group_of(item.nodeid)
        return group not in _LONGEST, -slow_tests[group], group

    items.sort(key=place)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of small models. Name of a family -> (folder, width). Nobody writes into them."""
    pytest.importorskip("transformers")
    from tests.encoders import tiny

    root = tmp_path_factory.mktemp("encoders")
    found = {}
    for name, (model, processor, width) in tiny.models().items():
        found[name] = tiny.save(model, root / name.replace(" ", "_"), processor), width
    tiny.clip_tokenizer(found["CLIP"][0])
    tiny.word_tokenizer(found["SigLIP"][0])
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run in one process: what its fixtures make and what it imports is there once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    config.option.loadscopereorder = False  # they are in order
    return ByFile(config, log)


def group_of(nodeid):
    """A test's file; of the server Milvus there can be one, so all of its tests are together."""
    file = nodeid.partition("::")[0]
    return "milvus" if "milvus" in nodeid and file.startswith("tests/servers_contract/") else file


def pytest_terminal_summary(terminalreporter):
    """CROVCA_SLOW=write make test: slow.txt has those of the tests that were run that took 0.3 seconds and more.

    What was not run, or skipped, stays as it was, unless it is gone.
    """
    if os.environ.get("CROVCA_SLOW") != "write":
        return
    took = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call" and not report.skipped:
                took[_function(report.nodeid)] += report.duration
    kept = {name for name in SLOW.read_text("utf-8").splitlines() if name not in took and _is_there(name)}
    kept |= {name for name, seconds in took.items() if seconds >= _SECONDS}
    SLOW.write_text("".join(f"{name}\n" for name in sorted(kept)), "utf-8")


def _function(nodeid):
    return nodeid.partition("[")[0]


def _is_there(name):
    file, function_or_class, *_ = name.split("::")
    path = SLOW.parent.parent / file
    return path.exists() and function_or_class in path.read_text("utf-8")
