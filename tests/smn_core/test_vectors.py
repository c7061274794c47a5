"""What makes vectors: the hash of docs/formats.md, against one that is worked out from the file's bytes alone."""

import hashlib
import json
from dataclasses import replace

import independent
import numpy as np
import pytest
import zstandard

from smn_core.affine import Affine
from smn_core.cascade.file import serialise_cascade
from smn_core.cascade.kinds import KINDS
from smn_core.mask import Head
from smn_core.maskfile import parse_mask, serialise_mask
from smn_core.vectors import vectors_of_cascade, vectors_of_mask, vectors_of_root
from tests.smn_core.builders import TINY_RESNET, all_on, lively, random_mask
from tests.smn_core.cascade.cascades import K, build_cascade

CODES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32", "float64": "F64"}


def told(tensors, *prefixes):
    """The part of the text that tensors are, from those that a file has."""
    names = sorted(name for name in tensors if name.startswith(prefixes))
    parts = [
        f"{n}|{CODES[tensors[n].dtype.name]}|{list(tensors[n].shape)}|".encode() + tensors[n].tobytes() for n in names
    ]
    return b"".join(parts)


def slowly(data, layout):
    """Of a mask's file."""
    metadata, tensors = independent.parse(data)
    if metadata["codec"] == "zstd":
        packed = zstandard.ZstdDecompressor().decompress(tensors["bits"].tobytes())
    else:
        packed = b"".join(tensors[f"mask.{tensor.name}"].tobytes() for tensor in layout)
    return hashlib.sha256(packed + told(tensors, "state.", "affine.")).hexdigest()


def cascade_slowly(data, of_masks):
    metadata, tensors = independent.parse(data)
    text = "".join(f"{vectors}\n" for vectors in of_masks) + f"{metadata['fusion']}\n{metadata.get('seed') or ''}\n"
    return hashlib.sha256(text.encode() + told(tensors, "fusion.", "router.")).hexdigest()


@pytest.fixture(scope="module")
def backbone():
    return lively(TINY_RESNET)


@pytest.fixture
def mask(backbone):
    found = random_mask(backbone.layout, 0.9, 1)
    rng = np.random.default_rng(0)
    state = {
        name: rng.random(shape, np.float32) for name, shape in backbone.layout.buffers.items() if "running" in name
    }
    d = backbone.n_features
    affine = Affine(rng.random(d, np.float32), matrix=np.eye(d, dtype=np.int8), matrix_scale=np.ones(d, np.float32))
    return replace(
        found, model=backbone.model_json, fingerprint=backbone.fingerprint, state=state, affine=affine, digest=None
    )


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_masks_vectors_are_the_hash_of_its_bits_state_and_map(mask, codec):
    data = serialise_mask(mask, codec)
    assert vectors_of_mask(mask) == vectors_of_mask(parse_mask(data, mask.layout)) == slowly(data, mask.layout)


def test_head_metadata_and_codec_have_no_part_in_it(mask):
    head = Head(np.ones((2, mask.layout.n_features), np.float32), np.zeros(2, np.float32), ("a", "b"))
    told_of = replace(mask, head=head, metadata={"dataset": "flowers"})
    assert {
        vectors_of_mask(parse_mask(serialise_mask(m, c), m.layout)) for m in (mask, told_of) for c in ("raw", "zstd")
    } == {vectors_of_mask(mask)}


def test_one_bit_one_statistic_or_another_map_makes_other_vectors(mask):
    name = next(iter(mask.state))
    flipped = mask.packed.copy()
    flipped[0] ^= 2
    others = [
        replace(mask, packed=flipped),
        replace(mask, state={**mask.state, name: mask.state[name] + 1}),
        replace(mask, state={key: value for key, value in mask.state.items() if key != name}),
        replace(mask, affine=None),
    ]
    assert len({vectors_of_mask(m) for m in (mask, *others)}) == 5


def test_a_mask_that_is_all_on_has_the_roots_vectors_and_no_other_mask_has(mask):
    plain = replace(mask, packed=all_on(mask), state={}, affine=None)
    assert vectors_of_mask(plain) == vectors_of_root(mask.layout)
    assert vectors_of_root(mask.layout) == hashlib.sha256(all_on(mask).tobytes()).hexdigest()
    assert vectors_of_mask(replace(plain, affine=mask.affine)) != vectors_of_root(mask.layout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("router", [True, False])
def test_a_cascades_vectors_are_the_hash_of_its_masks_fusion_and_router(kind, router):
    changes = {} if router or kind == "concat" else {"router": None}
    cascade = build_cascade(kind)
    if changes:
        tensors = {"unconditional": cascade.fusion.tensors["unconditional"]}
        cascade = replace(cascade, router=None, fusion=replace(cascade.fusion, tensors=tensors))
    of_masks = [f"{i:064x}" for i in range(K + 1)]
    assert vectors_of_cascade(cascade, of_masks) == cascade_slowly(serialise_cascade(cascade), of_masks)


def test_the_order_of_experts_and_the_seed_make_other_vectors_and_the_default_mode_does_not():
    cascade, of_masks = build_cascade("random"), [f"{i:064x}" for i in range(K + 1)]
    first = vectors_of_cascade(cascade, of_masks)
    assert vectors_of_cascade(cascade, [of_masks[0], *reversed(of_masks[1:])]) != first
    assert vectors_of_cascade(replace(cascade, fusion=replace(cascade.fusion, seed=12)), of_masks) != first
    assert (
        vectors_of_cascade(replace(cascade, mode="conditional", metadata={"dataset": json.dumps("x")}), of_masks)
        == first
    )
    zero = replace(cascade, fusion=replace(cascade.fusion, seed=0))
    assert vectors_of_cascade(zero, of_masks) == cascade_slowly(serialise_cascade(zero), of_masks)
    with pytest.raises(ValueError, match="1 masks' vectors"):
        vectors_of_cascade(cascade, of_masks[:1])
