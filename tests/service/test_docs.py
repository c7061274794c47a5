"""/docs opens in a browser without the internet and without a key, and tries calls with one."""

import shutil

import pytest
from playwright.sync_api import sync_playwright
from served import ServerProcess, photo

CHROMIUM = shutil.which("chromium")


def test_the_schema_says_which_routes_take_a_key(client):
    schema = client.get("/openapi.json").json()
    scheme = schema["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, method, takes in (
        ("/embed", "post", True),
        ("/masks/{name}", "put", True),
        ("/v1/embeddings", "post", True),
        ("/v2/models/{model}/infer", "post", True),
        ("/livez", "get", False),
        ("/v2/health/ready", "get", False),
    ):
        assert (schema["paths"][path][method].get("security") == [{"key": []}]) is takes, path


def test_the_page_and_its_files_are_the_server_s_own(client):
    page = client.get("/docs")
    assert page.status_code == 200 and "//" not in page.text.replace("</", "").replace("<!--", "").split("const ui")[0]
    for file, kind in (("swagger-ui-bundle.js", "javascript"), ("swagger-ui.css", "css"), ("favicon.png", "png")):
        answer = client.get(f"/docs/{file}")
        assert answer.status_code == 200 and kind in answer.headers["content-type"]
    for other in ("redoc.standalone.js", "..%2f__init__.py", "core.py"):
        assert client.get(f"/docs/{other}").status_code in (400, 404)


@pytest.fixture(scope="module")
def guarded(theta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    keys = {"SMN_ADMIN_KEYS": '["writer"]'}
    arguments = [*theta.save(folder), "--registry", folder / "registry", "--slots", "2"]
    with ServerProcess(arguments, folder, environment=keys) as server:
        yield server


@pytest.fixture
def browsed(guarded):
    """The page in a browser that reaches no other host, and every address that it has asked for."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked = []

        def own_only(route):
            asked.append(route.request.url)
            if route.request.url.startswith(guarded.url):
                route.continue_()
            else:
                route.abort()

        page.route("**/*", own_only)
        page.goto(f"{guarded.url}/docs")
        page.wait_for_selector(".opblock-tag")
        yield page, asked
        browser.close()


def test_a_mask_is_uploaded_from_the_page_after_authorize(guarded, theta, browsed, tmp_path):
    page, asked = browsed
    (tmp_path / "m.smn").write_bytes(theta.mask(3).data)
    page.click("button.authorize")
    page.fill(".auth-container input", "writer")
    page.click(".auth-btn-wrapper button.authorize")
    page.click(".auth-btn-wrapper button.btn-done")
    page.click("#operations-tag-masks")
    page.click("#operations-masks-upload_masks__name__put .opblock-summary-control")
    block = page.locator("#operations-masks-upload_masks__name__put")
    block.locator("tr[data-param-name=name] input").fill("from-the-page")
    block.locator("input[type=file]").set_input_files(tmp_path / "m.smn")
    block.locator("button.execute").click()
    block.locator(".live-responses-table .response-col_status", has_text="201").wait_for()
    assert "from-the-page" in block.locator(".live-responses-table").inner_text()
    assert asked and all(url.startswith(guarded.url) for url in asked)


def test_images_are_embedded_from_the_page(guarded, browsed, tmp_path):
    page, asked = browsed
    (tmp_path / "a.png").write_bytes(photo())
    page.click("button.authorize")
    page.fill(".auth-container input", "writer")
    page.click(".auth-btn-wrapper button.authorize")
    page.click(".auth-btn-wrapper button.btn-done")
    page.click("#operations-tag-embed")
    page.click("#operations-embed-embed_embed_post .opblock-summary-control")
    block = page.locator("#operations-embed-embed_embed_post")
    block.locator(".opblock-section-request-body select").first.select_option("image/*")
    block.locator("input[type=file]").set_input_files(tmp_path / "a.png")
    block.locator("button.execute").click()
    block.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    assert asked and all(url.startswith(guarded.url) for url in asked)
