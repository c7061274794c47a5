"""POST /map: places, clusters and neighbours, of pictures through a mask or of vectors; in steps, within bounds."""

import base64

import numpy as np
import pytest
from served import photo

from service.console import places


def as_text(rows):
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]


def groups(n=24, seed=0):
    """Vectors about three directions, row after row of each in turn."""
    rng = np.random.default_rng(seed)
    return (10 * np.eye(3, 8)[np.arange(n) % 3] + rng.normal(size=(n, 8))).astype(np.float32)


@pytest.fixture
def shown(serve, tmp_path):
    """A client of a server that shows nine pictures, one of which is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(8):
        (folder / f"{seed}.png").write_bytes(photo(seed))
    (folder / "broken.png").write_bytes(photo(1)[:150])
    return serve(gallery=str(folder))


def finished(client, body, **params):
    """The answer once everything is embedded."""
    for _ in range(100):
        answer = client.post("/map", json=body, params=params)
        if answer.status_code != 202:
            return answer
        assert answer.json()["object"] == "map.progress"
    raise AssertionError("it never ended")


def test_vectors_of_a_group_are_neighbours_and_a_cluster(client):
    answer = client.post("/map", json={"vectors": as_text(groups()), "clusters": 3, "neighbours": 4}).json()
    assert answer["object"] == "map" and answer["method"] == "tsne" and answer["ids"] == []
    assert np.shape(answer["places"]) == (24, 2) and np.min(answer["places"]) >= 0 and np.max(answer["places"]) <= 1
    for row in range(24):
        assert len(answer["neighbours"][row]) == 4 and row not in answer["neighbours"][row]
        assert {other % 3 for other in answer["neighbours"][row]} == {row % 3}
        assert answer["clusters"][row] == answer["clusters"][row % 3]


def test_equal_vectors_give_an_equal_map(client):
    body = {"vectors": as_text(groups())}
    assert client.post("/map", json=body).json() == client.post("/map", json=body).json()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_vectors_have_the_plane_of_their_principal_components(client, n):
    answer = client.post("/map", json={"vectors": as_text(groups(n))})
    assert answer.status_code == 200 and answer.json()["method"] == "pca"
    assert [len(near) for near in answer.json()["neighbours"]] == [n - 1] * n


def test_vectors_that_are_all_the_same_have_one_place(client):
    answer = client.post("/map", json={"vectors": as_text(np.ones((10, 4)))}).json()
    assert answer["places"] == [[0.5, 0.5]] * 10 and set(answer["clusters"]) == {0}


def test_pictures_are_mapped_through_a_mask_and_damaged_ones_are_left_out(shown, theta):
    shown.put("/masks/m", content=theta.mask(density=0.5).data)
    before = shown.get("/gallery").json()
    ids = [picture["id"] for picture in before["data"]]
    assert len(ids) == 9
    root, masked = finished(shown, {"ids": ids}).json(), finished(shown, {"ids": ids}, mask="m").json()
    assert root["ids"] == masked["ids"] == ids[:8]
    assert root["neighbours"] != masked["neighbours"]
    assert shown.get("/gallery").json()["unreadable"] == before["unreadable"] + 1


def test_a_map_of_pictures_is_that_of_their_embeddings(shown):
    ids = [picture["id"] for picture in shown.get("/gallery").json()["data"]][:8]
    rows = [
        shown.post("/embed", content=photo(seed), headers={"Content-Type": "image/png"}).json()["embeddings"][0]
        for seed in range(8)
    ]
    by_vectors = shown.post("/map", json={"vectors": as_text(np.array(rows))}).json()
    assert finished(shown, {"ids": ids}).json()["neighbours"] == by_vectors["neighbours"]


def test_embedding_goes_on_where_the_last_call_ended(shown, monkeypatch):
    monkeypatch.setattr("service.routes.map.SLICE_S", -1.0)
    ids = [picture["id"] for picture in shown.get("/gallery").json()["data"]][:4]
    answer = shown.post("/map", json={"ids": ids})
    assert answer.status_code == 202
    assert answer.json() == {"object": "map.progress", "embedded": 0, "of": 4}
    monkeypatch.setattr("service.routes.map.SLICE_S", 60.0)
    assert shown.post("/map", json={"ids": ids}).status_code == 200
    monkeypatch.setattr("service.routes.map.SLICE_S", -1.0)
    assert shown.post("/map", json={"ids": ids}).status_code == 200, "all of them are known by now"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"vectors": []},
        {"vectors": ["?"]},
        {"vectors": ["AAA="]},
        {"vectors": as_text([np.ones(3), np.ones(4)])},
        {"vectors": as_text([np.array([np.nan])])},
        {"vectors": as_text([np.ones(places.MOST_POINTS * 5)])},
        {"vectors": as_text([np.ones(2)] * (places.MOST_POINTS + 1))},
        {"vectors": as_text(np.ones((2, 2))), "ids": ["0"]},
        {"vectors": as_text(np.ones((2, 2))), "clusters": 0},
        {"vectors": as_text(np.ones((2, 2))), "neighbours": 51},
        {"vectors": as_text(np.ones((2, 2))), "more": 1},
    ],
)
def test_what_is_no_request_for_a_map_is_refused(client, require_error, body):
    require_error(client.post("/map", json=body), 400)


def test_unknown_pictures_and_masks_are_404(shown, client, require_error):
    require_error(shown.post("/map", json={"ids": ["0" * 24]}), 404, "not_found")
    require_error(shown.post("/map", json={"ids": ["0" * 24]}, params={"mask": "nobody"}), 404, "not_found")
    require_error(client.post("/map", json={"ids": ["0" * 24]}), 404, "no_gallery")


@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_a_reference_without_a_name_is_refused_as_by_embed(shown, require_error, kind):
    ids = [picture["id"] for picture in shown.get("/gallery").json()["data"]]
    mapped = require_error(shown.post("/map", json={"ids": ids}, params={kind: ""}), 400, "invalid_argument")
    body = {"content": photo(1), "headers": {"Content-Type": "image/png"}}
    assert mapped == require_error(shown.post("/embed", params={kind: ""}, **body), 400, "invalid_argument")


def test_a_map_ends_with_its_deadline(client, require_error):
    body = {"vectors": as_text(groups(400))}
    require_error(client.post("/map", json=body, headers={"X-Timeout-Ms": "1"}), 504, "deadline")


def test_a_key_for_other_names_gets_no_map_through_a_mask(serve, theta, require_error):
    client = serve(api_keys=["k=mine."], admin_keys=["a"])
    client.put("/masks/theirs", content=theta.mask().data, headers={"Authorization": "Bearer a"})
    answer = client.post("/map?mask=theirs", json={"ids": ["0"]}, headers={"Authorization": "Bearer k"})
    require_error(answer, 403, "wrong_name")
    require_error(client.post("/map", json={"ids": ["0"]}), 401, "no_key")
