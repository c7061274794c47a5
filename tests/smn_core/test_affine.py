"""The map of a mask: two forms, three precisions, and nothing that could give a wrong vector."""

from __future__ import annotations

import numpy as np
import pytest

from smn_core.affine import DIAGONAL, MATRIX, NAMES, Affine, affine_of, in_precision
from smn_core.errors import InvalidArgument, InvalidMask
from smn_core.matrices import PRECISIONS

D = 6


@pytest.fixture
def z(rng) -> np.ndarray:
    return rng.standard_normal((5, D), np.float32)


@pytest.fixture
def diagonal(rng) -> Affine:
    return Affine(rng.standard_normal(D, np.float32), scale=rng.random(D, np.float32) + 0.5)


@pytest.fixture
def full(rng) -> Affine:
    return Affine(rng.standard_normal(D, np.float32), matrix=rng.standard_normal((D, D), np.float32))


def test_the_diagonal_form_subtracts_the_mean_and_scales(z, diagonal):
    assert diagonal.form == DIAGONAL
    np.testing.assert_allclose(diagonal.apply(z), diagonal.apply_slowly(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_matrix_form_is_what_its_stored_numbers_say(z, full, precision):
    stored = in_precision(full, precision)
    assert stored.form == MATRIX
    assert stored.matrix.dtype == np.dtype(precision)
    np.testing.assert_allclose(stored.apply(z), stored.apply_slowly(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "within"), [("float16", 2e-3), ("int8", 2e-2)])
def test_a_smaller_precision_moves_the_embeddings_little(z, full, precision, within):
    exact = full.apply(z)
    moved = np.linalg.norm(in_precision(full, precision).apply(z) - exact) / np.linalg.norm(exact)
    assert 0 < moved < within


def test_bytes_are_those_of_the_stored_tensors(diagonal, full):
    assert diagonal.nbytes == 2 * 4 * D
    assert in_precision(full, "int8").nbytes == 4 * D + D * D + 4 * D


def test_a_map_says_what_it_is_in_plain_data(diagonal, full):
    assert diagonal.describe() == {"form": "diagonal", "precision": "float32", "bytes": 8 * D}
    for precision, n_bytes in (("float32", 4), ("float16", 2), ("int8", 1)):
        found = in_precision(full, precision).describe()
        more = 4 * D if precision == "int8" else 0
        assert found == {"form": "matrix", "precision": precision, "bytes": 4 * D + n_bytes * D * D + more}


def test_the_tensors_of_a_file_give_the_map_back(z, full):
    stored = in_precision(full, "int8")
    again = affine_of({name: array.copy() for name, array in stored.tensors().items()})
    assert again is not None
    np.testing.assert_array_equal(again.apply(z), stored.apply(z))
    assert affine_of({}) is None


BROKEN = {
    "no form": {"scale": None},
    "two forms": {"matrix": np.eye(D, dtype=np.float32)},
    "a scale of 0": {"scale": np.zeros(D, np.float32)},
    "a negative scale": {"scale": -np.ones(D, np.float32)},
    "a mean that is not finite": {"mean": np.full(D, np.nan, np.float32)},
    "a mean of another width": {"mean": np.zeros(D + 1, np.float32)},
    "a mean in float64": {"mean": np.zeros(D)},
    "an empty mean": {"mean": np.zeros(0, np.float32), "scale": np.zeros(0, np.float32)},
    "a matrix that is not square": {"scale": None, "matrix": np.ones((D, D + 1), np.float32)},
    "a matrix in float64": {"scale": None, "matrix": np.eye(D)},
    "an int8 matrix without its scale": {"scale": None, "matrix": np.eye(D, dtype=np.int8)},
    "a float matrix with a scale": {
        "scale": None,
        "matrix": np.eye(D, dtype=np.float32),
        "matrix_scale": np.ones(D, np.float32),
    },
    "an infinite matrix": {"scale": None, "matrix": np.full((D, D), np.inf, np.float16)},
}


@pytest.mark.parametrize("changed", BROKEN.values(), ids=BROKEN)
def test_what_is_no_map_is_refused_by_name(changed):
    sound = {"mean": np.zeros(D, np.float32), "scale": np.ones(D, np.float32)}
    with pytest.raises(InvalidMask, match=r"affine|map"):
        Affine(**{**sound, **changed})


@pytest.mark.parametrize("name", ["bias", "matrix_bias", "Mean"])
def test_an_unknown_tensor_is_refused(name):
    assert name not in NAMES
    with pytest.raises(InvalidMask, match=f"affine.{name}"):
        affine_of({"mean": np.zeros(D, np.float32), "scale": np.ones(D, np.float32), name: np.ones(D, np.float32)})


def test_a_map_without_a_mean_is_refused():
    with pytest.raises(InvalidMask, match=r"affine\.mean is missing"):
        affine_of({"scale": np.ones(D, np.float32)})


def test_values_beyond_float16_are_not_rounded_to_infinity():
    large = Affine(np.zeros(D, np.float32), matrix=np.full((D, D), 1e6, np.float32))
    with pytest.raises(InvalidArgument, match="float16"):
        in_precision(large, "float16")
    with pytest.raises(InvalidArgument, match="unknown precision"):
        in_precision(large, "int4")
