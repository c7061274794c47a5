"""The page of `smn search --open`: pictures below the folder alone, and text that stays text whoever wrote it."""

import base64
import io
import re
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from PIL import Image

from smn.search.showing import SIDE_PX, page_of, write_page

HOSTILE = ['"><script>alert(1)</script>.png', "' onerror='x", "<img src=http://evil.example/x>", "&lt;b>"]
HOSTILE.append("\u202egpj.exe")


def picture(path, size=(800, 400)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path)
    return path


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def sources(page):
    return [known["src"] for tag, known in Seen(page).tags if tag == "img"]


def test_the_query_and_the_photos_are_in_the_page_itself(tmp_path):
    query, one = picture(tmp_path / "query.png"), picture(tmp_path / "photos" / "a" / "one.png", (90, 900))
    page = page_of(query, [("a/one.png", 0.98765), ("gone.png", 0.5)], str(one.parents[1]), "smn1:x")
    images = [Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))) for src in sources(page)]
    assert [image.size for image in images] == [(SIDE_PX, SIDE_PX // 2), (SIDE_PX // 10, SIDE_PX)]
    text = " ".join(Seen(page).text)
    assert "1. 0.9877" in text and "a/one.png" in text and "smn1:x" in text and text.count("cannot be shown") == 1
    path = write_page(query, [], str(tmp_path), "smn1:x")
    assert path.parent.stat().st_mode & 0o077 == 0 and "query.png" in path.read_text()
    path.unlink()
    path.parent.rmdir()


def test_no_name_becomes_markup_and_nothing_is_loaded(tmp_path):
    query = picture(tmp_path / "query.png")
    page = page_of(query, [(name, 0.5) for name in HOSTILE], HOSTILE[0], HOSTILE[2])
    plain = page_of(query, [("x.png", 0.5)] * len(HOSTILE), "folder", "space")
    assert Seen(page).tags == Seen(plain).tags
    text = "".join(Seen(page).text)
    assert all(name in text for name in HOSTILE if name.isprintable()) and "\u202e" not in page
    (policy,) = [known["content"] for tag, known in Seen(page).tags if known.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    style = re.search("<style>(.*)</style>", page, re.DOTALL)[1]
    assert f"'sha256-{base64.b64encode(sha256(style.encode()).digest()).decode()}'" in policy


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png", "nul\0.png", "text.png", "."])
def test_only_pictures_below_the_folder_are_read(tmp_path, path):
    secret, folder = picture(tmp_path / "secret.png"), tmp_path / "photos"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    (folder / "text.png").write_text("no picture")
    assert len(sources(page_of(secret, [(path, 0.5)], str(folder), "s"))) == 1, "the query alone"
