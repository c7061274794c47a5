"""The console in a real browser: each page's main way, and what people and servers do to it."""

import re
import signal

import numpy as np
import pytest
from cascades import build, put_all
from httpx2 import Client
from looking import HOSTILE, put
from served import ServerProcess, photo

MANY = 500


@pytest.fixture
def pictures(tmp_path):
    """Paths of twelve pictures to drop."""
    paths = []
    for seed in range(12):
        path = tmp_path / f"photo {seed}.png"
        path.write_bytes(photo(seed, size=(64, 48)))
        paths.append(path)
    return paths


def heading(page):
    return page.locator("main h1").inner_text()


def test_the_list_shows_each_mask_with_its_picture_verdict_and_size(open_server, visit):
    page = visit(open_server)
    row = page.locator(".masks li", has=page.get_by_role("link", name="judged", exact=True))
    row.locator("svg.density").wait_for()
    assert "adopt" in row.inner_text() and "version 1" in row.inner_text() and "bytes" in row.inner_text()
    assert "OFF weights by stage" in row.locator("svg.density").get_attribute("aria-label")


def test_a_mask_is_uploaded_made_current_downloaded_and_deleted(open_server, visit, files, tmp_path):
    page = visit(open_server, "#/masks")
    for data in ("plain", "other"):
        path = tmp_path / "My Photos!.smn"
        path.write_bytes(files[data])
        page.set_input_files("input[type=file]", path)
        page.get_by_text(f"is my-photos-, version {1 if data == 'plain' else 2}").wait_for()
    page.locator(".masks a.name", has_text="my-photos-").click()
    page.get_by_role("button", name="Make version 1 current").click()
    page.get_by_text("Version 1 is current now.").wait_for()
    with page.expect_download() as downloaded:
        page.get_by_role("button", name="Download version 2").click()
    assert downloaded.value.path().read_bytes() == files["other"]
    page.get_by_text("Delete this mask").click()
    delete = page.get_by_role("button", name="Delete for good")
    page.get_by_label("Type the name").fill("my-photos")
    assert delete.is_disabled()
    page.get_by_label("Type the name").fill("my-photos-")
    delete.click()
    page.wait_for_url("**/#/masks")
    page.locator(".masks a.name", has_text="judged").wait_for()
    assert page.locator(".masks a.name", has_text="my-photos-").count() == 0


def test_a_file_that_is_no_mask_is_refused_in_words(open_server, visit, tmp_path):
    page = visit(open_server, "#/masks")
    page.expected.append("422")
    path = tmp_path / "holiday.smn"
    path.write_bytes(b"not a mask")
    page.set_input_files("input[type=file]", path)
    page.get_by_role("alert").get_by_text("holiday.smn: it is no mask file").wait_for()


def test_try_shows_what_is_near_in_two_spaces_and_the_request_as_code(open_server, visit, pictures):
    page = visit(open_server, "#/try/other")
    page.set_input_files("input[type=file]", pictures)
    page.locator(".near").nth(1).wait_for()
    assert page.locator(".tiles .tile").count() == len(pictures)
    assert (
        page.get_by_text("Nearest in untouched backbone").is_visible()
        and page.get_by_text("Nearest in other").is_visible()
    )
    assert page.locator(".beside .near li").count() == 12
    first = page.locator(".beside section").nth(0).inner_text()
    page.locator(".tiles .tile").nth(3).click()
    assert page.locator(".beside section").nth(0).inner_text() != first
    assert f"{open_server.url}/embed?mask=other" in page.locator(".code pre").inner_text()
    page.get_by_role("button", name="Python").click()
    assert "httpx2.post" in page.locator(".code pre").inner_text()


