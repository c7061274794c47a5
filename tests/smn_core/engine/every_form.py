"""A fixture for modules whose tests all run twice: with plain timm's layers, and with every fast form of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smn_core.backbone import Backbone
from smn_core.engine import engine
from smn_core.engine.forwards.forms import Forms, put_on

EVERY_FORM = {
    "timm": Forms(),
    "fast": Forms("onednn, activation fused", "products", "folded, packed"),
}


@pytest.fixture(scope="module", autouse=True, params=EVERY_FORM)
def every_form(request: pytest.FixtureRequest) -> Iterator[Forms]:
    """Engines take these forms without measuring."""
    forms = EVERY_FORM[request.param]

    def choose(backbone: Backbone) -> Forms:
        put_on(backbone, forms)
        return forms

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(engine, "choose_forms", choose)
        yield forms
