"""What the pages point to is there: files, names in them, links between pages and their anchors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
POINTER = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)(?:: ([\w.]+))?`")
TOP = {path.name for path in ROOT.iterdir()}
QUESTIONS = (
    "the batch size enforced",
    "429 and 504 come from",
    "a padding bit refused",
    "makes a bit likely to be OFF",
    "decides patch or slot",
    "prototypes frozen",
    "bytes become a tensor",
    "may change a mask",
    "evicts a mask",
    "`smn adapt` do",
    "may the console load",
    "of a folder is shown",
    "writes a cascade",
    "a new option",
    "a new objective",
    "a new fusion kind",
    "a new way to run a segment",
)
MOST_FILES = 2


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def pointers(text: str) -> list[tuple[str, str]]:
    """(path, name or "") of everything in backticks that is a path from the root of the repository."""
    found = POINTER.findall(text)
    return [(path, name) for path, name in found if "/" in path or path in TOP or path.endswith((".py", ".md"))]


def names_of(path: Path) -> set[str]:
    """Functions, classes and names that a module or its classes define; of a class's also as `Class.name`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.update({name, f"{owner}{name}"})
                    if isinstance(node, ast.ClassDef):
                        collect(node.body, f"{name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.update({name, f"{owner}{name}"})

    collect(ast.parse(path.read_text()).body, "")
    return found


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.*?) *$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return {anchor if number == 0 else f"{anchor}-{number}" for anchor, n in found.items() for number in range(n + 1)}


def links_of(page: Path) -> list[str]:
    """Targets of links and pictures that stay in the repository."""
    targets = re.findall(r"\]\(<?([^)\s>]+)>?\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def decided() -> dict[str, str]:
    """The rows of "Where is it decided?": answer by question."""
    _, section = ARCHITECTURE.read_text().split("## Where is it decided?\n")
    rows = re.findall(r"^\| (.+?\?) \| (.+) \|$", section, re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=ids)
def test_what_a_page_points_to_is_there(page):
    found = pointers(prose(page))
    assert len(found) > 5
    for path, name in found:
        assert (ROOT / path).exists(), f"{page.name} points to {path}, which is not there"
        if name:
            assert name in names_of(ROOT / path), f"{page.name} points to {name}, which {path} does not define"


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_newcomer_opens_at_most_two_files_to_see_where_it_is_decided(question):
    (answer,) = [answer for asked, answer in decided().items() if question in asked]
    found = pointers(answer)
    assert 1 <= len({path for path, _ in found}) <= MOST_FILES
    assert all(name for _, name in found), "an answer names the function or class"


def test_every_question_of_the_table_is_known_here():
    assert len(decided()) == len(QUESTIONS)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_to_a_page_picture_or_heading_arrives(page):
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name} links to {target}, a heading that is not there"


def test_the_newcomers_pages_are_linked_from_the_readme():
    linked = links_of(ROOT / "README.md")
    assert {"docs/architecture.md", "CONTRIBUTING.md"} <= set(linked)


def test_contributing_is_one_screen():
    assert len(CONTRIBUTING.read_text().splitlines()) <= 50
