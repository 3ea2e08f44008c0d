"""The server on its other transport. RECURRA_TRANSPORT=native runs every test of this folder on it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recurra.wire.errors import Behind, InvalidArgument, RecurraError
from tests.conftest import StartServer
from tests.service.caller import Caller, new_id
from tests.service.processes import ServerProcess
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


@pytest.fixture
def native(start_server: StartServer) -> ServerProcess:
    return start_server("--transport", "native", "--max-message-bytes", "65536")


@pytest.fixture
def caller(native: ServerProcess) -> Iterator[Caller]:
    with Caller(native.address) as caller:
        yield caller


def test_calls_and_frames_continue_one_session(caller: Caller):
    x = LSTM.draw(0, 6)
    first = caller.predict("lstm", "s", x[:2])
    with caller.stream("lstm", ["s"]) as stream:
        second = stream.ask([0], x[None, 2:4], afters=[first.id], ids=[new_id()])
    third = caller.predict("lstm", "s", x[4:])
    np.testing.assert_allclose(np.concatenate([first.y, second.y[0], third.y]), LSTM.whole(x), **CLOSE)
    assert third.position == 6


def test_errors_carry_their_details(caller: Caller):
    x = LSTM.draw(0, 1)
    last = caller.predict("lstm", "s", x).id
    with pytest.raises(Behind) as caught:
        caller.predict("lstm", "s", x, after=new_id())
    assert caught.value.metadata["last_id"] == last.hex()
    with pytest.raises(InvalidArgument, match="larger than max"):
        caller.predict("lstm", "s", LSTM.draw(0, 1 << 14))


def test_calls_that_were_cancelled_and_sent_again_are_applied_once(caller: Caller):
    x, choice, last, got = LSTM.draw(0, 60), random.Random(0), b"", []
    for t in range(len(x)):
        identity = new_id()
        for _ in range(choice.randrange(3)):
            caller.send("lstm", "s", x[t : t + 1], id=identity, after=last).call.cancel()
        reply = caller.predict("lstm", "s", x[t : t + 1], id=identity, after=last)
        assert reply.position == t + 1
        last = identity
        got.append(reply.y)
    np.testing.assert_allclose(np.concatenate(got), LSTM.whole(x), **CLOSE)


def test_health_and_reflection_answer_and_told_to_stop_it_answers_what_it_took(native: ServerProcess, caller: Caller):
    check = health_pb2_grpc.HealthStub(caller.channel).Check
    assert check(health_pb2.HealthCheckRequest(), timeout=5).status == health_pb2.HealthCheckResponse.SERVING
    reflect = reflection_pb2_grpc.ServerReflectionStub(caller.channel).ServerReflectionInfo
    [answer] = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    assert len(answer.list_services_response.service) == 6
    x = LSTM.draw(0, 1)
    caller.predict("lstm", "s", x)
    sent = [caller.send("lstm", f"s{row}", x) for row in range(200)]
    sent[0].reply()
    assert native.stop() == 0
    for outcome in [each.outcome() for each in sent]:
        assert isinstance(outcome, RecurraError) or np.allclose(outcome.y, LSTM.whole(x), **CLOSE)
