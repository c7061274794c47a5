"""Packed bits survive their way through a codec's tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core import codec
from smn_core.errors import InvalidMask


@pytest.mark.parametrize("name", codec.CODECS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_bytes_decode_to_themselves(tiny_vit, name, data):
    n_bytes = tiny_vit.layout.n_bytes
    packed = np.frombuffer(data.draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)
    found = codec.decode(codec.encode(packed, tiny_vit.layout, name), tiny_vit.layout, name)
    assert_array_equal(found, packed, strict=True)


@pytest.mark.parametrize("name", codec.CODECS)
def test_equal_bits_give_equal_tensors(small_backbone, make_mask, name):
    packed = make_mask(small_backbone).packed
    first, second = (codec.encode(packed.copy(), small_backbone.layout, name) for _ in range(2))
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def test_zstd_is_smaller_than_raw_for_a_sparse_choice_of_off_weights(small_backbone, make_mask):
    packed = make_mask(small_backbone, density=0.99).packed
    (frame,) = codec.encode(packed, small_backbone.layout, "zstd").values()
    assert frame.nbytes < 0.5 * packed.nbytes


def test_raw_names_each_tensor(tiny_vit, make_mask):
    tensors = codec.encode(make_mask(tiny_vit).packed, tiny_vit.layout, "raw")
    assert list(tensors) == [f"mask.{t.name}" for t in tiny_vit.layout]


@pytest.mark.parametrize("call", [codec.encode, codec.decode], ids=["encode", "decode"])
def test_an_unknown_codec_is_refused(tiny_vit, make_mask, call):
    given = make_mask(tiny_vit).packed if call is codec.encode else {}
    with pytest.raises(InvalidMask, match="unknown codec 'lzma'"):
        call(given, tiny_vit.layout, "lzma")


@pytest.mark.parametrize("name", codec.CODECS)
def test_no_tensors_are_refused(tiny_vit, name):
    with pytest.raises(InvalidMask, match="is missing"):
        codec.decode({}, tiny_vit.layout, name)
