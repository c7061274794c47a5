"""A real browser on a real server, with real masks; skipped where there is no browser, and says so."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from looking import CHROMIUM, HOSTILE, KEYS, put
from served import ServerProcess, photo


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium. While it is driven its thread has a running event loop, so no other module may see that."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: uv pip install -e '.[dev]'")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def gallery(tmp_path_factory):
    """Twenty pictures in two folders."""
    folder = tmp_path_factory.mktemp("gallery")
    for label, first in (("fields", 0), ("towns", 100)):
        (folder / label).mkdir()
        for seed in range(10):
            (folder / label / f"{seed}.png").write_bytes(photo(first + seed, size=(64, 48)))
    return folder


@pytest.fixture(scope="session")
def files(theta):
    """Mask files: two plain ones, one that was judged, one whose metadata are markup."""
    verdict = json.dumps({"verdict": {"answer": "adopt", "reason": "Views of an image agree more."}})
    markup = json.dumps({"verdict": {"answer": HOSTILE, "reason": HOSTILE}})
    return {
        "plain": theta.mask(1, density=0.6).data,
        "other": theta.mask(2, density=0.3).data,
        "judged": theta.mask(3, metrics=verdict, dataset="fields", objective="swav").data,
        "hostile": theta.mask(4, dataset=HOSTILE, objective=HOSTILE, metrics=markup).data,
    }


@pytest.fixture(scope="session")
def open_server(theta, gallery, files, tmp_path_factory):
    """A server without keys, with masks, a gallery and nothing else."""
    folder = tmp_path_factory.mktemp("console")
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "4", "--gallery", gallery]
    with ServerProcess(arguments, folder) as server:
        for name, data in files.items():
            put(server, name, data)
        yield server


@pytest.fixture(scope="session")
def locked_server(theta, files, tmp_path_factory):
    """A server with a key to read and one to change."""
    folder = tmp_path_factory.mktemp("locked")
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "4"]
    with ServerProcess(arguments, folder, environment=KEYS) as server:
        put(server, "plain", files["plain"], key="admin")
        yield server


@pytest.fixture
def visit(browser):
    """`visit(server, route, **context options)`: a page that failed no script and asked no other origin.

    `page.expected` takes words of console errors that a test provokes.
    """
    opened = []

    def open_page(server, route="", **options):
        context = browser.new_context(viewport={"width": 1180, "height": 860}, **options)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.asked, page.troubles, page.expected = [], [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda m: page.troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(f"{server.url}/{route}")
        page.wait_for_selector("main h1")
        opened.append((server, page, context))
        return page

    yield open_page
    for server, page, context in opened:
        context.close()
        outside = [url for url in page.asked if not url.startswith((server.url, "blob:", "data:"))]
        assert not outside, outside
        assert not [t for t in page.troubles if not any(words in t for words in page.expected)], page.troubles
