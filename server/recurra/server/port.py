"""One port for several processes: reserved by their parent, refused where anybody else has it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from recurra.server.settings import split_address

_ANY: Final = {"", "0.0.0.0", "::"}  # noqa: S104


@contextmanager
def reserved(listen: str) -> Iterator[str]:
    """Hold the port of "HOST:PORT" (0: a free one); gives the address for processes of this user to listen on.

    The sockets here never listen, so that no connection comes to them. Raises OSError if the port is in use.
    """
    host, port = split_address(listen)
    everywhere = host in _ANY and socket.has_dualstack_ipv6()  # as gRPC does it
    with ExitStack() as stack:
        try:
            for family, kind, protocol, _, where in socket.getaddrinfo(
                "::" if everywhere else host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                held = stack.enter_context(
                    _held((family, kind, protocol), (where[0], port, *where[2:]), everywhere=everywhere)
                )
                port = held.getsockname()[1]
        except OSError as error:
            raise OSError(f"cannot listen on {listen}: {error.strerror or error}") from error
        yield f"{listen.rpartition(':')[0]}:{port}"


def _held(kind: tuple[int, int, int], where: Any, *, everywhere: bool) -> socket.socket:
    """A socket bound to the address, which lets no other program have it, unless both set SO_REUSEPORT."""
    with _bound(kind, where, socket.SO_REUSEADDR, everywhere=everywhere) as probe:
        probe.listen()  # nobody else does
        where = probe.getsockname()
    try:
        return _bound(kind, where, socket.SO_REUSEPORT, everywhere=everywhere)
    except OSError:
        # Nobody listens, so it was old connections of a server that had the port alone: TIME_WAIT.
        return _bound(kind, where, socket.SO_REUSEADDR, socket.SO_REUSEPORT, everywhere=everywhere)


def _bound(kind: tuple[int, int, int], where: Any, *options: int, everywhere: bool) -> socket.socket:
    sock = socket.socket(*kind)
    try:
        if kind[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not everywhere)
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(where)
    except BaseException:
        sock.close()
        raise
    return sock
