"""The adapters that a mask is held against: each starts as the backbone, and its file means what it learned."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch

from benchmarks.adapters.__main__ import FROZEN, Comparison, read
from benchmarks.adapters.kinds import KINDS, SignPairs, serialise
from benchmarks.adapters.learn import MASK, Setting
from benchmarks.adapters.picture import caption, draw, frontier, points_of, table
from smn_core.errors import InvalidArgument
from tests.training.builders import SIDE_PX, World, build_world, config

RANK = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def kind_of(name: str):
    if name == "lora" and importlib.util.find_spec("peft") is None:
        pytest.skip("PEFT is not installed: uv pip install -e '.[bench]'")
    return KINDS[name]


@pytest.fixture(params=list(KINDS))
def adapted(request, world):
    """Kind, the plain model, the model with the adapter, and some images."""
    kind, plain = kind_of(request.param), world.backbone().model.eval()
    torch.manual_seed(0)
    model = copy.deepcopy(plain)
    kind.attach(model, RANK)
    return kind, plain, model, torch.randn(4, 3, SIDE_PX, SIDE_PX)


def test_an_adapter_starts_as_the_untouched_backbone_and_alone_learns(adapted):
    _, plain, model, x = adapted
    torch.testing.assert_close(model.eval()(x), plain(x), rtol=0, atol=1e-6)
    model(x).square().sum().backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learning)
    assert not learning & {name for name, p in plain.named_parameters() if not name.endswith("bias")}


def test_what_is_stored_means_what_was_learned(adapted):
    kind, plain, model, x = adapted
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    moved = model.eval()(x)
    stored = kind.read(model)
    merged = copy.deepcopy(plain)
    merged.load_state_dict(kind.merge(plain.state_dict(), stored))
    assert (moved - plain(x)).norm() > 0.01 * moved.norm()
    assert (merged(x) - moved).norm() < 0.005 * moved.norm()  # float16
    assert all(values.dtype in (np.float16, np.uint8) for values in stored.values())
    assert len(serialise(stored)) > 0.5 * sum(values.nbytes for values in stored.values())


def test_signs_take_a_bit_and_let_their_gradient_through():
    torch.manual_seed(0)
    pairs = SignPairs(3, 5, RANK)
    with torch.no_grad():
        pairs.scale.fill_(0.5)
    change = pairs(torch.zeros(3, 5))
    assert set(change.abs().flatten().tolist()) <= {0.0, 1.0}  # two pairs, each of +-.5
    g = torch.randn(3, 5)
    (change * g).sum().backward()
    b = torch.where(pairs.b >= 0, 1.0, -1.0)
    torch.testing.assert_close(pairs.a.grad, 0.5 * b @ g)
    torch.testing.assert_close(pairs.scale.grad, torch.stack([b[k] @ g @ pairs.a[k].sign() for k in range(RANK)]))


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    settings = (Setting(MASK, 2e-2), Setting("bias", 1e-3), Setting("one-bit lora", 1e-3, RANK))
    comparison = Comparison(
        world.spec(), str(world.data), config(steps=6, head_steps=2, lr_per_tensor=True), 0, folder / "work",
        folder / "rows.jsonl", choose_on=120, most=80, settings=settings, mapped=(MASK, "bias"),
    )  # fmt: skip
    return comparison, list(comparison.rows())


def test_every_kind_is_compared_with_the_same_frozen_backbone(compared):
    _, rows = compared
    tested = {row["adapter"]: row for row in rows if "adapter" in row}
    assert list(tested) == [
        "frozen", "frozen + map", "frozen + diagonal map", "mask", "mask + map", "bias", "bias + map", "one-bit lora",
    ]  # fmt: skip
    for row in tested.values():
        assert row["test"]["knn"]["before"] == tested["frozen"]["test"]["knn"]["after"]
        assert row["test"]["knn"]["n"] == 80
    assert tested["frozen"]["test"]["linear"]["change"] == 0
    assert tested["bias + map"]["bytes"] == tested["bias"]["bytes"] + tested["bias + map"]["map_bytes"]
    assert tested["one-bit lora"]["bytes"] < tested["bias"]["bytes"]
    assert tested["mask"]["seconds"] > 0 == tested["frozen + map"]["seconds"]
    learned = [row for row in rows if "kind" in row]
    assert {row["steps"] for row in learned} == {6}
    assert all(np.isfinite(row["loss"]) for row in learned)


def test_what_is_measured_already_is_not_measured_again(compared):
    comparison, rows = compared
    assert list(comparison.rows()) == []
    assert [json.loads(json.dumps(row)) for row in rows] == read(comparison.out)
    assert rows[0]["setting"] == FROZEN


def test_the_frontier_is_what_gains_more_than_everything_smaller():
    def row(adapter, n_bytes, gain):
        change = {"change": gain, "error": 0.01}
        return {"data": "d", "adapter": adapter, "bytes": n_bytes, "test": {"knn": change, "linear": change}}

    rows = [
        row("lora", 9000, 0.03), row("mask", 2000, 0.02), row("bias", 5000, 0.01), row("frozen", 0, 0.0),
        row("mask + map", 9500, 0.02),
    ]  # fmt: skip
    assert [r["adapter"] for r in frontier(points_of(rows, "d"), "knn")] == ["mask", "lora"]
    told = caption(rows)[0]
    assert told == ("d, kNN: on the frontier mask (2,000 B), LoRA (9,000 B); not on it: mask, with the map.")
    assert "nothing: no adapter gains" in caption([row("bias", 5, -0.1)])[0]


def test_the_picture_is_drawn_from_the_rows(compared, tmp_path):
    _, rows = compared
    draw(rows, tmp_path / "adapters.png")
    assert len(table(rows)) == 2 + sum("adapter" in row for row in rows)
    assert (tmp_path / "adapters.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidArgument, match="no rows"):
        draw([], tmp_path / "none.png")
