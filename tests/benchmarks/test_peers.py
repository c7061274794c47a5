"""What peers are measured with: traffic by popularity laws, and full copies that embed as plain timm does."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from benchmarks.peers.copies import GRAPH, Place, capacity_of, copies_of
from benchmarks.peers.fastapi_copies import create_app
from benchmarks.peers.runtimes import NEEDS, Graph, export, open_model
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


@pytest.fixture(scope="module")
def graph() -> bytes:
    for package in {name for names in NEEDS.values() for name in names}:
        pytest.importorskip(package)  # of the extra `bench`, which not every checkout has
    return export(model_of(0), tuple(build_backbone(MODEL).preprocess["input_size"]))


def model_of(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(MODEL, num_classes=0).eval()


@pytest.mark.parametrize("n_images", [None, 3])
@pytest.mark.parametrize("runtime", NEEDS)
def test_a_runtime_embeds_as_timm_with_the_weights_that_it_was_given(graph, runtime, n_images):
    model = model_of(5)
    images = torch.randn(3, *build_backbone(MODEL).preprocess["input_size"])
    embed = open_model(runtime, Graph(graph).with_weights(model.state_dict()), n_images=n_images)
    with torch.inference_mode():
        np.testing.assert_allclose(embed(images.numpy()), model(images).numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("runtime", NEEDS)
def test_copies_of_a_runtime_embed_as_plain_timm_also_after_they_were_reloaded(graph, runtime, tmp_path):
    (tmp_path / GRAPH).write_bytes(graph)
    for seed in (0, 1):
        save_file(model_of(seed).state_dict(), tmp_path / f"task-{seed}.safetensors")
    copies = copies_of(Place(MODEL, tmp_path, port=0, budget_bytes=1, runtime=runtime))
    images = torch.randn(2, *build_backbone(MODEL).preprocess["input_size"])
    for seed in (0, 1, 0):
        with torch.inference_mode():
            expected = model_of(seed)(images).numpy()
        np.testing.assert_allclose(copies.embed(f"task-{seed}", list(images)), expected, rtol=1e-3, atol=1e-5)
