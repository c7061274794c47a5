"""The calls of a client, each written once: a talk yields requests, is sent their responses, and returns the answer.

It opens no connection and waits for nothing, so `Client` and `AsyncClient` carry out the same talks.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2

from service.answers import (
    ALIASED,
    CASCADE,
    CURRENT,
    ENTRY,
    LIMITS,
    MASK,
    MODEL,
    MODES,
    PAGE,
    PLACE,
    SPACE_OF_ROOT,
    VERSION,
    VERSIONS,
    WRITTEN,
    ServerError,
    check,
    require_shape,
    table_of,
)
from service.calls import Call, alias_path, check_version, path_of, push_call, version_params
from service.registry.base import Kind, parse_reference
from smn_core.errors import InvalidArgument, MissingMasks
from smn_core.files import write_bytes
from smn_core.parents import beside, parent_of, parent_path

T = TypeVar("T")
Talk = Generator[Call, httpx2.Response, T]


def push(
    name: str,
    mask: bytes | str | Path,
    *,
    if_match: str | None = None,
    if_absent: bool = False,
    kind: Kind = "masks",
) -> Talk[dict[str, Any]]:
    """Upload a mask or cascade file; the written version.

    A file whose mask is coded against a parent that the server does not have: the parent, where its file is beside it,
    goes in first as `NAME.parent`.
    """
    call = push_call(name, mask, if_match, if_absent=if_absent, kind=kind)
    response = yield call
    if _misses_masks(response) and not isinstance(mask, bytes) and (parent := _parent_beside(Path(mask))) is not None:
        check((yield push_call(f"{name}.parent", parent, None, if_absent=False)))
        response = yield call
    return table_of(check(response), WRITTEN)


def _misses_masks(response: httpx2.Response) -> bool:
    if response.status_code != 422:
        return False
    try:
        check(response)
    except ServerError as error:
        return error.code == MissingMasks.code
    return False


def _parent_beside(file: Path) -> bytes | None:
    digest = parent_of(file.read_bytes())
    return beside(file)(digest) if digest is not None else None


def push_cascade(
    name: str,
    folder: Path,
    *,
    if_match: str | None = None,
    if_absent: bool = False,
) -> Talk[dict[str, Any]]:
    """Upload what `smn cascade` wrote: its masks as `NAME.root`, `NAME.expert-1` ..., then the cascade.

    Readers see all of it or nothing: the cascade is published last, and only where all its masks are there.

    Raises:
        InvalidCascade: the folder has no whole cascade.
    """
    from smn_core.cascade.file import FILE_NAME, open_folder

    path_of("cascades", name)  # an error before anything is uploaded
    found = open_folder(folder)
    data = (Path(folder) / FILE_NAME).read_bytes()
    names = [f"{name}.root", *(f"{name}.expert-{i}" for i in range(1, len(found.files)))]
    for mask_name, file in zip(names, found.files, strict=True):
        yield from push(mask_name, file)
    return (yield from push(name, data, if_match=if_match, if_absent=if_absent, kind="cascades"))


def pull(name: str, version: int | None = None, kind: Kind = "masks") -> Talk[bytes]:
    """A mask or cascade file."""
    return check((yield Call("GET", path_of(kind, name, "file"), version_params(version)))).content


def pull_parent(name: str, data: bytes) -> Talk[bytes | None]:
    """The file of the mask that a file pulled under a name is coded against; None where it has no parent.

    Raises:
        InvalidArgument: a parent that the key may not see.
    """
    digest = parent_of(data)
    if digest is None:
        return None
    response = check((yield Call("GET", path_of("masks", name))))
    for version in table_of(response, VERSIONS)["versions"]:
        place = require_shape(response, version, VERSION)["parent"]
        if (
            place is not None
            and require_shape(response, place, PLACE)["digest"] == digest
            and place["name"] is not None
        ):
            return (yield from pull(place["name"], place["version"]))
    raise InvalidArgument(f"mask {name}: no mask that this key may see is its parent {digest}")


def pull_cascade(name: str, folder: Path, *, overwrite: bool = False) -> Talk[None]:
    """Download the current version of a cascade and its masks to a folder, as `smn cascade` would write them.

    Raises:
        InvalidArgument: a mask that the key may not see; a folder that exists already, unless `overwrite`, or that
            cannot be written.
    """
    from smn_core.cascade.file import FILE_NAME, mask_names

    if not overwrite and folder.exists():
        raise InvalidArgument(f"{folder} exists already")
    told, places = yield from _read_cascade(name)
    hidden = [place["digest"] for place in places if place["name"] is None]
    if hidden:
        raise InvalidArgument(f"cascade {name}: no mask that this key may see is {', '.join(hidden)}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"cannot make {folder}: {error.strerror}") from error
    there = {place["digest"] for place in places}
    for called, place in zip(mask_names(len(places)), places, strict=True):
        file = folder / called
        data = yield from pull(place["name"], place["version"])
        write_bytes(file, data)
        if parent_of(data) not in there and (parent := (yield from pull_parent(place["name"], data))) is not None:
            write_bytes(parent_path(file), parent)
    write_bytes(folder / FILE_NAME, (yield from pull(name, told["current"]["version"], kind="cascades")))


def cascade(name: str) -> Talk[dict[str, Any]]:
    """Versions, masks, fusion and modes of a cascade."""
    return (yield from _read_cascade(name))[0]


def _read_cascade(name: str) -> Talk[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What the server says of a cascade, and the places of its masks in that."""
    response = check((yield Call("GET", path_of("cascades", name))))
    found = table_of(response, CASCADE)
    return found, [require_shape(response, place, PLACE) for place in found["masks"]]


