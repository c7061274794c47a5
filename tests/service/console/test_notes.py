"""PUT /masks/{name}/notes: JSON beside an immutable file, by version."""

import pytest

NOTES = {
    "preference": {"prefers": "m@1", "won": 21, "of": 30},
    "said": "é <b>",
    "empty": [],
    "none": None,
    "pi": 3.14159265358979,
}


@pytest.fixture
def noted(client, theta):
    """A client whose mask `m` has two versions."""
    for seed in (1, 2):
        client.put("/masks/m", content=theta.mask(seed).data)
    return client


def notes(client):
    return client.get("/masks/m").json()["notes"]


def test_notes_stand_beside_a_version_and_come_back_as_they_were(noted):
    assert notes(noted) == {}
    digest = noted.get("/masks/m").json()["current"]["digest"]
    answer = noted.put("/masks/m/notes", json=NOTES)
    assert answer.status_code == 200 and answer.json() == {"name": "m", "version": 2, "notes": NOTES}
    assert noted.put("/masks/m/notes", params={"version": 1}, json={"old": True}).json()["version"] == 1
    assert notes(noted) == {"1": {"old": True}, "2": NOTES}
    assert noted.get("/masks/m").json()["current"]["digest"] == digest


def test_notes_are_replaced_and_an_empty_object_removes_them(noted):
    noted.put("/masks/m/notes", json=NOTES)
    noted.put("/masks/m/notes", json={"a": 1})
    assert notes(noted) == {"2": {"a": 1}}
    assert noted.put("/masks/m/notes", json={}).status_code == 200
    assert notes(noted) == {}


def test_notes_go_with_their_version(noted):
    noted.put("/masks/m/notes", params={"version": 1}, json=NOTES)
    noted.delete("/masks/m", params={"version": 1})
    assert notes(noted) == {}


def test_notes_outlive_an_upload_a_rollback_and_an_alias(noted, theta):
    noted.put("/masks/m/notes", json=NOTES)
    noted.put("/masks/m", content=theta.mask(3).data)
    noted.put("/masks/m/current", json={"version": 1})
    noted.put("/masks/m/aliases/best", json={"version": 2})
    assert notes(noted) == {"2": NOTES}


def test_what_is_no_json_object_of_64_kib_is_refused(noted, require_error):
    require_error(noted.put("/masks/m/notes", json=["a"]), 400, "invalid_json")
    require_error(noted.put("/masks/m/notes", content=b"{", headers={"Content-Type": "application/json"}), 400)
    require_error(noted.put("/masks/m/notes", content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    require_error(noted.put("/masks/m/notes", json={"long": "x" * 65_536}), 413, "body_too_large")
    assert noted.put("/masks/m/notes", json={"long": "x" * 65_000}).status_code == 200


@pytest.mark.parametrize("depth", [16, 250, 300, 900])
def test_notes_of_more_than_16_levels_are_refused_and_not_kept(noted, require_error, depth):
    body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
    answer = noted.put("/masks/m/notes", content=body, headers={"Content-Type": "application/json"})
    assert "more than 16" in require_error(answer, 400, "invalid_json")
    assert notes(noted) == {}


def test_notes_of_16_levels_come_back_as_they_were(noted):
    deep = []
    for _ in range(14):
        deep = [deep, 1]
    assert noted.put("/masks/m/notes", json={"a": deep}).status_code == 200
    assert notes(noted) == {"2": {"a": deep}}


def test_notes_of_what_is_not_there_are_404(noted, require_error):
    require_error(noted.put("/masks/n/notes", json=NOTES), 404, "not_found")
    require_error(noted.put("/masks/m/notes", params={"version": 9}, json=NOTES), 404, "not_found")


def test_notes_are_changed_by_admins_alone(serve, theta, require_error):
    client = serve(api_keys=["reader"], admin_keys=["admin"])
    admin = {"Authorization": "Bearer admin"}
    client.put("/masks/m", content=theta.mask().data, headers=admin)
    answer = client.put("/masks/m/notes", json=NOTES, headers={"Authorization": "Bearer reader"})
    require_error(answer, 403, "read_only_key")
    require_error(client.put("/masks/m/notes", json=NOTES), 401, "no_key")
    assert client.put("/masks/m/notes", json=NOTES, headers=admin).status_code == 200
