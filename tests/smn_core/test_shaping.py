"""The shape of an answer's vectors: the first components, then unit length."""

import numpy as np
import pytest

from smn_core.shaping import shape

Z = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 5e37])
def test_unit_length_is_unit_length_whatever_the_length_of_a_vector_was(scale):
    wanted = Z[:, :7].astype(np.float64)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(shape(Z * np.float32(scale), 7, normalize=True), wanted, atol=1e-6)


def test_a_vector_of_zeros_stays_so():
    assert shape(np.zeros((2, 9), np.float32), None, normalize=True).tolist() == [[0] * 9] * 2


def test_vectors_of_usual_length_are_divided_by_their_norm_to_the_last_bit():
    wanted = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    assert shape(Z, None, normalize=True).tobytes() == wanted.tobytes()
