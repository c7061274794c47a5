"""Whatever a file, a body or its header says: it is refused, or everything that is ever said of it can be said."""

import contextlib
import json
import math
import os
import struct

import independent
import numpy as np
import pytest
import zstandard
from cascades import build
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from independent_client import NPY, as_npy
from served import inputs

from service.app import create_app
from service.registry.directory import DirectoryRegistry
from service.settings import Settings

EXAMPLES = int(os.environ.get("EXAMPLES", "60"))  # of each property; 10,000 take ten minutes
# The server's threads draw random names while hypothesis draws its examples, which it takes for the strategy's doing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
    pytest.mark.timeout(300 + EXAMPLES),
]
property_test = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

words = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(["\ud800", "x\udfff", "\0", "\n", "\x1b[2J"])
numbers = st.integers() | st.floats() | st.sampled_from([2**63, -(2**64), 10**30, True, float("nan"), float("inf")])


def tables(keys, some, max_size):
    return st.lists(st.tuples(keys, some), max_size=max_size).map(dict)


leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(leaves, lambda some: st.lists(some, max_size=4) | tables(words, some, 4))
deep = st.integers(1, 3000).map(lambda depth: "[" * depth + "1" + "]" * depth)
json_texts = values.map(json.dumps) | deep | deep.map('{{"interpolation": {}}}'.format) | words | st.just("1e999")
PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 32, 32], "interpolation": "bicubic"}
pixel_keys = st.sampled_from([*PIXELS, "crop_pct", "crop_mode"]) | words
nearly_pixels = tables(pixel_keys, values, 2).map(lambda given: json.dumps(PIXELS | given))
deep_pixels = deep.map(lambda text: json.dumps(PIXELS)[:-1] + f', "crop_pct": {text}}}')
models = st.tuples(words, values).map(lambda of: independent.canonical({"architecture": of[0], "args": {"x": of[1]}}))
texts = json_texts | nearly_pixels | models
# Mostly what would be accepted but for one value: what is refused at once tells little.
told = st.one_of(
    st.tuples(st.just("preprocess"), nearly_pixels),
    st.tuples(st.just("preprocess"), nearly_pixels | deep_pixels),
    st.tuples(st.just("classes"), st.tuples(words).map(json.dumps)),
    st.tuples(st.sampled_from(["recipe", "created"]) | words, texts),
    st.tuples(st.sampled_from(["preprocess", "model", "classes"]), texts),
)
cascade_keys = st.sampled_from(["recipe", "created"]) | words | st.sampled_from(["experts", "fusion", "mode", "seed"])


def container(metadata, tensors, edits=()):
    """A file whose header is spelled in ASCII, so that it can hold what UTF-8 cannot; `edits` go into the header."""
    header, body = {"__metadata__": metadata}, b""
    for name, array in tensors.items():
        end = len(body) + array.nbytes
        code = {"uint8": "U8", "int8": "I8", "float32": "F32"}[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [len(body), end]}
        body += array.tobytes()
    for name, key, value in edits:
        (header[name] if key else header)[key or name] = value
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def with_content(metadata, tensors):
    """The metadata with the checksum that belongs to them, where there is one."""
    with contextlib.suppress(UnicodeEncodeError):
        return {**metadata, "content": independent.content(metadata, tensors)}
    return {**metadata, "content": "0" * 64}


@pytest.fixture(scope="module")
def client(theta, tmp_path_factory):
    backbone = theta.backbone()
    registry = DirectoryRegistry(tmp_path_factory.mktemp("registry"), backbone.fingerprint)
    app = create_app(Settings(slots=4), backbone, registry)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    app.state.server.close()


@pytest.fixture(scope="module")
def mask_parts(theta):
    """Metadata and tensors of a sound mask with a head."""
    return parts_of(theta.mask(3, codec="raw").data)


@pytest.fixture(scope="module")
def cascade_parts(theta, client):
    """Metadata and tensors of a sound cascade whose masks are on the server."""
    cascade = build(theta, n_experts=2)
    for number, mask in enumerate(cascade.masks):
        assert client.put(f"/masks/part.{number}", content=mask.data).status_code == 201
    return parts_of(cascade.data)


