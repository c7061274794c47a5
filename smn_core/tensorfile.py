"""Read safetensors files strictly and write them canonically, with the content checksum of docs/formats.md.

The safetensors library reads and checks the tensors. This module adds three things. It refuses duplicate keys in a
header, which the library accepts. It bounds keys and JSON texts, so that whatever an answer says of a file can be said.
It writes `__metadata__` in sorted order: the library's order is random, and equal runs would give different files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors
from numpy import ndarray

from smn_core.errors import SMNError

MAX_HEADER_BYTES = 16 * 2**20
MAX_METADATA_BYTES = 4 * 2**20
"""Most bytes of `__metadata__` as UTF-8, keys and values: a list of 100,000 classes fits."""
MAX_KEYS, MAX_TENSORS, MAX_KEY_CHARS = 256, 2**14, 512
MAX_QUOTES = 10 * (MAX_TENSORS + 1) + 4 * MAX_KEYS
"""Of a header: a tensor has ten, a key of the metadata with its text four. Those inside of texts do not count."""
MAX_VALUES = 16 * (MAX_TENSORS + MAX_KEYS)
"""Commas and opened lists and tables of a header, outside of its texts: a tensor of ten sides has sixteen."""
STEP_BYTES = 2**20
"""As much of a header is looked at before another thread may run."""
MOST_SAID = 200
"""Characters of a shape, or of another's error, in a message."""
MAX_DEPTH = 16
"""Most tables and lists inside each other, in the header and in a JSON text of the metadata."""
MAX_INTEGER = 2**63 - 1
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1"}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
"""What `digest_of` gives."""


