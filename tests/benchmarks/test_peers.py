"""What peers are measured with: traffic by popularity laws, and full copies that embed as plain timm does."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from benchmarks.peers.copies import Place, capacity_of
from benchmarks.peers.fastapi_copies import create_app
from benchmarks.photos import photo
from benchmarks.traffic import LAWS, tasks_of
from smn_core.images import ImageReader
from tests.conftest import build_backbone

MODEL = "test_vit"


@pytest.mark.parametrize("law", LAWS)
def test_every_law_asks_for_tasks_that_exist(law):
    order = tasks_of(law, 200, 16, np.random.default_rng(0))
    assert len(order) == 200
    assert set(order) <= set(range(16))


def test_the_laws_differ_in_how_popular_the_first_task_is():
    share = {law: tasks_of(law, 2000, 16, np.random.default_rng(0)).count(0) / 2000 for law in LAWS}
    assert share["identical"] == 1
    assert share["distinct"] == 1 / 16
    assert share["uniform"] == pytest.approx(1 / 16, abs=0.03)
    assert share["zipf:1.5"] > 0.35 > share["skewed"] > 0.25


def test_full_copies_embed_as_plain_timm_also_after_they_were_reloaded(tmp_path):
    expected, image = {}, photo(80, 60)
    reader = ImageReader(build_backbone(MODEL).preprocess)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model(MODEL, num_classes=0).eval()
        save_file(model.state_dict(), tmp_path / f"task-{seed}.safetensors")
        with torch.inference_mode():
            expected[f"task-{seed}"] = model(reader(image)[None])[0].numpy()
    place = Place(MODEL, tmp_path, port=0, budget_bytes=1)
    assert place.capacity == 1
    with TestClient(create_app(place)) as client:
        for task in ("task-0", "task-1", "task-0"):
            answer = client.post("/embed", data={"task": task}, files={"image": ("photo.jpg", image, "image/jpeg")})
            np.testing.assert_allclose(answer.json()["embeddings"][0], expected[task], rtol=1e-4, atol=1e-5)


def test_a_budget_holds_as_many_copies_as_fit():
    one = sum(tensor.nbytes for tensor in timm.create_model(MODEL, num_classes=0).state_dict().values())
    assert capacity_of(MODEL, 3 * one) == 3
    assert capacity_of(MODEL, 0) == 1
