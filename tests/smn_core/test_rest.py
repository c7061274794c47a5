"""Statistics, map and head survive one tensor, whatever they hold; a frame that is not exactly theirs is refused."""

import json

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core.errors import InvalidMask
from smn_core.rest import pack_rest, unpack_rest

TYPES = ("<f4", "<f2", "|i1")


def frame(listed, numbers=b""):
    told = listed if isinstance(listed, bytes) else json.dumps(listed).encode()
    data = len(told).to_bytes(4, "little") + told + numbers
    return np.frombuffer(zstandard.ZstdCompressor().compress(data), np.uint8)


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6),
    types=st.lists(st.sampled_from(TYPES), min_size=6, max_size=6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_tensors_come_back_to_the_bit(shapes, types, seed):
    rng = np.random.default_rng(seed)
    tensors = {
        f"state.{number}": np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(kind).itemsize), kind).reshape(shape)
        for number, (shape, kind) in enumerate(zip(shapes, types, strict=False))
    }
    found = unpack_rest(pack_rest(tensors), 1 << 20)
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found[name].shape == values.shape and not found[name].flags.writeable
        assert_array_equal(found[name].view(np.uint8) if values.ndim else found[name].tobytes(),
                           values.view(np.uint8) if values.ndim else values.tobytes())  # fmt: skip


@pytest.mark.parametrize(
    "stored",
    [
        np.zeros(4, np.float32),
        np.frombuffer(b"no frame", np.uint8),
        np.concatenate([pack_rest({"state.a": np.zeros(3, np.float32)}), np.zeros(1, np.uint8)]),
        pack_rest({"state.a": np.zeros(3, np.float32)})[:-2],
        frame([["state.a", "F32", [3]]], bytes(11)),
        frame([["state.a", "F32", [3]]], bytes(13)),
        frame([["state.a", "F32", [3]], ["state.a", "F32", [3]]], bytes(24)),
        frame([["bits", "U8", [3]]], bytes(3)),
        frame([["state.a", "F8", [3]]], bytes(3)),
        frame([["state.a", "U8", [-3]]]),
        frame([["state.a", "U8", [1.0]]], bytes(1)),
        frame([["state.a", "U8"]], bytes(3)),
        frame([["state.a", "U8", [1] * 65]], bytes(1)),
        frame([["state.a", "U8", [0, *[2**31 - 1] * 3]]]),
        frame([["state.a", "U8", [2**31 - 1] * 100_000]]),
        frame([["state.\ud800", "U8", [1]]], bytes(1)),
        frame([["state." + "a" * 512, "U8", [1]]], bytes(1)),
        frame(b"[" + b"[]," * 300_000 + b"[]]"),
        frame(json.dumps([["state.a", "U8", [3]]]).encode("utf-16"), bytes(3)),
        frame(b"[" * 5000),
        frame(b"\xff"),
        frame(7),
    ],
)
def test_what_is_not_one_whole_frame_of_such_tensors_is_refused(stored):
    with pytest.raises(InvalidMask, match="rest"):
        unpack_rest(stored, 1 << 20)


def test_a_tensor_of_as_many_sides_as_numpy_has_comes_back():
    (found,) = unpack_rest(frame([["state.a", "U8", [1] * 64]], b"7"), 1 << 20).values()
    assert found.shape == (1,) * 64


def test_a_frame_that_declares_too_much_is_refused_before_it_is_decompressed():
    data = pack_rest({"state.a": np.zeros(1 << 24, np.float32)})
    assert data.nbytes < 1 << 14
    with pytest.raises(InvalidMask, match="declares"):
        unpack_rest(data, 1 << 20)
