"""Where the store is: what a URL says of it, as redis-py's ways to connect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.asyncio import ConnectionPool, Sentinel, SentinelConnectionPool, SSLConnection
from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_TOPOLOGY_SECONDS: Final = 1.0  # for a sentinel, or a node of a cluster, to say who is a primary
_PORTS: Final = {"cluster": 6379, "sentinel": 26379}
_OF_SENTINELS: Final = "sentinel_"  # what options for the sentinels themselves start with


class Way(NamedTuple):
    """How to the one primary of a store. `close` ends what finds it; `moved` tells whether it is elsewhere by now."""

    pool: ConnectionPool
    close: Callable[[], Any]
    moved: Callable[[], Awaitable[bool]] | None = None


class Nodes(NamedTuple):
    """A cluster: who knows its nodes, those in the URL, and how to one of them by host and port."""

    manager: NodesManager
    known: list[ClusterNode]
    pool: Callable[[str, int], ConnectionPool]


def is_cluster(url: str) -> bool:
    """Whether the URL is of a cluster, and not of one primary."""
    return "+cluster://" in url


def primary(url: str, timeout_seconds: float) -> Way:
    """The way to the primary at redis://, rediss:// or unix://, or that the sentinels of redis+sentinel:// name."""
    plain = {"protocol": 2, "socket_connect_timeout": timeout_seconds, "driver_info": None}
    if "+sentinel://" not in url:
        pool = ConnectionPool.from_url(url, **plain)
        return Way(pool, pool.disconnect)
    hosts, service, options = _parsed(url, "sentinel")
    secure = options.pop("connection_class", None) is SSLConnection
    own = {name: options.pop(name) for name in list(options) if name.startswith(_OF_SENTINELS)}
    told = {name.removeprefix(_OF_SENTINELS): value for name, value in own.items()}
    told |= {name: value for name, value in options.items() if name.startswith("ssl_")} | _quick(timeout_seconds)
    sentinel = Sentinel(hosts, sentinel_kwargs=told | {"ssl": secure})  # type: ignore[no-untyped-call]
    pool = SentinelConnectionPool(service, sentinel, ssl=secure, **options | plain)  # type: ignore[no-untyped-call]

    async def moved() -> bool:
        with suppress(RedisError, OSError):
            return bool(await sentinel.discover_master(service) != pool.master_address)
        return False

    return Way(pool, sentinel.aclose, moved)


def nodes(url: str, timeout_seconds: float) -> Nodes:
    """The cluster at redis+cluster://."""
    hosts, _, options = _parsed(url, "cluster")
    plain = options | {"protocol": 2, "driver_info": None}
    asked = plain | _quick(timeout_seconds)
    known = [ClusterNode(host, port, **asked) for host, port in hosts]
    manager = NodesManager(known, require_full_coverage=False, connection_kwargs=asked, dynamic_startup_nodes=False)

    def pool(host: str, port: int) -> ConnectionPool:
        return ConnectionPool(host=host, port=port, socket_connect_timeout=timeout_seconds, **plain)

    return Nodes(manager, known, pool)


def _parsed(url: str, kind: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The hosts and ports, the path, and redis-py's options for a connection to one of them."""
    scheme, _, rest = url.partition("://")
    before, _, query = rest.partition("?")
    place, _, path = before.partition("/")
    user, at, hosts = place.rpartition("@")
    found = []
    options: dict[str, Any] = {}
    for each in hosts.split(","):
        options = dict(parse_url(f"{scheme.partition('+')[0]}://{user}{at}{each}?{query}"))
        found.append((options.pop("host", "localhost"), options.pop("port", _PORTS[kind])))
    return found, path, options


def _quick(timeout_seconds: float) -> dict[str, Any]:
    """Options of a connection that asks who is a primary: another one is asked when this one does not answer."""
    seconds = min(timeout_seconds, _TOPOLOGY_SECONDS)
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": Retry(NoBackoff(), 0)}
