"""The reserved port: held by sockets that never listen."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from recurra.server.port import reserved
from recurra.server.settings import split_address


def listener(address: str, *options: int) -> socket.socket:
    sock = socket.socket()
    try:
        for option in (socket.SO_REUSEADDR, *options):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(split_address(address))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "0.0.0.0:0"])
def test_workers_share_a_reserved_port_and_nobody_else_gets_it(listen: str):
    with reserved(listen) as address:
        host, port = split_address(address)
        assert (host, port > 0) == (split_address(listen)[0], True)
        here = f"127.0.0.1:{port}"
        with pytest.raises(OSError, match=f"cannot listen on {address}: .*in use"), reserved(address):
            pass
        with pytest.raises(OSError, match="in use"):
            listener(here)
        with closing(listener(here, socket.SO_REUSEPORT)), closing(listener(here, socket.SO_REUSEPORT)):
            socket.create_connection(("127.0.0.1", port)).close()
    with reserved(address):
        pass


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEPORT,)])
def test_a_port_that_somebody_listens_on_is_refused(options: tuple[int, ...]):
    with closing(listener("127.0.0.1:0", *options)) as other:
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OSError, match="in use"), reserved(f"{host}:{other.getsockname()[1]}"):
                pass


def test_old_connections_of_a_server_that_is_gone_are_no_obstacle():
    with closing(listener("127.0.0.1:0")) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        client = socket.create_connection(other.getsockname())
        other.accept()[0].close()  # the first to close keeps the port in TIME_WAIT
        client.close()
    with reserved(address), closing(listener(address, socket.SO_REUSEPORT)):
        pass


def test_a_host_that_is_not_there_is_told():
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0"), reserved("192.0.2.1:0"):
        pass
