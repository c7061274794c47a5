"""The console's files: open to all, under a strict policy, small, and gone with --no-console."""

import re

import pytest

from service.console.page import STATIC

MOST_BYTES = 200_000


def test_the_page_is_at_the_root_and_at_console(client):
    root, named = client.get("/"), client.get("/console")
    assert root.status_code == named.status_code == 200 and root.content == named.content
    assert root.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/", "/console", "/console/main.js", "/console/style.css"])
def test_every_file_is_open_and_under_a_policy_that_runs_nothing_else(serve, path):
    answer = serve(api_keys=["reader"], admin_keys=["admin"]).get(path)
    assert answer.status_code == 200
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self'" and policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_browser_has_is_not_sent_again(client):
    tag = client.get("/console/main.js").headers["etag"]
    again = client.get("/console/main.js", headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.content == b""


@pytest.mark.parametrize("path", ["/console/none.js", "/console/..%2fpage.py", "/console/page.py", "/console/a/b.js"])
def test_nothing_else_is_served(client, require_error, path):
    require_error(client.get(path), 404)


def test_no_console_takes_the_page_away_and_nothing_else(serve):
    client = serve(no_console=True)
    assert [client.get(path).status_code for path in ("/", "/console", "/console/main.js")] == [404] * 3
    assert client.get("/gallery").status_code == client.get("/info").status_code == 200


def test_the_page_is_small_and_names_no_other_origin():
    files = list(STATIC.iterdir())
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in files:
        text = path.read_text()
        outside = set(re.findall(r"https?://[^\s'\"`)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, (path.name, outside)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_the_page_has_no_inline_script_or_style():
    text = (STATIC / "index.html").read_text()
    assert "<style" not in text and not re.search(r"\s(style|on[a-z]+)=", text)
    assert all(re.search(r"\ssrc=", tag) for tag in re.findall(r"<script[^>]*>", text))
