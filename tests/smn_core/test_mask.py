"""A TaskMask holds what it says, and nothing that breaks its invariants."""

from dataclasses import replace

import numpy as np
import pytest

from smn_core import bits
from smn_core.errors import InvalidMask
from smn_core.mask import Head


def with_first_tensor(mask, on):
    first = mask.layout.tensors[0]
    return np.concatenate([bits.pack(on), mask.packed[first.n_bytes :]])


def test_densities_are_the_means_of_the_bits(small_backbone, make_mask):
    mask = make_mask(small_backbone, density=0.6)
    for (name, density), alpha in zip(mask.densities.items(), mask.alphas, strict=True):
        assert density == mask.bits_of(name).mean()
        assert alpha == np.float32(np.sqrt(mask.bits_of(name).mean()))


def test_the_whole_density_weighs_tensors_by_their_size(small_backbone, make_mask):
    mask = make_mask(small_backbone, density=0.6)
    on = np.concatenate([mask.bits_of(t.name) for t in mask.layout])
    assert mask.density == on.mean()
    assert mask.n_off == (~on).sum()


def test_an_all_on_mask_has_alphas_of_exactly_one(tiny_resnet, make_mask):
    mask = make_mask(tiny_resnet, density=1.0)
    assert (mask.density, mask.n_off) == (1.0, 0)
    assert (mask.alphas == 1).all()


def test_the_bits_are_frozen(tiny_vit, make_mask):
    with pytest.raises(ValueError, match="read-only"):
        make_mask(tiny_vit).packed[0] = 0


@pytest.mark.parametrize("n_bytes", [0, 87, 89])
def test_another_number_of_bytes_is_refused(tiny_vit, make_mask, n_bytes):
    with pytest.raises(InvalidMask, match=f"has {n_bytes} bytes of bits, the backbone needs 88"):
        replace(make_mask(tiny_vit), packed=np.full(n_bytes, 255, np.uint8))


def test_a_tensor_without_an_on_bit_is_refused_by_name(tiny_vit, make_mask):
    mask, first = make_mask(tiny_vit), tiny_vit.layout.tensors[0]
    with pytest.raises(InvalidMask, match=rf"every weight of {first.name} is OFF"):
        replace(mask, packed=with_first_tensor(mask, np.zeros(first.n_weights, bool)))


def test_one_on_bit_is_enough(tiny_vit, make_mask):
    mask, first = make_mask(tiny_vit), tiny_vit.layout.tensors[0]
    on = np.zeros(first.n_weights, bool)
    on[-1] = True
    assert replace(mask, packed=with_first_tensor(mask, on)).densities[first.name] == 1 / first.n_weights


def test_part_of_the_statistics_is_enough(tiny_resnet, make_mask):
    state = {"bn1.running_mean": np.ones(16, np.float32)}
    assert replace(make_mask(tiny_resnet), state=state).state == state


@pytest.mark.parametrize(
    ("name", "values", "cause"),
    [
        ("bn1.running_mean", np.full(16, np.nan, np.float32), "not finite"),
        ("bn1.running_var", np.full(16, -1, np.float32), "negative variance"),
        ("bn1.running_mean", np.zeros(8, np.float32), r"shape \[8\], the backbone's is \[16\]"),
        ("bn1.weight", np.zeros(16, np.float32), "not a normalisation statistic"),
    ],
    ids=["nan", "negative variance", "shape", "name"],
)
def test_unsound_state_is_refused(tiny_resnet, make_mask, name, values, cause):
    with pytest.raises(InvalidMask, match=cause):
        replace(make_mask(tiny_resnet), state={name: values})


@pytest.mark.parametrize(
    ("shape", "n_bias", "n_classes"), [((2, 8), 2, 3), ((3, 7), 3, 3), ((4, 8), 4, 3)], ids=["rows", "width", "names"]
)
def test_a_head_that_does_not_fit_is_refused(tiny_vit, make_mask, shape, n_bias, n_classes):
    head = Head(np.zeros(shape, np.float32), np.zeros(n_bias, np.float32), tuple("abc"[:n_classes]))
    with pytest.raises(InvalidMask, match="do not fit 3 classes of 8 features"):
        replace(make_mask(tiny_vit), head=head)


def test_a_head_that_is_not_finite_is_refused(tiny_vit, make_mask):
    head = Head(np.zeros((1, 8), np.float32), np.array([np.nan], np.float32), ("a",))
    with pytest.raises(InvalidMask, match="not finite"):
        replace(make_mask(tiny_vit), head=head)
