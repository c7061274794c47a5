"""A cascade through every client: the notebook's Embedder, both clients, and `smn embed` with a server and without."""

import asyncio
import json

import numpy as np
import pytest
from cascades import Q, build
from served import inputs, relative_error

import smn
from smn_core.errors import Conflict

MODES = ("unconditional", "conditional")
CLASSES = ["daisy", "rose"]
HEAD = np.random.default_rng(1).standard_normal((2, Q)).astype(np.float32), np.array([0.5, -0.5], np.float32)


@pytest.fixture(scope="module")
def cascade(world):
    """Two experts; the root has a map, and the unconditional mode a classifier."""
    maps = ("float32", None, None)
    return build(world.theta, 3, 2, maps=maps, heads={"unconditional": HEAD}, classes=json.dumps(CLASSES))


@pytest.fixture(scope="module")
def folder(world, cascade, tmp_path_factory):
    """The folder `places`, which the server has too."""
    folder = tmp_path_factory.mktemp("cascades") / "places"
    folder.mkdir()
    (folder / "cascade.safetensors").write_bytes(cascade.data)
    for mask, name in zip(cascade.masks, ("root", "expert-1", "expert-2"), strict=True):
        (folder / f"{name}.smn").write_bytes(mask.data)
    with smn.Client(world.url) as client:
        client.push_cascade("places", folder)
    return folder


@pytest.fixture(scope="module")
def embedder(world, folder):
    return world.embedder(masks=folder.parent, batch_size=4)


def ask_later(url, call, *words, **more):
    """The answer of a call of the asynchronous client."""

    async def asked():
        async with smn.AsyncClient(url) as client:
            return await getattr(client, call)(*words, **more)

    return asyncio.run(asked())


def ask_all(world, embedder, call, *words, **more):
    """The answers of the embedder, the client and the asynchronous client."""
    with smn.Client(world.url) as client:
        return [
            getattr(embedder, call)(*words, **more),
            getattr(client, call)(*words, **more),
            ask_later(world.url, call, *words, **more),
        ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shaped", [{}, {"dimensions": 4, "normalize": True}])
def test_a_notebook_and_both_clients_give_the_cascades_vectors(world, cascade, embedder, mode, shaped):
    x = inputs(9, seed=4)
    z = cascade.embed(x, mode)[0][:, : shaped.get("dimensions")]
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if shaped else z
    found = ask_all(world, embedder, "embed", x, cascade="places", mode=mode, **shaped)
    for each in found:
        assert relative_error(each.embeddings, z) < 1e-3
        assert each.digest == cascade.digest
    spaces = ask_all(world, embedder, "space", cascade="places", mode=mode, **shaped)
    assert {each.space for each in found} == set(spaces) and len(set(spaces)) == 1
    ending = f":{mode}:d4:l2" if shaped else f":{mode}"
    assert spaces[0].endswith(ending)


def test_a_mode_is_a_space_and_a_promise_of_it_is_kept(world, cascade, embedder):
    x = inputs(2)
    spaces = {mode: ask_all(world, embedder, "space", cascade="places", mode=mode)[0] for mode in MODES}
    assert len(set(spaces.values())) == 2
    assert ask_all(world, embedder, "space", cascade="places") == [spaces["unconditional"]] * 3
    for mode, other in (MODES, MODES[::-1]):
        for found in ask_all(world, embedder, "embed", x, cascade="places", mode=mode, space=spaces[mode]):
            assert found.space == spaces[mode]
        with pytest.raises(smn.OtherSpace, match=spaces[mode]):
            ask_later(world.url, "embed", x, cascade="places", mode=mode, space=spaces[other])
    with smn.Client(world.url) as client:
        for one in (embedder, client):
            with pytest.raises(smn.OtherSpace, match=spaces["conditional"]):
                one.classify(x, cascade="places", mode="unconditional", space=spaces["conditional"])
            kept = smn.Collection()
            kept.take(one.embed(x, cascade="places", mode="conditional"))
            with pytest.raises(smn.OtherSpace, match="unconditional"):
                kept.take(one.embed(x, cascade="places", mode="unconditional"))


def test_labels_are_the_heads_of_the_mode_and_a_mode_without_one_is_refused(world, cascade, embedder):
    x = inputs(7, seed=2)
    logits = cascade.embed(x, "unconditional")[0].astype(np.float64) @ HEAD[0].T + HEAD[1]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    for found in ask_all(world, embedder, "classify", x, cascade="places", top=1):
        assert [each.label for each in found.data] == [CLASSES[c] for c in p.argmax(1)]
        np.testing.assert_allclose([each.probs[0] for each in found.data], p.max(1), atol=1e-3)
    for call in (embedder.classify, lambda *given, **more: ask_later(world.url, "classify", *given, **more)):
        with pytest.raises((Conflict, smn.ServerError), match="smn probe"):
            call(x, cascade="places", mode="conditional")


@pytest.mark.parametrize("mode", MODES)
def test_a_file_of_a_cascades_vectors_is_the_same_from_here_as_from_a_server(world, run, folder, tmp_path, mode):
    flags = ["embed", world.photos, "--mode", mode, "--dimensions", "5"]
    assert run(*flags, "--cascade", folder, "--out", tmp_path / "here.npy", *world.model)[0] == 0
    code, _, err = run(*flags, "--cascade", "places", "--server", world.url, "--out", tmp_path / "there.npy")
    assert code == 0 and "20 embeddings of 5 features" in err
    here, there = (np.load(tmp_path / f"{name}.npy") for name in ("here", "there"))
    assert here.shape == (20, 5) and relative_error(there, here) < 1e-3
    told = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("here", "there")]
    for key in ("space", "model", "digest", "fingerprint", "rows", "dimensions"):
        assert told[0][key] == told[1][key], key
    assert told[0]["space"].endswith(f":{mode}:d5")


BAD = {
    "no such cascade": ({"cascade": "nowhere"}, "nowhere"),
    "no such mode": ({"cascade": "places", "mode": "sideways"}, "sideways|mode"),
    "dimensions beyond the width": ({"cascade": "places", "dimensions": Q + 1}, f"{Q + 1}"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_a_cascade_cannot_do_is_one_clear_error(world, embedder, which):
    words, said = BAD[which]
    for call in (embedder.embed, lambda *given, **more: ask_later(world.url, "embed", *given, **more)):
        with pytest.raises((smn.InvalidArgument, smn.ServerError), match=said):
            call(inputs(1), **words)
