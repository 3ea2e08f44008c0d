from __future__ import annotations

import inspect

import recurra.client
from recurra.client import AsyncBatch, AsyncClient, AsyncSession, Batch, Client, Session
from recurra.wire import errors


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_names() -> None:
    reasons = {cls.__name__ for cls in errors.BY_REASON.values()} | {"Mismatch"}
    values = {"BatchError", "Model", "SelfTest", "SessionInfo", "StateSpec", "TensorSpec"}
    handles = {"AsyncBatch", "AsyncClient", "AsyncSession", "Batch", "Client", "Session"}
    assert set(recurra.client.__all__) == reasons | values | handles


def test_methods() -> None:
    assert public(Client) == {"batch", "close", "model", "models", "predict", "session", "sessions"}
    told = {"created", "durable_position", "incarnation", "model", "position"}
    does = {"end", "follow", "predict", "reset", "state"}
    assert public(Session) == told | does | {"expire_time", "id", "info", "set_state", "stream"}
    assert public(Batch) == told | does | {"close", "ids"}


def test_blocking_handles_have_the_asyncio_ones_methods_and_signatures() -> None:
    for blocking, awaited in ((Client, AsyncClient), (Session, AsyncSession), (Batch, AsyncBatch)):
        own = {"known", "model", "id", "ids"}  # `known` is the handles' way to a model; the others are set when made
        assert public(blocking) - own == public(awaited) - own
        for name in public(blocking) - {"batch", "session"}:
            method = getattr(blocking, name)
            if not isinstance(method, property) and hasattr(awaited, name):
                ours, theirs = inspect.signature(method), inspect.signature(getattr(awaited, name))
                assert list(ours.parameters) == list(theirs.parameters), name
