"""What smn-mask/1 refuses, and that it refuses nothing else."""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import independent
import make
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from smn_core import bits, maskfile, tensorfile
from smn_core import codec as codecs
from smn_core.errors import (
    InvalidArgument,
    InvalidMask,
    MissingParent,
    SMNError,
    UnknownModel,
    WeightsNeeded,
    WrongBackbone,
)
from smn_core.mask import CodedMask
from smn_core.vectors import vectors_of_mask

MIB = 2**20
FIRST = "conv1.0.weight"


@contextmanager
def at_most(n_bytes):
    """Fails if the block takes more memory than this, allocated by Python or resident."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024 < n_bytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="session")
def sound(tiny_resnet, make_mask):
    """Metadata and tensors of a sound raw file with everything in it."""
    mask = make_mask(
        tiny_resnet,
        with_state=True,
        with_head=True,
        with_preprocess=True,
        metadata={"objective": "swav"},
        with_affine="int8",
    )
    return independent.parse(maskfile.serialise_mask(mask, "raw"))


@pytest.fixture
def crafted(sound):
    """`crafted(edit)`: the file after `edit(metadata, tensors)`, its content checksum right again."""

    def craft(edit):
        metadata, tensors = dict(sound[0]), {name: array.copy() for name, array in sound[1].items()}
        edit(metadata, tensors)
        return independent.container(metadata | {"content": independent.content(metadata, tensors)}, tensors)

    return craft


def unchanged(metadata, tensors):
    """The edit that leaves the file as it is."""


def text(key, value):
    return lambda metadata, _: metadata.update({key: value})


def without_text(key):
    return lambda metadata, _: metadata.pop(key)


def tensor(name, value):
    return lambda _, tensors: tensors.update({name: value})


def without_tensor(*names):
    return lambda _, tensors: [tensors.pop(name) for name in names]


def change(name, index, value):
    return lambda _, tensors: tensors[name].__setitem__(index, value)


def changed(name, function):
    return lambda _, tensors: tensors.update({name: function(tensors[name])})


def preprocess(**values):
    return text("preprocess", independent.canonical(values))


def diagonal(scale):
    """The edit that puts a map of the diagonal form in the place of the file's."""

    def edit(_, tensors):
        tensors.pop("affine.matrix")
        tensors.pop("affine.matrix_scale")
        tensors["affine.scale"] = scale

    return edit


def floats(matrix):
    """The edit that puts a matrix without a scale in the place of the int8 one."""

    def edit(_, tensors):
        tensors.pop("affine.matrix_scale")
        tensors["affine.matrix"] = matrix

    return edit


def narrow(_, tensors):
    """The edit to a map that is sound, of 7 features."""
    for name in ("mean", "matrix_scale"):
        tensors[f"affine.{name}"] = tensors[f"affine.{name}"][:7].copy()
    tensors["affine.matrix"] = tensors["affine.matrix"][:7, :7].copy()


