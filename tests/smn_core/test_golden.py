"""Files that were written once read the same for ever."""

import independent
import make
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from smn_core import maskfile, tensorfile
from smn_core.backbone import wrap
from smn_core.spec import BackboneSpec

FINGERPRINT = "936c4253bf8b992df3e4fd5043faae5e0ec27d13f64bc21bdc2d04f537e15304"
LAYOUT = "7c467564839a43d705a2a56f67e457f2a093afbde655dbf209c93e9b5f1037bd"
DIGESTS = {
    "raw": "sha256:6ce75bc25c6d26cbe4f2bcb321bd8340f89c8ede5ddfc0b245cc7d3a23b34a8b",
    "zstd": "sha256:c96c7eda913dfaf92b1bdd9d8a2762230e40ecb4ee287f1ebfe8e8540410f74e",
}
AFFINE_DIGEST = "sha256:3732dcaed96131642f695d7fbe4eb29c957aee4e0204561026abc6db896fcadc"
CONTENT = {
    "raw": "69b27857c79c6d2e7aaca09b6e9b3c1994ffbbdca5645db9dbe19c5f613bbc4a",
    "zstd": "bea6f107224662fc9884bff8e0e4a4e7a37689bf538b486ce63e2769eb19a31d",
}
N_ON = {
    "conv1.0.weight": 385,
    "layer2.0.downsample.1.weight": 1390,
    "layer2.0.downsample.2.weight": 43,
    "layer2.0.downsample.2.bias": 42,
    "layer4.0.conv1.weight": 149_208,
    "layer4.0.downsample.2.bias": 88,
}


@pytest.fixture(scope="module")
def backbone():
    return wrap(make.model(), "test_resnet", BackboneSpec("test_resnet"))


def golden(codec):
    return (make.HERE / f"{codec}.smn").read_bytes()


@pytest.fixture(params=["raw", "zstd"])
def codec(request):
    return request.param


def test_a_golden_file_keeps_its_digest_and_content(codec):
    data = golden(codec)
    assert tensorfile.digest_of(data) == DIGESTS[codec]
    file = tensorfile.parse_tensors(data)
    assert file.metadata["content"] == tensorfile.content_of(file.metadata, file.tensors) == CONTENT[codec]


def test_a_golden_file_reads_to_known_counts(codec):
    """Without a backbone at hand: the layout comes from the file's model text."""
    mask = maskfile.parse_mask(golden(codec))
    assert mask.digest == DIGESTS[codec]
    assert (mask.layout.n_weights, len(mask.layout.tensors)) == (371_280, 21)
    assert mask.n_off == 371_280 - 334_181
    assert mask.density == pytest.approx(0.900078, abs=1e-6)
    counts = dict(zip((t.name for t in mask.layout), mask.on_counts.tolist(), strict=True))
    assert {name: counts[name] for name in N_ON} == N_ON


def test_a_golden_file_fits_the_backbone_it_was_made_for(codec, backbone):
    assert (backbone.fingerprint, backbone.layout.digest) == (FINGERPRINT, LAYOUT)
    assert maskfile.check_fits(maskfile.parse_mask(golden(codec), backbone.layout), backbone) == []


def test_both_golden_files_hold_the_bits_they_were_made_of(backbone):
    raw, zstd = (maskfile.parse_mask(golden(codec), backbone.layout) for codec in ("raw", "zstd"))
    assert_array_equal(raw.packed, zstd.packed)
    for name, on in make.bits(independent.layout(backbone.model)).items():
        assert_array_equal(raw.bits_of(name), on.reshape(-1))


def test_the_first_golden_bits_are_known():
    """Least significant bit first: 191 = 0b10111111 is OFF at its weight 6 alone."""
    mask = maskfile.parse_mask(golden("raw"))
    assert mask.packed[:4].tolist() == [255, 255, 191, 191]
    assert np.flatnonzero(~mask.bits_of("conv1.0.weight")[:32]).tolist() == [22, 30]


def test_what_is_optional_is_in_the_raw_golden_file_alone():
    raw, zstd = (maskfile.parse_mask(golden(codec)) for codec in ("raw", "zstd"))
    assert raw.preprocess == make.PREPROCESS
    assert raw.metadata == {"objective": "supervised", "dataset": "flowers of the field", "metrics": '{"knn":0.75}'}
    assert raw.head is not None
    assert raw.head.classes == ("bee", "daisy", "fern")
    assert raw.head.weight[2, 95] == 287 / 256
    assert raw.head.bias.tolist() == [-1.0, 0.0, 1.0]
    assert raw.state.keys() == raw.layout.buffers.keys()
    assert raw.state["bn1.running_mean"][:3].tolist() == [0.125, 0.25, 0.375]
    assert (dict(zstd.state), zstd.head, zstd.preprocess, dict(zstd.metadata)) == ({}, None, None, {})


def test_the_golden_map_reads_and_maps_as_it_was_made():
    """Beside the bits of the raw file: int8, one scale a row."""
    data = (make.HERE / "affine.smn").read_bytes()
    assert tensorfile.digest_of(data) == AFFINE_DIGEST
    mask = maskfile.parse_mask(data)
    assert_array_equal(mask.packed, maskfile.parse_mask(golden("raw")).packed)
    assert mask.affine is not None
    assert mask.affine.describe() == {"form": "matrix", "precision": "int8", "bytes": 96 * 96 + 2 * 4 * 96}
    assert mask.affine.matrix[1, :3].tolist() == [-124, -123, -122]
    # Every feature is 1/8 above the mean but the last, which is 2 above it.
    z = mask.affine.mean + np.float32(0.125)
    z[95] += np.float32(1.875)
    row = (3 * 94 + np.arange(96)) % 255 - 127
    assert mask.affine.apply(z[None])[0, 94] == pytest.approx((row[:95].sum() / 8 + row[95] * 2) * 95 / 1024, rel=1e-5)
    assert maskfile.serialise_mask(mask, "raw") == data


def test_writing_the_raw_golden_mask_again_gives_the_same_file():
    again = maskfile.serialise_mask(maskfile.parse_mask(golden("raw")), "raw")
    assert tensorfile.parse_tensors(again).metadata["content"] == CONTENT["raw"]
    assert again == golden("raw")


def test_the_script_beside_the_golden_files_still_makes_them():
    """To the byte where no compressor is between; the zstd frame of another library version may differ."""
    made = make.files()
    assert made["raw.smn"] == golden("raw")
    assert made["affine.smn"] == (make.HERE / "affine.smn").read_bytes()
    theta = make.model()
    found = [independent.read(data, theta)["bits"] for data in (made["zstd.smn"], golden("zstd"))]
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[1])
