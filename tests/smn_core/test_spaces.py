"""A space's id goes by what makes the vectors, and a client can compute it from what it is told."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from smn_core.errors import InvalidArgument
from smn_core.mask import Head
from smn_core.spaces import SpaceNames, shape_space, space_of_cascade, space_of_mask
from smn_core.vectors import vectors_of_cascade
from tests.conftest import build_affine
from tests.smn_core.cascade.cascades import K, build_cascade


@pytest.fixture
def backbone(make_backbone):
    return make_backbone("test_vit")


def test_the_id_is_what_a_client_computes_from_the_document_alone(backbone, make_mask):
    mask = make_mask(backbone, 0.9)
    pixels = {key: backbone.preprocess[key] for key in ("interpolation", "crop_mode")}
    pixels |= {"input_size": [int(n) for n in backbone.preprocess["input_size"]]}
    pixels |= {key: [float(n) for n in backbone.preprocess[key]] for key in ("mean", "std")}
    pixels |= {"crop_pct": float(backbone.preprocess["crop_pct"])}
    told = hashlib.sha256(json.dumps(pixels, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]
    vectors = hashlib.sha256(mask.packed.tobytes()).hexdigest()[:16]
    assert space_of_mask(backbone, mask) == f"smn1:{backbone.fingerprint[:16]}:{vectors}:{told}"
    assert space_of_mask(backbone, None) == f"smn1:{backbone.fingerprint[:16]}:root:{told}"


def test_head_and_metadata_do_not_change_the_space_and_map_and_bits_do(backbone, make_mask):
    mask = make_mask(backbone, 0.9)
    space = space_of_mask(backbone, mask)
    n, width = 3, backbone.n_features
    affine = build_affine(width)
    head = Head(affine.full[:n], affine.mean[:n], ("a", "b", "c"))
    assert space_of_mask(backbone, replace(mask, head=head, metadata={"dataset": "x"}, digest=None)) == space
    assert space_of_mask(backbone, replace(mask, affine=affine)) != space
    assert space_of_mask(backbone, make_mask(backbone, 0.9, rng=5)) != space


def test_a_mask_that_is_all_on_is_in_the_root_s_space(backbone, make_mask):
    everything = make_mask(backbone, 1.0)
    assert everything.n_off == 0
    assert space_of_mask(backbone, everything) == space_of_mask(backbone, None)


def test_what_is_done_to_the_vectors_is_added_in_one_order():
    space = "smn1:0123456789abcdef:root:01234567"
    assert shape_space(space) == space
    assert shape_space(space, mode="conditional") == f"{space}:conditional"
    shaped = shape_space(space, kind="int8", normalize=True, dimensions=64, mode="unconditional")
    assert shaped == f"{space}:unconditional:d64:l2:int8"
    assert shape_space(space, kind="ubinary", dimensions=1) == f"{space}:d1:ubinary"


@pytest.mark.parametrize("wrong", [{"mode": "both"}, {"dimensions": 0}, {"kind": "float"}])
def test_a_shape_that_there_is_not_is_refused(wrong):
    with pytest.raises(InvalidArgument):
        shape_space("smn1:0:root:0", **wrong)


def test_one_who_names_many_spaces_names_them_alike(backbone, make_mask):
    mask, names = make_mask(backbone, 0.9), SpaceNames(backbone)
    assert names.name(None) == space_of_mask(backbone, None)
    assert names.name(hashlib.sha256(mask.packed.tobytes()).hexdigest()) == space_of_mask(backbone, mask)
    everything = hashlib.sha256(make_mask(backbone, 1.0).packed.tobytes()).hexdigest()
    assert names.name(everything) == names.name(None)


def test_the_modes_of_a_cascade_are_two_spaces(backbone):
    cascade, of_masks = build_cascade(), [f"{i:064x}" for i in range(K + 1)]
    both = {mode: space_of_cascade(backbone, cascade, mode, of_masks) for mode in cascade.modes}
    inner = vectors_of_cascade(cascade, of_masks)[:16]
    start, pixels = space_of_mask(backbone, None).split(":root:")
    assert both == {mode: f"{start}:{inner}:{pixels}:{mode}" for mode in ("unconditional", "conditional")}