ONES = np.ones(8, np.float32)
STATE = "state.bn1.running_mean"
REFUSED = {
    "unknown format": (text("format", "smn-mask/2"), r"format is 'smn-mask/2'"),
    "no format": (without_text("format"), r"format is None.*--weights"),
    "unknown codec": (text("codec", "lzma"), r"unknown codec 'lzma'"),
    "no codec": (without_text("codec"), r"'codec' is missing"),
    "no model": (without_text("model"), r"'model' is missing"),
    "no fingerprint": (without_text("fingerprint"), r"'fingerprint' is missing"),
    "no layout": (without_text("layout"), r"'layout' is missing"),
    "parent": (text("parent", "sha256:" + "0" * 64), r"parent"),
    "missing tensor": (without_tensor(f"mask.{FIRST}"), rf"mask\.{FIRST} is missing"),
    "extra tensor": (tensor("mask.fc.weight", np.ones(4, np.uint8)), r"mask\.fc\.weight does not belong"),
    "tensor of no kind": (tensor("weights", np.ones(4, np.float32)), r"weights does not belong"),
    "raw bits and a zstd frame": (tensor("bits", np.ones(4, np.uint8)), r"bits does not belong"),
    "bits too short": (changed(f"mask.{FIRST}", lambda a: a[:-1]), rf"mask\.{FIRST} is uint8 \[26\].*\[27\]"),
    "bits in two dimensions": (changed(f"mask.{FIRST}", lambda a: a.reshape(3, 9)), r"\[3, 9\]"),
    "bits as floats": (changed(f"mask.{FIRST}", lambda a: a.astype(np.float32)), rf"mask\.{FIRST} is float32"),
    "a tensor all OFF": (change(f"mask.{FIRST}", slice(None), 0), rf"every weight of {FIRST} is OFF"),
    "state is NaN": (change(STATE, 0, np.nan), r"bn1\.running_mean has a value that is not finite"),
    "state is infinite": (change(STATE, 3, -np.inf), r"bn1\.running_mean has a value that is not finite"),
    "negative variance": (change("state.bn1.running_var", 0, -1e-3), r"bn1\.running_var has a negative variance"),
    "unknown state": (tensor("state.bn9.running_mean", np.ones(8, np.float32)), r"state\.bn9\.running_mean is not"),
    "state is a weight": (tensor("state.bn1.weight", np.ones(16, np.float32)), r"state\.bn1\.weight is not"),
    "state of another shape": (changed(STATE, lambda a: a[:4]), r"bn1\.running_mean has shape \[4\].*\[16\]"),
    "state in float64": (changed(STATE, lambda a: a.astype(np.float64)), r"bn1\.running_mean is float64"),
    "no head.bias": (without_tensor("head.bias"), r"head needs"),
    "no head.weight": (without_tensor("head.weight"), r"head needs"),
    "no classes": (without_text("classes"), r"head needs"),
    "fewer classes": (text("classes", '["cat","dog"]'), r"do not fit 2 classes"),
    "classes are no list": (text("classes", '{"cat":1}'), r"'classes' is not a list"),
    "classes are numbers": (text("classes", "[1,2,3]"), r"'classes' is not a list"),
    "classes are no JSON": (text("classes", "cat, dog, other"), r"'classes' is not JSON"),
    "classes are too deep": (text("classes", "[" * 100_000), r"'classes' is not JSON"),
    "head too narrow": (changed("head.weight", lambda a: a[:, :5].copy()), r"do not fit 3 classes of 8"),
    "head is one row": (changed("head.weight", lambda a: a[0].copy()), r"not \[C,D\]"),
    "head is not finite": (change("head.weight", (0, 0), np.inf), r"head has a value that is not finite"),
    "head in float64": (changed("head.bias", lambda a: a.astype(np.float64)), r"head\.bias is float64"),
    "no affine.mean": (without_tensor("affine.mean"), r"affine\.mean is missing"),
    "a map of neither form": (without_tensor("affine.matrix", "affine.matrix_scale"), r"either affine\.scale or"),
    "a map of both forms": (tensor("affine.scale", ONES), r"either affine\.scale or affine\.matrix"),
    "affine.mean is NaN": (change("affine.mean", 2, np.nan), r"affine\.mean has a value that is not finite"),
    "affine.matrix_scale is infinite": (
        change("affine.matrix_scale", 0, np.inf),
        r"affine\.matrix_scale .* not finite",
    ),
    "affine.matrix_scale is 0": (change("affine.matrix_scale", 7, 0.0), r"affine\.matrix_scale .* not above 0"),
    "affine.scale is 0": (diagonal(np.zeros(8, np.float32)), r"affine\.scale has a value that is not above 0"),
    "affine.scale is negative": (diagonal(-ONES), r"affine\.scale has a value that is not above 0"),
    "affine.scale too short": (diagonal(ONES[:7]), r"affine\.scale is \[7\], expected \[8\]"),
    "an int8 matrix without its scale": (
        without_tensor("affine.matrix_scale"),
        r"affine\.matrix_scale belongs to an int8",
    ),
    "a float matrix with a scale": (
        changed("affine.matrix", lambda a: a.astype(np.float16)),
        r"affine\.matrix_scale belongs to an int8",
    ),
    "affine.matrix is not square": (changed("affine.matrix", lambda a: a[:5].copy()), r"affine\.matrix is \[5, 8\]"),
    "a matrix of uint8": (floats(np.eye(8, dtype=np.uint8)), r"affine\.matrix is uint8"),
    "a matrix of float64": (floats(np.eye(8)), r"affine\.matrix is float64"),
    "a matrix that is infinite": (floats(np.full((8, 8), np.inf, np.float16)), r"affine\.matrix .* not finite"),
    "affine.mean in float64": (changed("affine.mean", lambda a: a.astype(np.float64)), r"affine\.mean is float64"),
    "affine.mean is a matrix": (tensor("affine.mean", np.eye(8, dtype=np.float32)), r"affine\.mean is \[8, 8\]"),
    "a map of another width": (narrow, r"affine\.mean has 7 features, the backbone has 8"),
    "extra affine tensor": (tensor("affine.bias", ONES), r"affine\.bias is not a tensor of a map"),
    "preprocess is no JSON": (text("preprocess", "mean=0"), r"'preprocess' is not JSON"),
    "preprocess is a list": (text("preprocess", "[]"), r"'preprocess' is not a table"),
    "mean of two numbers": (preprocess(mean=[0.5, 0.5]), r"three numbers"),
    "std of texts": (preprocess(std=["a", "b", "c"]), r"three numbers"),
}


@pytest.mark.parametrize(("edit", "cause"), REFUSED.values(), ids=REFUSED)
def test_a_broken_rule_is_refused_with_its_cause(crafted, tiny_resnet, edit, cause):
    with pytest.raises(InvalidMask, match=cause):
        maskfile.parse_mask(crafted(edit), tiny_resnet.layout)


def test_the_file_that_the_refused_ones_were_made_of_is_accepted(crafted, tiny_resnet):
    mask = maskfile.parse_mask(crafted(unchanged), tiny_resnet.layout)
    assert maskfile.check_fits(mask, tiny_resnet) == []


@pytest.mark.parametrize("key", ["zero-variance", "future-key", "diagonal", "float16", "no map"])
def test_what_no_rule_forbids_is_accepted(crafted, tiny_resnet, key):
    edit = {
        "zero-variance": change("state.bn1.running_var", 0, 0.0),
        "future-key": text("author", "someone"),
        "diagonal": diagonal(ONES),
        "float16": floats(np.eye(8, dtype=np.float16)),
        "no map": without_tensor("affine.mean", "affine.matrix", "affine.matrix_scale"),
    }[key]
    maskfile.parse_mask(crafted(edit), tiny_resnet.layout)


