from __future__ import annotations

import inspect

import recurra.client
from recurra.client import (
    AsyncBatch,
    AsyncClient,
    AsyncSession,
    AsyncStream,
    Batch,
    Client,
    Session,
    Stream,
)
from recurra.wire import errors


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_names() -> None:
    reasons = {cls.__name__ for cls in errors.BY_REASON.values()} | {"Mismatch"}
    values = {"BatchError", "Model", "SelfTest", "SessionInfo", "StateSpec", "StrayNode", "TensorSpec"}
    handles = {"AsyncBatch", "AsyncClient", "AsyncSession", "AsyncStream", "Batch", "Client", "Session", "Stream"}
    assert set(recurra.client.__all__) == reasons | values | handles


def test_methods() -> None:
    assert public(Client) == {"batch", "close", "model", "models", "predict", "session", "sessions", "stream"}
    told = {"created", "durable_position", "incarnation", "model", "position"}
    does = {"end", "follow", "predict", "reset", "state"}
    assert public(Session) == told | does | {"expire_time", "id", "info", "set_state", "stream"}
    assert public(Batch) == told | does | {"close", "ids"}
    assert public(Stream) == {"close", "follow", "map", "model", "predict"}


def test_blocking_handles_have_the_asyncio_ones_methods_and_signatures() -> None:
    twins = ((Client, AsyncClient), (Session, AsyncSession), (Batch, AsyncBatch), (Stream, AsyncStream))
    for blocking, awaited in twins:
        # `known` is the handles' way to a model, `batches` the blocking client's; the others are set when made
        own = {"known", "batches", "model", "id", "ids"}
        assert public(blocking) - own == public(awaited) - own
        for name in public(blocking) - {"batch", "session"}:
            method = getattr(blocking, name)
            if not isinstance(method, property) and hasattr(awaited, name):
                ours, theirs = inspect.signature(method), inspect.signature(getattr(awaited, name))
                assert list(ours.parameters) == list(theirs.parameters), name
