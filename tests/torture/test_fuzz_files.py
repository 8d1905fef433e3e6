"""A thousand mutations of a store and of codes each."""

import pytest

from tests.torture.fuzz_files import fuzz


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["store", "codes"])
def test_a_thousand_mutations(tmp_path, what):
    found = fuzz(tmp_path, what, range(1000))
    assert not found["traceback"] + found["changed"], found
