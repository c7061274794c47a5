"""A recipe that switches weights off within a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from training.recipes import RECIPES, tiny


@pytest.fixture(scope="module", autouse=True)  # not "package": that lasts for all tests of the process
def bold() -> Iterator[None]:
    """`tiny` at ten times its rate, under the name `bold`."""
    recipe = replace(tiny(), name="bold", lr=10 * tiny().lr)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "bold", lambda: recipe)
        yield
