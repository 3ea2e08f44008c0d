"""Predict with start inputs: a source becomes the state that a session starts from."""

from __future__ import annotations

import numpy as np
import pytest

from recurra.client import Client
from recurra.v1 import model_pb2
from recurra.wire.errors import Diverged, InvalidArgument
from tests.service import zoo
from tests.service.caller import Caller, new_id
from tests.service.processes import ServerProcess

GRU = zoo.MODELS["gru"]
ENCODE = zoo.encoder()[1]


def source(seed: int = 0, length: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, 5)).astype(np.float32)


def expected(start: np.ndarray, *chunks: np.ndarray) -> np.ndarray:
    return GRU.whole(*chunks, state=(ENCODE(start),))[-len(chunks[-1]) :]


def test_a_session_starts_from_its_source_and_goes_on(caller: Caller, session: str):
    x, y = GRU.draw(0, 3), GRU.draw(1, 2)
    first = caller.predict("gru", session, x, start=source())
    np.testing.assert_allclose(first.y, expected(source(), x), **zoo.CLOSE)
    then = caller.predict("gru", session, y)
    np.testing.assert_allclose(then.y, expected(source(), x, y), **zoo.CLOSE)
    again = caller.predict("gru", session, x, start={"source": source(1, 9)})
    np.testing.assert_allclose(again.y, expected(source(1, 9), x), **zoo.CLOSE)
    assert [reply.position for reply in (first, then, again)] == [3, 5, 3]


def test_a_retry_is_a_duplicate_and_another_source_under_its_id_is_told(caller: Caller, session: str):
    x, id_ = GRU.draw(0, 3), new_id()
    first = caller.predict("gru", session, x, id=id_, start=source())
    again = caller.predict("gru", session, x, id=id_, start=source())
    assert again.duplicate
    np.testing.assert_array_equal(again.y, first.y)
    for other in (source(1), None):
        with pytest.raises(Diverged):
            caller.predict("gru", session, x, id=id_, start=other)


def test_a_given_state_has_the_last_word(caller: Caller, session: str):
    x, state = GRU.draw(0, 3), np.full((1, 4), 0.5, np.float32)
    reply = caller.predict("gru", session, x, start=source(), initial={"h0": state})
    np.testing.assert_allclose(reply.y, GRU.whole(x, state=(state,)), **zoo.CLOSE)


@pytest.mark.parametrize(
    ("model", "given", "reason"),
    [
        ("gru", source()[:, :4], "input 'source' is float32 of shape .any, 5., not float32 of shape .6, 4."),
        ("gru", source() * np.nan, "holds a NaN"),
        ("gru", {"sauce": source()}, "inputs 'sauce'; the model takes 'source'"),
        ("gru", source()[:0], "input 'source' is empty: it has shape .0, 5."),
        ("lstm", source(), "takes no start inputs"),
    ],
)
def test_bad_start_inputs_are_refused_and_no_step_consumed(caller: Caller, session: str, model, given, reason):
    x = zoo.MODELS[model].draw(0, 2)
    caller.predict(model, session, x)
    with pytest.raises(InvalidArgument, match=reason):
        caller.predict(model, session, x, start=given)
    assert caller.get(model, session).position == 2


def test_many_sessions_start_in_one_batch(caller: Caller, session: str):
    x = GRU.draw(0, 2)
    sent = [caller.send("gru", f"{session} {at}", x, start=source(at, 3 + at % 4)) for at in range(40)]
    for at, pending in enumerate(sent):
        np.testing.assert_allclose(pending.reply().y, expected(source(at, 3 + at % 4), x), **zoo.CLOSE)


def test_the_sdk_starts_a_session_or_a_single_call(server: ServerProcess, session: str):
    x = GRU.draw(0, 3)
    with Client(server.address) as client:
        handle = client.session("gru", session)
        np.testing.assert_allclose(handle.predict(x, start=source()), expected(source(), x), **zoo.CLOSE)
        np.testing.assert_allclose(handle.predict(x), expected(source(), x, x), **zoo.CLOSE)
        alone = client.predict("gru", x, start={"source": source()})
        np.testing.assert_allclose(alone, expected(source(), x), **zoo.CLOSE)
        assert [str(spec) for spec in client.model("gru").start_inputs] == ["source float32 (any, 5)"]
        with pytest.raises(InvalidArgument, match="the start of model 'gru' takes source float32"):
            handle.predict(x, start=source()[0])
        with pytest.raises(InvalidArgument, match="model 'lstm' has no start graph"):
            client.predict("lstm", x, start=source())


def test_get_model_tells_what_it_takes(caller: Caller):
    asked = model_pb2.GetModelRequest(model="gru")
    (spec,) = caller.call(caller.models.GetModel, asked).model.start_inputs
    assert (spec.name, list(spec.shape), spec.has_time_axis) == ("source", [-1, 5], False)
