"""The steps of one session's history as calls: each request named, sent, sent again while that helps, and answered."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from recurra.client.channel import END_SESSION, GET_SESSION, PREDICT, RESET_STATE, SET_STATE, A, Method, Q
from recurra.client.course import Course, perform, restore
from recurra.client.frame_stream import FrameStream
from recurra.client.frames import CREATES, put_names, row_errors, timestamp
from recurra.client.history import History
from recurra.client.model import read_session, read_time
from recurra.client.operation import Look, Operation, Reply, Step, doubtful
from recurra.client.patience import Chance, Patience
from recurra.client.replicas import Replicas
from recurra.client.standing import Durability, Standing
from recurra.client.window import Window
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import DeadlineExceeded, RecurraError, from_status

R = TypeVar("R")


@dataclass(frozen=True)
class Context:
    """What the handles of one client share.

    Attributes:
        timeout: seconds that a call may take, all its attempts together, where the call does not say.

    """

    replicas: Replicas
    chance: Chance
    window: Window
    timeout: float

    def patience(self, timeout: float | None) -> Patience:
        """The time and backoff of one call; `timeout`: seconds, None for the client's."""
        seconds = self.timeout if timeout is None else timeout
        return Patience(self.chance, seconds, spare=len(self.replicas) - 1)

    async def read(self, method: Method[Q, A], request: Q, timeout: float | None = None) -> A:
        """A call that changes nothing, tried until it is answered. Raises RecurraError."""
        patience = self.patience(timeout)
        return await trying(lambda seconds: self.replicas.call(method, request, timeout=seconds), patience)


async def trying(
    attempt: Callable[[float], Awaitable[R]], patience: Patience, failed: Callable[[RecurraError], None] | None = None
) -> R:
    """Attempt, given the seconds left, until it succeeds, fails for good, or time runs out: then its last error."""
    last: RecurraError | None = None
    while True:
        try:
            return await attempt(patience.left)
        except RecurraError as error:
            if failed is not None:
                failed(error)
            # Time that ran out while waiting for a server that is away: that it is away tells more.
            if isinstance(error, DeadlineExceeded) and last is not None:
                raise last from error
            if not await patience.pause(error):
                raise
            last = error


class Delivery:
    """The way to one session: of a model, by a name, at a handle of a stream of frames.

    Attributes:
        durability: of frames; None: the model's.

    """

    def __init__(
        self,
        context: Context,
        history: History,
        model: str,
        session: str,
        *,
        frames: FrameStream,
        handle: int = 0,
        durability: Durability | None = None,
    ) -> None:
        self._context, self.history = context, history
        self._model, self._session = model, session
        self._frames, self._handle = frames, np.array([handle], np.uint32)
        self.durability = durability

    async def perform(self, operation: Operation, patience: Patience) -> Reply:
        """Send the operation, and what has to be sent before it, until it is answered for good. Raises RecurraError."""
        return await _drive(perform(self.history, operation), lambda step: self._attempt(step, patience))

    async def restore(self, patience: Patience) -> None:
        """Have the store hold all that was acknowledged. Raises RecurraError."""
        await _drive(restore(self.history), lambda step: self._attempt(step, patience))

    async def _attempt(self, step: Step, patience: Patience) -> Reply | RecurraError:
        try:
            return await trying(lambda seconds: self.once(step, seconds), patience, lambda error: doubt(step, error))
        except RecurraError as error:
            return error
        except BaseException:  # cancelled while it was on its way
            doubt(step, None)
            raise

    async def once(self, step: Step, timeout: float) -> Reply:
        """One attempt at a step, at most `timeout` seconds. Raises RecurraError."""
        call = self._context.replicas.call
        if isinstance(step, Look):
            look = session_pb2.GetSessionRequest(model=self._model, session=self._session)
            return _reply((await call(GET_SESSION, look, timeout=timeout)).session)
        request = step.request
        if isinstance(request, inference_pb2.Frame):
            return row_reply(await self._frames.exchange(self.frame(step), timeout=timeout))
        if isinstance(request, inference_pb2.PredictRequest):
            predicted = await call(PREDICT, self._named(step, request), timeout=timeout)
            return _reply(predicted.session, predicted)
        if isinstance(request, session_pb2.SetStateRequest):
            return _reply((await call(SET_STATE, self._named(step, request), timeout=timeout)).session)
        if isinstance(request, session_pb2.EndSessionRequest):
            return _reply((await call(END_SESSION, self._named(step, request), timeout=timeout)).session)
        assert isinstance(request, session_pb2.ResetStateRequest), request
        reset = session_pb2.ResetStateRequest()
        reset.CopyFrom(request)
        reset.sessions[:] = [self._session]
        name(step, reset.operations[0], self.history.standing)
        [done] = (await call(RESET_STATE, reset, timeout=timeout)).results
        if done.HasField("status"):
            raise from_status(done.status)
        return _reply(done.session)

    def frame(self, operation: Operation) -> inference_pb2.Frame:
        """The one-row frame of an operation whose request is a frame's columns."""
        assert isinstance(operation.request, inference_pb2.Frame)
        standing = self.history.standing
        frame = inference_pb2.Frame()
        frame.CopyFrom(operation.request)
        return put_names(
            frame,
            handles=self._handle,
            ids=np.frombuffer(operation.id, np.uint8)[None],
            afters=np.frombuffer(operation.after or NO_ID, np.uint8)[None],
            create=operation.create,
            expire_time=standing.expire_time if standing and operation.after else None,
            durability=self.durability,
        )

    def _named(self, operation: Operation, request: Request) -> Request:
        message = type(request)()
        message.CopyFrom(request)
        message.session = self._session
        name(operation, message.operation, self.history.standing)
        return message


Request = TypeVar("Request", inference_pb2.PredictRequest, session_pb2.SetStateRequest, session_pb2.EndSessionRequest)
NO_ID: Final = bytes(16)


async def _drive(course: Course, attempt: Callable[[Step], Awaitable[Reply | RecurraError]]) -> Reply:
    try:
        step = next(course)
        while True:
            outcome = await attempt(step)
            step = course.send(outcome)
    except StopIteration as done:
        reply: Reply = done.value
        return reply
    finally:
        course.close()


def doubt(step: Step, error: RecurraError | None) -> None:
    """Note on an operation that it may be applied, if that is what its failure means; None: it was cut off."""
    if isinstance(step, Operation) and (error is None or doubtful(error)):
        step.unsure = True


def name(operation: Operation, message: session_pb2.Operation, standing: Standing | None) -> None:
    """Write the operation's name into the message of a request; a ttl that stands there stays."""
    message.id, message.after, message.create = operation.id, operation.after, CREATES[operation.create]
    if standing is not None and standing.expire_time is not None and operation.after:
        message.expire_time.CopyFrom(timestamp(standing.expire_time))


def _reply(session: session_pb2.Session, body: object = None) -> Reply:
    return Reply(read_session(session), body)


def row_reply(result: inference_pb2.FrameResult) -> Reply:
    """The reply of a frame of one row. Raises the error of that row."""
    if result.HasField("status"):
        raise from_status(result.status)
    for error in row_errors(result).values():
        raise error
    [position] = np.frombuffer(result.positions, "<u8").tolist()
    [durable] = np.frombuffer(result.durable_positions or result.positions, "<u8").tolist()
    standing = Standing(
        incarnation=result.incarnations,
        position=position,
        durable_position=durable,
        created=result.created == b"\x01",
        expire_time=read_time(result.expire_time) if result.HasField("expire_time") else None,
    )
    return Reply(standing, result)
