"""Classifiers in a cascade's file: they come back as they were, change no vectors, and unsound ones are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from smn_core.cascade.cascade import Cascade
from smn_core.cascade.file import parse_cascade, serialise_cascade
from smn_core.errors import InvalidCascade
from smn_core.mask import Head
from smn_core.tensorfile import parse_tensors, serialise_with_content
from smn_core.vectors import vectors_of_cascade
from tests.smn_core.cascade.cascades import D, K, Q, build_cascade

CLASSES = ("a", "b", "c")


def head_of(width: int = Q, seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(len(CLASSES)).astype(np.float32)
    return Head(rng.standard_normal((len(CLASSES), width)).astype(np.float32), bias, CLASSES)


@pytest.fixture
def cascade() -> Cascade:
    return build_cascade(heads={"unconditional": head_of(), "conditional": head_of(seed=1)})


def changed(cascade: Cascade, tensors=None, drop=(), **texts: str) -> bytes:
    file = parse_tensors(serialise_cascade(cascade))
    kept = {name: array for name, array in {**file.tensors, **(tensors or {})}.items() if name not in drop}
    metadata = {key: text for key, text in {**file.metadata, **texts}.items() if key != "content" and text}
    return serialise_with_content(kept, metadata)


def test_heads_come_back_as_they_were_and_have_no_part_in_the_vectors(cascade):
    back, of_masks = parse_cascade(serialise_cascade(cascade)), [f"{i:064x}" for i in range(K + 1)]
    assert set(back.heads) == {"unconditional", "conditional"} and "classes" not in back.metadata
    for mode, head in cascade.heads.items():
        assert (back.heads[mode].weight == head.weight).all() and (back.heads[mode].bias == head.bias).all()
        assert back.heads[mode].classes == CLASSES
    assert vectors_of_cascade(back, of_masks) == vectors_of_cascade(replace(cascade, heads={}), of_masks)
    assert back.resident_bytes(D) > replace(back, heads={}).resident_bytes(D)


def test_classes_without_a_head_are_a_text_as_before():
    assert parse_cascade(changed(build_cascade(), classes='["x"]')).metadata["classes"] == '["x"]'


WEIGHT, BIAS = "head.conditional.weight", "head.conditional.bias"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"drop": (BIAS,)}, "head.conditional.bias is missing"),
        ({"tensors": {WEIGHT: np.zeros((3, Q + 1), np.float32)}}, "takes 6 components"),
        ({"tensors": {WEIGHT: np.zeros((2, Q), np.float32)}}, "do not fit 3 classes"),
        ({"tensors": {WEIGHT: np.zeros(3, np.float32)}}, "do not fit 3 classes"),
        ({"tensors": {BIAS: np.full(3, np.nan, np.float32)}}, "not finite"),
        ({"tensors": {WEIGHT: np.zeros((3, Q), np.float16)}}, "expected float32"),
        ({"tensors": {"head.both.weight": head_of().weight, "head.both.bias": head_of().bias}}, "no both mode"),
        ({"tensors": {"head.conditional.scale": head_of().bias}}, "head.conditional.scale is not a tensor"),
        ({"tensors": {"head.weight": head_of().weight}}, "head.weight"),
        ({"classes": ""}, "'classes'"),
        ({"classes": '{"a": 1}'}, "'classes'"),
        ({"classes": "["}, "'classes'"),
        ({"classes": '["a", "b"]'}, "do not fit 2 classes"),
    ],
)
def test_an_unsound_head_is_refused_with_its_reason(cascade, given, said):
    with pytest.raises(InvalidCascade, match=said):
        parse_cascade(changed(cascade, **given))


def test_heads_of_two_modes_have_the_same_classes():
    other = replace(head_of(), classes=("x", "y", "z"))
    with pytest.raises(InvalidCascade, match="different classes"):
        build_cascade(heads={"unconditional": head_of(), "conditional": other})
