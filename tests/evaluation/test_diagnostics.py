import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crovca.codes import Codes
from crovca.errors import InvalidInputError
from crovca.evaluation.diagnostics import bit_balance, bit_correlation, diagnose


@given(st.integers(0, 1000), st.integers(2, 20))
def test_correlation_equals_numpys(seed, bits):
    values = np.random.default_rng(seed).random((50, bits)) < 0.4
    codes = Codes.from_bits(values)
    varied = values.std(axis=0) > 0
    expected = np.corrcoef(values[:, varied].T.astype(float))
    assert np.allclose(bit_correlation(codes)[np.ix_(varied, varied)], expected, atol=1e-6)
    assert np.allclose(bit_balance(codes), values.mean(axis=0))


def test_perfect_codes():
    every = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    found = diagnose(Codes.from_bits(every))
    assert (found.balance_min, found.balance_max) == (0.5, 0.5)
    assert (found.correlation_mean, found.correlation_max) == (0, 0)
    assert (found.bit_entropy, found.code_entropy) == (1, 3)
    assert (found.distinct, found.collisions, found.largest_collision) == (8, 0, 1)


def test_collapsed_codes():
    found = diagnose(Codes.from_bits(np.ones((6, 4), int)))
    assert (found.balance_min, found.bit_entropy, found.code_entropy) == (1, 0, 0)
    assert (found.distinct, found.collisions, found.largest_collision) == (1, 1, 6)
    assert found.correlation_max == 0


def test_duplicated_bits_are_seen():
    column = np.array([0, 1, 1, 0, 1])
    assert diagnose(Codes.from_bits(np.stack([column, 1 - column], axis=1))).correlation_max == pytest.approx(1)


def test_nothing_cannot_be_diagnosed():
    with pytest.raises(InvalidInputError, match="no codes"):
        diagnose(Codes.from_bits(np.zeros((0, 4), bool)))
