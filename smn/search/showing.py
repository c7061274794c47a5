"""`smn search --open`: query and results as one local page, with small copies of the pictures in it.

Paths come out of a collection, which somebody else may have made: each is text here, never markup, and only pictures
below the collection's folder are read. The page loads nothing and runs nothing: its policy allows its own style alone.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

from smn_core.errors import InvalidImage
from smn_core.images import decode

SIDE_PX = 320
"""Of the square that a small copy fits into."""
MOST_BYTES = 256 * 2**20
"""Of a picture's file; a larger one is not read."""
STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif; }
body { margin: 1.5rem; }
ol { list-style: none; padding: 0; display: grid; gap: 1rem; }
ol { grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
figure { margin: 0; }
img, .none { width: 100%; height: 14rem; object-fit: contain; background: #8882; }
.none { display: grid; place-items: center; }
figcaption { overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; }
"""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{base64.b64encode(sha256(STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


def write_page(query: Path, found: Sequence[tuple[str, float]], folder: str, space: str) -> Path:
    """Write the page to a new temporary folder that only this user may look into; it stays there. Returns its path."""
    path = Path(tempfile.mkdtemp(prefix="smn-search-")) / "search.html"
    path.write_text(page_of(query, found, folder, space), encoding="utf-8")
    return path


def page_of(query: Path, found: Sequence[tuple[str, float]], folder: str, space: str) -> str:
    """The page.

    Args:
        found: paths below `folder`, and their similarities, the nearest first.
    """
    results = "\n".join(
        f"<li>{_figure(_below(folder, path), f'{number}. {near:.4f}', path)}</li>"
        for number, (path, near) in enumerate(found, 1)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width">
<title>smn search</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Nearest photos</h1>
<ol><li>{_figure(query, "The query", str(query))}</li></ol>
<h2>Found below <code>{_text(folder)}</code></h2>
<ol>
{results}
</ol>
<p>Cosine similarity in the space <code>{_text(space)}</code></p>
</body>
</html>
"""


def _figure(file: Path | None, head: str, name: str) -> str:
    small = _small(file) if file is not None else None
    shown = f'<img src="{small}" alt="">' if small else '<div class="none">cannot be shown</div>'
    return f"<figure>{shown}<figcaption>{_text(head)}<br>{_text(name)}</figcaption></figure>"


def _below(folder: str, path: str) -> Path | None:
    """The file of a path; None where it is not below the folder, links followed."""
    root = Path(folder).resolve()
    try:
        file = (root / path).resolve()
    except (OSError, ValueError):
        return None
    return file if file.is_relative_to(root) else None


def _small(file: Path) -> str | None:
    """A small copy of a picture as a data URI; None where it is gone or cannot be read."""
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            return None
        image = decode(file.read_bytes(), draft_px=SIDE_PX)
    except (OSError, ValueError, InvalidImage):
        return None
    image.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(text: str) -> str:
    """Foreign text as HTML shows it: no markup, and nothing that turns the writing around."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(plain.encode("utf-8", "replace").decode())
