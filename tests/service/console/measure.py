"""Measures the console in a browser: bytes, time to use, layout shift, frame times; a table for docs/console.md.

    .venv/bin/python tests/service/console/measure.py

A real `smn serve` on loopback with a tiny backbone, 500 masks and 5,000 pictures; Debian's chromium without a screen.
"""

import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[2]), str(HERE.parents[1] / "golden")]

from looking import CHROMIUM  # noqa: E402 - the paths come first
from playwright.sync_api import sync_playwright  # noqa: E402
from served import ServerProcess, Theta, photo  # noqa: E402

from service.console.page import STATIC  # noqa: E402
from service.registry.directory import DirectoryRegistry  # noqa: E402

MASKS, PICTURES, VISITS, STEPS = 500, 5000, 7, 120
SHIFT = """() => new Promise((done) => {
  let sum = 0;
  new PerformanceObserver((list) => { for (const e of list.getEntries()) sum += e.value; })
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(sum), %d);
})"""
SCROLL = """([selector, steps]) => new Promise((done) => {
  const place = selector ? document.querySelector(selector) : document.scrollingElement;
  const most = place.scrollHeight - place.clientHeight;
  const times = [];
  let before = performance.now(), i = 0;
  const step = (now) => {
    times.push(now - before);
    before = now;
    place.scrollTop = (most * ++i) / steps;
    if (i < steps) requestAnimationFrame(step); else done(times.slice(1));
  };
  requestAnimationFrame(step);
})"""


def main():
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        folder = Path(temporary)
        theta = Theta()
        registry = DirectoryRegistry(folder / "registry", theta.backbone().fingerprint)
        data = theta.mask().data
        for number in range(MASKS):
            registry.publish("masks", f"mask-{number:03}", data)
        (folder / "pictures" / "all").mkdir(parents=True)
        kinds = [photo(seed, size=(96, 96), fmt="JPEG") for seed in range(50)]
        for number in range(PICTURES):
            (folder / "pictures" / "all" / f"{number:05}.jpg").write_bytes(kinds[number % 50])
        arguments = [*theta.save(folder), "--registry", folder / "registry", "--gallery", folder / "pictures"]
        with ServerProcess(arguments, folder) as server:
            chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
            for name, value in rows(chromium, server.url):
                print(f"| {name} | {value} |", flush=True)
            chromium.close()


def rows(chromium, url):
    """Each measure and its value, in words."""
    sizes = {path.name: path.stat().st_size for path in STATIC.iterdir()}
    yield "all files of the console, bytes as sent (not compressed)", f"{sum(sizes.values()):,}"
    used, sent = [], 0
    for _ in range(VISITS):
        page = chromium.new_context(viewport={"width": 1180, "height": 860}).new_page()
        counted = []
        page.on("response", lambda answer, counted=counted: counted.append(answer))
        page.goto(url)
        page.locator(".masks a.name").first.wait_for()
        used.append(page.evaluate("performance.now()"))
        sent = sum(sizes.get(answer.url.rsplit("/", 1)[1] or "index.html", 0) for answer in counted)
        page.context.close()
    yield f"bytes of the console's files on the first page, {MASKS} masks", f"{sent:,}"
    low, high = f"{min(used):.0f}", f"{max(used):.0f}"
    told = f"{statistics.median(used):.0f} ms ({low} to {high}, {VISITS} visits)"
    yield f"first visit until the list of {MASKS} masks can be used", told
    page = chromium.new_context(viewport={"width": 1180, "height": 860}).new_page()
    page.goto(f"{url}/#/live")
    page.locator(".figures").wait_for()
    yield "layout shift on Live, from the visit on, 15 s of numbers", f"{page.evaluate(SHIFT % 15_000):.4f}"
    page.goto(f"{url}/#/masks")
    page.locator(".masks svg.density").first.wait_for()
    yield f"{MASKS} masks scrolled from end to end in {STEPS} frames", frames(page, "")
    page.goto(f"{url}/#/explore")
    page.locator(".grid .tile img[src]").first.wait_for()
    yield f"{PICTURES:,} pictures scrolled from end to end in {STEPS} frames", frames(page, ".grid")
    page.context.close()


def frames(page, selector):
    times = sorted(page.evaluate(SCROLL, [selector, STEPS]))
    middle, most = statistics.median(times), times[int(0.95 * len(times))]
    return f"{middle:.1f} ms a frame, 95 of 100 within {most:.1f} ms"


if __name__ == "__main__":
    main()
