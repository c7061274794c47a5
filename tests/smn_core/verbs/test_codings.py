"""An entropy is that of the bits in their contexts, and the codes are those of the codecs."""

import numpy as np
import pytest

from smn_core import bits, codec
from smn_core.mask import TaskMask
from smn_core.verbs.codings import codings


def test_bits_that_a_context_tells_have_no_entropy_in_it(tiny_vit):
    """Every second row is OFF: by rows nothing is left to say, by tensors and columns a bit a weight."""
    packed = []
    for tensor in tiny_vit.layout:
        rows = np.arange(tensor.n_weights) // int(np.prod(tensor.shape[1:]))
        packed.append(bits.pack(rows % 2 == 0))
    mask = TaskMask(tiny_vit.layout, tiny_vit.model_json, tiny_vit.fingerprint, np.concatenate(packed))
    found = codings(mask, tiny_vit.theta)
    assert found["entropy"]["row"] == pytest.approx(0)
    assert found["entropy"]["tensor"] == pytest.approx(tiny_vit.layout.n_weights / 8)
    assert found["entropy"]["column"] == pytest.approx(tiny_vit.layout.n_weights / 8)


def test_codes_are_measured_by_their_codecs(tiny_resnet, make_mask):
    mask = make_mask(tiny_resnet)
    found = codings(mask, tiny_resnet.theta)["coded"]
    for name in codec.CODECS:
        (*arrays,) = codec.encode(mask.packed, mask.layout, name, tiny_resnet.theta).values()
        assert found[name] == sum(array.nbytes for array in arrays)
    assert "context" not in codings(mask, None)["coded"] and found["lzma"] > 0
