"""Connections that flood, hold back, or talk nonsense."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import grpc
import numpy as np
import pytest
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.v1 import inference_pb2
from tests.fuzz.neighbour import Neighbour
from tests.fuzz.raw import PREDICT, PREFACE, STREAM, Headers, Raw, headers, message, polite
from tests.service.caller import TIMEOUT_SECONDS, Caller, frame, request
from tests.service.processes import ServerProcess
from tests.service.zoo import MODELS

X: Final = MODELS["lstm"].draw(0, 2)
PREDICTED: Final = message(request("lstm", "flood", X, commit=False).SerializeToString())
BOUND: Final = message(
    inference_pb2.StreamPredictRequest(
        bind=inference_pb2.Bind(model="lstm", sessions=["flood"], handles=[0])
    ).SerializeToString()
)
SHORT: Final = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
FRAME_BYTES: Final = 1 << 14


@pytest.fixture
def raw(fuzzed: ServerProcess) -> Iterator[Raw]:
    with Raw(fuzzed.address) as raw:
        yield raw


# ---- floods


def test_calls_that_are_reset_at_once_cost_the_neighbour_nothing(fuzzed: ServerProcess, neighbour: Neighbour):
    for _ in range(4):
        with Raw(fuzzed.address) as raw:
            for stream in range(1, 10_000, 2):
                reset = RstStreamFrame(stream, ErrorCodes.CANCEL).serialize()
                if not (raw.call(stream, PREDICT, PREDICTED) and raw.send(reset)):
                    break
            neighbour.step()


@pytest.mark.parametrize("path", [PREDICT, STREAM])
def test_calls_that_begin_and_say_nothing_are_bounded(raw: Raw, neighbour: Neighbour, path: str):
    """On one connection, more than it may have."""
    for stream in range(1, 10_001, 2):
        if not raw.call(stream, path):
            break
    raw.read()
    neighbour.step()


@pytest.mark.parametrize("size", [60_000, 1 << 20])
def test_headers_without_an_end_hold_up_nobody(raw: Raw, neighbour: Neighbour, size: int):
    """A block in continuations."""
    block = raw.block([*headers(PREDICT), *((f"x-{n}", os.urandom(500).hex()) for n in range(size >> 10))])
    raw.send(HeadersFrame(1, block[:FRAME_BYTES], flags=["END_STREAM"]).serialize())
    for at in range(FRAME_BYTES, len(block), FRAME_BYTES):
        if not raw.send(ContinuationFrame(1, block[at : at + FRAME_BYTES]).serialize()):
            break
    raw.send(ContinuationFrame(1, b"", flags=["END_HEADERS"]).serialize())
    neighbour.step()


def test_metadata_beyond_the_limit_is_refused(fuzzed: ServerProcess):
    asked = request("lstm", "flood", X, commit=False)
    with Caller(fuzzed.address) as caller, pytest.raises(grpc.RpcError) as told:
        caller.inference.Predict(asked, metadata=[("x", "y" * 20_000)], timeout=TIMEOUT_SECONDS)
    assert told.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_block_that_names_one_large_header_again_and_again_is_not_kept(raw: Raw, neighbour: Neighbour):
    """4 KB in the table, named by a byte each: 64 MB of headers in 16 KB."""
    encoder = Encoder()
    first = encoder.encode([*headers(PREDICT), ("x", "y" * 3_900)])
    raw.send(HeadersFrame(1, first, flags=["END_HEADERS", "END_STREAM"]).serialize())
    again = encoder.encode(headers(PREDICT)) + encoder.encode([("x", "y" * 3_900)]) * 15_000
    raw.send(HeadersFrame(3, again, flags=["END_HEADERS", "END_STREAM"]).serialize())
    raw.read()
    neighbour.step()


def refused(raw: Raw, stream: int) -> None:
    """The server has ended this stream, or the connection, with no reply's bytes."""
    if raw.send(PingFrame(0, b"at least").serialize()):
        raw.socket.settimeout(20)
        while not ended(raw.heard, stream):
            try:
                data = raw.socket.recv(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            raw.heard += data


def ended(heard: bytes, stream: int) -> bool:
    """Whether these bytes hold the end of a stream, or of the connection."""
    at = 0
    while at + 9 <= len(heard):
        size, kind, flags, of = int.from_bytes(heard[at : at + 3], "big"), heard[at + 3], heard[at + 4], heard[at + 5 :]
        number = struct.unpack(">I", of[:4])[0]
        if kind == GoAwayFrame.type or (number == stream and (kind == RstStreamFrame.type or flags & 1)):
            return True
        at += 9 + size
    return False


@pytest.mark.parametrize(
    "flood",
    [
        PingFrame(0, bytes(8)),
        SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65_535}),
        SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 0}),
        WindowUpdateFrame(0, window_increment=1),
        PriorityFrame(1, depends_on=3, stream_weight=7),
        RstStreamFrame(1, 8),
        DataFrame(1, b""),
    ],
    ids=lambda flood: type(flood).__name__,
)
def test_a_flood_of_frames_that_cost_nothing_is_bounded(raw: Raw, neighbour: Neighbour, flood):
    """By those who do not read what is answered, too."""
    raw.call(1, STREAM)
    many = flood.serialize() * 1000
    raw.socket.settimeout(2)  # a server that reads no more has had enough
    for _ in range(200):
        if not raw.send(many):
            break
    neighbour.step()


# ---- those who hold back


def test_a_connection_that_says_nothing_is_closed(fuzzed: ServerProcess, neighbour: Neighbour):
    with ExitStack() as stack:
        silent = [stack.enter_context(Raw(fuzzed.address, greet=False)) for _ in range(300)]
        slow = [stack.enter_context(Raw(fuzzed.address, greet=False)) for _ in range(20)]
        for one in slow:
            one.send(PREFACE[:10])
        neighbour.step()
        assert all(one.closed() for one in [*silent, *slow])