def test_a_set_padding_bit_is_refused(make_backbone, make_mask):
    """In a ViT of width 6, whose biases do not fill their last bytes."""
    backbone = make_backbone("test_vit", depth=1, embed_dim=6, num_heads=1)
    padded = next(t for t in backbone.layout if t.n_weights % 8)
    metadata, tensors = independent.parse(maskfile.serialise_mask(make_mask(backbone), "raw"))
    stored = tensors[f"mask.{padded.name}"].copy()
    stored[-1] |= 0x80
    tensors[f"mask.{padded.name}"] = stored
    metadata["content"] = independent.content(metadata, tensors)
    with pytest.raises(InvalidMask, match=f"padding bit is set after the last weight of {padded.name}"):
        maskfile.parse_mask(independent.container(metadata, tensors), backbone.layout)


def test_a_wrong_content_is_refused(sound, tiny_resnet):
    metadata = sound[0] | {"content": "0" * 64}
    with pytest.raises(InvalidMask, match="damaged"):
        maskfile.parse_mask(independent.container(metadata, sound[1]), tiny_resnet.layout)


def test_a_missing_content_is_refused(sound, tiny_resnet):
    metadata = {key: value for key, value in sound[0].items() if key != "content"}
    with pytest.raises(InvalidMask, match="'content' is missing"):
        maskfile.parse_mask(independent.container(metadata, sound[1]), tiny_resnet.layout)


# ---- another backbone


def test_another_layout_is_refused(crafted, tiny_vit):
    with pytest.raises(WrongBackbone, match="layout"):
        maskfile.parse_mask(crafted(unchanged), tiny_vit.layout)


def test_a_layout_that_is_not_the_models_is_refused_without_a_backbone(crafted):
    with pytest.raises(WrongBackbone, match="layout"):
        maskfile.parse_mask(crafted(text("model", independent.model_json("test_resnet"))))


def test_another_fingerprint_is_refused(make_backbone, make_mask):
    """The same architecture with other weights."""
    ours, theirs = (make_backbone("test_vit", seed=seed) for seed in (0, 1))
    with pytest.raises(WrongBackbone, match=f"fingerprint {theirs.fingerprint[:16]}.*{ours.fingerprint[:16]}"):
        maskfile.check_fits(make_mask(theirs), ours)


@pytest.mark.parametrize("model", ["not JSON", "[]", "{}", '{"architecture":"test_vit"}'])
def test_a_model_text_that_names_no_model_is_refused(crafted, tiny_resnet, make_backbone, model):
    """Whether the layout is at hand or not, and wherever the text is looked at first."""
    data = crafted(text("model", model))
    with pytest.raises(InvalidMask, match="'model'"):
        maskfile.parse_mask(data)
    with pytest.raises(InvalidMask):
        other = make_backbone("test_resnet", seed=1, **tiny_resnet.args)
        maskfile.check_fits(maskfile.parse_mask(data, tiny_resnet.layout), other)


UNBUILDABLE = {
    "patch size 0": ("test_vit", {"patch_size": 0}),
    "0 heads": ("test_vit", {"num_heads": 0}),
    "negative width": ("test_vit", {"embed_dim": -1}),
    "unknown argument": ("test_resnet", {"colour": "red"}),
    "not an embedding": ("test_resnet", {"features_only": True}),
    "reserved argument": ("test_resnet", {"pretrained": True}),
}


@pytest.mark.parametrize(("architecture", "args"), UNBUILDABLE.values(), ids=UNBUILDABLE)
def test_a_model_that_timm_cannot_build_is_refused(crafted, architecture, args):
    with pytest.raises(InvalidMask, match="'model'"):
        maskfile.parse_mask(crafted(text("model", independent.model_json(architecture, **args))))


def test_a_model_text_that_is_not_canonical_is_refused(crafted, sound):
    with pytest.raises(InvalidMask, match="canonical"):
        maskfile.parse_mask(crafted(text("model", sound[0]["model"].replace(",", ", "))))


def test_a_model_that_timm_does_not_have_is_refused_by_name(crafted):
    with pytest.raises(UnknownModel, match="resnet5000"):
        maskfile.parse_mask(crafted(text("model", independent.model_json("resnet5000"))))


# ---- pixels


@pytest.mark.parametrize("key", ["mean", "std"])
def test_other_pixels_are_refused(tiny_resnet, make_mask, key):
    mask = make_mask(tiny_resnet, with_preprocess=True)
    trained = {**mask.preprocess, key: (0.485, 0.456, 0.406)}
    with pytest.raises(WrongBackbone, match=key):
        maskfile.check_fits(replace(mask, preprocess=trained), tiny_resnet)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "NaN", "Infinity"])
def test_a_mean_that_is_no_float_is_refused(crafted, tiny_resnet, number):
    data = crafted(text("preprocess", f'{{"mean":[{number},0,0]}}'))
    with pytest.raises(InvalidMask, match="'preprocess' has a"):
        maskfile.check_fits(maskfile.parse_mask(data, tiny_resnet.layout), tiny_resnet)


