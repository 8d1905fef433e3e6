"""Misuse of an index: in brief with the other tests, at length in ``make torture``."""

import pytest

from tests.torture.index_fuzz import fuzz
from tests.torture.index_stress import faults, stress


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_fault_in_an_index_is_an_error_or_changes_nothing_or_is_named(kind):
    counts, bad = fuzz(100, 5, kind)
    assert not bad, bad
    assert counts["error"] > 50, counts


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["int", "str"])
def test_thousands_of_faults_in_an_index(kind):
    counts, bad = fuzz(2500, 6, kind)
    assert not bad, bad
    print(kind, dict(counts))


@pytest.mark.slow
@pytest.mark.starts
def test_threads_processes_and_forks_share_an_index(tmp_path):
    counts = stress(tmp_path, 3)
    assert not faults(counts), faults(counts)
    assert {"search", "get", "contains", "writes", "forks"} <= set(counts), counts


@pytest.mark.torture
@pytest.mark.starts
def test_threads_processes_and_forks_share_an_index_for_a_minute(tmp_path):
    counts = stress(tmp_path, 60, threads=3, processes=3, writers=3)
    assert not faults(counts), faults(counts)
    print(dict(counts))
