"""The documentation: the schema, a page that shows it and tries calls, and the page's own files.

All of it is the server's own and open: it says what every server of this version takes, and nothing of a tenant. The
scripts are Swagger UI's as the package `fastapi-offline` carries them, so the page opens without the internet.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
File = Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]
KEPT_S = 3600
PARAMETERS = {"validatorUrl": None, "docExpansion": "none", "tryItOutEnabled": True, "displayRequestDuration": True}
"""Of the page. Its validator would be another host's."""


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """The schema."""
    document: dict[str, Any] = request.app.openapi()
    return document


@router.get("/docs")
async def page(request: Request) -> Response:
    """The page. Its links are relative, so that it opens behind a proxy's prefix too."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url=f"docs/{SCRIPT}",
        swagger_css_url=f"docs/{STYLE}",
        swagger_favicon_url=f"docs/{ICON}",
        swagger_ui_parameters=PARAMETERS,
    )


@router.get("/docs/{file}")
async def asset(file: File) -> Response:
    """One of the page's files."""
    return FileResponse(_folder() / file, headers={"Cache-Control": f"max-age={KEPT_S}"})


def _folder() -> Path:
    """Where the package has them. It is not imported: it would bring another application class with it."""
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None and found.origin is not None, "it is a dependency of the service"
    return Path(found.origin).parent / "static"
