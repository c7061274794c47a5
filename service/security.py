"""Who may do what: keys, their names, and what no request may do."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from service.errors import Rejected
from service.keys import clean_key
from service.settings import Settings
from smn_core.errors import InvalidArgument
from smn_core.names import check_name

PREFIX = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Key:
    """A secret, whether it may change masks, the prefix of the names it is bound to, and what it is called inside."""

    secret: bytes
    admin: bool
    prefix: str
    who: str


@dataclass(frozen=True)
class Caller:
    """Who sent a request: what they may change, and which names they may touch.

    `who` is one of those who share the server: a key, or without keys a network address.
    """

    admin: bool
    prefix: str = ""
    who: str = ""

    def require_name(self, name: str) -> None:
        """Raise 403 unless the caller's key is for this name."""
        if not name.startswith(self.prefix):
            raise Rejected(403, "wrong_name", f"this key is for names that start with {self.prefix!r}", "name")

    def after(self, name: str) -> str:
        """Where a registry's list begins, so that it has the names of this caller's prefix that come after `name`."""
        if not self.prefix:
            return name
        return max(name, self.prefix[:-1] + chr(ord(self.prefix[-1]) - 1) + "\x7f")


class Guard:
    """Checks the `Authorization` header. Without any key configured every caller may do everything."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = keys

    def caller(self, request: Request) -> Caller:
        """Who sends this request.

        Raises:
            Rejected: 401, no key or none that is known.
        """
        if not self._keys:
            return Caller(admin=True, who=network_of(request.client.host if request.client else ""))
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Rejected(401, "no_key", "send a key: Authorization: Bearer <key>")
        found = None
        for key in self._keys:  # all of them, so that the time taken does not tell which one matched
            if hmac.compare_digest(key.secret, secret.strip().encode()):
                found = key
        if found is None:
            raise Rejected(401, "unknown_key", "the key is not known here")
        return Caller(found.admin, found.prefix, found.who)


def guard_of(settings: Settings) -> Guard:
    """The guard that the settings describe.

    Raises:
        InvalidArgument: no admin key on an address that others reach, a key that no header can carry, or one that is
            bound to two prefixes. The message never has the key.
    """
    texts = [(text, False) for text in settings.api_keys] + [(text, True) for text in settings.admin_keys]
    keys = [_key(text, admin=admin, who=f"key {number}") for number, (text, admin) in enumerate(texts)]
    given: dict[bytes, str] = {}
    for key in keys:
        if given.setdefault(key.secret, key.prefix) != key.prefix:
            raise InvalidArgument(
                "one key is given twice, bound to different prefixes: give each prefix a key of its own"
            )
    if not settings.insecure and not _is_loopback(settings.host) and not any(key.admin for key in keys):
        raise InvalidArgument(
            f"{settings.host} can be reached from elsewhere: set SMN_ADMIN_KEYS, or say --insecure to serve everyone"
        )
    return Guard(keys)


# Dependencies are coroutines although they wait for nothing: FastAPI would run plain functions in threads.


class Bearer(HTTPBearer):
    """A dependency that is a caller with a known key. OpenAPI says of its routes that they take one."""

    def __init__(self, *, to_change: bool = False) -> None:
        super().__init__(scheme_name="key", description="One of SMN_API_KEYS or SMN_ADMIN_KEYS, if the server has any.")
        self._to_change = to_change

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        """Who sends the request.

        Raises:
            Rejected: 401, no key or none that is known; 403, one that may not change masks where that is needed.
        """
        caller: Caller = request.app.state.guard.caller(request)
        request.state.caller = caller
        if self._to_change and not caller.admin:
            raise Rejected(403, "read_only_key", "this key may embed and read, not change")
        return caller


may_read = Bearer()
may_change = Bearer(to_change=True)
Reader = Annotated[Caller, Depends(may_read)]
Changer = Annotated[Caller, Depends(may_change)]
Name = Annotated[str, Path(description="[a-z0-9][a-z0-9._-]*, at most 128 characters")]
"""A name as the path has it; handlers take `OwnName` or `OwnNameToChange`, which check it."""


async def own_name(name: Name, caller: Reader) -> str:
    """Dependency: the name in the path. 400 if it breaks the grammar, 403 if the caller's key is not for it."""
    check_name(name)
    caller.require_name(name)
    return name


async def own_name_to_change(name: Name, caller: Changer) -> str:
    """Dependency: as `own_name`, for a caller that may change masks."""
    return await own_name(name, caller)


OwnName = Annotated[str, Depends(own_name)]
"""The `{name}` of a route that reads: a name by the grammar, which the caller's key is for."""
OwnNameToChange = Annotated[str, Depends(own_name_to_change)]
"""The `{name}` of a route that changes something: likewise, and the key may change masks."""


async def known_query(request: Request) -> None:
    """Dependency: refuse a query parameter that the route does not have, or that is given twice.

    Else `?masks=flowers` would be answered by the untouched backbone, and of two masks one would win.
    """
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    given = [name for name, _ in request.query_params.multi_items()]
    for name in dict.fromkeys(given):
        if name not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise Rejected(400, "unknown_parameter", f"{name[:64]!r} is no parameter here: {takes}", name[:64])
        if given.count(name) > 1:
            raise Rejected(400, "repeated_parameter", f"{name} is given {given.count(name)} times", name)


def network_of(host: str) -> str:
    """The address, of IPv6 its first 64 bits: that much belongs to one customer of a provider."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return host


def _key(text: str, *, admin: bool, who: str) -> Key:
    secret, bound, prefix = (part.strip() for part in text.partition("="))
    if not secret:
        raise InvalidArgument("a key is empty: write key or key=prefix")
    secret = clean_key(secret, "SMN_ADMIN_KEYS" if admin else "SMN_API_KEYS")
    if bound and not PREFIX.fullmatch(prefix):
        raise InvalidArgument(
            "a key is bound to a prefix that no name can have: a key holds no = of its own, as base64 does "
            "(`openssl rand -hex 32` makes one without)"
        )
    return Key(secret.encode(), admin, prefix, who)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
