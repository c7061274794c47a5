"""A Redis client by its URL: one server, a Sentinel's master, or a cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.registry.watch import ReadOnly
from smn_core.errors import InvalidArgument, Unavailable

Client = Any  # Redis or RedisCluster: both have the commands used here, but redis-py types them as sync or async
SENTINEL_PORT = 26379
CONNECT_TIMEOUT_S = 1.0
SCAN_TIMEOUT_S = 10.0
PLACE = re.compile(r"(?:unix socket: )?(?:[\w.\[\]-]+:[0-9]{2,5}\b(?!\))|\S*/[^\s.]*(?:\.[^\s.]+)*)")
FULL = "its memory is full (maxmemory, noeviction)"
REFUSALS = {
    "READONLY": "Redis is a replica, which takes no change",
    "OOM": FULL,
    "'maxmemory'": FULL,
    "MISCONF": "Redis cannot write its disk",
    "NOREPLICAS": "Redis has too few replicas",
    "NOPERM": "its user may not",
}
"""Why Redis takes no change while it answers, by a word of its error."""
CLASSES = {
    exceptions.ReadOnlyError: "READONLY",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.NoPermissionError: "NOPERM",
}
# RedisClusterException is not a RedisError.
ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)


class Moved(ReadOnly):
    """Redis is a replica: a failover behind one address has left this connection with it."""


def connector(url: str) -> Callable[[float], Client]:
    """A function that makes a client for a URL; its argument is the socket timeout in seconds.

    `redis://`, `rediss://`, `unix://` are redis-py's own; `redis+cluster://host:port` and
    `redis+sentinel://[user:password@]host[:port],host.../service[/db][?sentinel_password=...]` (`rediss+` for TLS) are
    put together here. No client retries by itself: a retry would hide a lost connection from the follower, and could
    send a change twice.

    Raises:
        InvalidArgument: a URL that redis-py cannot read.
    """
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    plain = url.replace(f"+{kind}://", "://", 1) if kind else url
    try:
        if kind == "sentinel":
            return _sentinel(urlsplit(plain), ssl=scheme == "rediss")
        if kind == "cluster":
            redis.connection.parse_url(plain)
            return lambda timeout_s: redis.RedisCluster.from_url(plain, **_options(timeout_s, retries=1))
        tcp = {} if scheme == "unix" else {"socket_keepalive": True}
        redis.connection.parse_url(plain)
    except ValueError as error:
        raise InvalidArgument(f"{where(url)} is not a Redis URL: {error}") from error
    return lambda timeout_s: redis.Redis.from_url(plain, **_options(timeout_s), **tcp)


def where(url: str) -> str:
    """A URL without user, password and query, fit for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def unavailable() -> Iterator[None]:
    """Turn any failure of Redis into Unavailable, or ReadOnly where it takes no change; the message has no address."""
    try:
        yield
    except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException, OSError) as error:
        raise Unavailable(f"the registry is away: {_without_place(str(error))}") from error
    except exceptions.RedisError as error:
        text = str(error)
        # Redis 6 puts the word of an error within a script behind others; 7 says there only that memory is over.
        # Where the word comes first, redis-py takes it off and makes a class of it.
        word = next((word for kind, word in CLASSES.items() if isinstance(error, kind)), text)
        for sign, reason in REFUSALS.items():
            if sign in word:
                kind = Moved if sign == "READONLY" else ReadOnly
                raise kind(f"the registry cannot be written: {reason}") from error
        raise Unavailable(f"the registry refuses: {_without_place(text)}") from error


def _without_place(text: str) -> str:
    """A client's message without host, port and path: other clients read it."""
    return PLACE.sub("Redis", text)


def backbones_of(url: str) -> list[str]:
    """The backbones that have a registry in this Redis: what stands in the hash tags of their keys.

    Raises:
        Unavailable: Redis is away.
    """
    with unavailable():
        client = connector(url)(SCAN_TIMEOUT_S)
        try:
            keys = [key.decode() for mark in ("epoch", "last") for key in client.scan_iter(f"smn:{{*}}:{mark}", 1000)]
        finally:
            client.close()
    return sorted({found[1] for key in keys if (found := re.fullmatch(r"smn:\{([0-9a-f]{16})\}:[a-z]+", key))})


def disconnect(client: Client) -> None:
    """Break the connections of a client, those too that another thread waits on."""
    if isinstance(client, redis.RedisCluster):
        pools = [node.redis_connection.connection_pool for node in client.get_nodes() if node.redis_connection]
    else:
        pools = [client.connection_pool]
    for pool in pools:
        pool.disconnect(inuse_connections=True)


def _options(timeout_s: float, retries: int = 0) -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), retries),
        "protocol": 2,
    }


def _sentinel(url: SplitResult, ssl: bool) -> Callable[[float], Client]:
    user, _, hosts = url.netloc.rpartition("@")
    service, _, db = url.path.strip("/").partition("/")
    if not service or not hosts:
        raise ValueError("write redis+sentinel://host:port,host:port/service")
    places = [urlsplit(f"//{host}") for host in hosts.split(",")]
    sentinels = [(place.hostname, place.port or SENTINEL_PORT) for place in places]
    username, _, password = user.partition(":")
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    login = {"username": unquote(username) or None, "password": unquote(password) or None, "db": int(db or 0)}
    theirs = {key.removeprefix("sentinel_"): value for key, value in query.items() if key.startswith("sentinel_")}

    def connect(timeout_s: float) -> Client:
        options = _options(timeout_s) | {"ssl": ssl}
        manager = Sentinel(sentinels, sentinel_kwargs={**_options(CONNECT_TIMEOUT_S), "ssl": ssl, **theirs})
        return manager.master_for(service, **options, **login)

    return connect
