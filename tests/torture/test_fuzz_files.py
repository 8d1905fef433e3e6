"""A thousand mutations of a store, of codes and of a model each."""

import pytest

from tests.torture.fuzz_files import fuzz


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["store", "codes", "model"])
def test_a_thousand_mutations(tmp_path, what):
    found = fuzz(tmp_path, what, range(1000))
    assert not found["traceback"] + found["changed"], found
    print(what, {kind: len(cases) for kind, cases in found.items()})
