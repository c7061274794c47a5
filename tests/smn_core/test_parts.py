"""The parts of a file that are not bits are read whole, or refused."""

import numpy as np
import pytest

from smn_core.errors import InvalidMask
from smn_core.parts import float32_of, head_of, preprocess_of


def test_a_head_is_taken_out_of_the_tensors():
    tensors = {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.zeros(2, np.float32), "bits": np.zeros(1)}
    head = head_of(tensors, {"classes": '["a","b"]'})
    assert head.classes == ("a", "b") and set(tensors) == {"bits"}
    assert head_of(tensors, {}) is None


@pytest.mark.parametrize("classes", [None, "7", '["a", 1]', "["])
def test_half_a_head_is_refused(classes):
    tensors = {"head.weight": np.ones((2, 3), np.float32), "head.bias": np.zeros(2, np.float32)}
    with pytest.raises(InvalidMask, match="classes"):
        head_of(tensors, {} if classes is None else {"classes": classes})


def test_pixels_that_are_no_table_of_numbers_are_refused():
    assert preprocess_of({}) is None
    assert preprocess_of({"preprocess": '{"mean":[0.5,0.5,0.5]}'}) == {"mean": [0.5, 0.5, 0.5]}
    for text in ("[]", '{"std":[1,2]}', '{"mean":["a","b","c"]}'):
        with pytest.raises(InvalidMask, match="preprocess"):
            preprocess_of({"preprocess": text})


def test_numbers_of_another_type_are_refused():
    with pytest.raises(InvalidMask, match=r"state\.a is float64"):
        float32_of("state.a", np.zeros(1))
