"""Vectors of small numbers: the scheme of docs/dialects.md, worked out here a second time."""

import base64

import numpy as np
import pytest

from service.rounding import as_base64, round_to

Z = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)


def test_int8_is_the_direction_times_127_and_uint8_is_128_more():
    wanted = np.rint(Z.astype(np.float64) / np.linalg.norm(Z.astype(np.float64), axis=1, keepdims=True) * 127)
    found = round_to(Z, "int8")
    assert found.dtype == np.int8 and found.tolist() == wanted.tolist()
    unsigned = round_to(Z, "uint8")
    assert unsigned.dtype == np.uint8 and (unsigned.astype(int) - 128).tolist() == wanted.tolist()


def test_bits_are_signs_with_the_most_significant_first():
    found = round_to(Z, "ubinary")
    assert found.shape == (5, 3) and found.dtype == np.uint8
    for row, packed in zip(Z, found, strict=True):
        text = "".join(f"{byte:08b}" for byte in packed)
        assert text == "".join("1" if value > 0 else "0" for value in row) + "0000"
    assert (round_to(Z, "binary").astype(int) + 128).tolist() == found.tolist()


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 1e30, 5e37])
def test_the_length_of_a_vector_changes_nothing(scale):
    z = np.array([[3, 4, 0]], np.float32) * np.float32(scale)
    assert round_to(z, "int8").tolist() == [[76, 102, 0]] and round_to(z, "ubinary").tolist() == [[0b11000000]]


def test_a_vector_of_zeros_gives_zeros():
    z = np.zeros((1, 9), np.float32)
    assert round_to(z, "int8").tolist() == [[0] * 9] and round_to(z, "binary").tolist() == [[-128, -128]]


def test_base64_is_the_little_endian_bytes():
    assert np.frombuffer(base64.b64decode(as_base64(Z[0])), "<f4").tolist() == Z[0].tolist()
    assert np.frombuffer(base64.b64decode(as_base64(round_to(Z, "int8")[0])), "i1").shape == (20,)
