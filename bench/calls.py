"""Unary calls over HTTP/2 by hand: a third of what gRPC's client costs, so that a caller can outrun the server.

Calls go by a schedule, whatever became of those before. The server's settings are kept to, as gRPC keeps to them: a
call beyond its streams or its window waits here, and is given up at its deadline.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import os
import struct
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from hpack import Decoder, Encoder
from hyperframe.frame import SettingsFrame, WindowUpdateFrame

from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.tensors import to_tensor

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_HEAD: Final = struct.Struct(">HBBBI")  # a frame's: 24 bits of size, type, flags, stream
_LARGE: Final = (1 << 31) - 1
_PATH: Final = "/recurra.v1.InferenceService/Predict"
_REFUSED: Final = struct.pack(">I", 7)  # REFUSED_STREAM
LATE: Final = "late"
TOO_LATE: Final = "4"  # as the server says it


@dataclass
class Tally:
    """What became of calls, in slices of time since the load began.

    Attributes:
        offered: by slice, those that were due.
        answered: by slice, those answered well and in time.
        refused: by slice, those that the server turned away.
        outcomes: all calls by outcome: "OK", a gRPC code's number, or "late".
        untold: how many of those that were turned away were not told when to come back.
        open: the most calls of one connection that were open at once.
    """

    slice_seconds: float
    began: float = field(default_factory=time.perf_counter)
    offered: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    untold: int = 0
    open: int = 0

    def slice(self, now: float) -> int:
        """The slice that this time, of time.perf_counter, is in."""
        return int((now - self.began) / self.slice_seconds)


class Calls(asyncio.Protocol):
    """One connection's calls."""

    def __init__(self, tally: Tally, timeout: float) -> None:
        """`timeout`: of a call, in seconds since it was due."""
        self._tally, self._timeout = tally, timeout
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._next, self._most, self._window = 1, 100, 65_535
        self._due: dict[int, float] = {}  # by stream
        self._sent: dict[int, bytes] = {}
        self._again: list[tuple[float, bytes]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._decoder, self._known = Decoder(), dict[bytes, dict[str, str]]()
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", _PATH), (":authority", "bench")]
        plain = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", f"{timeout * 1e3:.0f}m")]
        encoder = Encoder()
        encoder.header_table_size = 0
        self._block: bytes = encoder.encode([*pseudo, *plain])
        self.settled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due) + len(self._waiting) + len(self._again)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Without a table, a block of headers is the same bytes each time.
        ours = {SettingsFrame.HEADER_TABLE_SIZE: 0, SettingsFrame.INITIAL_WINDOW_SIZE: _LARGE}
        window = WindowUpdateFrame(0, window_increment=_LARGE - 65_535).serialize()
        transport.write(_PREFACE + SettingsFrame(0, settings=ours).serialize() + window)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def call(self, due: float, data: bytes) -> None:
        """Make a call that was due then, or have it wait for its turn."""
        self._waiting.extendleft(self._again)
        self._again.clear()
        self._waiting.append((due, data))
        self.send()

    def send(self) -> None:
        """What may go now goes; what is too late is given up."""
        now = time.perf_counter()
        while self._waiting and self._waiting[0][0] + self._timeout < now:
            self._waiting.popleft()
            self._tally.outcomes[LATE] += 1
        out = []
        while self._waiting and len(self._due) < self._most and self._window > len(self._waiting[0][1]):
            due, data = self._waiting.popleft()
            stream, self._next = self._next, self._next + 2
            self._window -= len(data)
            self._due[stream], self._sent[stream] = due, data
            heapq.heappush(self._deadlines, (due + self._timeout, stream))
            out += [
                _head(len(self._block), _HEADERS, _END_HEADERS, stream),
                self._block,
                _head(len(data), _DATA, _END_STREAM, stream),
                data,
            ]
        while self._deadlines and self._deadlines[0][0] < now:
            _, stream = heapq.heappop(self._deadlines)
            self._sent.pop(stream, None)
            if self._due.pop(stream, None) is not None:  # as gRPC does at a deadline
                self._tally.outcomes[LATE] += 1
                out += [_head(4, _RST, 0, stream), struct.pack(">I", 8)]
        if out and self._transport is not None:
            self._transport.write(b"".join(out))
        self._tally.open = max(self._tally.open, len(self._due))

    def data_received(self, data: bytes) -> None:
        buffer, at = self._buffer + data, 0
        while len(buffer) - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
            end = at + 9 + (high << 8 | low)
            if end > len(buffer):
                break
            self._take(kind, flags, stream, buffer[at + 9 : end])
            at = end
        self._buffer = buffer[at:]
        self.send()

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        assert self._transport is not None
        if kind == _HEADERS and flags & _END_STREAM:
            self._end(stream, self._said(body))
        elif kind == _RST and body == _REFUSED and stream in self._due:  # not seen by the server; gRPC sends it again
            self._again.append((self._due.pop(stream), self._sent.pop(stream)))
        elif kind == _RST:
            self._end(stream, {"grpc-status": "RST"})
        elif kind == _SETTINGS and not flags & _ACK:
            for place in range(0, len(body), 6):
                name, value = struct.unpack_from(">HI", body, place)
                if name == SettingsFrame.MAX_CONCURRENT_STREAMS:
                    self._most = value
            self._transport.write(_head(0, _SETTINGS, _ACK, 0))
            self.settled.set()
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_head(8, _PING, _ACK, 0) + body)
        elif kind == _WINDOW and not stream:
            self._window += struct.unpack(">I", body)[0]
        elif kind == _GOAWAY:
            raise RuntimeError("the server hung up")

    def _said(self, block: bytes) -> dict[str, str]:
        said = self._known.get(block)
        if said is None:
            said = {str(name): str(value) for name, value in self._decoder.decode(block)}
            if len(self._known) < 1 << 16:
                self._known[block] = said
        return said

    def _end(self, stream: int, said: dict[str, str]) -> None:
        due, _ = self._due.pop(stream, None), self._sent.pop(stream, None)
        if due is None:
            return
        now, tally = time.perf_counter(), self._tally
        at, status = tally.slice(now), said.get("grpc-status", "?")
        if status == "0":
            tally.answered[at] += 1
            tally.latencies.append(now - due)
        elif status != TOO_LATE:
            tally.refused[at] += 1
            told = said.get("grpc-status-details-bin", "")
            tally.untold += b"RetryInfo" not in base64.b64decode(told + "=" * (-len(told) % 4))
        tally.outcomes["OK" if status == "0" else status] += 1


class Requests:
    """Predicts of one timestep by many sessions, written ahead but for their ids."""

    def __init__(self, model: str, names: list[str], shape: tuple[int, ...], seed: int = 0) -> None:
        x = np.random.default_rng(seed).standard_normal((len(names), 1, *shape), np.float32)
        self._parts = []
        mark = os.urandom(16)
        for name, row in zip(names, x, strict=True):
            request = inference_pb2.PredictRequest(
                model=model, session=name, inputs=[to_tensor(row)], operation=session_pb2.Operation(id=mark)
            )
            data = request.SerializeToString()
            before, _, after = data.partition(mark)
            self._parts.append((b"\0" + len(data).to_bytes(4, "big") + before, after))
        self._turn = 0

    def next(self) -> bytes:
        """The next session's."""
        self._turn = (self._turn + 1) % len(self._parts)
        before, after = self._parts[self._turn]
        return before + os.urandom(16) + after


def _head(size: int, kind: int, flags: int, stream: int) -> bytes:
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream)
