"""Packed bytes and booleans say the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core import bits

booleans = st.lists(st.booleans(), min_size=1, max_size=200).map(lambda values: np.array(values, np.bool_))


@given(booleans)
def test_bit_j_of_byte_i_is_weight_8i_plus_j(on):
    packed = bits.pack(on)
    assert packed.shape == (bits.packed_bytes(len(on)),)
    assert [bool(packed[i // 8] >> (i % 8) & 1) for i in range(len(on))] == on.tolist()


def test_the_first_weight_is_the_least_significant_bit():
    assert bits.pack(np.array([True, False, False, False, False, False, False, False, True])).tolist() == [1, 1]


@given(booleans)
def test_unpacking_undoes_packing(on):
    assert_array_equal(bits.unpack(bits.pack(on), len(on)), on, strict=True)


@given(booleans)
def test_counts_are_those_of_the_booleans(on):
    assert bits.count(bits.pack(on)) == on.sum()


@given(booleans, st.randoms(use_true_random=False))
def test_different_positions_are_counted(on, random):
    other = on ^ np.array([random.random() < 0.3 for _ in on])
    assert bits.count_different(bits.pack(on), bits.pack(other)) == (on != other).sum()


@given(booleans)
def test_off_positions_are_the_holes_without_the_padding(on):
    assert_array_equal(bits.off_positions(bits.pack(on), len(on)), np.flatnonzero(~on))


@given(booleans)
def test_packing_clears_the_padding(on):
    assert bits.padding_is_clear(bits.pack(on), len(on))


@pytest.mark.parametrize("n_weights", [1, 7, 9, 15])
def test_any_padding_bit_is_seen(n_weights):
    for bit in range(n_weights % 8, 8):
        packed = bits.pack(np.ones(n_weights, bool))
        packed[-1] |= 1 << bit
        assert not bits.padding_is_clear(packed, n_weights)


def test_a_view_shares_the_memory():
    packed = np.zeros(2, np.uint8)
    view = bits.view(packed)
    packed[1] = 1
    assert view[8] == 1


def test_bytes_are_whole():
    assert [bits.packed_bytes(n) for n in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]
