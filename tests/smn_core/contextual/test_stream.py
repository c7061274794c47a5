"""Bits survive codec context, whatever they are; a stream that is not exactly theirs is refused, in bounded memory."""

import tracemalloc

import context
import independent
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core import bits, codec
from smn_core.contextual import stream
from smn_core.errors import InvalidMask


def coded(mask, backbone):
    return stream.encode_bits(mask.packed, backbone.layout, backbone.theta)


def decoded(data, backbone):
    return stream.decode_bits(np.asarray(data, np.uint8), backbone.layout, backbone.theta)


@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.0, 1.0), number=st.integers(0, stream.EVENLY))
@settings(max_examples=60, deadline=None)
def test_a_mask_of_any_density_decodes_to_itself_with_any_strengths(tiny_resnet, make_mask, seed, density, number):
    mask = make_mask(tiny_resnet, density, seed)
    data = stream._encode(mask.packed, tiny_resnet.layout, tiny_resnet.theta, number)
    if data is not None:
        assert_array_equal(decoded(data, tiny_resnet), mask.packed, strict=True)
    assert_array_equal(decoded(coded(mask, tiny_resnet), tiny_resnet), mask.packed, strict=True)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bits_decode_to_themselves(tiny_vit, data):
    """No model of masks says that such bits are likely: runs, stripes, noise."""
    on = []
    for tensor in tiny_vit.layout:
        period = data.draw(st.integers(1, 70))
        pattern = np.array(data.draw(st.lists(st.booleans(), min_size=period, max_size=period)))
        on.append(bits.pack(np.resize(pattern, tensor.n_weights)))
    packed = np.concatenate(on)
    found = stream.decode_bits(
        stream.encode_bits(packed, tiny_vit.layout, tiny_vit.theta), tiny_vit.layout, tiny_vit.theta
    )
    assert_array_equal(found, packed, strict=True)


@pytest.mark.parametrize("number", range(stream.EVENLY + 1))
@pytest.mark.parametrize("density", [0.8, 0.995])
def test_each_row_of_strengths_gives_the_stream_of_the_slow_reference(tiny_resnet, make_mask, number, density):
    mask = make_mask(tiny_resnet, density)
    on = {t.name: mask.bits_of(t.name).reshape(t.shape) for t in mask.layout}
    weights = independent.weights_of(tiny_resnet.model)
    ours = stream._encode(mask.packed, tiny_resnet.layout, tiny_resnet.theta, number)
    assert ours.tobytes() == context.encode(on, weights, number)
    assert all((context.decode(ours.tobytes(), weights)[name] == values).all() for name, values in on.items())


@pytest.mark.parametrize("density", [0.5, 0.9, 0.99, 0.999, 0.9999])
def test_random_bits_take_hardly_more_than_their_entropy(small_backbones, make_mask, density):
    backbone = small_backbones["test_resnet"]
    mask = make_mask(backbone, density)
    n = np.array([t.n_weights for t in mask.layout])
    off = 1 - mask.on_counts / n
    with np.errstate(divide="ignore", invalid="ignore"):
        each = -np.nan_to_num(off * np.log2(off)) - np.nan_to_num((1 - off) * np.log2(1 - off))
    assert coded(mask, backbone).size <= 1.01 * (n @ each) / 8 + 64


def test_bits_that_follow_the_weights_are_much_smaller_than_under_zstd(small_backbones):
    """As in masks that were learned: the largest weights of some rows and columns are OFF."""
    backbone, rng = small_backbones["test_vit"], np.random.default_rng(0)
    weights, packed = independent.weights_of(backbone.model), []
    for tensor in backbone.layout:
        values = np.abs(weights[tensor.name].reshape(tensor.shape[0], -1))
        rows, columns = (rng.exponential(size=(n, 1)) for n in values.shape)
        score = values * rows * columns.T + 1e-12 * rng.random(values.shape)
        packed.append(bits.pack((score < np.quantile(score, 0.995)).ravel()))
    whole = np.concatenate(packed)
    (frame,) = codec.encode(whole, backbone.layout, "zstd").values()
    assert stream.encode_bits(whole, backbone.layout, backbone.theta).size < 0.6 * frame.size


def test_no_mask_takes_more_than_its_raw_bits_and_a_few_bytes(tiny_resnet, rng):
    """Half of each tensor ON, then half OFF in turn: the chances are always wrong."""
    packed = np.concatenate([bits.pack(rng.random(t.n_weights) < 0.5) for t in tiny_resnet.layout])
    data = stream.encode_bits(packed, tiny_resnet.layout, tiny_resnet.theta)
    assert data.size <= packed.size + codec.MAX_EXTRA_BYTES


