"""What `smn probe` wrote is served by /classify: labels are scikit-learn's on the served embeddings, image by image."""

from __future__ import annotations

import io
import json

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from service.app import create_app
from service.registry.directory import DirectoryRegistry
from service.settings import Settings
from smn_core.engine import Engine
from smn_core.maskfile import read_mask
from tests.training.builders import digits
from training.data import open_split
from training.features import embed
from training.probe.fit import MOST_ITERATIONS

N_IMAGES = 60


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_served_labels_of_digits_are_scikit_learns_on_the_same_embeddings(world, tmp_path, smn_run):
    out = tmp_path / "digits.smn"
    ran = smn_run("probe", "--data", world.data, "--out", out, "--json", *world.flags())
    assert ran.code == 0, ran.err
    mask, images = read_mask(out), open_split(str(world.data), "train")
    engine = Engine(world.backbone(), slots=1)
    engine.prepare(mask)
    train = embed(engine, mask.digest, images, 32)
    scaler = StandardScaler().fit(train.z.astype(np.float64))
    model = LogisticRegression(C=json.loads(ran.out)["C"], max_iter=MOST_ITERATIONS)
    model.fit(scaler.transform(train.z.astype(np.float64)), train.labels)
    backbone = world.backbone()
    registry = DirectoryRegistry(tmp_path / "registry", backbone.fingerprint)
    with TestClient(create_app(Settings(slots=1), backbone, registry)) as client:
        assert client.put("/masks/digits", content=out.read_bytes()).status_code == 201
        served, wanted, probs = [], [], []
        found = digits()["x_test"][:N_IMAGES]
        for start in range(0, len(found), 20):
            files = [("image", (str(i), png(x), "image/png")) for i, x in enumerate(found[start : start + 20])]
            answer = client.post("/classify", params={"mask": "digits"}, files=files)
            assert answer.status_code == 200, answer.text
            z = np.array(client.post("/embed", params={"mask": "digits"}, files=files).json()["embeddings"])
            served += [row["label"] for row in answer.json()["data"]]
            probs += [row["probs"][0] for row in answer.json()["data"]]
            p = model.predict_proba(scaler.transform(z))
            wanted += [images.classes[label] for label in model.classes_[p.argmax(1)]]
            np.testing.assert_allclose(probs[start:], p.max(1), atol=2e-3)
    assert served == wanted and len(set(served)) > 5