@pytest.mark.parametrize(("key", "value"), [("input_size", (3, 96, 96)), ("crop_pct", 1.0), ("crop_mode", "squash")])
def test_another_size_or_crop_is_a_warning(tiny_resnet, make_mask, key, value):
    mask = make_mask(tiny_resnet, with_preprocess=True)
    data = maskfile.serialise_mask(replace(mask, preprocess={**mask.preprocess, key: value}))
    (warning,) = maskfile.check_fits(maskfile.parse_mask(data, tiny_resnet.layout), tiny_resnet)
    assert key in warning


def test_a_mask_that_says_nothing_of_its_pixels_is_accepted(tiny_resnet, make_mask):
    assert maskfile.check_fits(make_mask(tiny_resnet), tiny_resnet) == []


# ---- zstd


def raw_frame(declared, n_blocks, block_bytes):
    """A zstd frame written by hand: one segment, a content size of 8 bytes, then runs of 0xFF."""
    blocks = [
        struct.pack("<I", (block_bytes << 3) | (1 << 1) | (index == n_blocks - 1))[:3] + b"\xff"
        for index in range(n_blocks)
    ]
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", declared) + b"".join(blocks)


def compress(data, **parameters):
    return zstandard.ZstdCompressor(**parameters).compress(data)


FRAMES = {
    "declares 64 GiB": lambda _: raw_frame(2**36, 1, 1000),
    "declares 2**63 bytes": lambda _: raw_frame(2**63, 1, 1000),
    "declares too little": lambda packed: compress(packed[:-1]),
    "declares too much": lambda packed: compress(packed + b"\xff"),
    "declares right, inflates to 300 MB": lambda packed: raw_frame(len(packed), 300_000, 1000),
    "declares right, holds one byte more": lambda packed: raw_frame(len(packed), 1, len(packed) + 1),
    "declares right, holds one byte less": lambda packed: raw_frame(len(packed), 1, len(packed) - 1),
    "declares right, holds nothing": lambda packed: raw_frame(len(packed), 0, 0),
    "no content size": lambda packed: compress(packed, write_content_size=False),
    "trailing byte": lambda packed: compress(packed) + b"\0",
    "two frames": lambda packed: compress(packed) * 2,
    "second frame is the rest": lambda packed: compress(packed[:500]) + compress(packed[500:]),
    "skippable frame behind": lambda packed: compress(packed) + b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
    "skippable frame before": lambda packed: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + compress(packed),
    "truncated": lambda packed: compress(packed)[:-3],
    "header alone": lambda packed: compress(packed)[:9],
    "empty": lambda _: b"",
    "not zstd": lambda packed: packed,
    "damaged": lambda packed: compress(packed, write_checksum=True)[:-1] + b"\0",
    "unknown dictionary": lambda packed: compress(
        packed, dict_data=zstandard.ZstdCompressionDict(b"\x37\xa4\x30\xec" + packed, zstandard.DICT_TYPE_RAWCONTENT)
    ),
}


def zstd_file(backbone, frame):
    metadata = {
        "format": "smn-mask/1",
        "model": backbone.model_json,
        "fingerprint": backbone.fingerprint,
        "layout": backbone.layout.digest,
        "codec": "zstd",
    }
    tensors = {"bits": np.frombuffer(frame, np.uint8)}
    return independent.container(metadata | {"content": independent.content(metadata, tensors)}, tensors)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_that_is_not_exactly_the_bits_is_refused_in_little_memory(tiny_resnet, make_mask, frame):
    data = zstd_file(tiny_resnet, frame(make_mask(tiny_resnet).packed.tobytes()))
    with at_most(32 * MIB), pytest.raises(InvalidMask, match="zstd"):
        maskfile.parse_mask(data, tiny_resnet.layout)


def test_a_frame_of_any_level_is_accepted(tiny_resnet, make_mask):
    packed = make_mask(tiny_resnet).packed
    for level in (1, 3, 22):
        found = maskfile.parse_mask(zstd_file(tiny_resnet, compress(packed.tobytes(), level=level)), tiny_resnet.layout)
        assert_array_equal(found.packed, packed)


def test_a_frame_written_by_hand_is_accepted(tiny_resnet):
    """The twin of the hand-made frames above: they are refused for what they say, not for how they were made."""
    n_bytes = tiny_resnet.layout.n_bytes
    assert maskfile.parse_mask(zstd_file(tiny_resnet, raw_frame(n_bytes, 1, n_bytes)), tiny_resnet.layout).n_off == 0


@pytest.mark.parametrize("stored", [np.ones((2, 8), np.uint8), np.ones(4, np.float32)], ids=["2 dimensions", "floats"])
def test_a_frame_of_another_type_or_shape_is_refused(tiny_resnet, stored):
    metadata, _ = independent.parse(zstd_file(tiny_resnet, b"."))
    metadata["content"] = independent.content(metadata, {"bits": stored})
    with pytest.raises(InvalidMask, match=r"bits is .* expected uint8 of one dimension"):
        maskfile.parse_mask(independent.container(metadata, {"bits": stored}), tiny_resnet.layout)


# ---- files that are something else, or lie about themselves


