"""safetensors files are written canonically and read strictly; what is wrong with a file is in test_maskfile.py."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from smn_core import tensorfile
from smn_core.tensorfile import InvalidTensorFile

arrays = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1"]).flatmap(
    lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
tables = st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"), arrays, max_size=5)
texts = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)


@given(tables, texts)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(tensors, metadata):
    file = tensorfile.parse_tensors(tensorfile.serialise_tensors(tensors, metadata))
    assert file.metadata == metadata
    assert file.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert_array_equal(file.tensors[name], values, strict=True)


@given(tables, texts)
@settings(max_examples=50, deadline=None)
def test_the_safetensors_library_reads_it_too(tensors, metadata):
    found = safetensors.numpy.load(tensorfile.serialise_tensors(tensors, metadata))
    assert {name: values.tobytes() for name, values in found.items()} == {
        name: values.tobytes() for name, values in tensors.items()
    }


def test_what_the_safetensors_library_writes_is_read():
    data = safetensors.numpy.save({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"key": "value"})
    file = tensorfile.parse_tensors(data)
    assert file.metadata == {"key": "value"}
    assert file.tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_order_of_tables_does_not_reach_the_file():
    tensors = {"b": np.zeros(3, np.uint8), "a": np.ones(2, np.float32)}
    metadata = {"y": "1", "x": "2"}
    backwards = (dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert tensorfile.serialise_tensors(tensors, metadata) == tensorfile.serialise_tensors(*backwards)


def test_a_strided_array_is_written_in_c_order():
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    file = tensorfile.parse_tensors(tensorfile.serialise_with_content({"a": values}, {}))
    tensorfile.require_content(file)
    assert_array_equal(file.tensors["a"], values)


def test_every_part_of_a_file_is_in_its_content():
    """Metadata keys and values, tensors' names, types, shapes and bytes."""
    content = tensorfile.content_of({"k": "v"}, {"a": np.zeros((2, 3), np.uint8)})
    others = [
        ({"k": "w"}, {"a": np.zeros((2, 3), np.uint8)}),
        ({"l": "v"}, {"a": np.zeros((2, 3), np.uint8)}),
        ({}, {"a": np.zeros((2, 3), np.uint8)}),
        ({"k": "v"}, {"b": np.zeros((2, 3), np.uint8)}),
        ({"k": "v"}, {"a": np.zeros((2, 3), np.int8)}),
        ({"k": "v"}, {"a": np.zeros((3, 2), np.uint8)}),
        ({"k": "v"}, {"a": np.ones((2, 3), np.uint8)}),
        ({"k": "v"}, {}),
    ]
    assert content not in {tensorfile.content_of(*other) for other in others}


def test_the_checksum_itself_is_not_in_the_content():
    assert tensorfile.content_of({"content": "x"}, {}) == tensorfile.content_of({}, {})


def test_a_changed_byte_does_not_match_the_checksum():
    data = bytearray(tensorfile.serialise_with_content({"a": np.zeros(8, np.uint8)}, {}))
    data[-1] ^= 1
    with pytest.raises(InvalidTensorFile, match="damaged"):
        tensorfile.require_content(tensorfile.parse_tensors(bytes(data)))


def test_a_file_without_a_checksum_is_refused():
    with pytest.raises(InvalidTensorFile, match="'content' is missing"):
        tensorfile.require_content(tensorfile.parse_tensors(tensorfile.serialise_tensors({}, {"key": "value"})))


def file_of(header):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def header_of_shape(shape):
    return b'{"a":{"dtype":"F32","shape":[' + shape + b'],"data_offsets":[0,0]}}'


@pytest.mark.parametrize("value", [b"[]", b"{}", b"0", b'[["\\\\",["\\"",'])
def test_a_header_of_more_values_than_tensors_can_have_is_refused_before_it_is_parsed(monkeypatch, value):
    monkeypatch.setattr(json, "loads", None)
    header = header_of_shape(b",".join([value] * (tensorfile.MAX_VALUES + 1)))
    with pytest.raises(InvalidTensorFile, match="the header has more than"):
        tensorfile.read_metadata(file_of(header))


def test_texts_of_the_documented_size_are_read_whatever_stands_in_them():
    """Marks that would be values outside of a text, and escapes on both sides of every step."""
    for text in ("," * 2**21, "[{" * 2**20, '\\"' * 2**20, '",' * 2**20, "\\" * 2**21, '",[' * 2**20):
        for shift in range(4):
            metadata = {"x": "y" * shift, "text": text, "z": '\\"'}
            assert tensorfile.read_metadata(tensorfile.serialise_tensors({}, metadata)) == metadata


def test_as_many_tensors_and_keys_as_are_allowed_are_read():
    entry = {"dtype": "F32", "shape": [0, *[1] * 7], "data_offsets": [0, 0]}
    metadata = {f"key-{number}": "text" for number in range(tensorfile.MAX_KEYS)}
    tensors = {f"tensor-{number}": entry for number in range(tensorfile.MAX_TENSORS - 1)}
    file = tensorfile.parse_tensors(file_of({"__metadata__": metadata} | tensors))
    assert (file.metadata, len(file.tensors)) == (metadata, len(tensors))


@pytest.mark.parametrize(
    "header",
    [header_of_shape(b",".join([b"0"] * 100_000)), header_of_shape(b"").replace(b"F32", b"F" * 100_000)],
)
def test_no_message_repeats_what_is_long_in_a_header(header):
    with pytest.raises(InvalidTensorFile) as raised:
        tensorfile.parse_tensors(file_of(header))
    assert len(str(raised.value)) < 300


def test_read_tensors_are_read_only():
    file = tensorfile.parse_tensors(tensorfile.serialise_tensors({"a": np.zeros(8, np.uint8)}, {}))
    with pytest.raises(ValueError, match="read-only"):
        file.tensors["a"][0] = 1


def test_canonical_json_is_sorted_and_tight():
    assert tensorfile.canonical_json({"b": [1, 2.5], "a": {}}) == '{"a":{},"b":[1,2.5]}'


def test_a_digest_names_its_hash():
    assert tensorfile.digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
