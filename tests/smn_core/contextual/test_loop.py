"""The compiled loop lets other threads run, and its plain Python is the same function."""

import numpy as np
import pytest

from smn_core.contextual import loop


@pytest.mark.parametrize("name", loop.SIGNATURES)
def test_it_releases_the_interpreter(name):
    assert loop.compile_loop(name).targetoptions["nogil"]


def test_the_compiled_classes_are_those_of_plain_python(rng):
    """numpy's whole numbers of 32 bits would wrap where Python's do not: the bits of weights use all of them."""
    weights = rng.standard_normal(37 * 11, np.float32)
    weights[:3] = 0.0, -0.0, 1e-40
    bits, found = weights.view(np.uint32), np.empty((2, weights.size), np.uint8)
    loop.compile_loop("class_weights")(bits, 37, 11, found[0])
    loop.class_weights([int(b) for b in bits], 37, 11, found[1])
    assert found[0].tolist() == found[1].tolist()
