"""What a model takes, gives and remembers, and where a session stands: plain values, read from messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from recurra.client.standing import Standing
from recurra.v1 import model_pb2, session_pb2
from recurra.wire.tensors import dtype_of


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: (T, *shape) for a chunk of T timesteps, or `shape` once a chunk without a time axis.

    Attributes:
        name: the graph's name of it.
        dtype: numpy dtype.
        shape: of one timestep; None for a size that may be any.
        has_time_axis: whether it has one value a timestep.

    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    has_time_axis: bool

    def __str__(self) -> str:
        sizes = [str(size) if size is not None else "any" for size in self.shape]
        return f"{self.name} {self.dtype} ({', '.join(['T', *sizes] if self.has_time_axis else sizes)})"


@dataclass(frozen=True)
class StateSpec:
    """One hidden or cell state; `shape` is of one session (Keras' state_size)."""

    name: str
    layer: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SelfTest:
    """What was found true of a model when it was loaded; errors are the largest absolute differences seen."""

    chunked: bool
    batched: bool
    chunked_error: float
    batched_error: float
    notes: tuple[str, ...]
    ragged: bool


@dataclass(frozen=True)
class StrayNode:
    """A node that runs on the CPU though its model is on a GPU; `sizes`: it works on sizes and counts alone."""

    op: str
    name: str
    reason: str
    sizes: bool


@dataclass(frozen=True)
class Model:
    """A model of the server's repository.

    Attributes:
        status: "failed" for one that is not served; `error` says why.
        chunk_sizes: how many timesteps a chunk may have; empty for any number.
        session_ttl: seconds that a session lives without another operation; None if unknown.
        nodes: how many of the graph's nodes run on each provider.
        strays: nodes that run on the CPU though the model is on a GPU, those that compute first.
        start_inputs: what the model makes a session's first states of; empty for one without a start graph.

    """

    name: str
    version: str
    status: Literal["ready", "failed"]
    error: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...]
    state_bytes: int
    chunk_sizes: tuple[int, ...]
    session_ttl: float | None
    max_batch: int
    self_test: SelfTest
    providers: tuple[str, ...]
    nodes: dict[str, int]
    start_inputs: tuple[TensorSpec, ...]
    strays: tuple[StrayNode, ...] = ()


@dataclass(frozen=True)
class SessionInfo(Standing):
    """Where a session stands, by its name."""

    model: str = ""
    version: str = ""
    session: str = ""
    update_time: datetime | None = None


def read_model(message: model_pb2.Model) -> Model:
    """The message as a plain value."""
    test = message.self_test
    return Model(
        name=message.name,
        version=message.version,
        status="failed" if message.status == model_pb2.MODEL_STATUS_FAILED else "ready",
        error=message.error,
        inputs=tuple(map(_tensor, message.inputs)),
        outputs=tuple(map(_tensor, message.outputs)),
        states=tuple(StateSpec(s.name, s.layer, dtype_of(s.dtype), tuple(s.shape)) for s in message.states),
        state_bytes=message.state_bytes,
        chunk_sizes=tuple(message.chunk_sizes),
        session_ttl=message.session_ttl.ToTimedelta().total_seconds() if message.HasField("session_ttl") else None,
        max_batch=message.max_batch,
        self_test=SelfTest(
            test.chunked, test.batched, test.chunked_error, test.batched_error, tuple(test.notes), test.ragged
        ),
        providers=tuple(message.providers),
        nodes=dict(message.nodes),
        start_inputs=tuple(map(_tensor, message.start_inputs)),
        strays=tuple(StrayNode(each.op, each.name, each.reason, each.sizes) for each in message.strays),
    )


def read_session(message: session_pb2.Session) -> SessionInfo:
    """The message as a plain value."""
    return SessionInfo(
        incarnation=message.incarnation,
        position=message.position,
        durable_position=message.durable_position,
        last_id=message.last_id,
        created=message.created,
        expire_time=read_time(message.expire_time) if message.HasField("expire_time") else None,
        model=message.model,
        version=message.version,
        session=message.session,
        update_time=read_time(message.update_time) if message.HasField("update_time") else None,
    )


def read_time(message: Timestamp) -> datetime:
    """The time in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def _tensor(message: model_pb2.TensorSpec) -> TensorSpec:
    shape = tuple(size if size >= 0 else None for size in message.shape)
    return TensorSpec(message.name, dtype_of(message.dtype), shape, message.has_time_axis)
