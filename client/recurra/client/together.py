"""One operation of every row of a batch, in one message where nothing is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

import numpy as np

from recurra.client.channel import GET_SESSION, RESET_STATE
from recurra.client.columns import Gathered
from recurra.client.crew import Crew, Rows, Trouble
from recurra.client.delivery import Delivery, name, trying
from recurra.client.frames import normal, put_names, row_errors, take
from recurra.client.model import read_session
from recurra.client.operation import Create, Operation, Reply, doubtful
from recurra.client.patience import Patience
from recurra.client.rows import CALLS_AT_ONCE, Outcome, Sent
from recurra.client.standing import Standing
from recurra.v1 import inference_pb2, session_pb2
from recurra.wire.errors import (
    InvalidArgument,
    RecurraError,
    SessionClosed,
    SessionExists,
    SessionExpired,
    SessionNotFound,
    from_status,
)

_RESETS_A_CALL: Final = 4096


async def predict(
    crew: Crew, frame: inference_pb2.Frame, rows: Rows, gathered: Gathered, patience: Patience
) -> dict[int, RecurraError]:
    """Run a frame's columns, a row for each of `rows`, and gather what comes back.

    Calls for different rows may run at once. Returns why rows failed; raises InvalidArgument where the frame was
    refused whole.
    """
    dry = frame.options.HasField("commit") and not frame.options.commit
    sent = crew.name(frame, rows, dry=dry)
    try:
        return await _predict(crew, sent, frame, gathered, patience, dry=dry)
    finally:
        if not dry:
            crew.context.window.keep(sent)


async def _predict(
    crew: Crew, sent: Sent, frame: inference_pb2.Frame, gathered: Gathered, patience: Patience, *, dry: bool
) -> dict[int, RecurraError]:
    rows = sent.rows
    trouble, fresh = Trouble(), crew.fresh(rows)
    aside = crew.apart[rows] | (fresh & (crew.create == "must_exist") & (not dry))
    for place in np.flatnonzero(aside).tolist():
        row = int(rows[place])
        trouble[row] = _apart(crew, row, take(frame, np.array([place])), dry=dry)
    groups = [(np.flatnonzero(~aside & ~fresh), Create.NEVER), (np.flatnonzero(~aside & fresh), crew.opening(dry=dry))]
    for group, create in groups:
        if not len(group):
            continue
        result, errors, unsure = await _exchange(crew, sent, group, create, patience, dry=dry)
        if result is not None:
            _take(crew, sent, group, result, errors=errors, gathered=gathered, dry=dry)
        if create is Create.NEW and crew.create == "if_missing" and errors:
            # Sessions that are there already, as after a restart of this process: continued, in one frame again.
            met = _continue(sent, errors)
            groups.append((np.sort(np.array(met, np.int64)), Create.NEVER))  # errors come in any order, inputs do not
            errors = {place: error for place, error in errors.items() if place not in set(met)}
        for place, error in errors.items():
            row = int(rows[place])
            trouble[row] = *crew.part(sent, row, create, unsure=unsure, dry=dry), error
    outcomes = await crew.settle(sent, trouble, patience)
    for row, outcome in outcomes.items():
        if isinstance(outcome, Reply):
            assert isinstance(outcome.body, inference_pb2.FrameResult)
            gathered.put(outcome.body, np.array([row]), np.array([0]))
    return _errors(outcomes)


def _take(
    crew: Crew,
    sent: Sent,
    group: Rows,
    result: inference_pb2.FrameResult,
    *,
    errors: Mapping[int, RecurraError],
    gathered: Gathered,
    dry: bool,
) -> None:
    """Take over the rows of a result that did not fail. `group`: their places in what was sent."""
    good = np.flatnonzero(~np.isin(group, list(errors))) if errors else np.arange(len(group))
    if len(good):
        rows = sent.rows[group[good]]
        if not dry:
            crew.advance(rows, sent.ids[group[good]], result, good)
        gathered.put(result, rows, good)


def _apart(
    crew: Crew, row: int, request: inference_pb2.Frame, *, dry: bool
) -> tuple[Delivery, Operation, RecurraError | None]:
    """The row's predict, by its own history."""
    way = crew.way(row)
    return way, way.history.name(request, 0, dry=dry, asked=normal(request)), None


def _errors(outcomes: Mapping[int, Outcome]) -> dict[int, RecurraError]:
    return {row: outcome for row, outcome in outcomes.items() if isinstance(outcome, RecurraError)}


async def _exchange(
    crew: Crew, sent: Sent, group: Rows, create: Create, patience: Patience, *, dry: bool
) -> tuple[inference_pb2.FrameResult | None, dict[int, RecurraError], bool]:
    """Send some places of what was named as one frame.

    Returns the result, why places failed, and whether an attempt's fate is unknown. Raises InvalidArgument where all
    that was named was refused, and so is as if it had never been.
    """
    assert isinstance(sent.request, inference_pb2.Frame)
    rows = sent.rows[group]
    frame = put_names(
        sent.request if len(rows) == len(sent.rows) else take(sent.request, group),
        handles=rows.astype(np.uint32),
        ids=sent.ids[group],
        afters=sent.afters[group],
        create=create,
        expire_time=crew.expire_time if create is Create.NEVER else None,
        durability="committed" if crew.exposure.long(rows) else crew.durability,
    )
    doubts: list[RecurraError] = []
    try:
        result = await trying(lambda seconds: crew.frames.exchange(frame, timeout=seconds), patience, doubts.append)
    except RecurraError as error:
        unsure = any(map(doubtful, doubts))
        if isinstance(error, InvalidArgument) and len(rows) == len(sent.rows) and not unsure:
            raise
        return None, dict.fromkeys(group.tolist(), error), unsure
    except BaseException:
        for row in rows.tolist():
            crew.part(sent, row, create, unsure=True, dry=dry)
        raise
    errors = {int(group[place]): error for place, error in row_errors(result).items()}
    return result, errors, any(map(doubtful, doubts))


