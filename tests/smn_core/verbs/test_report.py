"""Every number that inspect prints adds up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smn_core.errors import InvalidArgument, InvalidMask
from smn_core.maskfile import read_mask, write_mask
from smn_core.verbs.plots import density_plot
from smn_core.verbs.report import describe, difference
from tests.smn_core.builders import all_on


@pytest.fixture(params=["raw", "zstd"])
def file(request, small_backbone, make_mask, tmp_path):
    mask = make_mask(
        small_backbone, 0.8, with_state=True, with_head=True, metadata={"dataset": "x"}, with_affine="float16"
    )
    write_mask(mask, tmp_path / "m.smn", request.param)
    return tmp_path / "m.smn"


def test_tensors_and_stages_add_up_to_the_mask(file):
    """Weights and OFF weights by tensor and by stage sum to the whole; densities are their ratios."""
    found = describe(file)
    mask = read_mask(file)
    for rows in (found["tensors"], found["stages"]):
        assert sum(row["weights"] for row in rows) == found["weights"] == mask.layout.n_weights
        assert sum(row["off"] for row in rows) == found["off"] == mask.n_off
        assert all(row["density"] == pytest.approx(1 - row["off"] / row["weights"]) for row in rows)
    assert found["density"] == pytest.approx(1 - found["off"] / found["weights"])


def test_every_byte_of_the_file_is_counted(file):
    """Bits, state, map, head and header are the file, and the ratios are of the whole file."""
    sizes = describe(file)["sizes"]
    parts = ("bits_bytes", "state_bytes", "affine_bytes", "head_bytes", "rest_bytes", "header_bytes")
    assert sum(sizes[part] for part in parts) == sizes["file_bytes"] == file.stat().st_size
    mask = read_mask(file)
    assert sizes["state_bytes"] == 4 * sum(values.size for values in mask.state.values())
    assert sizes["head_bytes"] == mask.head.weight.nbytes + mask.head.bias.nbytes
    assert sizes["affine_bytes"] == mask.affine.nbytes == describe(file)["affine"]["bytes"]
    held = (sizes["state_bytes"], sizes["affine_bytes"], sizes["head_bytes"])
    assert tuple(sizes["uncoded_bytes"].values()) == held and sizes["rest_bytes"] == 0
    assert sizes["smaller_than_32_bit"] == pytest.approx(32 / sizes["bits_per_weight"])
    assert sizes["codec"] == "zstd" or sizes["bits_bytes"] == sizes["raw_bits_bytes"] == mask.layout.n_bytes


def test_a_difference_says_which_way(small_backbone, make_mask):
    """Switched on and off are counted by tensor; a mask does not differ from itself."""
    a, b = (make_mask(small_backbone, 0.8, seed) for seed in range(2))
    found = difference(a, b)
    for row in found["tensors"]:
        on_a, on_b = a.bits_of(row["name"]), b.bits_of(row["name"])
        assert row["switched_on"] == int((~on_a & on_b).sum())
        assert row["switched_off"] == int((on_a & ~on_b).sum())
        assert row["different"] == row["switched_on"] + row["switched_off"]
    assert found["different"] == sum(row["different"] for row in found["tensors"])
    assert difference(a, a)["different"] == 0


def test_masks_of_two_architectures_are_not_compared(small_backbones, make_mask):
    """There is no position to compare."""
    a, b = (make_mask(small_backbones[name]) for name in ("test_resnet", "test_vit"))
    with pytest.raises(InvalidMask, match="different architectures"):
        difference(a, b)


@pytest.mark.parametrize("name", ["x.png", "x.svg", "x.pdf"])
def test_a_mask_without_an_off_bit_can_be_drawn(small_backbones, make_mask, tmp_path, name):
    """The picture of a mask that is all ON is a picture, in every format."""
    mask = make_mask(small_backbones["test_resnet"])
    density_plot(replace(mask, packed=all_on(mask)), tmp_path / name, "all on")
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("title", ["a$b.smn", r"$\frac.smn$", "a_b^c{.smn"])
def test_a_title_is_shown_as_it_is(small_backbones, make_mask, tmp_path, title):
    """A file name is never taken for a formula."""
    density_plot(make_mask(small_backbones["test_resnet"]), tmp_path / "x.svg", title)
    assert (tmp_path / "x.svg").exists()


def test_a_format_that_nobody_draws_is_refused(small_backbones, make_mask, tmp_path):
    """An unknown suffix names those that work, and writes nothing."""
    with pytest.raises(InvalidArgument, match=r"\.png, \.svg or \.pdf"):
        density_plot(make_mask(small_backbones["test_resnet"]), tmp_path / "x.xyz", "x")
    assert list(tmp_path.iterdir()) == []


def test_densities_are_exact(small_backbones, make_mask):
    """One OFF bit among many is not rounded away."""
    mask = make_mask(small_backbones["test_resnet"])
    packed = all_on(mask)
    packed[0] &= np.uint8(0xFE)
    one = replace(mask, packed=packed)
    assert one.n_off == 1
    assert one.density == 1 - 1 / mask.layout.n_weights
