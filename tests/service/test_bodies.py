"""Arrays that are model inputs already go through without a copy."""

from __future__ import annotations

import io

import numpy as np

from service.bodies import from_array
from smn_core.images import ImageReader
from tests.conftest import build_backbone


def npy(x: np.ndarray) -> bytearray:
    buffer = io.BytesIO()
    np.save(buffer, x)
    return bytearray(buffer.getvalue())


def reader() -> ImageReader:
    return ImageReader(build_backbone("test_vit").preprocess)


def test_an_array_is_read_where_the_body_lies():
    x = np.random.default_rng(0).standard_normal((2, 3, 160, 160), np.float32)
    body = npy(x)
    found = from_array(body, reader())
    assert np.array_equal(found.numpy(), x)
    assert np.shares_memory(found.numpy(), np.frombuffer(body, np.uint8))


def test_an_array_behind_a_header_of_odd_length_is_read_too():
    x = np.random.default_rng(0).standard_normal((1, 3, 160, 160), np.float32)
    body = npy(x)
    length = int.from_bytes(body[8:10], "little")
    body[8:10] = (length + 1).to_bytes(2, "little")
    body[9 + length : 10 + length] = b" \n"
    found = from_array(body, reader())
    assert np.array_equal(found.numpy(), x)