def _continue(sent: Sent, errors: dict[int, RecurraError]) -> list[int]:
    """The places that met a session that they did not create themselves; their operations now continue it."""
    met: list[int] = []
    for place, error in errors.items():
        if isinstance(error, SessionExists) and error.incarnation != sent.ids[place].tobytes() and error.last_id:
            sent.afters[place] = np.frombuffer(error.last_id, np.uint8)
            met.append(place)
    return met


async def reset(crew: Crew, request: session_pb2.ResetStateRequest, patience: Patience) -> dict[int, RecurraError]:
    """Reset every session as `request` says, which stands for one of them. Returns why rows failed."""
    every = np.arange(len(crew.ids))
    sent, trouble, fresh = crew.name(request, every), Trouble(), crew.fresh(every)
    aside = crew.apart | (fresh & (crew.create == "must_exist"))
    for row in np.flatnonzero(aside).tolist():
        way = crew.way(row)
        trouble[row] = way, way.history.name(request, request.ByteSize()), None
    creates = {row: crew.opening() if fresh[row] else Create.NEVER for row in np.flatnonzero(~aside).tolist()}
    for some in _calls(creates):
        errors, unsure = await _reset(crew, sent, request, some, patience)
        for row, error in errors.items():
            trouble[row] = *crew.part(sent, row, creates[row], unsure=unsure), error
    try:
        return _errors(await crew.settle(sent, trouble, patience))
    finally:
        crew.context.window.keep(sent)


def _calls(creates: Mapping[int, Create]) -> Iterator[dict[int, Create]]:
    """The rows in as many calls as the server's limit asks for."""
    rows = iter(creates.items())
    while some := dict(islice(rows, _RESETS_A_CALL)):
        yield some


async def _reset(
    crew: Crew, sent: Sent, request: session_pb2.ResetStateRequest, creates: Mapping[int, Create], patience: Patience
) -> tuple[dict[int, RecurraError], bool]:
    """Reset some rows in one call. Returns why rows failed, and whether an attempt's fate is unknown."""
    batch = session_pb2.ResetStateRequest(
        model=crew.model,
        sessions=[crew.ids[row] for row in creates],
        states=request.states,
        values=request.values,
    )
    standing = Standing(expire_time=crew.expire_time)
    for row, create in creates.items():
        operation = Operation(sent.ids[row].tobytes(), None, 0, create=create)
        operation.after = sent.afters[row].tobytes() if sent.afters[row].any() else b""
        name(operation, batch.operations.add(), standing)
    doubts: list[RecurraError] = []

    async def attempt(seconds: float) -> session_pb2.ResetStateResponse:
        return await crew.context.replicas.call(RESET_STATE, batch, timeout=seconds)

    try:
        response = await trying(attempt, patience, doubts.append)
    except RecurraError as error:
        return dict.fromkeys(creates, error), any(map(doubtful, doubts))
    except BaseException:
        for row, create in creates.items():
            crew.part(sent, row, create, unsure=True)
        raise
    errors: dict[int, RecurraError] = {}
    for row, done in zip(creates, response.results, strict=True):
        if done.HasField("status"):
            errors[row] = from_status(done.status)
        else:
            crew.note(row, sent.ids[row].tobytes(), read_session(done.session))
    return errors, any(map(doubtful, doubts))


async def end(crew: Crew, patience: Patience) -> dict[int, RecurraError]:
    """End every session. Returns why rows failed."""
    trouble, request = Trouble(), session_pb2.EndSessionRequest(model=crew.model)
    for row in range(len(crew.ids)):
        way = crew.way(row)
        trouble[row] = way, way.history.name(request, 0, ends=True), None
    outcomes = await crew.settle(None, trouble, patience)
    return _errors(outcomes)


async def follow(crew: Crew, patience: Patience) -> dict[int, RecurraError]:
    """Forget what was sent and continue from where each session stands. Returns why rows failed."""
    gate = asyncio.Semaphore(CALLS_AT_ONCE)
    errors: dict[int, RecurraError] = {}

    async def look(row: int) -> None:
        request = session_pb2.GetSessionRequest(model=crew.model, session=crew.ids[row])
        async with gate:
            try:
                found = await crew.context.read(GET_SESSION, request, patience.left)
            except (SessionNotFound, SessionExpired, SessionClosed):
                crew.forget(row)
                crew.note(row, b"", Standing())
            except RecurraError as error:
                errors[row] = error
            else:
                standing = read_session(found.session)
                crew.forget(row)
                crew.note(row, standing.last_id, standing)

    await asyncio.gather(*map(look, range(len(crew.ids))))
    return errors
