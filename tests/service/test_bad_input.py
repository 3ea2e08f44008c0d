"""Bad input: the right code and reason, no operation consumed, the server unharmed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from recurra.v1 import inference_pb2, session_pb2, tensor_pb2
from recurra.wire.errors import (
    InvalidArgument,
    ModelNotFound,
    ModelUnavailable,
    RecurraError,
    RunFailed,
    Unimplemented,
)
from tests.service.caller import BIG, Caller, frame, new_id, request, translated
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]
X = LSTM.draw(0, 4)


@pytest.fixture
def unharmed(caller: Caller, session: str) -> Iterator[str]:
    """A session that has begun; after the test it must stand where it stood, and go on from there."""
    begun = caller.predict("lstm", session, X)
    yield session
    now = caller.get("lstm", session)
    assert (now.last_id, now.position) == (begun.id, 4)
    reply = caller.predict("lstm", session, X, after=begun.id)
    np.testing.assert_allclose(reply.y, LSTM.whole(X, X)[4:], **CLOSE)


def edited(session: str, **fields: Any) -> inference_pb2.PredictRequest:
    """A good request with other fields; a name like operation__id is a field of a field."""
    message = request("lstm", session, X)
    for name, value in fields.items():
        *path, last = name.split("__")
        target: Any = message
        for step in path:
            target = target[int(step)] if step.isdecimal() else getattr(target, step)
        if isinstance(value, list):
            del getattr(target, last)[:]
            getattr(target, last).extend(value)
        elif isinstance(value, Duration):
            getattr(target, last).CopyFrom(value)
        else:
            setattr(target, last, value)
    return message


def wrong_value(at: int, value: float) -> bytes:
    x = X.copy()
    x.flat[at] = value
    return x.tobytes()


HUGE = 1 << 62


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": []},
        {"inputs__0__name": "z"},
        {"inputs__0__name": "X"},
        {"inputs__0__name": "€" * 5000},
        {"inputs__0__name": "a\0b"},
        {"inputs__0__dtype": tensor_pb2.DATA_TYPE_UNSPECIFIED},
        {"inputs__0__dtype": tensor_pb2.DATA_TYPE_INT32},
        {"inputs__0__dtype": tensor_pb2.DATA_TYPE_FLOAT16},
        {"inputs__0__dtype": 99},
        {"inputs__0__dtype": -1},
        {"inputs__0__shape": []},
        {"inputs__0__shape": [12]},
        {"inputs__0__shape": [3, 4]},
        {"inputs__0__shape": [1, 4, 3]},
        {"inputs__0__shape": [4, 4]},
        {"inputs__0__shape": [-4, -3]},
        {"inputs__0__shape": [4, 3, *[1] * 80]},
        {"inputs__0__shape": [HUGE, 0], "inputs__0__data": b""},
        {"inputs__0__shape": [HUGE, 4], "inputs__0__data": b""},
        {"inputs__0__shape": [0, 3], "inputs__0__data": b""},
        {"inputs__0__data": X.tobytes()[:-1]},
        {"inputs__0__data": X.tobytes() + b"\0"},
        {"inputs__0__data": b""},
        {"inputs__0__data": wrong_value(0, np.nan)},
        {"inputs__0__data": wrong_value(11, np.inf)},
        {"inputs__0__data": wrong_value(5, -np.inf)},
        {"operation__id": b"short"},
        {"operation__id": bytes(17)},
        {"operation__id": bytes(16)},
        {"operation__after": b"x"},
        {"operation__after": bytes(32)},
        {"operation__create": 99},
        {"operation__create": -1},
        {"operation__ttl": Duration()},
        {"operation__ttl": Duration(seconds=-5)},
        {"operation__ttl": Duration(seconds=315_576_000_000)},
        {"options__durability": 99},
        {"mask": b"\1"},
        {"initial_state": [tensor_pb2.Tensor(name="lstm_1/h")]},
        {"initial_state": [tensor_pb2.Tensor(name="nothing", dtype=1, shape=[1, 6], data=bytes(24))]},
    ],
    ids=lambda fields: " ".join(f"{name}={str(value)[:20]!r}" for name, value in fields.items()),
)
def test_a_predict_that_is_malformed_is_refused(caller: Caller, unharmed: str, fields: dict[str, Any]):
    with pytest.raises(InvalidArgument) as refused:
        caller.call(caller.inference.Predict, edited(unharmed, **fields))
    assert str(refused.value)
    assert type(refused.value).reason == "INVALID_ARGUMENT"


def test_an_input_given_twice_is_refused(caller: Caller, unharmed: str):
    message = request("lstm", unharmed, {"x": X})
    message.inputs.append(message.inputs[0])
    with pytest.raises(InvalidArgument, match="twice"):
        caller.call(caller.inference.Predict, message)


@pytest.mark.parametrize("name", ["", "nobody", "LSTM", "../lstm", "lstm\0", "€" * 10_000])
def test_a_model_that_is_not_there_is_told(caller: Caller, unharmed: str, name: str):
    with pytest.raises(ModelNotFound):
        caller.predict(name, unharmed, X)
    with pytest.raises(ModelNotFound):
        caller.model(name)
    with pytest.raises(ModelNotFound):
        caller.reset(name, unharmed)


def test_a_model_that_was_refused_is_told_with_the_reason(caller: Caller, unharmed: str):
    for call in (
        lambda: caller.predict("broken", unharmed, X),
        lambda: caller.get("broken", unharmed),
        lambda: caller.page("broken"),
        lambda: caller.reset("broken", unharmed),
    ):
        with pytest.raises(ModelUnavailable, match="no ONNX model"):
            call()
    assert "no ONNX model" in caller.model("broken").error


@pytest.mark.parametrize(
    "name", ["{braces}", "}{", "recurra:default:lstm:{x}", "*", "a b", "ü€😀", "é" * 128, "%s%n", "'\""]
)
def test_a_sessions_name_may_be_any_text(caller: Caller, name: str):
    for position in (4, 8):
        assert caller.predict("lstm", name, X).position == position
    assert caller.get("lstm", name).session == name
    assert set(caller.state("lstm", name)) == {"lstm_1/h", "lstm_1/c"}
    caller.end("lstm", name)


@pytest.mark.parametrize("name", ["nul\0", "new\nline", "\x7f", "é" * 129, "x" * 10_240, "\u202e"])
def test_a_sessions_name_may_not_hold_this(caller: Caller, name: str):
    for call in (
        lambda: caller.predict("lstm", name, X),
        lambda: caller.get("lstm", name),
        lambda: caller.state("lstm", name),
        lambda: caller.reset("lstm", name),
        lambda: caller.set_state("lstm", name, {"lstm_1/h": np.zeros((1, 6), np.float32)}),
        lambda: caller.end("lstm", name),
    ):
        with pytest.raises(InvalidArgument):
            call()
    with caller.stream("lstm", [name]) as stream, pytest.raises(InvalidArgument):
        stream.reply()


@pytest.mark.parametrize("call", ["get", "state", "end", "reset"])
def test_only_a_predict_does_without_a_session(caller: Caller, call: str):
    with pytest.raises(InvalidArgument):
        getattr(caller, call)("lstm", "")


@pytest.mark.parametrize("token", [11, -1, 2**40])
def test_an_index_beyond_the_table_is_refused(caller: Caller, session: str, token: int):
    model, tokens = MODELS["embed"], MODELS["embed"].draw(0, 4)
    caller.predict("embed", session, tokens)
    with pytest.raises(InvalidArgument, match="from 0 to 10"):
        caller.predict("embed", session, np.array([1, token]))
    np.testing.assert_allclose(caller.predict("embed", session, tokens).y, model.whole(tokens, tokens)[4:], **CLOSE)


@pytest.mark.parametrize("bad", [[2000, 0], [0, 3e38]])
def test_an_input_on_which_the_model_fails_is_told_and_consumes_nothing(caller: Caller, session: str, bad: list[float]):
    model, x = MODELS["picky"], MODELS["picky"].draw(0, 4)
    caller.predict("picky", session, x)
    failing, identity = np.array([bad, bad], np.float32), new_id()
    for _ in range(2):
        with pytest.raises(RunFailed):
            caller.predict("picky", session, failing, id=identity)
    reply = caller.predict("picky", session, x, id=identity)
    np.testing.assert_allclose(reply.y, model.whole(x, x)[4:], **CLOSE)


def test_a_message_beyond_the_limit_is_refused(caller: Caller, unharmed: str):
    with pytest.raises(RecurraError, match="larger than max"):
        caller.predict("lstm", unharmed, np.zeros((6 << 20, 3), np.float32))


METHODS = [
    "InferenceService/Predict",
    "SessionService/GetSession",
    "SessionService/ListSessions",
    "SessionService/ResetState",
    "SessionService/GetState",
    "SessionService/SetState",
    "SessionService/EndSession",
    "SessionService/ForkSession",
    "ModelService/GetModel",
    "ModelService/ListModels",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_refused(caller: Caller, unharmed: str, method: str, garbage: bytes):
    call = caller.channel.unary_unary(f"/recurra.v1.{method}")
    if method.endswith("ListModels") and garbage.startswith(b"\x0a\x02"):
        pytest.skip("a field that the message lacks is passed over")
    with pytest.raises(InvalidArgument, match="not a valid message"):
        caller.call(call, garbage)


def test_bytes_that_are_no_message_end_their_stream_alone(caller: Caller, unharmed: str):
    with caller.stream("lstm", [f"{unharmed} neighbour"]) as neighbour:
        neighbour.ask([0], X[None])
        call = caller.channel.stream_stream("/recurra.v1.InferenceService/StreamPredict")
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([b"\xff" * 20]), timeout=10))
        error = translated(refused.value)
        assert isinstance(error, InvalidArgument)
        assert "not a valid message" in str(error)
        assert neighbour.ask([0], X[None]).positions == [8]


def test_frames_read_before_bytes_that_are_no_message_are_answered(caller: Caller, session: str):
    """Again and again: a reply may be on its way out just then, and the stream must not wait for it for ever."""
    bind = inference_pb2.StreamPredictRequest(bind=inference_pb2.Bind(model="lstm", sessions=[session], handles=[0]))
    call = caller.channel.stream_stream("/recurra.v1.InferenceService/StreamPredict")
    for _ in range(60):
        asked = inference_pb2.StreamPredictRequest(frame=frame([0], X[None]))
        replies = call(iter([bind.SerializeToString(), asked.SerializeToString(), b"\xff"]), timeout=10)
        next(replies)
        with pytest.raises(grpc.RpcError) as refused:
            next(replies)
        assert isinstance(translated(refused.value), InvalidArgument)


@pytest.mark.parametrize("method", ["/recurra.v1.InferenceService/Nothing", "/recurra.v9.Nobody/Predict", "/", "//"])
def test_a_method_that_is_not_there_is_told(caller: Caller, unharmed: str, method: str):
    with pytest.raises(Unimplemented):
        caller.call(caller.channel.unary_unary(method), b"")


def test_every_refusal_fits_into_its_trailers(caller: Caller, unharmed: str):
    """However long the caller's own text is, its echo must not break gRPC's limit on headers."""
    text = "\\€" * 5000
    for call in (
        lambda: caller.predict("lstm", unharmed, {text: X}),
        lambda: caller.predict("lstm", unharmed, X, initial={text: X}),
        lambda: caller.reset("lstm", unharmed, text),
        lambda: caller.set_state("lstm", unharmed, {text: X}),
        lambda: caller.page("lstm", 1, text),
    ):
        with pytest.raises(InvalidArgument) as refused:
            call()
        assert refused.value.metadata is not None
        assert "larger than" not in str(refused.value)


def test_a_client_that_stops_in_mid_message_harms_nobody(caller: Caller, unharmed: str, server):
    channel = grpc.insecure_channel(server.address, BIG)
    call = channel.unary_unary("/recurra.v1.InferenceService/Predict").future(bytes(1 << 20), timeout=5)
    call.cancel()
    channel.close()
    assert caller.predict("lstm", "", X).y.shape == (4, 2)


def test_fields_that_this_server_does_not_know_are_passed_over(caller: Caller, session: str):
    message = request("lstm", session, X).SerializeToString() + b"\xf2\x3f\x03new"
    raw = caller.call(caller.channel.unary_unary("/recurra.v1.InferenceService/Predict"), message)
    assert inference_pb2.PredictResponse.FromString(raw).session.position == 4


def test_a_reset_with_a_malformed_operation_resets_nobody(caller: Caller, unharmed: str):
    operations = [session_pb2.Operation(), session_pb2.Operation(id=b"short")]
    with pytest.raises(InvalidArgument):
        caller.reset_many("lstm", [unharmed, f"{unharmed} other"], operations=operations)