@pytest.mark.parametrize("density", [0.5, 0.99])
def test_every_cut_stream_is_refused(tiny_vit, make_mask, density):
    data = coded(make_mask(tiny_vit, density), tiny_vit)
    for length in range(data.size):
        with pytest.raises(InvalidMask):
            decoded(data[:length], tiny_vit)


@pytest.mark.parametrize("behind", [b"\0", b"\xff", b"\0" * 50])
def test_more_bytes_behind_a_stream_are_refused(tiny_vit, make_mask, behind):
    data = coded(make_mask(tiny_vit), tiny_vit).tobytes() + behind
    with pytest.raises(InvalidMask, match="leave something over"):
        decoded(list(data), tiny_vit)


@pytest.mark.parametrize("density", [0.7, 0.99])
def test_every_flipped_bit_is_noticed(tiny_vit, make_mask, density):
    """With strengths that use the weights. Where all chances are one half, any bytes are some mask's."""
    data = stream._encode(make_mask(tiny_vit, density).packed, tiny_vit.layout, tiny_vit.theta, 0)
    for place in range(8 * data.size):
        flipped = data.copy()
        flipped[place // 8] ^= 1 << (place % 8)
        with pytest.raises(InvalidMask):
            decoded(flipped, tiny_vit)


@given(data=st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(tiny_vit, data):
    with pytest.raises(InvalidMask):
        decoded(list(data), tiny_vit)


def test_a_stream_of_other_weights_is_refused(make_backbone, small_backbones, make_mask):
    theirs = make_backbone("test_vit", seed=1)
    data = stream._encode(make_mask(theirs).packed, theirs.layout, theirs.theta, 0)
    with pytest.raises(InvalidMask, match=r"damaged"):
        decoded(data, small_backbones["test_vit"])


def test_a_hostile_stream_decodes_in_the_memory_of_the_mask(small_backbones):
    """Bytes of 0 are all OFF: the most work that a stream can ask for."""
    backbone = small_backbones["test_resnet"]
    decoded_of = np.zeros(100, np.uint8)
    stream.make_tables()
    tracemalloc.start()
    with pytest.raises(InvalidMask):
        decoded(decoded_of, backbone)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * backbone.layout.n_weights


@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.0, 1.0), of_parent=st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_a_mask_decodes_to_itself_against_any_parent(tiny_vit, make_mask, seed, density, of_parent):
    mask, parent = make_mask(tiny_vit, density, seed), make_mask(tiny_vit, of_parent, seed + 1)
    for number in range(stream.EVENLY + 1):
        data = stream._encode(mask.packed, tiny_vit.layout, tiny_vit.theta, number, parent.packed)
        if data is not None:
            found = stream.decode_bits(data, tiny_vit.layout, tiny_vit.theta, parent.packed)
            assert_array_equal(found, mask.packed, strict=True)


def test_a_child_that_is_its_parent_takes_next_to_nothing(small_backbones, make_mask):
    backbone = small_backbones["test_vit"]
    parent = make_mask(backbone, 0.99).packed
    alone = stream.encode_bits(parent, backbone.layout, backbone.theta)
    against = stream.encode_bits(parent, backbone.layout, backbone.theta, parent)
    assert against.size < 0.15 * alone.size


def test_a_stream_of_another_parent_is_refused(tiny_resnet, make_mask):
    mask, parent, other = (make_mask(tiny_resnet, 0.9, seed).packed for seed in range(3))
    data = stream._encode(mask, tiny_resnet.layout, tiny_resnet.theta, 0, parent)
    for wrong in (other, None):
        with pytest.raises(InvalidMask):
            stream.decode_bits(data, tiny_resnet.layout, tiny_resnet.theta, wrong)


def test_every_flipped_bit_of_a_child_is_noticed(tiny_vit, make_mask):
    mask, parent = make_mask(tiny_vit, 0.9, 1).packed, make_mask(tiny_vit, 0.9, 2).packed
    data = stream._encode(mask, tiny_vit.layout, tiny_vit.theta, 0, parent)
    for place in range(8 * data.size):
        flipped = data.copy()
        flipped[place // 8] ^= 1 << (place % 8)
        with pytest.raises(InvalidMask):
            stream.decode_bits(flipped, tiny_vit.layout, tiny_vit.theta, parent)
