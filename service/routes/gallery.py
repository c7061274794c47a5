"""GET /gallery: the operator's pictures, by id."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from service.console.gallery import SIDE_PX, SMALLEST_PX, Gallery
from service.embedding import in_time
from service.errors import Rejected
from service.schemas import GalleryList
from service.security import Reader
from service.server import Server, TheServer

router = APIRouter(prefix="/gallery", tags=["gallery"])


@router.get("", response_model=GalleryList)
async def listing(
    server: TheServer,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=1000, description="Pictures a page.")] = 1000,
    after: Annotated[str, Query(max_length=64, description="`next` of the page before.")] = "",
) -> dict[str, Any]:
    """The pictures that the operator shows, a page at a time. Without `--gallery` there are none."""
    gallery = server.gallery
    if gallery is None:
        return {"data": [], "next": None, "total": 0, "unreadable": 0}
    found = gallery.page(limit + 1, after)
    page = found[:limit]
    return {
        "data": [{"id": picture.id, "label": picture.label} for picture in page],
        "next": page[-1].id if len(found) > limit else None,
        "total": len(gallery),
        "unreadable": gallery.unreadable,
    }


@router.get("/{id}/image", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def image(
    id: Annotated[str, Path(max_length=64, description="As the list has it.")],
    server: TheServer,
    request: Request,
    caller: Reader,
    px: Annotated[int, Query(ge=SMALLEST_PX, le=SIDE_PX, description="Width and height of the answer.")] = SIDE_PX,
) -> Response:
    """The middle of a picture, as a JPEG. A picture that cannot be decoded is 422, and is left out from then on."""
    gallery = the_gallery(server)
    etag = f'"{gallery.picture(id).id}-{px}"'
    headers = {"ETag": etag, "Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    async with server.working():
        with server.admission.admit(1, caller.who):
            data = await in_time(server, request, lambda: gallery.square(id, px, caller.who))
    return Response(data, media_type="image/jpeg", headers=headers)


def the_gallery(server: Server) -> Gallery:
    """The gallery; 404 where the server has none."""
    if server.gallery is None:
        raise Rejected(404, "no_gallery", "this server shows no pictures: start it with --gallery DIR")
    return server.gallery
