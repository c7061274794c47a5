"""`/info` says how the engine runs."""

import pytest
from served import Theta

from smn_core.engine.forwards.forms import CHOICES


@pytest.mark.parametrize(
    ("name", "mixing"),
    [("test_vit", "one forward, written where they are used"), ("test_resnet", "segment by segment")],
)
def test_the_forms_of_the_layers_and_of_mixed_batches_are_told(serve, name, mixing):
    forms = serve(of=Theta(name)).get("/info").json()["forms"]
    assert forms.pop("masks in one batch") == mixing
    assert set(forms) == set(CHOICES)
    assert all(forms[kind] in CHOICES[kind] for kind in forms)
