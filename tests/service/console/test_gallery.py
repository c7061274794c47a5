"""/gallery: pictures by id and never by path, small squares, and what is no picture."""

import io
import os

import pytest
from PIL import Image
from served import photo

from smn_core.errors import InvalidArgument


@pytest.fixture
def folder(tmp_path):
    """Two labels with two pictures each, one that is damaged, one file that is no picture, one link that leads out."""
    root = tmp_path / "photos"
    for label in ("cats", "dogs"):
        (root / label).mkdir(parents=True)
        for seed in range(2):
            (root / label / f"{seed}.png").write_bytes(photo(seed + 10 * len(label) + ord(label[0])))
    (root / "damaged.jpg").write_bytes(photo(fmt="JPEG")[:200])
    (root / "notes.txt").write_text("not a picture")
    secret = tmp_path / "secret.png"
    secret.write_bytes(photo(7))
    (root / "link.png").symlink_to(secret)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(root / "pipe.png")
    return root


def pictures(client):
    return client.get("/gallery").json()


def test_pictures_are_listed_by_id_with_the_folder_as_label(serve, folder):
    found = pictures(serve(gallery=str(folder)))
    assert [picture["label"] for picture in found["data"]] == [None, "cats", "cats", "dogs", "dogs"]
    assert found["total"] == 5 and found["next"] is None
    assert all(set(picture["id"]) <= set("0123456789abcdef") for picture in found["data"])
    assert found["unreadable"] == 3, "a link that leads out, one that leads nowhere, and a pipe"


def test_the_list_comes_in_pages(serve, folder):
    client = serve(gallery=str(folder))
    ids, after = [], ""
    while after is not None:
        page = client.get("/gallery", params={"limit": 2, "after": after}).json()
        assert len(page["data"]) <= 2
        ids += [picture["id"] for picture in page["data"]]
        after = page["next"]
    assert ids == [picture["id"] for picture in pictures(client)["data"]]


@pytest.mark.parametrize("px", [32, 100, 384])
def test_a_picture_is_a_square_jpeg_of_the_asked_size(serve, folder, px):
    client = serve(gallery=str(folder))
    answer = client.get(f"/gallery/{pictures(client)['data'][1]['id']}/image", params={"px": px})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (px, px))
    again = client.get(answer.url, headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize("px", [0, 31, 385, 100_000])
def test_a_size_out_of_bounds_is_refused(serve, folder, require_error, px):
    client = serve(gallery=str(folder))
    require_error(client.get(f"/gallery/{pictures(client)['data'][1]['id']}/image", params={"px": px}), 400)


def test_a_picture_that_cannot_be_decoded_is_counted_and_left_out(serve, folder, require_error):
    client = serve(gallery=str(folder))
    before = pictures(client)
    require_error(client.get(f"/gallery/{before['data'][0]['id']}/image"), 422, "invalid_image")
    after = pictures(client)
    assert after["data"] == before["data"][1:]
    assert after["unreadable"] == before["unreadable"] + 1


def test_after_a_page_whose_last_picture_was_left_out_the_next_page_still_comes(serve, folder, require_error):
    (folder / "cats" / "0.png").write_bytes(photo(fmt="JPEG")[:200])
    client = serve(gallery=str(folder))
    ids = [picture["id"] for picture in pictures(client)["data"]]
    page = client.get("/gallery", params={"limit": 2}).json()
    for picture in page["data"]:
        require_error(client.get(f"/gallery/{picture['id']}/image"), 422, "invalid_image")
    following = client.get("/gallery", params={"limit": 2, "after": page["next"]}).json()
    assert [picture["id"] for picture in following["data"]] == ids[2:4]
    assert following["total"] == len(ids) - 2
    require_error(client.get(f"/gallery/{page['next']}/image"), 404, "not_found")
    require_error(client.get("/gallery", params={"after": "0" * 24}), 404, "not_found")


@pytest.mark.parametrize("path", ["secret.png", "..%2fsecret.png", "cats%2f0.png", "0" * 24, "%2e%2e/secret.png"])
def test_nothing_is_served_by_a_path(serve, folder, require_error, path):
    require_error(serve(gallery=str(folder)).get(f"/gallery/{path}/image"), 404)


def test_a_picture_that_became_a_link_out_of_the_folder_is_refused(serve, folder, tmp_path, require_error):
    client = serve(gallery=str(folder))
    found = pictures(client)["data"][1]["id"]
    (folder / "cats" / "0.png").unlink()
    (folder / "cats" / "0.png").symlink_to(tmp_path / "secret.png")
    require_error(client.get(f"/gallery/{found}/image"), 404, "not_found")


def test_a_folder_that_became_a_link_out_is_refused(serve, folder, tmp_path, require_error):
    client = serve(gallery=str(folder))
    found = pictures(client)["data"][1]["id"]
    (folder / "cats").rename(tmp_path / "cats")
    (folder / "cats").symlink_to(tmp_path / "cats", target_is_directory=True)
    require_error(client.get(f"/gallery/{found}/image"), 404, "not_found")


def test_without_a_folder_there_are_no_pictures(client, require_error):
    assert pictures(client) == {"data": [], "next": None, "total": 0, "unreadable": 0}
    require_error(client.get(f"/gallery/{'0' * 24}/image"), 404, "no_gallery")


def test_a_folder_that_is_not_there_stops_the_start(make_app, tmp_path):
    with pytest.raises(InvalidArgument, match="no such folder"):
        make_app(gallery=str(tmp_path / "nowhere"))


def test_pictures_need_a_key(serve, folder, require_error):
    client = serve(gallery=str(folder), api_keys=["reader"])
    require_error(client.get("/gallery"), 401, "no_key")
    require_error(client.get(f"/gallery/{'0' * 24}/image"), 401, "no_key")
    assert client.get("/gallery", headers={"Authorization": "Bearer reader"}).status_code == 200