def lying(header, body=b"", length=None):
    """A file with this header (text or JSON) behind a length that may be a lie."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + body


def one_tensor(dtype="U8", shape=(8,), offsets=(0, 8)):
    return {
        "__metadata__": {"format": "smn-mask/1"},
        "bits": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)},
    }


def two_tensors(first, second):
    entries = {n: {"dtype": "U8", "shape": [4], "data_offsets": o} for n, o in (("a", first), ("b", second))}
    return {"__metadata__": {}, **entries}


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as found:
        found.writestr("archive/data.pkl", pickle.dumps({"weight": [1.0]}))
    return buffer.getvalue()


DEEP = 200_000
FOREIGN = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "zeros": b"\0" * 64,
    "text": b"This is a mask, believe me.\n" * 4,
    "zip, as torch.save writes": archive(),
    "pickle": pickle.dumps({"mask.conv1.weight": list(range(100))}),
    "header length 2**62": lying(one_tensor(), b"\0" * 8, length=2**62),
    "header length 2**64 - 1": lying(one_tensor(), b"\0" * 8, length=2**64 - 1),
    "header length one too long": lying(one_tensor(), length=len(json.dumps(one_tensor())) + 1),
    "header length 0": lying(one_tensor(), b"\0" * 8, length=0),
    "header is a list": lying([]),
    "header is a number": lying(b"1" * 5000),
    "header is not UTF-8": lying(b'{"\xff":1}'),
    "header is half a surrogate": lying(b'{"__metadata__":{"format":"\\ud800"}}'),
    "header nested deeply": lying(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "header of open brackets": lying(b"[" * DEEP),
    "metadata nested deeply": lying(b'{"__metadata__":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "metadata is null": lying({"__metadata__": None}),
    "metadata of numbers": lying({"__metadata__": {"format": 1}}),
    "no metadata": lying({}),
    "offsets beyond the file": lying(one_tensor(offsets=(0, 2**40), shape=(2**40,)), b"\0" * 8),
    "offsets overflow": lying(one_tensor(offsets=(0, 2**64), shape=(8,)), b"\0" * 8),
    "offsets negative": lying(one_tensor(offsets=(-8, 0)), b"\0" * 8),
    "offsets reversed": lying(one_tensor(offsets=(8, 0)), b"\0" * 8),
    "offsets overlap": lying(two_tensors([0, 4], [2, 6]), b"\0" * 6),
    "offsets leave a hole": lying(two_tensors([0, 4], [6, 10]), b"\0" * 10),
    "bytes behind the tensors": lying(one_tensor(), b"\0" * 9),
    "shape larger than its bytes": lying(one_tensor(shape=(9,)), b"\0" * 8),
    "shape smaller than its bytes": lying(one_tensor(shape=(7,)), b"\0" * 8),
    "shape overflows": lying(one_tensor(shape=(2**33, 2**33)), b"\0" * 8),
    "shape of nothing times 2**63": lying(one_tensor(shape=(0, 2**63), offsets=(0, 0))),
    "shape of nothing times 2**62 floats": lying(one_tensor("F32", shape=(0, 2**62), offsets=(0, 0))),
    "shape of 100 dimensions": lying(one_tensor(shape=(1,) * 100, offsets=(0, 1)), b"\0"),
    "type that does not exist": lying(one_tensor("U9"), b"\0" * 8),
    "type that numpy lacks": lying(one_tensor("BF16", shape=(4,)), b"\0" * 8),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_a_sound_container_is_refused_in_little_memory(tiny_resnet, data):
    with at_most(64 * MIB), pytest.raises(InvalidMask):
        maskfile.parse_mask(data, tiny_resnet.layout)


@pytest.mark.parametrize("where", ["__metadata__", "a text", "a tensor"])
def test_a_key_that_is_there_twice_is_refused(sound, tiny_resnet, where):
    data = independent.container(*sound)
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].decode().rstrip()
    twice = {
        "__metadata__": header[:-1] + ',"__metadata__":{}}',
        "a text": header.replace('"codec":"raw"', '"codec":"zstd","codec":"raw"'),
        "a tensor": header[:-1] + f',"mask.{FIRST}":' + json.dumps(json.loads(header)[f"mask.{FIRST}"]) + "}",
    }[where]
    assert twice != header
    with pytest.raises(InvalidMask, match="twice"):
        maskfile.parse_mask(lying(twice.encode(), data[8 + length :]), tiny_resnet.layout)


def test_a_file_too_large_to_be_a_mask_is_refused_unread(tmp_path, tiny_resnet):
    path = tmp_path / "huge.smn"
    with path.open("wb") as file:
        file.truncate(2**36)
    with at_most(MIB), pytest.raises(InvalidMask, match=r"huge\.smn has 68719476736 bytes"):
        maskfile.read_mask(path, tiny_resnet.layout)


@pytest.mark.parametrize("name", ["absent.smn", ".", "pipe"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, tiny_resnet, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidMask, match="cannot read"):
        maskfile.read_mask(tmp_path / name, tiny_resnet.layout)


def test_a_refusal_names_the_file(tmp_path, tiny_resnet):
    path = tmp_path / "text.smn"
    path.write_text("not a mask at all")
    with pytest.raises(InvalidMask, match=r"text\.smn: not a safetensors file"):
        maskfile.read_mask(path, tiny_resnet.layout)


# ---- damage


@pytest.fixture(scope="session")
def small_files(tiny_vit, make_mask):
    """Two files small enough to damage in every way."""
    mask = make_mask(tiny_vit, with_head=True, metadata={"objective": "swav"}, with_affine="int8")
    return {codec: maskfile.serialise_mask(mask, codec) for codec in ("raw", "zstd")}


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_truncated_file_is_refused(small_files, tiny_vit, codec):
    """Cut anywhere."""
    data = small_files[codec]
    for length in range(len(data)):
        with pytest.raises(InvalidMask):
            maskfile.parse_mask(data[:length], tiny_vit.layout)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_flipped_bit_is_refused(small_files, tiny_vit, codec):
    """Every single one, in the header and behind it."""
    data = bytearray(small_files[codec])
    accepted = []
    for index in range(8 * len(data)):
        data[index // 8] ^= 1 << index % 8
        try:
            maskfile.parse_mask(bytes(data), tiny_vit.layout)
            accepted.append(index)
        except InvalidMask:
            pass
        data[index // 8] ^= 1 << index % 8
    assert accepted == []


def test_a_flipped_bit_in_an_escaped_letter_is_refused(tiny_vit, make_mask):
    """JSON spells one letter as \\u00fc or \\u00FC, one bit apart: the content is the same, the digest is not."""
    data = maskfile.serialise_mask(make_mask(tiny_vit, metadata={"dataset": "blüten"}), "raw")
    flipped = data.replace(b"\\u00fc", b"\\u00Fc")
    assert flipped != data or "ü".encode() in data
    if flipped != data:
        with pytest.raises(InvalidMask):
            maskfile.parse_mask(flipped, tiny_vit.layout)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_is_refused_without_a_layout_too(sound, data):
    """Of a file with state, head and preprocessing, whose model text may now name anything."""
    flipped = bytearray(independent.container(*sound))
    index = data.draw(st.integers(0, 8 * len(flipped) - 1))
    flipped[index // 8] ^= 1 << index % 8
    with pytest.raises(SMNError):
        maskfile.parse_mask(bytes(flipped))


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(tiny_vit, data):
    with pytest.raises(InvalidMask):
        maskfile.parse_mask(data, tiny_vit.layout)


@given(
    st.dictionaries(
        st.sampled_from(["format", "model", "layout", "codec", "fingerprint", "content", "preprocess", "classes"]),
        st.text(max_size=30),
        min_size=1,
    )
)
@settings(max_examples=100, deadline=None)
def test_metadata_of_random_texts_never_breaks_the_reader(tiny_resnet, sound, texts):
    """It is read or refused; no other error comes out."""
    metadata = sound[0] | texts
    if "content" not in texts:
        metadata["content"] = independent.content(metadata, sound[1])
    for layout in (tiny_resnet.layout, None):
        try:
            mask = maskfile.parse_mask(independent.container(metadata, sound[1]), layout)
            maskfile.check_fits(mask, tiny_resnet)
        except SMNError:
            pass


# ---- what is written is what is read


@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0.0, 1.0),
    codec=st.sampled_from(["raw", "zstd"]),
    with_state=st.booleans(),
    with_head=st.booleans(),
    with_affine=st.sampled_from([None, "diagonal", "float32", "float16", "int8"]),
    metadata=st.dictionaries(st.sampled_from(["objective", "dataset", "recipe", "created"]), st.text(max_size=20)),
)
@settings(max_examples=60, deadline=None)
def test_a_mask_reads_as_it_was_written(
    tiny_resnet, make_mask, seed, density, codec, with_state, with_head, with_affine, metadata
):
    mask = make_mask(
        tiny_resnet,
        density,
        seed,
        with_state=with_state,
        with_head=with_head,
        metadata=metadata,
        with_affine=with_affine,
    )
    data = maskfile.serialise_mask(mask, codec)
    found = maskfile.parse_mask(data, tiny_resnet.layout)
    assert_array_equal(found.packed, mask.packed, strict=True)
    assert {name: values.tobytes() for name, values in found.state.items()} == {
        name: values.tobytes() for name, values in mask.state.items()
    }
    assert (found.head is None) == (mask.head is None)
    assert (found.affine is None) == (mask.affine is None)
    if mask.affine is not None:
        stored = found.affine.tensors()
        assert stored.keys() == mask.affine.tensors().keys()
        for name, values in mask.affine.tensors().items():
            assert_array_equal(stored[name], values, strict=True)
    assert found.metadata == metadata
    assert found.digest == tensorfile.digest_of(data)
    assert maskfile.serialise_mask(found, codec) == data


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_written_file_is_the_bytes_of_its_mask(tmp_path, tiny_vit, make_mask, codec):
    path = tmp_path / "mask.smn"
    written = maskfile.write_mask(make_mask(tiny_vit), path, codec)
    assert path.read_bytes() == maskfile.serialise_mask(written, codec)
    assert [p.name for p in tmp_path.iterdir()] == ["mask.smn"]
    read = maskfile.read_mask(path, tiny_vit.layout)
    assert read.digest == written.digest == tensorfile.digest_of(path.read_bytes())
    assert_array_equal(read.packed, written.packed)


def test_writing_an_unknown_codec_is_refused(tiny_vit, make_mask):
    with pytest.raises(InvalidMask, match="unknown codec 'gzip'"):
        maskfile.serialise_mask(make_mask(tiny_vit), "gzip")


def test_a_read_mask_cannot_be_changed(small_files, tiny_vit):
    for data in small_files.values():
        mask = maskfile.parse_mask(data, tiny_vit.layout)
        with pytest.raises(ValueError, match="read-only"):
            mask.packed[0] = 0


def test_one_bit_changes_the_digest(tiny_vit, make_mask):
    mask = make_mask(tiny_vit, density=1.0)
    first = next(iter(tiny_vit.layout))
    on = np.ones(first.n_weights, bool)
    on[5] = False
    packed = np.concatenate([bits.pack(on), mask.packed[first.n_bytes :]])
    other = replace(mask, packed=packed)
    for codec in ("raw", "zstd"):
        assert maskfile.serialise_mask(mask, codec) != maskfile.serialise_mask(other, codec)


SCRIPT = """
import sys
from smn_core import maskfile, tensorfile
mask = maskfile.parse_mask(open(sys.argv[1], "rb").read())
print(*(tensorfile.digest_of(maskfile.serialise_mask(mask, codec)) for codec in ("raw", "zstd")))
"""


def test_equal_masks_give_equal_files_in_every_process():
    """Whatever order hashing gives to sets and tables."""
    path = make.HERE / "raw.smn"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    answers = {child.communicate(timeout=120)[0].strip() for child in children}
    mask = maskfile.parse_mask(path.read_bytes())
    ours = " ".join(tensorfile.digest_of(maskfile.serialise_mask(mask, codec)) for codec in ("raw", "zstd"))
    assert answers == {ours}


@pytest.fixture
def coded(tiny_resnet, make_mask):
    """A mask, and its file under codec context."""
    mask = make_mask(tiny_resnet, with_state=True, with_head=True, with_preprocess=True, with_affine="int8")
    return mask, maskfile.serialise_mask(mask, "context", tiny_resnet)


def test_without_weights_a_context_mask_has_all_but_its_bits(coded, tiny_resnet):
    mask, data = coded
    found = maskfile.parse_mask(data)
    assert isinstance(found, CodedMask)
    assert (found.model, found.fingerprint, found.metadata) == (mask.model, mask.fingerprint, mask.metadata)
    assert found.state.keys() == mask.state.keys() and found.head.classes == mask.head.classes
    for asked in ("packed", "on_counts", "density", "n_off", "alphas"):
        with pytest.raises(WeightsNeeded, match="--weights"):
            getattr(found, asked)
    assert maskfile.check_fits(found, tiny_resnet) == []


def test_with_weights_a_context_mask_is_the_mask_that_was_written(coded, tiny_resnet):
    mask, data = coded
    found = maskfile.with_bits(maskfile.parse_mask(data, tiny_resnet.layout), tiny_resnet)
    assert_array_equal(found.packed, mask.packed, strict=True)
    assert found.digest == tensorfile.digest_of(data)
    assert maskfile.serialise_mask(found, "raw") == maskfile.serialise_mask(mask, "raw")
    assert maskfile.with_bits(found, tiny_resnet) is found


def test_a_context_mask_is_written_again_as_it_is_coded(coded, tmp_path):
    """Without weights: a verdict is put into its metadata, and its bits are not touched."""
    _, data = coded
    found = maskfile.parse_mask(data)
    assert maskfile.serialise_mask(found) == data
    told = maskfile.write_mask(replace(found, metadata={"metrics": "{}"}), tmp_path / "m.smn")
    assert maskfile.read_mask(tmp_path / "m.smn").coded["bits"].tobytes() == found.coded["bits"].tobytes()
    assert told.metadata == {"metrics": "{}"}


def test_what_nobody_could_read_is_never_written_over_a_mask(tiny_vit, make_mask, tmp_path):
    good, path = make_mask(tiny_vit, with_head=True), tmp_path / "m.smn"
    maskfile.write_mask(good, path)
    before = path.read_bytes()
    head = replace(good.head, classes=("\udcff", *good.head.classes[1:]))
    for bad in (replace(good, head=head), replace(good, metadata={"dataset": "\udcff"})):
        with pytest.raises(SMNError, match="half a surrogate pair"):
            maskfile.write_mask(bad, path)
        assert path.read_bytes() == before


def test_a_context_mask_of_another_backbone_is_refused_before_it_is_decoded(coded, make_backbone):
    other = make_backbone("test_resnet", seed=1)
    with pytest.raises(WrongBackbone, match="fingerprint"):
        maskfile.with_bits(maskfile.parse_mask(coded[1]), other)
    with pytest.raises(WrongBackbone, match="fingerprint"):
        maskfile.serialise_mask(coded[0], "context", other)


def test_a_context_mask_with_a_backbone_whose_weights_are_elsewhere_is_refused(coded, tiny_resnet):
    with pytest.raises(WeightsNeeded, match="not here"):
        maskfile.with_bits(maskfile.parse_mask(coded[1]), replace(tiny_resnet, theta=None))


def test_a_context_stream_of_a_tensor_that_is_all_off_is_refused(tiny_resnet, make_mask):
    """The codec carries any bits; the rules of a mask hold for them as for all others."""
    mask = make_mask(tiny_resnet)
    first = next(iter(mask.layout))
    packed = mask.packed.copy()
    packed[first.bytes] = 0
    metadata, _ = independent.parse(maskfile.serialise_mask(mask, "context", tiny_resnet))
    tensors = codecs.encode(packed, mask.layout, "context", tiny_resnet.theta)
    metadata["content"] = independent.content(metadata, tensors)
    found = maskfile.parse_mask(independent.container(metadata, tensors), tiny_resnet.layout)
    with pytest.raises(InvalidMask, match="every weight of"):
        maskfile.with_bits(found, tiny_resnet)


@pytest.fixture
def family(tiny_resnet, make_mask, tmp_path):
    """A mask, the files of its parent and of itself coded against that, in one folder."""
    parent = maskfile.write_mask(make_mask(tiny_resnet, 0.9, 1), tmp_path / "root.smn")
    mask = make_mask(tiny_resnet, 0.95, 2, with_state=True)
    (tmp_path / "child.smn").write_bytes(maskfile.serialise_mask(mask, "context", tiny_resnet, parent))
    return mask, tmp_path / "root.smn", tmp_path / "child.smn"


def test_a_mask_is_read_with_the_parent_beside_it(family, tiny_resnet):
    mask, root, child = family
    found = maskfile.with_bits(maskfile.read_mask(child, tiny_resnet.layout), tiny_resnet)
    assert_array_equal(found.packed, mask.packed, strict=True)
    assert found.parent == tensorfile.digest_of(root.read_bytes()) and "parent" not in found.metadata
    assert vectors_of_mask(found) == vectors_of_mask(mask)
    assert maskfile.serialise_mask(found, "raw") == maskfile.serialise_mask(mask, "raw")


def test_a_mask_is_read_with_a_parent_that_is_named(family, tiny_resnet, tmp_path):
    mask, root, child = family
    elsewhere = root.rename(tmp_path / "root.elsewhere")
    with pytest.raises(MissingParent, match="--parent FILE"):
        maskfile.with_bits(maskfile.read_mask(child), tiny_resnet)
    found = maskfile.with_bits(maskfile.read_mask(child, parent=elsewhere), tiny_resnet)
    assert_array_equal(found.packed, mask.packed, strict=True)
    assert maskfile.serialise_mask(maskfile.read_mask(child)) == child.read_bytes()


def test_a_parent_has_no_parent(family, tiny_resnet, make_mask):
    mask, _, child = family
    with pytest.raises(InvalidMask, match="coded against a parent itself"):
        maskfile.serialise_mask(mask, "context", tiny_resnet, maskfile.read_mask(child))
    metadata, tensors = independent.parse(child.read_bytes())
    metadata["parent"] = tensorfile.digest_of(child.read_bytes())
    metadata["content"] = independent.content(metadata, tensors)
    with pytest.raises(InvalidMask, match="which no parent may be"):
        maskfile.parse_mask(independent.container(metadata, tensors), tiny_resnet.layout, lambda _: child.read_bytes())


def test_a_parent_must_be_for_the_same_weights_and_the_file_of_its_digest(family, make_backbone, make_mask):
    mask, _, child = family
    theirs = maskfile.serialise_mask(make_mask(make_backbone("test_resnet", seed=1)))
    for other in (theirs, maskfile.serialise_mask(mask)):
        with pytest.raises(InvalidMask, match="parent"):
            maskfile.parse_mask(child.read_bytes(), mask.layout, lambda _, other=other: other)


@pytest.mark.parametrize(("parent", "codec"), [("sha256:abc", "context"), (f"sha256:{'0' * 64}", "zstd")])
def test_a_parent_that_is_no_digest_or_of_another_codec_is_refused(family, tiny_resnet, parent, codec):
    metadata, tensors = independent.parse(maskfile.serialise_mask(family[0], codec, tiny_resnet))
    metadata["parent"] = parent
    metadata["content"] = independent.content(metadata, tensors)
    with pytest.raises(InvalidMask, match="'parent'"):
        maskfile.parse_mask(independent.container(metadata, tensors), tiny_resnet.layout)
    with pytest.raises(InvalidArgument, match="a parent is for codec context"):
        maskfile.serialise_mask(family[0], "zstd", tiny_resnet, family[0])


@pytest.mark.parametrize("precision", ["diagonal", "float32", "float16", "int8"])
def test_statistics_map_and_head_come_back_from_one_tensor_to_the_bit(tiny_resnet, make_mask, precision):
    mask = make_mask(tiny_resnet, with_state=True, with_head=True, with_affine=precision)
    data = maskfile.serialise_mask(mask, "context", tiny_resnet)
    assert set(independent.parse(data)[1]) == {"bits", "rest"}
    found = maskfile.with_bits(maskfile.parse_mask(data, tiny_resnet.layout), tiny_resnet)
    assert maskfile.serialise_mask(found, "raw") == maskfile.serialise_mask(mask, "raw")
    assert independent.read(data, tiny_resnet.model)["state"].keys() == mask.state.keys()


def test_a_file_with_its_statistics_and_map_as_tensors_of_their_own_is_read_for_ever(tiny_resnet, make_mask):
    mask = make_mask(tiny_resnet, with_state=True)
    _, tensors = independent.parse(maskfile.serialise_mask(mask, "zstd"))
    metadata, coded = independent.parse(maskfile.serialise_mask(mask, "context", tiny_resnet))
    tensors["bits"] = coded["bits"]
    metadata["content"] = independent.content(metadata, tensors)
    found = maskfile.with_bits(maskfile.parse_mask(independent.container(metadata, tensors)), tiny_resnet)
    assert maskfile.serialise_mask(found, "raw") == maskfile.serialise_mask(mask, "raw")
