"""smn_core and the second implementation in tests/golden/independent.py agree bit for bit."""

import json

import independent
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors import safe_open

from smn_core import maskfile, tensorfile
from smn_core.tensorfile import canonical_json, content_of
from smn_core.verbs.export import masked_weights

TEXTS = {"objective": "swav", "dataset": "blüten", "recipe": '{"lr":50}', "metrics": '{"knn":0.5}'}
CONTENTS = {
    "bits alone": {},
    "state": {"with_state": True},
    "head": {"with_head": True},
    "diagonal map": {"with_affine": "diagonal"},
    "float32 map": {"with_affine": "float32"},
    "float16 map": {"with_affine": "float16"},
    "int8 map": {"with_affine": "int8"},
    "everything": {
        "with_state": True,
        "with_head": True,
        "with_preprocess": True,
        "metadata": TEXTS,
        "with_affine": "int8",
    },
}


def booleans(mask):
    return {tensor.name: mask.bits_of(tensor.name).reshape(tensor.shape) for tensor in mask.layout}


def written_independently(backbone, mask, codec):
    texts = dict(mask.metadata)
    if mask.preprocess is not None:
        texts["preprocess"] = independent.canonical(mask.preprocess)
    head = None
    if mask.head is not None:
        texts["classes"] = independent.canonical(list(mask.head.classes))
        head = (mask.head.weight, mask.head.bias)
    on = booleans(mask)
    return independent.write(
        backbone.model, backbone.model_json, on, codec=codec, state=mask.state, affine=map_of(mask), head=head, **texts
    )


def map_of(mask):
    return mask.affine.tensors() if mask.affine is not None else {}


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert_array_equal(found[name], values, strict=True)


def test_both_name_a_backbone_alike(small_backbone):
    """Model text, fingerprint, layout and its digest are equal."""
    name = small_backbone.architecture
    assert small_backbone.model_json == independent.model_json(name)
    assert small_backbone.fingerprint == independent.fingerprint(small_backbone.model, small_backbone.model_json)
    assert {t.name: t.shape for t in small_backbone.layout} == independent.layout(small_backbone.model)
    assert small_backbone.layout.digest == independent.layout_digest(independent.layout(small_backbone.model))


def test_arguments_are_part_of_the_model_text(tiny_resnet):
    assert tiny_resnet.model_json == independent.model_json("test_resnet", channels=[8, 8, 8, 8], stem_width=8)
    assert tiny_resnet.fingerprint == independent.fingerprint(tiny_resnet.model, tiny_resnet.model_json)


def test_the_fingerprint_is_taken_before_the_cast(make_backbone, small_backbones):
    cast = make_backbone("test_resnet", dtype=torch.bfloat16)
    assert next(cast.model.parameters()).dtype == torch.bfloat16
    assert cast.fingerprint == small_backbones["test_resnet"].fingerprint


def test_a_changed_weight_changes_the_fingerprint(make_backbone, small_backbones):
    assert make_backbone("test_vit", seed=1).fingerprint != small_backbones["test_vit"].fingerprint


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("options", CONTENTS.values(), ids=CONTENTS)
def test_the_independent_reader_reads_what_smn_core_writes(small_backbone, make_mask, codec, options):
    mask = make_mask(small_backbone, **options)
    found = independent.read(maskfile.serialise_mask(mask, codec), small_backbone.model)
    assert_same_arrays(found["bits"], booleans(mask))
    assert_same_arrays(found["state"], dict(mask.state))
    assert_same_arrays(found["affine"], map_of(mask))
    if mask.head is None:
        assert found["head"] == {}
    else:
        assert_same_arrays(found["head"], {"weight": mask.head.weight, "bias": mask.head.bias})
        assert found["metadata"]["classes"] == canonical_json(list(mask.head.classes))
    if mask.preprocess is not None:
        assert found["metadata"]["preprocess"] == independent.canonical(mask.preprocess)
    assert mask.metadata.items() <= found["metadata"].items()


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.parametrize("options", CONTENTS.values(), ids=CONTENTS)
def test_smn_core_reads_what_the_independent_writer_writes(small_backbone, make_mask, codec, options):
    mask = make_mask(small_backbone, **options)
    found = maskfile.parse_mask(written_independently(small_backbone, mask, codec), small_backbone.layout)
    assert_array_equal(found.packed, mask.packed, strict=True)
    assert_same_arrays(dict(found.state), dict(mask.state))
    assert_same_arrays(map_of(found), map_of(mask))
    assert (found.head is None) == (mask.head is None)
    if mask.head is not None:
        assert_same_arrays(vars(found.head), vars(mask.head))
    assert found.preprocess == json.loads(independent.canonical(mask.preprocess))
    assert (found.model, found.fingerprint, found.metadata) == (mask.model, mask.fingerprint, mask.metadata)
    assert maskfile.check_fits(found, small_backbone) == []


