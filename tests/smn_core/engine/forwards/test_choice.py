"""A start takes the fastest forms that give timm's embeddings, and the next start need not measure."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from smn_core.engine.forwards import choice, forms
from smn_core.engine.forwards.choice import BUDGET_S, choose_forms, judge
from smn_core.engine.forwards.forms import Forms
from smn_core.engine.forwards.kept import Kept
from tests.smn_core.builders import KINDS, TINY_VIT, images, lively

FAST = Forms(linear="onednn", attention="products")
AMPLE_S = 120.0
"""Time in which every form is tried, however busy the machine: a tiny model needs a second."""


def test_a_form_is_taken_for_its_speed_on_all_batches_together():
    """Clearly faster on both is taken; faster on one and slower on the other is not; nor what nobody could time."""
    rivals = [Forms(), Forms(linear="onednn"), Forms(linear="onednn, activation fused")]
    one, eight = np.array([[1.0, 0.9, 0.7]] * 3), np.array([[8.0, 7.0, 8.4]] * 3)
    assert judge(rivals, [one, eight]) == rivals[1]
    assert judge(rivals, [one]) == rivals[2]
    assert judge(rivals, [np.array([[1.0, 0.99, 1.5]])]) == rivals[0]
    assert judge(rivals, []) == rivals[0]


def test_a_start_measures_once(tmp_path, monkeypatch):
    """What the first start finds is kept; the second takes it without timing anything."""
    backbone = lively(TINY_VIT)
    kept = Kept(backbone, tmp_path)
    assert kept.read() is None
    found = choose_forms(backbone, kept, budget_s=0.5)
    assert kept.read() == found
    kept.write(FAST)
    monkeypatch.setattr(choice.Trial, "run", lambda _: pytest.fail("it measures again"))
    again = lively(TINY_VIT)
    assert choose_forms(again, Kept(again, tmp_path)) == FAST
    assert type(again.model.blocks[0].attn).__name__ == "AttentionByProducts"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff{",
        b"[]",
        b"{}",
        b'{"key":{},"forms":{"linear":"torch"}}',
        b'{"key": 7',
    ],
)
def test_a_damaged_entry_is_measured_anew(damage, tmp_path, caplog):
    """An entry that is cut off, no JSON, or another model's is overwritten by a sound one."""
    backbone = lively(TINY_VIT)
    kept = Kept(backbone, tmp_path)
    kept.write(FAST)
    kept.path.write_bytes(damage)
    assert kept.read() is None
    assert "damaged" in caplog.text
    found = choose_forms(backbone, kept, budget_s=0.2)
    assert kept.read() == found


def test_an_entry_with_forms_that_do_not_exist_is_damaged(tmp_path):
    kept = Kept(lively(TINY_VIT), tmp_path)
    kept.write(FAST)
    kept.path.write_bytes(kept.path.read_bytes().replace(b"onednn", b"faster"))
    assert kept.read() is None


def test_entries_belong_to_weights_types_and_threads(tmp_path):
    """Another backbone, type or number of threads has another entry."""
    paths = {Kept(lively(TINY_VIT, seed), tmp_path).path for seed in (0, 1)}
    paths.add(Kept(lively(TINY_VIT, dtype=torch.bfloat16), tmp_path).path)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        paths.add(Kept(lively(TINY_VIT), tmp_path).path)
    finally:
        torch.set_num_threads(threads)
    assert len(paths) == 4


def test_a_start_goes_on_where_nothing_can_be_kept(tmp_path):
    """A cache directory that is a file costs a measurement at every start and nothing else."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    backbone = lively(TINY_VIT)
    assert isinstance(choose_forms(backbone, Kept(backbone, Path(tmp_path / "file")), budget_s=0.2), Forms)


@torch.inference_mode()
def test_a_form_that_gives_other_embeddings_is_never_taken(tmp_path, monkeypatch, caplog):
    """However fast: neither when it is measured nor when an earlier start has kept it."""
    monkeypatch.setattr(forms.OneDNNLinear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.out_features))
    backbone, x = lively(KINDS["vit"]), images(KINDS["vit"], 2)
    expected = backbone.model(x)
    kept = Kept(backbone, tmp_path)
    for _ in range(2):
        assert choose_forms(backbone, kept, budget_s=AMPLE_S).linear == "torch"
        assert "embeddings differ" in caplog.text
        assert torch.allclose(backbone.model(x), expected, rtol=1e-4, atol=1e-5)
        caplog.clear()
        kept.write(Forms(linear="onednn"))


@torch.inference_mode()
def test_a_form_that_fails_is_never_taken(tmp_path, monkeypatch, caplog):
    """An operation that a build of torch lacks costs a line in the log."""

    def fail(*_: object) -> None:
        raise RuntimeError("no such operation here")

    monkeypatch.setattr(forms.OneDNNLinear, "forward", fail)
    backbone = lively(TINY_VIT)
    assert choose_forms(backbone, Kept(backbone, tmp_path), budget_s=AMPLE_S).linear == "torch"
    assert "no such operation here" in caplog.text


def test_a_build_without_onednn_has_no_such_candidates(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "has_onednn", lambda: False)
    backbone = lively(TINY_VIT)
    assert not forms.layers_of(backbone).offers(Forms(linear="onednn"))
    assert choose_forms(backbone, Kept(backbone, tmp_path), budget_s=0.3).linear == "torch"


def test_no_time_means_plain(tmp_path):
    """A start without time to measure runs plain timm; and the default leaves room below ten seconds."""
    backbone = lively(TINY_VIT)
    began = time.monotonic()
    assert choose_forms(backbone, Kept(backbone, tmp_path), budget_s=0.0) == Forms()
    assert time.monotonic() - began < BUDGET_S < 10