@pytest.mark.parametrize("path", [PREDICT, STREAM])
@pytest.mark.parametrize(
    "said", [b"", b"\0", b"\0\3\xff\xff\xff", b"\0\3\xff\xff\xff" + bytes(1 << 14), b"\0\xff\xff\xff\xff", b"\7"]
)
def test_messages_that_are_never_whole_hold_up_nobody(
    fuzzed: ServerProcess, neighbour: Neighbour, path: str, said: bytes
):
    """60 MB are announced and never come, or more than is allowed, or a flag that there is not."""
    with Raw(fuzzed.address) as raw:
        for stream in range(1, 601, 2):
            raw.call(stream, path, said)
        neighbour.step()


@pytest.mark.parametrize("said", [b"", b"\0\0\0\0", PREDICTED[:-1], PREDICTED + PREDICTED, PREDICTED + b"\0"])
def test_streams_that_end_in_the_middle_are_ended(raw: Raw, said: bytes):
    raw.call(1, STREAM, said, end=True)
    refused(raw, 1)
    assert ended(raw.heard, 1)


def test_calls_that_end_without_a_message_hold_up_nobody(raw: Raw, neighbour: Neighbour):
    """grpc.aio answers none of them: they are gone with the connection."""
    for stream in range(1, 601, 2):
        raw.call(stream, PREDICT, end=True)
        raw.call(stream + 10_000, PREDICT, PREDICTED[:-1], end=True)
    neighbour.step()


def test_a_stream_half_closed_is_answered_and_ended(fuzzed: ServerProcess):
    plug, h2 = polite(fuzzed.address)
    with plug:
        h2.send_headers(1, headers(STREAM))
        tag = inference_pb2.StreamPredictRequest(frame=frame([0], X[None], tag=7, commit=False))
        h2.send_data(1, BOUND + message(tag.SerializeToString()), end_stream=True)
        plug.sendall(h2.data_to_send())
        ended_, got = False, b""
        while not ended_:
            for event in h2.receive_data(plug.recv(1 << 16)):
                got += getattr(event, "data", b"") if type(event).__name__ == "DataReceived" else b""
                ended_ |= type(event).__name__ == "StreamEnded"
            plug.sendall(h2.data_to_send())
    reply = inference_pb2.StreamPredictResponse.FromString(got[5:])
    assert reply.frame.tag == 7
    np.testing.assert_allclose(
        np.frombuffer(reply.frame.outputs[0].data, np.float32).reshape(2, 2), MODELS["lstm"].whole(X), rtol=0, atol=1e-5
    )


def test_replies_that_nobody_takes_are_bounded(fuzzed: ServerProcess, neighbour: Neighbour):
    """A window of nothing: streams ask for 8 KB of replies a frame, by the thousand, and never take one."""
    x = MODELS["lstm"].draw(0, 1024)
    asked = message(inference_pb2.StreamPredictRequest(frame=frame([0], x[None], commit=False)).SerializeToString())
    with Raw(fuzzed.address, greet=False) as raw:
        raw.send(PREFACE + SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}).serialize())
        raw.socket.settimeout(2)
        for stream in range(1, 21, 2):
            if not raw.call(stream, STREAM, BOUND):
                break
        for _ in range(400):
            if not all(raw.send(DataFrame(stream, asked).serialize()) for stream in range(1, 21, 2)):
                break
            raw.read()
        neighbour.step()


# ---- nonsense


@given(data=st.binary(max_size=400), greet=st.booleans())
@SHORT
def test_random_bytes_are_hung_up_on_or_passed_over(fuzzed: ServerProcess, data: bytes, *, greet: bool):
    with Raw(fuzzed.address, greet=greet) as raw:
        raw.send(data)
        raw.read()


@st.composite
def frames(draw) -> bytes:
    """Anything that looks like frames."""
    written = b""
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.integers(0, 10) | st.integers(0, 255))
        flags, stream = draw(st.integers(0, 255)), draw(st.sampled_from([0, 1, 2, 3, 5, 1 << 30, (1 << 31) - 1]))
        body = draw(st.sampled_from([BLOCK, PREDICTED, BOUND]) | st.binary(max_size=30))
        size = draw(st.just(len(body)) | st.integers(0, (1 << 24) - 1))
        written += size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body
    return written


BLOCK: Final = Encoder().encode(headers(STREAM))
_NAMES: Final = (
    "grpc-timeout",
    "grpc-encoding",
    "content-type",
    "te",
    "grpc-accept-encoding",
    ":path",
    "grpc-tags-bin",
    "x-bin",
)


@given(data=frames())
@SHORT
def test_frames_of_any_kind_and_order_are_survived(fuzzed: ServerProcess, data: bytes):
    with Raw(fuzzed.address) as raw:
        raw.send(data)
        raw.read()


@given(
    more=st.lists(
        st.tuples(st.sampled_from(_NAMES), st.text(st.characters(max_codepoint=255), max_size=60)), max_size=6
    ),
    path=st.sampled_from([PREDICT, STREAM, "/", "", "*", "/recurra.v1.InferenceService/", "//", "/" + "x" * 5000]),
)
@SHORT
def test_headers_that_say_anything_are_survived(fuzzed: ServerProcess, more: Headers, path: str):
    with Raw(fuzzed.address) as raw:
        named = [*headers(path), *more]
        raw.send(HeadersFrame(1, raw.block(named), flags=["END_HEADERS"]).serialize())
        raw.send(DataFrame(1, PREDICTED, flags=["END_STREAM"]).serialize())
        raw.read()
