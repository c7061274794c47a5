"""The console: one static page at `/` and `/console`, and the files that it is made of. Open to all: it has no data.

Its files are read once, at start. The page may run its own files alone, reach this server alone, and never turns a text
into elements (`trusted-types`): a mask's name or metadata cannot become script.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from smn_core.errors import NotFound

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def router_of(folder: Path = STATIC) -> APIRouter:
    """The routes of the page and of its files."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    tags = {name: f'"{sha256(data).hexdigest()[:32]}"' for name, data in files.items()}
    router = APIRouter(include_in_schema=False)

    def answer(name: str, request: Request) -> Response:
        if name not in files:
            raise NotFound(f"the console has no file {name[:80]!r}")
        headers = {**HEADERS, "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers=headers)

    @router.get("/")
    @router.get("/console")
    async def page(request: Request) -> Response:
        return answer("index.html", request)

    @router.get("/console/{file}")
    async def part(file: str, request: Request) -> Response:
        return answer(file, request)

    return router
