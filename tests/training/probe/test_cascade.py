"""`smn probe --cascade`: a classifier for each mode, served by /classify as scikit-learn labels the served vectors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from service.app import create_app
from service.registry.directory import DirectoryRegistry
from service.settings import Settings
from smn_core.cascade.cascade import Cascade, fuse
from smn_core.cascade.file import FILE_NAME, open_folder, write_cascade
from smn_core.cascade.router import route
from smn_core.engine import Engine
from smn_core.maskfile import write_mask
from tests.training.builders import World, digits
from training.cascade.clusters import cluster
from training.cascade.fusion import fit, inputs, parse_fusion
from training.data import open_split
from training.features import embed_each
from training.probe.fit import MOST_ITERATIONS

MODES = ("unconditional", "conditional")
N_IMAGES = 40


@pytest.fixture(scope="module")
def folder(world: World, make_mask, tmp_path_factory) -> Path:
    """A cascade of two experts on digits: masks of random bits, the root with a map, router and fusion fitted."""
    folder, backbone = tmp_path_factory.mktemp("cascade"), world.backbone()
    masks = [
        write_mask(
            make_mask(backbone, 0.95, rng=i, with_preprocess=True, with_affine="float32" if not i else None),
            folder / name,
        )
        for i, name in enumerate(("root.smn", "expert-1.smn", "expert-2.smn"))
    ]
    parts = [part.z for part in embed_parts(world, masks)]
    clusters = cluster(parts[0], 2)
    fusion = fit(parse_fusion("pca:24"), inputs(parts, route(clusters.router, parts[0]), MODES), 3)
    digests = [str(mask.digest) for mask in masks]
    write_cascade(
        Cascade(backbone.fingerprint, digests[0], tuple(digests[1:]), fusion, router=clusters.router,
                metadata={"dataset": "digits.npz"}),
        folder / FILE_NAME,
    )  # fmt: skip
    return folder


def embed_parts(world: World, masks) -> list:
    engine = Engine(world.backbone(), slots=3)
    for mask in masks:
        engine.prepare(mask)
    return embed_each(engine, [mask.digest for mask in masks], open_split(str(world.data), "train"), 32)


@pytest.fixture(scope="module")
def probed(world: World, folder: Path, tmp_path_factory) -> tuple[Path, dict]:
    """The folder that the verb wrote beside the first, and what it told."""
    import contextlib
    import sys

    import smn

    out, told = tmp_path_factory.mktemp("probed") / "v1.2", io.StringIO()
    words = ["probe", "--data", world.data, "--cascade", folder, "--out", out, "--json", "--threads", 1, *world.flags()]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setattr(sys, "argv", ["smn", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            smn.main()
    assert not stopped.value.code
    return out, json.loads(told.getvalue())


def test_every_mode_has_a_classifier_and_the_rest_is_as_it_was(folder, probed):
    out, told = probed
    before, after = open_folder(folder), open_folder(out)
    assert set(after.cascade.heads) == set(told["modes"]) == set(MODES)
    assert after.cascade.masks == before.cascade.masks
    assert [file.name for file in after.files] == [file.name for file in before.files]
    assert after.cascade.metadata["dataset"] == "digits.npz"
    scores = json.loads(after.cascade.metadata["metrics"])["probe"]
    assert {mode: scores[mode]["held_out"] for mode in MODES} == {m: told["modes"][m]["held_out"] for m in MODES}
    assert told["digest"] == after.cascade.digest != before.cascade.digest
    assert all(0.3 < told["modes"][mode]["held_out"]["accuracy"] <= 1 for mode in MODES)


def as_file(number: int, pixels: np.ndarray) -> tuple[str, tuple[str, bytes, str]]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "image", (str(number), buffer.getvalue(), "image/png")


def test_served_labels_of_both_modes_are_scikit_learns_on_the_served_vectors(world, folder, probed, tmp_path):
    out, told = probed
    found, images, backbone = open_folder(out), open_split(str(world.data), "train"), world.backbone()
    train = embed_parts(world, found.masks(backbone.layout))
    parts = [part.z for part in train]
    x = inputs(parts, route(found.cascade.router, parts[0]), MODES)
    registry = DirectoryRegistry(tmp_path / "registry", backbone.fingerprint)
    files = [as_file(i, pixels) for i, pixels in enumerate(digits()["x_test"][:N_IMAGES])]
    with TestClient(create_app(Settings(slots=3, max_images=N_IMAGES), backbone, registry)) as client:
        for name, path in zip(("r", "e1", "e2"), found.files, strict=True):
            assert client.put(f"/masks/{name}", content=path.read_bytes()).status_code == 201
        for name, source in (("plain", folder), ("digits", out)):
            assert client.put(f"/cascades/{name}", content=(source / FILE_NAME).read_bytes()).status_code == 201
        for mode in MODES:
            asked = {"cascade": "digits", "mode": mode}
            answer = client.post("/classify", params=asked, files=files).json()
            embedded = client.post("/embed", params=asked, files=files).json()
            assert embedded["space"] == answer["space"]
            plain = client.post("/embed", params=asked | {"cascade": "plain"}, files=files[:1]).json()
            assert plain["space"] == answer["space"]
            z = fuse(found.cascade, mode, x[mode]).astype(np.float64)
            scaler = StandardScaler().fit(z)
            model = LogisticRegression(C=told["modes"][mode]["C"], max_iter=MOST_ITERATIONS)
            model.fit(scaler.transform(z), train[0].labels)
            p = model.predict_proba(scaler.transform(np.array(embedded["embeddings"])))
            wanted = [images.classes[label] for label in model.classes_[p.argmax(1)]]
            assert [row["label"] for row in answer["data"]] == wanted
            np.testing.assert_allclose([row["probs"][0] for row in answer["data"]], p.max(1), atol=2e-3)
        refused = client.post("/classify", params={"cascade": "plain"}, files=files[:1])
        assert refused.status_code == 409
        assert "smn probe" in refused.json()["error"]["message"]


BAD = {
    "a mask too": (["--mask", "m.smn", "--out", "new"], "give one of them"),
    "a mask's file": (["--out", "new.smn"], "a folder, with its masks"),
    "a folder of other things": (["--out", "other"], "holds other files"),
    "no folder above it": (["--out", "not/there"], "cannot make this folder"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_cannot_take_the_cascade_is_refused_before_the_work(world, folder, tmp_path, monkeypatch, refused, which):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    words, says = BAD[which]
    assert says in refused("probe", "--data", world.data, "--cascade", folder, *words, *world.flags())
    assert not (tmp_path / "new").exists() and not (tmp_path / "other" / FILE_NAME).exists()
