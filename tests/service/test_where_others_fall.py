"""What was seen to fail in the field: streams by the thousand, retries, kills, losses, NaN, size; each in short."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import redis

from recurra.wire.errors import DataLoss, InvalidArgument, RunFailed, SessionExpired, SessionNotFound
from tests.conftest import StartServer
from tests.service.caller import Caller, new_id
from tests.service.conftest import key
from tests.service.processes import eventually
from tests.service.streams import step_streams
from tests.service.zoo import CLOSE, MODELS

LSTM, PICKY = MODELS["lstm"], MODELS["picky"]
X = LSTM.draw(0, 5)


async def test_a_thousand_streams_of_one_session_each_step_without_a_fault(start_server: StartServer) -> None:
    """Twenty thousand operations; `make chaos` has a hundred thousand."""
    await step_streams(start_server().address, streams=1000, steps=20)


def test_a_request_that_is_sent_again_advances_nothing(caller: Caller, session: str) -> None:
    first = caller.predict("lstm", session, X)
    again = {"id": new_id(), "after": first.id}
    replies = [caller.predict("lstm", session, X, **again) for _ in range(4)]
    assert [reply.duplicate for reply in replies] == [False, True, True, True]
    for reply in replies:
        np.testing.assert_allclose(reply.y, LSTM.whole(X, X)[5:], **CLOSE)
        assert reply.position == 10
    np.testing.assert_allclose(caller.predict("lstm", session, X).y, LSTM.whole(X, X, X)[10:], **CLOSE)


def test_kill_9_of_server_and_store_keeps_the_state(start_server: StartServer) -> None:
    server = start_server()
    with Caller(server.address) as caller:
        caller.predict("lstm", "s", X)
    store = server.store_pid
    server.kill()
    os.kill(store, signal.SIGKILL)
    server.start()
    with Caller(server.address) as caller:
        np.testing.assert_allclose(caller.predict("lstm", "s", X).y, LSTM.whole(X, X)[5:], **CLOSE)


def test_expired_lost_and_never_started_look_different(caller: Caller, session: str, store: redis.Redis) -> None:
    """None of them is answered from a fresh state."""
    expired, lost, never = (f"{session} {what}" for what in ("expired", "lost", "never"))
    short = caller.predict("lstm", expired, X, ttl=0.05)
    kept = caller.predict("lstm", lost, X)
    store.delete(key("lstm", lost))
    eventually(lambda: time.time() * 1000 > short.session.expire_time.ToMilliseconds() + 50)
    for name, reply, error in ((expired, short, SessionExpired), (lost, kept, DataLoss)):
        with pytest.raises(error):
            caller.predict("lstm", name, X, after=reply.id, expire=reply.session.expire_time)
    with pytest.raises(SessionNotFound):
        caller.predict("lstm", never, X, after=new_id())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_and_never_kept(caller: Caller, session: str, bad: float) -> None:
    first = caller.predict("lstm", session, X)
    spoilt = X.copy()
    spoilt[3, 1] = bad
    h = {"lstm_1/h": np.full((1, 6), bad, np.float32)}
    for call in (
        lambda: caller.predict("lstm", session, spoilt, after=first.id),
        lambda: caller.predict("lstm", session, X, after=first.id, initial=h),
        lambda: caller.set_state("lstm", session, h),
        lambda: caller.reset("lstm", session, values=h),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert caller.get("lstm", session) == first.session
    np.testing.assert_allclose(caller.predict("lstm", session, X, after=first.id).y, LSTM.whole(X, X)[5:], **CLOSE)


def test_a_state_that_overflows_is_refused_and_never_kept(caller: Caller, session: str) -> None:
    big = np.full((1, 2), -3e38, np.float32)
    first = caller.predict("picky", session, big)
    with pytest.raises(RunFailed):
        caller.predict("picky", session, big)
    assert caller.get("picky", session) == first.session
    np.testing.assert_allclose(caller.predict("picky", session, big / 9).y, PICKY.whole(big, big / 9)[1:], rtol=1e-5)


def test_a_message_that_is_too_large_is_refused_while_others_are_served(start_server: StartServer) -> None:
    """By its length, before it is read."""
    server = start_server("--max-message-bytes", "1000000")
    x = LSTM.draw(0, 8_000_000)  # 96 MB
    with Caller(server.address) as caller, Caller(server.address) as other:
        pending = caller.send("lstm", "large", x)
        for number in range(5):
            assert other.predict("lstm", "small", X).position == 5 * (number + 1)
        with pytest.raises(InvalidArgument):
            pending.reply()
        with pytest.raises(SessionNotFound):
            caller.get("lstm", "large")
