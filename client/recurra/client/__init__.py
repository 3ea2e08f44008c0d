"""The SDK of Recurra: recurrent models, served with every session's state.

>>> from recurra.client import Client
>>> with Client("127.0.0.1:8500") as client:  # doctest: +SKIP
...     session = client.session("lstm", "sensor-7")
...     y = session.predict(x)
"""

from recurra.client.aio import AsyncClient
from recurra.client.batch import AsyncBatch
from recurra.client.model import Model, SelfTest, SessionInfo, StateSpec, StrayNode, TensorSpec
from recurra.client.rows import BatchError
from recurra.client.session import AsyncSession
from recurra.client.stream import AsyncStream
from recurra.client.sync import Batch, Client, Session, Stream
from recurra.wire.errors import (
    AlreadyApplied,
    Behind,
    Contended,
    DataLoss,
    DeadlineExceeded,
    Diverged,
    Draining,
    InvalidArgument,
    Mismatch,
    ModelChanged,
    ModelNotFound,
    ModelUnavailable,
    NotReplicated,
    Overloaded,
    Owned,
    RecurraError,
    RunFailed,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    StateReset,
    StoreFull,
    StoreUnavailable,
    Unimplemented,
    Unreachable,
    WrongIncarnation,
)

__all__ = [
    "AlreadyApplied",
    "AsyncBatch",
    "AsyncClient",
    "AsyncSession",
    "AsyncStream",
    "Batch",
    "BatchError",
    "Behind",
    "Client",
    "Contended",
    "DataLoss",
    "DeadlineExceeded",
    "Diverged",
    "Draining",
    "InvalidArgument",
    "Mismatch",
    "Model",
    "ModelChanged",
    "ModelNotFound",
    "ModelUnavailable",
    "NotReplicated",
    "Overloaded",
    "Owned",
    "RecurraError",
    "RunFailed",
    "SelfTest",
    "Session",
    "SessionClosed",
    "SessionExists",
    "SessionExpired",
    "SessionInfo",
    "SessionNotFound",
    "StateReset",
    "StateSpec",
    "StoreFull",
    "StoreUnavailable",
    "StrayNode",
    "Stream",
    "TensorSpec",
    "Unimplemented",
    "Unreachable",
    "WrongIncarnation",
]
