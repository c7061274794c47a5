"""POST /classify: the classifier of the file that a reference meant, on the vectors that /embed gives."""

import json

import numpy as np
import pytest
from cascades import Q, build, put_all
from independent_client import NPY, as_npy
from served import inputs, photo

CLASSES = ["rose", "tulip", "daisy"]
WIDTH = 8


def head(seed=0, width=WIDTH, classes=CLASSES):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((len(classes), width)).astype(np.float32)
    return weight, rng.standard_normal(len(classes)).astype(np.float32), classes


def softmax(z, weight, bias):
    logits = z.astype(np.float64) @ weight.T.astype(np.float64) + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def put(client, name, mask):
    answer = client.put(f"/masks/{name}", content=mask.data)
    assert answer.status_code in (200, 201), answer.text


def ask(client, x, path="/classify", headers=None, **params):
    return client.post(path, content=as_npy(x), params=params, headers={"Content-Type": NPY, **(headers or {})})


def require_labels(answer, p, classes, top=None):
    """The answer's labels are those of the probabilities, in their order."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(p)))
    for row, wanted in zip(data, p, strict=True):
        order = np.argsort(-wanted)[:top]
        assert row["classes"] == [classes[c] for c in order] and row["label"] == row["classes"][0]
        assert np.allclose(row["probs"], wanted[order], atol=1e-5)
        assert row["num_classes"] == len(classes)


@pytest.mark.parametrize("with_affine", [None, "float32"])
@pytest.mark.parametrize("top", [None, 1, 2, 99])
def test_labels_are_the_heads_on_mapped_embeddings_the_most_probable_first(client, theta, with_affine, top):
    mask, x = theta.mask(3, with_affine=with_affine, head=head()), inputs(5, seed=1)
    put(client, "m", mask)
    answer = ask(client, x, mask="m", **({"top": top} if top else {}))
    require_labels(answer, softmax(theta.embed(x, mask), *head()[:2]), CLASSES, top)
    body, embedded = answer.json(), ask(client, x, "/embed", mask="m").json()
    assert (body["object"], body["model"], body["cascade"]) == ("list", "test_vit", None)
    assert body["space"] == answer.headers["x-smn-space"] == embedded["space"]
    assert body["mask"] == embedded["mask"] and answer.headers["x-smn-digest"] == mask.digest
    assert "total" in answer.headers["server-timing"]


@pytest.mark.parametrize("mode", ["unconditional", "conditional"])
def test_a_cascades_modes_have_heads_of_their_own(client, theta, mode):
    heads = {name: head(seed, Q)[:2] for seed, name in enumerate(("unconditional", "conditional"))}
    cascade, x = build(theta, heads=heads, classes=json.dumps(CLASSES)), inputs(9, seed=3)
    assert put_all(client, "c", cascade).status_code == 201
    answer = ask(client, x, cascade="c", mode=mode)
    require_labels(answer, softmax(cascade.embed(x, mode)[0], *heads[mode]), CLASSES)
    body, embedded = answer.json(), ask(client, x, "/embed", cascade="c", mode=mode).json()
    assert (body["mask"], body["cascade"], body["space"]) == (None, embedded["cascade"], embedded["space"])
    assert client.get("/cascades/c").json()["metadata"]["classes"] == CLASSES


def test_what_has_no_head_is_409_and_names_what_writes_one(client, theta, require_error):
    put(client, "m", theta.mask(1))
    put(client, "empty", theta.mask(1, head=(np.zeros((0, WIDTH), np.float32), np.zeros(0, np.float32), [])))
    heads = {"unconditional": head(0, Q)[:2]}
    put_all(client, "c", build(theta, heads=heads, classes=json.dumps(CLASSES)))
    x = inputs(1)
    for params in ({}, {"mask": "m"}, {"mask": "empty"}, {"cascade": "c", "mode": "conditional"}):
        assert "smn probe" in require_error(ask(client, x, **params), 409, "no_head")
    assert ask(client, x, cascade="c").status_code == 200
    sent = {"content": b"no image", "headers": {"Content-Type": "image/png"}}
    require_error(client.post("/classify", params={"mask": "m"}, **sent), 409, "no_head")  # before the body is read


def test_a_promise_of_a_space_is_kept_and_what_shapes_vectors_is_no_parameter(client, theta, require_error):
    put(client, "m", theta.mask(1, head=head()))
    x, root = inputs(1), client.get("/info").json()["space"]
    space = client.get("/masks/m").json()["space"]
    assert ask(client, x, mask="m", space=space).status_code == 200
    require_error(ask(client, x, mask="m", space=root), 412, "other_space")
    require_error(ask(client, x, mask="m", headers={"X-SMN-Expect-Space": root}), 412, "other_space")
    for wrong in ({"dimensions": 2}, {"normalize": "true"}, {"top": 0}, {"mode": "conditional"}, {"cascade": "c"}):
        require_error(ask(client, x, mask="m", **wrong), 400)


def test_equal_bits_with_other_heads_share_weights_and_each_answers_by_its_own(client, theta):
    x, seeds = inputs(4, seed=5), (1, 2, 3)
    for seed in seeds:
        put(client, f"m{seed}", theta.mask(7, density=0.5, head=head(seed)))
    for seed in (*seeds, *seeds):
        p = softmax(theta.embed(x, theta.mask(7, density=0.5)), *head(seed)[:2])
        require_labels(ask(client, x, mask=f"m{seed}"), p, CLASSES)
    memory = client.app.state.server.embedder.engine.memory()
    assert (memory.prepared_masks, memory.resident_masks) == (3, 1)
    assert len({client.get(f"/masks/m{seed}").json()["space"] for seed in seeds}) == 1


def test_every_form_of_body_and_a_bound_key_are_as_for_embed(serve, theta, require_error):
    client = serve(api_keys=["anna=anna."], admin_keys=["boss"])
    boss, anna = ({"Authorization": f"Bearer {key}"} for key in ("boss", "anna"))
    for name in ("anna.m", "bert.m"):
        assert client.put(f"/masks/{name}", content=theta.mask(1, head=head()).data, headers=boss).status_code == 201
    require_error(client.post("/classify", params={"mask": "bert.m"}, headers=anna), 403, "wrong_name")
    require_error(client.post("/classify", params={"mask": "anna.m"}), 401)
    forms = [
        {"content": photo(), "headers": {**anna, "Content-Type": "image/png"}},
        {"files": [("image", ("a.png", photo(), "image/png"))], "headers": anna},
    ]
    labels = [client.post("/classify", params={"mask": "anna.m"}, **form).json()["data"] for form in forms]
    assert labels[0] == labels[1] and labels[0][0]["label"] in CLASSES


@pytest.mark.parametrize(
    "wrong",
    [
        (np.zeros((3, WIDTH + 1), np.float32), np.zeros(3, np.float32), CLASSES),
        (np.full((3, WIDTH), np.nan, np.float32), np.zeros(3, np.float32), CLASSES),
        (np.zeros((3, WIDTH), np.float32), np.zeros(3, np.float32), CLASSES[:2]),
    ],
)
def test_a_head_of_a_wrong_width_not_finite_or_without_its_classes_is_refused_at_upload(
    client, theta, require_error, wrong
):
    require_error(client.put("/masks/m", content=theta.mask(1, head=wrong).data), 422, "invalid_mask")


def test_an_answer_of_too_many_probabilities_is_refused_until_top_bounds_it(client, theta, require_error, monkeypatch):
    from service import labels

    monkeypatch.setattr(labels, "MOST_PROBABILITIES", 4)
    put(client, "m", theta.mask(1, head=head()))
    assert "top" in require_error(ask(client, inputs(2), mask="m"), 400, "too_many_labels")
    assert ask(client, inputs(2), mask="m", top=2).status_code == 200


def test_a_mask_that_left_host_memory_comes_back_with_its_head(serve, theta):
    client, x = serve(), inputs(2, seed=8)
    client.app.state.server.embedder.library._budget = 0
    masks = {name: theta.mask(seed, head=head(seed)) for seed, name in enumerate("ab")}
    for name, mask in masks.items():
        put(client, name, mask)
    for seed, name in (*enumerate("ab"), *enumerate("ab")):
        require_labels(ask(client, x, mask=name), softmax(theta.embed(x, masks[name]), *head(seed)[:2]), CLASSES)
    assert client.app.state.server.embedder.library.count == 0
