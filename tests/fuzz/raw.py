"""HTTP/2 by hand, so that a client may do what no library would let it do."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Final, Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PREDICT: Final = "/recurra.v1.InferenceService/Predict"
STREAM: Final = "/recurra.v1.InferenceService/StreamPredict"
Headers = list[tuple[str, str]]


def headers(path: str, *more: tuple[str, str]) -> Headers:
    """Of a gRPC call."""
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "fuzz")]
    return [*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more]


def message(data: bytes) -> bytes:
    """A gRPC message as it goes over the wire."""
    return b"\0" + len(data).to_bytes(4, "big") + data


class Raw:
    """A connection that sends any bytes. What the server says to that is read where it is waited for."""

    def __init__(self, address: str, *, greet: bool = True) -> None:
        """`greet`: send the preface and settings."""
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self._encoder = Encoder()
        self.heard = b""
        if greet:
            self.send(PREFACE + SettingsFrame(0).serialize())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Whether the server still took it: it may have hung up, or have stopped reading."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def block(self, named: Headers) -> bytes:
        """A header block; the server's table of headers is in step only if each one is sent, in order."""
        encoded: bytes = self._encoder.encode(named)
        return encoded

    def call(self, stream: int, path: str, data: bytes = b"", *, end: bool = False) -> bool:
        """Begin a call, with some bytes of its messages."""
        frames: list[Frame] = [HeadersFrame(stream, self.block(headers(path)), flags=["END_HEADERS"])]
        if data or end:
            frames.append(DataFrame(stream, data, flags=["END_STREAM"] if end else []))
        return self.send(b"".join(frame.serialize() for frame in frames))

    def closed(self, seconds: float = 30.0) -> bool:
        """Whether the server hangs up in that time; what it says before is in `heard`."""
        until = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while (left := until - time.monotonic()) > 0:
                self.socket.settimeout(left)
                try:
                    data = self.socket.recv(1 << 16)
                except TimeoutError:
                    return False
                if not data:
                    return True
                self.heard += data
            return False
        return True

    def read(self) -> None:
        """What the server has said so far."""
        self.socket.settimeout(0)
        with contextlib.suppress(OSError):
            while data := self.socket.recv(1 << 16):
                self.heard += data
        self.socket.settimeout(20)


def polite(address: str) -> tuple[socket.socket, H2Connection]:
    """A connection as a library has it."""
    host, _, port = address.rpartition(":")
    connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    plug = socket.create_connection((host, int(port)), timeout=20)
    plug.sendall(connection.data_to_send())
    return plug, connection
