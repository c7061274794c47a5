"""The documentation as a site: the Markdown of the repository as it lies there, built by Sphinx with MyST.

    make site        # build/site/index.html; -W: a link or an anchor that does not arrive ends the build

Nothing of the pages comes from elsewhere: theme, search and its index are files of the site.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PARTS = {
    "Use it": ["docs/console", "docs/spaces", "docs/search", "docs/sharing", "docs/dialects"],
    "Run it": ["docs/operations", "docs/configuration", "docs/scale", "docs/performance", "SECURITY"],
    "Know it": ["docs/method", "docs/results", "docs/experiments", "docs/formats"],
    "Work on it": ["CONTRIBUTING", "docs/architecture", "docs/decisions", "CHANGELOG"],
}
"""The pages by part, in the order of the navigation. A page that is in none is a warning of Sphinx, and so an error."""

project = "SMN"
author = "The SMN authors"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
root_doc = "README"
include_patterns = ["README.md", *(f"{page}.md" for pages in PARTS.values() for page in pages), "docs/*.md"]
exclude_patterns = [".*", "build", "**/__pycache__"]  # not looked into: .venv alone holds 60,000 files

extensions = ["myst_parser"]
myst_heading_anchors = 6  # as on GitHub, where the same files are read
myst_links_external_new_tab = False
suppress_warnings = ["misc.highlighting_failure"]  # answers that are cut with "..." are no JSON

html_theme = "furo"
html_title = "SMN"
html_show_sphinx = html_show_copyright = False
html_copy_source = False
html_additional_pages = {"index": "front.html"}
templates_path = ["_templates"]


def add_navigation(app: Any, docname: str, source: list[str]) -> None:  # noqa: ARG001
    """Append the list of pages to the front page: GitHub, which shows the file too, would print it."""
    if docname == root_doc:
        trees = ["\n".join((f":caption: {part}", ":hidden:", "", *pages)) for part, pages in PARTS.items()]
        source[0] += "".join(f"\n```{{toctree}}\n{tree}\n```\n" for tree in trees)


def setup(app: Any) -> None:
    app.connect("source-read", add_navigation)