def mask(name: str) -> Talk[dict[str, Any]]:
    """Versions, metadata and density of a mask."""
    return table_of(check((yield Call("GET", path_of("masks", name)))), MASK)


def names(kind: Kind) -> Talk[list[dict[str, Any]]]:
    """All masks or cascades, in order of names."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        response = check((yield Call("GET", f"/{kind}", {"limit": "1000", "after": after})))
        page = table_of(response, PAGE)
        for entry in page["data"]:
            require_shape(response, require_shape(response, entry, ENTRY)["current"], CURRENT)
        found += page["data"]
        after = page["next"] if page["data"] else None
    return found


def masks() -> Talk[list[dict[str, Any]]]:
    """All masks, in order of names."""
    return (yield from names("masks"))


def rollback(name: str, version: int, kind: Kind = "masks") -> Talk[dict[str, Any]]:
    """Make an earlier (or later) version the current one."""
    check_version(version)
    response = yield Call("PUT", path_of(kind, name, "current"), json={"version": version})
    return table_of(check(response), WRITTEN)


def delete(name: str, version: int | None = None, kind: Kind = "masks") -> Talk[None]:
    """Delete one version, or the name with all of them, without a question."""
    check((yield Call("DELETE", path_of(kind, name), version_params(version))))


def set_alias(name: str, alias: str, version: int, kind: Kind = "masks") -> Talk[dict[str, Any]]:
    """Let `name@alias` mean a version from now on."""
    check_version(version)
    response = yield Call("PUT", alias_path(kind, name, alias), json={"version": version})
    return table_of(check(response), ALIASED)


def delete_alias(name: str, alias: str, kind: Kind = "masks") -> Talk[None]:
    """Forget an alias; the version that it meant stays."""
    check((yield Call("DELETE", alias_path(kind, name, alias))))


def space(
    mask: str | None = None,
    *,
    cascade: str | None = None,
    mode: str | None = None,
    normalize: bool = False,
    dimensions: int | None = None,
) -> Talk[str]:
    """The id of the space that `embed` with the same words answers in, as the names stand now.

    Raises:
        InvalidArgument: `mask` and `cascade` both, or a mode without a cascade.
    """
    if mask is not None and cascade is not None:
        raise InvalidArgument("mask and cascade: give one of them")
    if mode is not None and cascade is None:
        raise InvalidArgument("mode is for a cascade")
    told = table_of(check((yield Call("GET", "/info"))), SPACE_OF_ROOT)
    found, width = str(told["space"]), int(told["dimensions"])
    if mask is not None or cascade is not None:
        parse_reference(str(mask if mask is not None else cascade))
        model = str(mask) if cascade is None else f"cascade:{cascade}"
        found = table_of(check((yield Call("GET", f"/v1/models/{quote(model, safe='')}"))), MODEL)["space"]
    if cascade is not None:
        found = f"{found.rpartition(':')[0]}:{mode}" if mode is not None else found
        if dimensions is not None:
            width = yield from _width_of(cascade, found.rpartition(":")[2], width)
    if dimensions is not None or normalize:
        from smn_core.spaces import shape_space

        cut = dimensions if dimensions is not None and dimensions < width else None
        found = shape_space(found, dimensions=cut, normalize=normalize)
    return found


def _width_of(cascade: str, mode: str, n_features: int) -> Talk[int]:
    """How wide the vectors of a cascade are in a mode. What the server tells is of the current version."""
    name, pin = parse_reference(cascade)
    told = table_of(check((yield Call("GET", path_of("cascades", name)))), MODES)
    numbers = {entry["digest"]: entry["version"] for entry in told["versions"]} | told["aliases"]
    version = numbers.get(pin, pin)
    if version in (None, told["current"]["version"]):
        return int(told["modes"].get(mode, 0))
    from smn_core.cascade.file import parse_cascade

    found = parse_cascade((yield from pull(name, version, kind="cascades")))
    return found.width(mode, n_features) if mode in found.modes else 0


def info() -> Talk[dict[str, Any]]:
    """What the server is."""
    return table_of(check((yield Call("GET", "/info"))), {})


def limits() -> Talk[dict[str, Any]]:
    """What the server takes at once: the limits of its `/info`."""
    limits: dict[str, Any] = table_of(check((yield Call("GET", "/info"))), LIMITS)["limits"]
    return limits
