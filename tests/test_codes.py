import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crovca.codes import Codes
from crovca.errors import FileFormatError, InvalidInputError

bit_arrays = st.tuples(st.integers(0, 12), st.integers(1, 70)).flatmap(lambda shape: hnp.arrays(np.bool_, shape))


@given(bits=bit_arrays)
def test_bits_survive_packing(bits):
    codes = Codes.from_bits(bits)
    assert len(codes) == len(bits)
    assert codes.bits == bits.shape[1]
    assert codes.bytes_per_item == -(-codes.bits // 8)
    assert np.array_equal(codes.unpack(), bits)
    assert np.array_equal(codes.packed, np.packbits(bits, axis=1))


def test_most_significant_bit_first_and_zeros_at_the_end():
    assert Codes.from_bits([[1, 0, 0, 0, 0, 0, 0, 0, 1]]).packed.tolist() == [[0b10000000, 0b10000000]]


def test_threshold_is_strictly_above_zero():
    logits = np.array([[0.0, -0.0, 1e-30, -1e-30, np.inf, -np.inf]])
    assert Codes.from_logits(logits).unpack().tolist() == [[0, 0, 1, 0, 1, 0]]


@given(bits=bit_arrays, data=st.data())
def test_prefix_is_the_first_bits(bits, data):
    length = data.draw(st.integers(1, bits.shape[1]))
    assert np.array_equal(Codes.from_bits(bits).prefix(length).unpack(), bits[:, :length])


@given(bits=bit_arrays, data=st.data())
def test_slices_and_concatenation_are_inverse(bits, data):
    codes = Codes.from_bits(bits)
    cut = data.draw(st.integers(0, len(codes)))
    assert Codes.concatenate([codes[:cut], codes[cut:]]) == codes
    rows = np.arange(len(codes))[::-1]
    assert np.array_equal(codes[rows].unpack(), bits[::-1])
    if len(codes):
        assert codes[-1] == codes[[len(codes) - 1]]


@given(ours=bit_arrays, data=st.data())
def test_hamming_counts_differing_bits(ours, data):
    theirs = data.draw(hnp.arrays(np.bool_, (data.draw(st.integers(0, 6)), ours.shape[1])))
    expected = (ours[:, None, :] != theirs[None, :, :]).sum(axis=2)
    assert np.array_equal(Codes.from_bits(ours).hamming(Codes.from_bits(theirs)), expected)


@given(bits=bit_arrays)
def test_saved_and_loaded_codes_are_equal(tmp_path_factory, bits):
    path = tmp_path_factory.mktemp("codes") / "codes.npz"
    Codes.from_bits(bits).save(path)
    assert Codes.load(path) == Codes.from_bits(bits)


def test_length_is_part_of_equality():
    zeros = np.zeros((1, 2), np.uint8)
    assert Codes(zeros, 13) != Codes(zeros, 16)
    assert Codes(zeros, 13) != "codes"


def test_codes_are_immutable():
    packed = np.zeros((1, 1), np.uint8)
    codes = Codes(packed, 8)
    with pytest.raises(AttributeError, match="immutable"):
        codes.bits = 4
    with pytest.raises(ValueError, match="read-only"):
        codes.packed[0, 0] = 1
    packed[0, 0] = 0  # the caller's own array is left writeable


@pytest.mark.parametrize(
    ("packed", "bits", "message"),
    [
        (np.zeros((2, 2), np.uint8), 17, r"17 bits must have shape \(n, 3\), got \(2, 2\)"),
        (np.zeros(2, np.uint8), 8, r"shape \(n, 1\), got \(2,\)"),
        (np.zeros((2, 1), np.int8), 8, "uint8, got int8"),
        ([[1]], 8, "uint8, got list"),
        (np.array([[1]], np.uint8), 7, "last 1 bits .* must be 0"),
        (np.zeros((1, 1), np.uint8), 0, "between 1 and 4,096, got 0"),
        (np.zeros((1, 513), np.uint8), 4097, "between 1 and 4,096, got 4097"),
        (np.zeros((1, 1), np.uint8), 8.0, "whole number, got 8.0"),
        (np.zeros((1, 1), np.uint8), True, "whole number, got True"),
    ],
)
def test_impossible_codes_are_refused(packed, bits, message):
    with pytest.raises(InvalidInputError, match=message):
        Codes(packed, bits)


def test_other_misuse_is_refused():
    codes = Codes.from_bits([[1, 0, 1]])
    with pytest.raises(InvalidInputError, match="between 1 and 3, got 4"):
        codes.prefix(4)
    with pytest.raises(InvalidInputError, match="one length, got 3 and 2 bits"):
        codes.hamming(codes.prefix(2))
    with pytest.raises(InvalidInputError, match=r"different lengths .*\[2, 3\]"):
        Codes.concatenate([codes, codes.prefix(2)])
    with pytest.raises(InvalidInputError, match="no codes to concatenate"):
        Codes.concatenate([])
    with pytest.raises(InvalidInputError, match=r"0 or 1; use Codes\.from_logits"):
        Codes.from_bits([[0.5]])
    with pytest.raises(InvalidInputError, match=r"\(n, bits\), got \(3,\)"):
        Codes.from_logits([1.0, 2.0, 3.0])


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "codes.npz"
    np.savez(path, packed=np.ones((2, 1), np.uint8), bits=np.int64(5))
    with pytest.raises(FileFormatError, match=r"codes\.npz: the last 3 bits"):
        Codes.load(path)
    np.savez(path, packed=np.ones((2, 1), np.uint8))
    with pytest.raises(FileFormatError, match="no array 'bits'"):
        Codes.load(path)
    np.savez(path, packed=np.zeros((2, 1), np.uint8), bits=np.array([8, 8]))
    with pytest.raises(FileFormatError, match="'bits' must be one whole number"):
        Codes.load(path)