@pytest.fixture(params=["vit", "resnet"])
def tiny(request, tiny_vit, tiny_resnet):
    """Small enough for a reader that goes from weight to weight in plain Python."""
    return {"vit": tiny_vit, "resnet": tiny_resnet}[request.param]


def test_the_independent_reader_decodes_context(tiny, make_mask):
    mask = make_mask(tiny, **CONTENTS["everything"])
    found = independent.read(maskfile.serialise_mask(mask, "context", tiny), tiny.model)
    assert_same_arrays(found["bits"], booleans(mask))
    assert_same_arrays(found["state"], dict(mask.state))


@pytest.mark.parametrize("strengths", range(5))
def test_smn_core_decodes_context_as_the_independent_writer_codes_it(tiny, make_mask, strengths):
    mask = make_mask(tiny, 0.98)
    written = independent.write(tiny.model, tiny.model_json, booleans(mask), codec="context", strengths=strengths)
    found = maskfile.with_bits(maskfile.parse_mask(written, tiny.layout), tiny)
    assert_array_equal(found.packed, mask.packed, strict=True)


@pytest.mark.parametrize("codec", ["raw", "context"])
def test_the_independent_reader_decodes_a_mask_against_its_parent(tiny, make_mask, codec):
    mask, parent = make_mask(tiny, 0.97, 1), make_mask(tiny, 0.95, 2)
    file = maskfile.serialise_mask(parent, codec, tiny)
    written = maskfile.serialise_mask(mask, "context", tiny, maskfile.parse_mask(file, tiny.layout))
    found = independent.read(written, tiny.model, file)
    assert_same_arrays(found["bits"], booleans(mask))
    assert found["metadata"]["parent"] == tensorfile.digest_of(file)


@pytest.mark.parametrize("strengths", range(5))
def test_smn_core_decodes_a_mask_against_its_parent_as_the_independent_writer_codes_it(tiny, make_mask, strengths):
    mask, parent = make_mask(tiny, 0.97, 1), make_mask(tiny, 0.95, 2)
    file = maskfile.serialise_mask(parent, "raw")
    written = independent.write(
        tiny.model, tiny.model_json, booleans(mask), codec="context", strengths=strengths,
        parent_bits=booleans(parent), parent=tensorfile.digest_of(file),
    )  # fmt: skip
    found = maskfile.with_bits(maskfile.parse_mask(written, tiny.layout, lambda _: file), tiny)
    assert_array_equal(found.packed, mask.packed, strict=True)


@pytest.mark.parametrize("options", CONTENTS.values(), ids=CONTENTS)
def test_both_write_the_same_raw_file_to_the_byte(small_backbone, make_mask, options):
    mask = make_mask(small_backbone, **options)
    assert maskfile.serialise_mask(mask, "raw") == written_independently(small_backbone, mask, "raw")


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_both_make_the_same_content_digest(tiny_resnet, make_mask, codec):
    mask = make_mask(tiny_resnet, **CONTENTS["everything"])
    metadata, tensors = independent.parse(maskfile.serialise_mask(mask, codec))
    assert metadata["content"] == independent.content(metadata, tensors) == content_of(metadata, tensors)


def test_a_mask_file_is_an_ordinary_safetensors_file(tmp_path, tiny_resnet, make_mask):
    path = tmp_path / "mask.smn"
    mask = maskfile.write_mask(make_mask(tiny_resnet, with_state=True), path, "raw")
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "smn-mask/1"
        first = next(iter(mask.layout))
        assert_array_equal(file.get_tensor(f"mask.{first.name}"), mask.packed[first.bytes])


@pytest.mark.parametrize("kind", ["diagonal", "float32", "float16", "int8"])
def test_both_give_the_same_mapped_embeddings(tiny_resnet, make_mask, rng, kind):
    """By the formulas of docs/formats.md in float64, and by smn_core."""
    affine = make_mask(tiny_resnet, with_affine=kind).affine
    z = rng.standard_normal((9, tiny_resnet.n_features), np.float32)
    expected = independent.apply_affine(affine.tensors(), z)
    np.testing.assert_allclose(affine.apply(z), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(affine.apply_slowly(z), expected, rtol=1e-6, atol=1e-6)


def test_both_give_the_same_masked_weights(small_backbone, make_mask):
    """theta * M / sqrt(mean(M)) in float64 by hand, and smn_core's, differ by float32's rounding alone."""
    mask = make_mask(small_backbone, density=0.7, with_state=True)
    by_hand = independent.hand_masked_state_dict(small_backbone.model, booleans(mask), mask.state)
    ours = masked_weights(small_backbone, mask)
    assert ours.keys() == by_hand.keys()
    for name, expected in by_hand.items():
        np.testing.assert_allclose(ours[name], expected.numpy(), rtol=3e-7, atol=0)