class InvalidTensorFile(SMNError):
    """Bytes that are not a sound safetensors file, or whose content differs from their checksum."""

    code = "invalid_file"


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds. Tensors are read-only numpy arrays."""

    metadata: dict[str, str]
    tensors: dict[str, ndarray]


def canonical_json(value: object) -> str:
    """The text of a JSON value that digests are made over: equal values give equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def parse_json(text: str) -> object:
    """A JSON text of a file's metadata, of which every reader of JSON can be told: a server repeats it in its answers.

    Raises:
        InvalidTensorFile: not JSON; deeper than MAX_DEPTH; a number that is not finite or an integer of more than 64
            bits; half a surrogate pair. The message begins with "is" or "has", for a caller that names the key.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTensorFile(f"is not JSON: {error}") from error
    _require_sayable(value)
    return value


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of a whole file: the identity of a mask or cascade."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def content_of(metadata: Mapping[str, str], tensors: Mapping[str, ndarray]) -> str:
    """Hex sha256 over every metadata key but `content`, sorted, then over every tensor, sorted by name."""
    digest = hashlib.sha256()
    for key in sorted(set(metadata) - {"content"}):
        digest.update(f"{key}={metadata[key]}\n".encode())
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, ndarray]) -> None:
    """Feed every tensor, sorted by name, to a hash: `<name>|<safetensors type>|<shape>|` and its bytes in C order."""
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name}|{NAMES[array.dtype]}|{list(array.shape)}|".encode())
        digest.update(np.ascontiguousarray(array).data)


def serialise_tensors(tensors: Mapping[str, ndarray], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file. Metadata are sorted; the widest types come first, so every tensor is aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        array = tensors[name]
        end = offset + array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    # Without escapes: an escape has two spellings, so a flipped bit could turn one into the other unseen.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts = [struct.pack("<Q", len(text)), text]
    parts += [np.ascontiguousarray(tensors[n], tensors[n].dtype.newbyteorder("<")).tobytes() for n in order]
    return b"".join(parts)


def serialise_with_content(tensors: Mapping[str, ndarray], metadata: Mapping[str, str]) -> bytes:
    """`serialise_tensors` with the `content` checksum added to the metadata.

    Raises:
        InvalidTensorFile: a key or text that UTF-8 cannot write.
    """
    for key, value in metadata.items():
        if not is_unicode(key + value):
            raise InvalidTensorFile(f"metadata key {key!r} has half a surrogate pair")
    return serialise_tensors(tensors, {**metadata, "content": content_of(metadata, tensors)})


def parse_tensors(data: bytes) -> TensorFile:
    """Read and check a whole file. Tensors are copies of its bytes, so a false header cannot make it allocate more.

    Raises:
        InvalidTensorFile: a truncated file, a header with wrong sizes or duplicate keys, or an unsupported type.
    """
    metadata = read_metadata(data)
    try:
        stored = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise InvalidTensorFile(f"not a sound safetensors file: {str(error)[:MOST_SAID]}") from error
    tensors = {}
    for name, entry in stored:
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InvalidTensorFile(f"tensor {name} has the unsupported type {entry['dtype']}")
        try:
            tensors[name] = np.frombuffer(bytes(entry["data"]), dtype).reshape(entry["shape"])
        except (ValueError, OverflowError) as error:
            said = str(entry["shape"])[:MOST_SAID]
            raise InvalidTensorFile(f"tensor {name} has the impossible shape {said}") from error
    return TensorFile(metadata, tensors)


def require_content(file: TensorFile) -> None:
    """Check the `content` checksum.

    Raises:
        InvalidTensorFile: the checksum is missing, or differs because bytes changed after writing.
    """
    expected, found = file.metadata.get("content"), content_of(file.metadata, file.tensors)
    if expected is None:
        raise InvalidTensorFile("metadata key 'content' is missing")
    if found != expected:
        raise InvalidTensorFile(
            f"the file is damaged: its content is {found[:16]}..., its header says {expected[:16]}..."
        )


def read_metadata(data: bytes) -> dict[str, str]:
    """Read `__metadata__` and check the header: its length, its JSON, no duplicate keys.

    Raises:
        InvalidTensorFile: as `parse_tensors`.
    """
    if len(data) < 8:
        raise InvalidTensorFile(f"not a safetensors file: it has {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise InvalidTensorFile(f"not a safetensors file: a header of {length} bytes in a file of {len(data)}")
    text = data[8 : 8 + length]
    require_few_values(text, "the header")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidTensorFile(f"not a safetensors file: its header is not JSON ({error})") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidTensorFile("not a safetensors file: its metadata is not a table of texts")
    _require_bounded(header, metadata)
    return metadata


def require_few_values(text: bytes, what: str) -> None:
    """Count the texts and values of a list of tensors in JSON before it is parsed.

    A parser holds the interpreter until the last value, and every value becomes an object. What stands inside of texts
    costs nothing and does not count.

    Args:
        what: the list, in the message.

    Raises:
        InvalidTensorFile: more than MAX_TENSORS tensors and MAX_KEYS metadata keys can have.
    """
    quotes = values = within = 0
    escape = b""
    for start in range(0, len(text), STEP_BYTES):
        part = (escape + text[start : start + STEP_BYTES]).replace(b"\\\\", b"")
        escape = b"\\" if part.endswith(b"\\") else b""  # of the next step's first letter
        part = part.removesuffix(escape).replace(b'\\"', b"")
        found = part.count(b'"')
        quotes += found
        if quotes > MAX_QUOTES:
            raise InvalidTensorFile(f"{what} has more than {MAX_TENSORS} tensors or {MAX_KEYS} metadata keys")
        outside = b"".join(part.split(b'"')[within::2])
        within = (within + found) % 2
        values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
        if values > MAX_VALUES:
            raise InvalidTensorFile(f"{what} has more than {MAX_VALUES} values")


def _require_bounded(header: Mapping[str, object], metadata: Mapping[str, str]) -> None:
    """Refuse keys that are too many or too long, and texts that UTF-8 does not have."""
    for what, table, most in (("tensors", header, MAX_TENSORS), ("metadata keys", metadata, MAX_KEYS)):
        if len(table) > most:
            raise InvalidTensorFile(f"the header has {len(table)} {what}, at most {most}")
        for key in table:
            if len(key) > MAX_KEY_CHARS:
                raise InvalidTensorFile(f"the key {key[:32]!r}... has {len(key)} characters, at most {MAX_KEY_CHARS}")
            if not is_unicode(key):
                raise InvalidTensorFile(f"the key {key!r} has half a surrogate pair")
    size = 0
    for key, value in metadata.items():
        if not is_unicode(value):
            raise InvalidTensorFile(f"metadata key {key!r} has half a surrogate pair")
        size += len(key.encode()) + len(value.encode())
        if size > MAX_METADATA_BYTES:
            raise InvalidTensorFile(f"the metadata are larger than {MAX_METADATA_BYTES} bytes, from key {key!r} on")


def _require_sayable(value: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise InvalidTensorFile(f"has more than {MAX_DEPTH} tables and lists inside each other")
    if isinstance(value, str):
        if not is_unicode(value):
            raise InvalidTensorFile("has half a surrogate pair")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidTensorFile("has a number that is not finite")
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise InvalidTensorFile("has an integer of more than 64 bits")
    elif isinstance(value, dict | list):
        if isinstance(value, dict):
            for key in value:
                _require_sayable(key)
        for part in value.values() if isinstance(value, dict) else value:
            _require_sayable(part, depth + 1)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it. JSON's escapes can spell half a surrogate pair, which nothing can write."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise InvalidTensorFile("the header has the same key twice")
    return table