def parts_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    kinds = {"U8": np.uint8, "I8": np.int8, "F32": np.float32}
    tensors = {}
    for name, entry in header.items():
        first, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[first:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors


def require_said(client, kind, data):
    """Upload, then ask for all that is said of it. True where it was accepted."""
    upload = client.put(f"/{kind}/h", content=data)
    reads = [client.get(f"/{kind}/h"), client.get(f"/{kind}/h/file")]
    if upload.status_code not in (200, 201):
        assert 400 <= upload.status_code < 500, upload.text
        assert [answer.status_code for answer in reads] == [404, 404], "what was refused is stored"
        return False
    body = {"content": as_npy(inputs()), "headers": {"Content-Type": NPY}}
    reads += [client.post(f"/embed?{kind[:-1]}=h", **body), client.get(f"/{kind}")]
    body["headers"]["Accept"] = NPY
    reads.append(client.post(f"/embed?{kind[:-1]}=h", **body))
    assert client.delete(f"/{kind}/h").status_code == 204
    assert [answer.status_code for answer in reads] == [200] * 5, [answer.text[:300] for answer in reads]
    return True


@given(st.lists(told, min_size=1, max_size=2))
@property_test
def test_no_metadata_of_a_mask_makes_a_server_fail(client, mask_parts, pairs):
    metadata, tensors = mask_parts
    metadata = metadata | dict(pairs)
    if "classes" in metadata:
        tensors = tensors | {"head.weight": np.zeros((1, 8), np.float32), "head.bias": np.zeros(1, np.float32)}
    require_said(client, "masks", container(with_content(metadata, tensors), tensors))


@given(st.lists(st.tuples(cascade_keys, texts), min_size=1, max_size=2))
@property_test
def test_no_metadata_of_a_cascade_makes_a_server_fail(client, cascade_parts, pairs):
    metadata, tensors = cascade_parts
    metadata = metadata | dict(pairs)
    require_said(client, "cascades", container(with_content(metadata, tensors), tensors))


@given(st.data(), st.sampled_from(["masks", "cascades"]))
@property_test
def test_no_header_of_a_file_makes_a_server_fail(client, mask_parts, cascade_parts, data, kind):
    metadata, tensors = mask_parts if kind == "masks" else cascade_parts
    names = st.sampled_from(list(tensors))
    sides = st.lists(st.sampled_from([0, 1, 8, -1, True, 2**31, 2**63, 2**64, 10**30, 1.5, "8"]), max_size=5)
    dtypes = st.sampled_from(["F32", "F64", "F16", "BF16", "BOOL", "U8", "I64", "F8_E4M3", "x"])
    edits = st.one_of(
        st.tuples(names, st.just("shape"), sides | values),
        st.tuples(names, st.just("dtype"), dtypes | values),
        st.tuples(names, st.just("data_offsets"), st.lists(st.integers(), max_size=3) | values),
        st.tuples(words, st.none(), values | st.just({"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]})),
    )
    given_edits = data.draw(st.lists(edits, min_size=1, max_size=2))
    require_said(client, kind, container(with_content(metadata, tensors), tensors, given_edits))


literals = st.recursive(
    (numbers | words | st.none()).map(repr) | st.sampled_from(["0x" + "f" * 3900, "-0", "1j", "b'x'", "...", "0b1"]),
    lambda some: st.lists(some, max_size=4).map(lambda parts: f"({', '.join(parts)},)"),
    max_leaves=6,
)
sides = st.sampled_from(["1", "3", "32", "True", "-1", "0", str(2**63), str(2**64), str(-(2**70)), "0x" + "f" * 3900])
shapes = st.lists(sides, max_size=6).map(lambda parts: f"({''.join(f'{part}, ' for part in parts)})") | literals
kinds = st.sampled_from(["'<f4'", "'>f4'", "'|O'", "'<f8'", "[('\\ud800', '<f4')]", "('<f4', (2,))", "'<U1'"])
npy_headers = st.builds(
    "{{'descr': {}, 'fortran_order': {}, 'shape': {}}}".format,
    kinds | literals,
    st.sampled_from(["False", "True"]) | literals,
    shapes,
)


@given(npy_headers | literals, st.sampled_from([1, 2, 3]), st.integers(-1, 2))
@property_test
def test_no_npy_header_makes_a_server_fail(client, text, version, extra):
    head = text.encode("utf-8", "surrogatepass") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(head))
    body = b"\x93NUMPY" + bytes([version, 0]) + length + head + bytes(4 * 3 * 32 * 32 + extra)
    answer = client.post("/embed", content=body, headers={"Content-Type": NPY})
    assert answer.status_code in (200, 400, 413, 422), (text, answer.text)


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "unicode_escape", "hex", "utf-7", "none", "a\\b"])
@pytest.mark.parametrize("field", [b"image", b"\\ud800", b"\xff-", b"xn--a\xff"])
def test_no_charset_of_a_multipart_body_makes_a_server_fail(client, charset, field):
    body = b'--B\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\n\r\nx\r\n--B--\r\n' % field
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    answer = client.post("/embed", content=body, headers={"Content-Type": kind})
    assert 400 <= answer.status_code < 500, answer.text


REFUSED = {
    "half a surrogate pair": ("preprocess", '{"interpolation": "\\ud800"}', "'preprocess' has half a surrogate pair"),
    "nesting": ("preprocess", f'{{"a": {"[" * 260}{"]" * 260}}}', "'preprocess' has more than 16"),
    "a number that is not finite": ("preprocess", '{"crop_pct": NaN}', "'preprocess' has a number that is not finite"),
    "a number beyond floats": ("preprocess", '{"crop_pct": 1e999}', "'preprocess' has a number that is not finite"),
    "a wide integer": ("preprocess", '{"crop_pct": 9223372036854775808}', "'preprocess' has an integer of more"),
    "half a pair in a model": ("model", '{"architecture":"\\ud800","args":{}}', "'model' has half a surrogate pair"),
    "half a pair in a text": ("recipe", "\ud800", "'recipe' has half a surrogate pair"),
    "half a pair in a key": ("\ud800", "x", "has half a surrogate pair"),
    "a huge key": ("k" * 513, "x", "has 513 characters, at most 512"),
    "a huge text": ("recipe", "x" * 2**22, "larger than 4194304 bytes, from key 'recipe' on"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_cannot_be_said_is_refused_by_its_key_and_not_stored(client, mask_parts, require_error, which):
    key, value, words = REFUSED[which]
    metadata, tensors = mask_parts
    data = container(with_content(metadata | {key: value}, tensors), tensors)
    assert words in require_error(client.put("/masks/refused", content=data), 422, "invalid_mask")
    require_error(client.get("/masks/refused"), 404, "not_found")


def test_a_mask_whose_verdict_cannot_be_said_is_served_without_one(client, mask_parts):
    metadata, tensors = mask_parts
    metrics = json.dumps({"verdict": {"answer": "leave it", "reason": "no \ud800 use"}})
    metadata = metadata | {"metrics": metrics}
    upload = client.put("/masks/verdict", content=container(with_content(metadata, tensors), tensors))
    assert upload.status_code == 201 and upload.json()["warnings"] == []
    found = client.get("/masks/verdict")
    assert found.status_code == 200 and found.json()["metadata"]["metrics"] == metrics
    body = {"content": as_npy(inputs()), "headers": {"Content-Type": NPY}}
    assert client.post("/embed?mask=verdict", **body).status_code == 200


LISTED = {
    "65 sides": ("state.x", "U8", [1] * 65),
    "a size that no array has": ("state.x", "U8", [0, *[2**31 - 1] * 3]),
    "half a surrogate pair": ("state.\ud800", "U8", [1]),
}


@pytest.mark.parametrize("which", LISTED)
def test_a_packed_tensor_that_cannot_be_is_refused(client, mask_parts, require_error, which):
    told = json.dumps([LISTED[which]]).encode()
    numbers = bytes(math.prod(LISTED[which][2]))
    frame = zstandard.ZstdCompressor().compress(len(told).to_bytes(4, "little") + told + numbers)
    metadata, tensors = mask_parts
    tensors = tensors | {"rest": np.frombuffer(frame, np.uint8)}
    data = container(with_content(metadata, tensors), tensors)
    assert "rest" in require_error(client.put("/masks/packed", content=data), 422, "invalid_mask")


def test_a_head_with_a_class_that_cannot_be_said_is_refused(client, mask_parts, require_error):
    metadata, tensors = mask_parts
    tensors = tensors | {"head.weight": np.zeros((1, 8), np.float32), "head.bias": np.zeros(1, np.float32)}
    data = container(with_content(metadata | {"classes": '["\\ud800"]'}, tensors), tensors)
    assert "'classes'" in require_error(client.put("/masks/refused", content=data), 422, "invalid_mask")


def test_more_metadata_keys_than_can_be_told_are_refused(client, mask_parts, require_error):
    metadata, tensors = mask_parts
    data = container(with_content(metadata | {f"k{i}": "" for i in range(256)}, tensors), tensors)
    assert "metadata keys, at most 256" in require_error(client.put("/masks/refused", content=data), 422)


def test_a_long_value_of_the_preprocessing_is_cut_in_the_warning(client, mask_parts):
    metadata, tensors = mask_parts
    texts = {"preprocess": json.dumps({"interpolation": "x" * 100_000})}
    assert require_said(client, "masks", container(with_content(metadata | texts, tensors), tensors))
    answer = client.put("/masks/long", content=container(with_content(metadata | texts, tensors), tensors)).json()
    assert answer["warnings"] == [f"trained with interpolation {'x' * 80}..., served with bicubic"]


def test_a_shape_of_true_is_no_shape(client, require_error):
    sound = as_npy(inputs())
    assert client.post("/embed", content=sound, headers={"Content-Type": NPY}).status_code == 200
    body = sound.replace(b"(1, 3, 32, 32)", b"(True,3,32,32)")
    assert body != sound
    answer = client.post("/embed", content=body, headers={"Content-Type": NPY})
    assert "shape" in require_error(answer, 422, "invalid_tensor")
