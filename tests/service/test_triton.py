"""Sequences over Triton's protocol, by its own client: each reply is the oracle's, each refusal has Triton's words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from recurra.wire.errors import InvalidArgument, SessionClosed, SessionNotFound
from tests.service.caller import Caller
from tests.service.processes import ServerProcess
from tests.service.tritons import infer, reason, refused
from tests.service.zoo import CLOSE, MODELS

LSTM = MODELS["lstm"]


@pytest.fixture(scope="session")
def triton(server: ServerProcess) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address) as client:
        yield client


def unknown(model: str, sequence: int | str) -> str:
    return (
        f"inference request for sequence {sequence} to model '{model}' must specify the START flag on the first "
        "request of the sequence"
    )


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_any_size_give_what_the_whole_input_gives(triton: InferenceServerClient, session: str, name: str):
    x = MODELS[name].draw(0, 17)
    pieces = np.split(x, [1, 2, 7, 12])
    replies = [infer(triton, name, piece, session, start=not at) for at, piece in enumerate(pieces)]
    np.testing.assert_allclose(np.concatenate(replies), MODELS[name].whole(x), **CLOSE)


def test_a_model_that_takes_one_timestep_a_call_takes_it_without_a_time_axis(
    triton: InferenceServerClient, session: str
):
    x = MODELS["cell"].draw(1, 5)
    replies = [infer(triton, "cell", row, session, start=not at) for at, row in enumerate(x)]
    np.testing.assert_allclose(np.stack(replies), MODELS["cell"].whole(x), **CLOSE)


def test_a_whole_sequence_may_be_one_request(triton: InferenceServerClient, session: str):
    x = LSTM.draw(2, 4)
    np.testing.assert_allclose(infer(triton, "lstm", x, session, start=True, end=True), LSTM.whole(x), **CLOSE)
    with refused("INVALID_ARGUMENT", unknown("lstm", session)) as caught:
        infer(triton, "lstm", x, session)
    assert isinstance(reason(caught.value), SessionClosed)


@pytest.mark.parametrize(
    ("number", "digits"),
    [(70007, "70007"), (-9, str(2**64 - 9))],  # the C++ client puts an unsigned number into the signed field
)
def test_a_number_and_its_digits_are_one_sequence(triton: InferenceServerClient, number: int, digits: str):
    x = LSTM.draw(3, 6)
    ids: list[int | str] = [number, digits, number]
    replies = [infer(triton, "lstm", x[2 * at : 2 * at + 2], ids[at], start=not at) for at in range(3)]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x), **CLOSE)


def test_start_on_a_live_sequence_begins_it_anew(triton: InferenceServerClient, caller: Caller, session: str):
    infer(triton, "lstm", LSTM.draw(4, 3), session, start=True)
    before = caller.get("lstm", session)
    x = LSTM.draw(5, 4)
    replies = [infer(triton, "lstm", x[:2], session, start=True), infer(triton, "lstm", x[2:], session)]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x), **CLOSE)
    after = caller.get("lstm", session)
    assert after.position == 4
    assert after.incarnation != before.incarnation


def test_end_replies_and_then_ends(triton: InferenceServerClient, session: str):
    x = LSTM.draw(6, 4)
    replies = [infer(triton, "lstm", x[:2], session, start=True), infer(triton, "lstm", x[2:], session, end=True)]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x), **CLOSE)
    with refused("INVALID_ARGUMENT", unknown("lstm", session)):
        infer(triton, "lstm", x, session)
    np.testing.assert_allclose(infer(triton, "lstm", x, session, start=True), LSTM.whole(x), **CLOSE)


def test_both_apis_name_the_same_sessions(triton: InferenceServerClient, caller: Caller):
    x = LSTM.draw(7, 6)
    replies = [
        infer(triton, "lstm", x[:2], 4711, start=True),
        caller.predict("lstm", "4711", x[2:4]).y,
        infer(triton, "lstm", x[4:], "4711", end=True),
    ]
    np.testing.assert_allclose(np.concatenate(replies), LSTM.whole(x), **CLOSE)


@pytest.mark.parametrize("sequence", [0, ""])
def test_a_request_without_a_sequence_is_refused(triton: InferenceServerClient, sequence: int | str):
    text = "inference request to model 'lstm' must specify a non-zero or non-empty correlation ID"
    with refused("INVALID_ARGUMENT", text) as caught:
        infer(triton, "lstm", LSTM.draw(0, 1), sequence, start=True)
    assert isinstance(reason(caught.value), InvalidArgument)


def test_a_sequence_that_was_never_started_is_refused(triton: InferenceServerClient, session: str):
    with refused("INVALID_ARGUMENT", unknown("lstm", session)) as caught:
        infer(triton, "lstm", LSTM.draw(0, 1), session)
    assert isinstance(reason(caught.value), SessionNotFound)


def test_an_unknown_model_is_refused(triton: InferenceServerClient):
    with refused("INVALID_ARGUMENT", "Request for unknown model: 'nobody' is not found"):
        infer(triton, "nobody", LSTM.draw(0, 1), 1, start=True)
