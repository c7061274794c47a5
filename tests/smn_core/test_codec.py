"""Packed bits survive their way through a codec's tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core import bits, codec
from smn_core.errors import InvalidMask, WeightsNeeded


@pytest.mark.parametrize("name", codec.CODECS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_bytes_decode_to_themselves(tiny_vit, name, data):
    n_bytes = tiny_vit.layout.n_bytes
    packed = np.frombuffer(data.draw(st.binary(min_size=n_bytes, max_size=n_bytes)), np.uint8)
    if name == codec.CONTEXT:  # it codes weights, and has no place for padding
        packed = packed & np.concatenate([bits.pack(np.ones(t.n_weights, bool)) for t in tiny_vit.layout])
    coded = codec.encode(packed, tiny_vit.layout, name, tiny_vit.theta)
    found = codec.decode(coded, tiny_vit.layout, name, tiny_vit.theta)
    assert_array_equal(found, packed, strict=True)


@pytest.mark.parametrize("name", codec.CODECS)
def test_equal_bits_give_equal_tensors(small_backbone, make_mask, name):
    packed = make_mask(small_backbone).packed
    layout, theta = small_backbone.layout, small_backbone.theta
    first, second = (codec.encode(packed.copy(), layout, name, theta) for _ in range(2))
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
        codec.decode({}, tiny_vit.layout, name, tiny_vit.theta)


def test_context_is_refused_without_the_weights(tiny_vit, make_mask):
    packed = make_mask(tiny_vit).packed
    with pytest.raises(WeightsNeeded, match="--weights"):
        codec.encode(packed, tiny_vit.layout, "context")
    with pytest.raises(WeightsNeeded, match="--weights"):
        codec.decode(codec.encode(packed, tiny_vit.layout, "context", tiny_vit.theta), tiny_vit.layout, "context")


def test_a_stream_longer_than_any_mask_is_refused_before_it_is_decoded(tiny_vit):
    stream = np.zeros(tiny_vit.layout.n_bytes + codec.MAX_EXTRA_BYTES + 1, np.uint8)
    with pytest.raises(InvalidMask, match="more than those of any mask"):
        codec.check_coded({"bits": stream}, tiny_vit.layout)
