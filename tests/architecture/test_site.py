"""The site, as `make site` builds it: every link arrives, and a browser without a network can search it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))]

pytest.importorskip("myst_parser", reason="no myst-parser: uv pip install -e '.[dev]'")
pytest.importorskip("furo", reason="no furo: uv pip install -e '.[dev]'")


def build(source: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The line of the Makefile, of another folder or into one."""
    recipe = re.search(r"^site: .*\n\t\$\(BIN\)/sphinx-build (.*) build/site$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe is not None
    flags = shlex.split(recipe[1].replace("docs/site", str(ROOT / "docs" / "site")))
    words = [sys.executable, "-m", "sphinx", *flags, str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=source, env=environment, capture_output=True, text=True, check=False, timeout=240)


class References(HTMLParser):
    """What a page refers to: links, and what it cannot be shown without; its ids."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.ids.add(said.get("id") or "")
        if tag == "a":
            self.links.append(said.get("href") or "")
        else:
            self.assets += [value for name in ("src", "href", "data", "poster") if (value := said.get(name))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "out"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    found = {path: References(path) for path in site.rglob("*.html")}
    assert len(found) > len(PAGES)
    return found


def test_every_page_of_the_repository_is_one_of_the_site(site):
    assert [page for page in PAGES if not (site / page.relative_to(ROOT)).with_suffix(".html").is_file()] == []


def test_every_link_within_the_site_arrives_at_a_file_and_a_heading(pages):
    followed = 0
    for page, found in pages.items():
        for link in found.links:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", path) or link == "#":
                continue
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in pages[target].ids, f"{page.name} links to {link}"
            followed += 1
    assert followed > 500


def test_nothing_that_a_page_is_made_of_lies_elsewhere(site, pages):
    for page, found in pages.items():
        for asset in found.assets:
            assert not re.match(r"([a-z]+:)?//", asset), f"{page.name} needs {asset}"
            if not asset.startswith("data:"):
                assert (page.parent / unquote(re.split(r"[?#]", asset)[0])).exists(), f"{page.name} needs {asset}"
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert len(styles) > 10_000
    assert re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//[^)]*", styles) == []


def test_the_search_finds_words_in_a_browser_that_opens_the_files_themselves(site):
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: uv pip install -e '.[dev]'")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = chromium.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.wait_for_url("**/README.html")
        page.fill("input[name=q]", "padding bit")
        page.press("input[name=q]", "Enter")
        page.click("ul.search a:text-is('File formats')")
        page.wait_for_url("**/docs/formats.html*")
        assert "padding" in page.inner_text("article")
        chromium.close()
    assert len(asked) > 10 and [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_link_a_heading_or_a_picture_that_is_not_there_ends_the_build(tmp_path):
    """A page of its own under the settings of the site."""
    (tmp_path / "docs").mkdir()
    bad = "[a](gone.md) [b](#nowhere) [c](second.md#nothing) ![d](gone.png)"
    (tmp_path / "docs" / "first.md").write_text(f"# First\n[good](second.md#second)\n\n{bad}\n")
    (tmp_path / "docs" / "second.md").write_text("# Second\n")
    done = build(tmp_path, tmp_path / "out", "-D", "root_doc=docs/first")
    assert done.returncode == 1
    complaints = [line for line in done.stderr.splitlines() if "first.md" in line]
    assert len(complaints) == 4
    for gone in ("gone.md", "nowhere", "nothing", "gone.png"):
        assert sum(gone in line for line in complaints) == 1
