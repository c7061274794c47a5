"""A mask as ordinary timm weights: what every kind of model gives with them, and what cannot be written."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from smn_core.engine import Engine, Segment
from smn_core.errors import InvalidMask
from smn_core.verbs.export import export, n_classes_of
from tests.smn_core.builders import KINDS, images, lively

WITHOUT = ("deit",)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in WITHOUT])
@pytest.mark.parametrize("with_head", [False, True])
def test_plain_timm_gives_the_served_embeddings_of_a_mapped_mask(name, with_head, make_mask, tmp_path):
    """Of every kind of model: loaded with strict=True, its logits are the mapped embeddings, or the head of them."""
    backbone, file = lively(KINDS[name]), tmp_path / "w.safetensors"
    mask = make_mask(backbone, 0.9, 1, with_state=True, with_head=True, with_affine="float32")
    export(backbone, mask, file, with_head=with_head)
    architecture, _, args = KINDS[name]
    n_classes = n_classes_of(mask, with_head=with_head)
    assert n_classes == (3 if with_head else backbone.n_features)
    plain = timm.create_model(architecture, num_classes=n_classes, **args).eval()
    plain.load_state_dict(load_file(file), strict=True)
    x = images(KINDS[name], 3)
    with torch.inference_mode():
        found = plain(x).numpy()
    engine = Engine(backbone)
    engine.prepare(mask)
    served = engine.embed(x, [Segment(mask.digest, 0, 3)]).embeddings.numpy()
    expected = served @ mask.head.weight.T + mask.head.bias if with_head else served
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_of_two_classifiers_is_refused_with_what_to_do(name, make_mask, tmp_path):
    backbone, file = lively(KINDS[name]), tmp_path / "w.safetensors"
    mask = make_mask(backbone, with_head=True, with_affine="diagonal")
    with pytest.raises(InvalidMask, match=r"no single linear classifier to put the map in: say --no-map.*affine\.\*"):
        export(backbone, mask, file)
    with pytest.raises(InvalidMask, match=r"put the head in: leave out --head.*head\.\*"):
        export(backbone, mask, file, with_head=True)
    assert not file.exists()
    export(backbone, mask, file, with_map=False)
    plain = timm.create_model(KINDS[name][0], num_classes=0, **KINDS[name][2])
    plain.load_state_dict(load_file(file), strict=True)
