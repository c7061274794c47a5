"""A space's id goes by what makes the vectors, and a client can compute it from what it is told."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from smn_core.mask import Head
from smn_core.spaces import space_of_mask
from tests.conftest import build_affine


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