def test_try_shows_the_labels_of_a_mask_with_a_classifier(open_server, visit, theta, pictures):
    rng = np.random.default_rng(0)
    head = (rng.standard_normal((5, 8), np.float32), np.zeros(5, np.float32), ["ash", "birch", "<b>", "elm", "oak"])
    put(open_server, "labelled", theta.mask(6, head=head).data)
    page = visit(open_server, "#/try/labelled")
    page.set_input_files("input[type=file]", pictures[:4])
    page.get_by_text("What labelled calls it").wait_for()
    assert page.locator(".labels li").count() == 3
    shares = [int(text.split()[0]) for text in page.locator(".labels .similarity").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 101


def test_a_cascade_shows_its_masks(open_server, visit, theta):
    with Client(base_url=open_server.url) as client:
        assert put_all(client, "places", build(theta)).status_code == 201
    page = visit(open_server, "#/masks")
    page.get_by_role("link", name="places", exact=True).click()
    page.get_by_role("heading", name="Its masks").wait_for()
    assert "root" in page.locator("main").inner_text() and "expert 1" in page.locator("main").inner_text()
    assert page.get_by_role("button", name="Download version 1").is_visible()


def test_a_picture_that_is_none_is_named_and_the_others_go_on(open_server, visit, pictures, tmp_path):
    page = visit(open_server, "#/try/plain")
    page.expected.append("422")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.set_input_files("input[type=file]", [*pictures[:4], broken])
    page.locator(".near").nth(1).wait_for()
    assert page.locator(".tiles .tile").count() == 4
    assert "broken.png" in page.get_by_role("alert").inner_text()


def test_an_unknown_space_is_said_in_the_servers_words(open_server, visit, pictures):
    page = visit(open_server, "#/try/plane")
    page.expected.append("404")
    page.set_input_files("input[type=file]", pictures[:3])
    page.get_by_role("alert").get_by_text("plain").wait_for()


def test_explore_maps_the_gallery_in_two_spaces(open_server, visit):
    page = visit(open_server, "#/explore/other")
    page.locator(".grid .tile img[src]").first.wait_for()
    page.get_by_role("button", name="Map them").click()
    page.locator(".maps svg").nth(1).wait_for()
    assert page.locator(".maps svg").nth(0).locator("circle").count() == 21, "twenty pictures and a ring"
    assert page.locator(".legend li").all_inner_texts() == ["fields", "towns"]
    page.get_by_label("Colour by").select_option("cluster")
    assert "cluster 1" in page.locator(".legend").inner_text()
    before = page.locator(".beside").inner_html()
    page.locator(".grid .tile[aria-pressed=true]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".beside").inner_html() != before


def test_ask_me_counts_answers_and_writes_them_to_the_notes(open_server, visit):
    page = visit(open_server, "#/ask/other")
    page.get_by_role("button", name="Begin").click()
    page.locator(".question").wait_for()
    assert "other" not in page.locator(".question").inner_text(), "which space is which stays unknown"
    asked = int(re.search(r"of (\d+)", page.locator(".question .count").inner_text())[1])
    page.get_by_role("button", name="Neither, skip").click()
    for number in range(2, asked + 1):
        page.get_by_text(f"Question {number} of {asked}").wait_for()
        page.keyboard.press("1" if number % 2 else "2")
    page.get_by_text(f"of {asked - 1} times you chose").wait_for()
    page.get_by_role("button", name="Write it to the notes of other").click()
    page.get_by_text("Written to the notes of other").wait_for()
    page.goto(f"{open_server.url}/#/masks/other")
    note = page.get_by_label("Notes of version 1")
    note.wait_for()
    assert f'"of": {asked - 1}' in note.inner_text()


def test_live_counts_what_the_server_does(open_server, visit):
    page = visit(open_server, "#/live")
    answers = page.locator(".figure", has_text="Answers").locator("output")
    page.wait_for_function("e => parseFloat(e.textContent) > 0", arg=answers.element_handle())
    assert page.get_by_text("Where the time of a request goes").is_visible()


def test_the_console_opens_without_a_key_and_asks_for_one(locked_server, visit):
    page = visit(locked_server)
    page.expected.append("401")
    assert heading(page) == "Key" and "asks for a key" in page.locator(".notice").inner_text()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_role("button", name="Use this key").click()
    page.get_by_text("does not know this key").wait_for()
    page.get_by_label("Key", exact=True).fill("reader")
    page.get_by_role("button", name="Use this key").click()
    page.locator(".masks a.name", has_text="plain").wait_for()
    assert page.evaluate("[sessionStorage.getItem('smn.key'), localStorage.length, document.cookie]") == [
        "reader",
        0,
        "",
    ]
    assert not any("reader" in url for url in page.asked), "a key is never in an address"


def test_a_key_to_read_is_told_that_it_cannot_change(locked_server, visit, files, tmp_path):
    page = visit(locked_server)
    page.expected += ["401", "403"]
    page.get_by_label("Key", exact=True).fill("reader")
    page.get_by_role("button", name="Use this key").click()
    path = tmp_path / "new.smn"
    path.write_bytes(files["other"])
    page.locator(".masks a.name").wait_for()
    page.set_input_files("input[type=file]", path)
    page.get_by_role("alert").get_by_text("This key may read, not change").wait_for()


def test_a_server_that_is_gone_is_said_and_can_be_tried_again(theta, files, visit, tmp_path):
    arguments = [*theta.save(tmp_path), "--registry", tmp_path / "registry"]
    server = ServerProcess(arguments, tmp_path)
    server.start()
    put(server, "plain", files["plain"])
    page = visit(server)
    page.expected.append("ERR_CONNECTION_REFUSED")
    page.locator(".masks a.name").wait_for()
    server.stop(signal.SIGTERM)
    page.locator(".masks a.name").click()
    page.get_by_text("The server is away").wait_for()
    server.start()
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Where weights are off").wait_for()
    server.stop()


def test_metadata_that_are_markup_are_shown_as_text(open_server, visit):
    page = visit(open_server, "#/masks/hostile")
    page.get_by_text("Where weights are off").wait_for()
    assert HOSTILE in page.locator(".card dl").first.inner_text()
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "hostile · SMN"


def test_a_name_that_is_markup_is_shown_as_text(open_server, visit):
    page = visit(open_server, "#/masks/%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    page.expected.append("400")
    page.get_by_role("alert").wait_for()
    assert "<img src=x" in page.get_by_role("alert").inner_text()
    assert page.locator("main img").count() == 0


def test_five_hundred_masks_are_listed_and_found(theta, files, visit, tmp_path):
    from service.registry.directory import DirectoryRegistry

    registry = DirectoryRegistry(tmp_path / "registry", theta.backbone().fingerprint)
    for number in range(MANY):
        registry.publish("masks", f"mask-{number:03}", files["plain"])
    with ServerProcess([*theta.save(tmp_path), "--registry", tmp_path / "registry"], tmp_path) as server:
        page = visit(server)
        page.get_by_text(f"{MANY} masks").wait_for()
        assert page.locator(".masks li").count() == MANY
        detailed = [url for url in page.asked if "/masks/mask-" in url]
        assert len(detailed) < 60, "only what is in sight is read"
        page.get_by_label("Find a name").fill("499")
        page.get_by_text("1 mask", exact=True).wait_for()
        page.locator(".masks li:not([hidden]) svg.density").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 390])
def test_every_page_passes_axe_and_fits_the_screen(open_server, visit, pictures, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="uv pip install -e '.[dev]'").Axe()
    page = visit(open_server, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 844})

    def look(what):
        # While a button fades from one state into another, its colours are those of neither.
        page.evaluate("Promise.all(document.getAnimations().map((motion) => motion.finished.catch(() => null)))")
        found = axe.run(page)
        assert found.violations_count == 0, f"{what}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), what

    page.locator("svg.density").first.wait_for()
    look("masks")
    for route, wait in (("masks/judged", ".card"), ("live", ".figures"), ("key", "form"), ("ask/other", ".panel")):
        page.goto(f"{open_server.url}/#/{route}")
        page.locator(wait).first.wait_for()
        look(route)
    page.goto(f"{open_server.url}/#/try/other")
    page.locator(".drop").first.wait_for()
    page.set_input_files("input[type=file]", pictures)
    page.locator(".near").nth(1).wait_for()
    look("try")
    page.goto(f"{open_server.url}/#/explore/other")
    page.get_by_role("button", name="Map them").click()
    page.locator(".maps svg").nth(1).wait_for()
    look("explore")


def test_the_whole_console_can_be_used_by_keyboard(open_server, visit):
    page = visit(open_server, "#/masks")
    page.locator(".masks a.name").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main" and page.url.endswith("#/masks")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Where weights are off").wait_for()
