"""Records that are not as they were written: DATA_LOSS for their sessions, and for nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.server.store import record
from recurra.wire.errors import DataLoss, RecurraError
from tests.fuzz.neighbour import Neighbour
from tests.service.caller import Caller, FrameReply
from tests.service.conftest import key
from tests.service.processes import ServerProcess, store_client
from tests.service.zoo import CLOSE, MODELS

LSTM: Final = MODELS["lstm"]
X: Final = LSTM.draw(0, 2)
ROWS: Final = 256  # of a frame


@pytest.fixture(scope="module")
def store(fuzzed: ServerProcess) -> Iterator[redis.Redis]:
    with store_client(fuzzed.store_socket) as client:
        yield client


@pytest.fixture(scope="module")
def writer(fuzzed: ServerProcess) -> Iterator[Caller]:
    with Caller(fuzzed.address) as caller:
        yield caller


@pytest.fixture(scope="module")
def reader(fuzzed: ServerProcess, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A client of another server on the same store, which has none of the sessions in its slots."""
    process = ServerProcess(repository, tmp_path_factory.mktemp("data"), store=f"unix://{fuzzed.store_socket}")
    try:
        with Caller(process.start().address) as caller:
            yield caller
        assert "request.failed" not in process.log
        assert "task.failed" not in process.log
    finally:
        process.close()


def begun(caller: Caller, count: int) -> list[str]:
    """The names of new sessions, two timesteps old."""
    prefix = os.urandom(4).hex()
    names = [f"{prefix} {index:05}" for index in range(count)]
    for at in range(0, count, ROWS):
        some = names[at : at + ROWS]
        assert stepped(caller, some).errors == {}
    return names


def stepped(caller: Caller, names: Sequence[str]) -> FrameReply:
    with caller.stream("lstm", names) as stream:
        return stream.ask(range(len(names)), np.stack([X] * len(names)))


def kept(store: redis.Redis, name: str) -> bytes:
    found: Any = store.get(key("lstm", name))
    return found


def flipped(data: bytes, at: int, by: int = 0xFF) -> bytes:
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


def sealed(data: bytes) -> bytes:
    """With a checksum that is right."""
    words = np.frombuffer(data, "<u8").copy()
    place = dict(record.HEADER.fields or {})["checksum"][1] // 8
    words[place] = 0
    words[place] = words.sum(dtype=np.uint64)
    return words.tobytes()


def test_each_byte_of_a_record_flipped_is_data_loss_for_its_session_alone(
    writer: Caller, reader: Caller, store: redis.Redis
):
    [some] = begun(writer, 1)
    size = len(kept(store, some))
    names = begun(writer, size + size // 7)
    changed = {name: at for at, name in enumerate(name for index, name in enumerate(names) if index % 8) if at < size}
    assert len(changed) == size
    for name, at in changed.items():
        store.set(key("lstm", name), flipped(kept(store, name), at))
    for at in range(0, len(names), ROWS):
        some = names[at : at + ROWS]
        reply = stepped(reader, some)
        for row, name in enumerate(some):
            if name in changed:
                assert isinstance(reply.errors.get(row), DataLoss), (changed[name], reply.errors.get(row))
            else:
                assert row not in reply.errors
                np.testing.assert_allclose(reply.y[row], LSTM.whole(X, X)[2:], **CLOSE)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-8],
        lambda data: data[:-1],
        lambda data: data[:7],
        lambda data: data[: record.HEADER.itemsize],
        lambda data: data + bytes(8),
        lambda data: data + b"\1",
        lambda data: data + os.urandom(4 << 20),
        lambda data: data * 2,
        lambda data: bytes(len(data)),
        lambda data: os.urandom(len(data)),
        lambda data: b"\xff" * len(data),
        lambda data: flipped(data, 3, 3),  # of a later format
    ],
)
def test_a_record_cut_grown_or_replaced_is_data_loss(
    writer: Caller, reader: Caller, store: redis.Redis, neighbour: Neighbour, change: Any
):
    bad, good = begun(writer, 2)
    store.set(key("lstm", bad), change(kept(store, bad)))
    for ask in (
        lambda: reader.predict("lstm", bad, X),
        lambda: reader.get("lstm", bad),
        lambda: reader.state("lstm", bad),
        lambda: reader.reset("lstm", bad),
        lambda: reader.end("lstm", bad),
    ):
        with pytest.raises(DataLoss):
            ask()
    reply = reader.predict("lstm", good, X)
    np.testing.assert_allclose(reply.y, LSTM.whole(X, X)[2:], **CLOSE)


def test_another_sessions_record_is_data_loss(writer: Caller, reader: Caller, store: redis.Redis):
    bad, good = begun(writer, 2)
    store.set(key("lstm", bad), kept(store, good))
    with pytest.raises(DataLoss):
        reader.predict("lstm", bad, X)


def test_something_else_than_a_record_is_data_loss(writer: Caller, reader: Caller, store: redis.Redis):
    [bad] = begun(writer, 1)
    store.delete(key("lstm", bad))
    store.lpush(key("lstm", bad), b"x")
    with pytest.raises(DataLoss):
        reader.predict("lstm", bad, X)


def test_a_record_that_changes_under_a_hot_session_is_data_loss(writer: Caller, store: redis.Redis):
    """The next commit finds it; the state in the slot is not put in its place."""
    [bad] = begun(writer, 1)
    store.set(key("lstm", bad), flipped(kept(store, bad), 9))
    with pytest.raises(DataLoss):
        writer.predict("lstm", bad, X)


def test_a_corrupt_record_is_deleted_and_its_session_begins_anew(writer: Caller, reader: Caller, store: redis.Redis):
    """As the error says."""
    [bad] = begun(writer, 1)
    store.set(key("lstm", bad), flipped(kept(store, bad), 200))
    with pytest.raises(DataLoss) as told:
        reader.predict("lstm", bad, X)
    ending = str(told.value).rpartition("ends in ")[2]
    assert key("lstm", bad).decode().endswith(ending)
    store.delete(key("lstm", bad))
    np.testing.assert_allclose(reader.predict("lstm", bad, X).y, LSTM.whole(X), **CLOSE)


@given(data=st.data())
@settings(max_examples=60)
def test_records_that_lie_under_a_right_checksum_harm_nobody(
    writer: Caller, reader: Caller, store: redis.Redis, data: st.DataObject
):
    """No disk does that, but somebody with the store's password may: no crash, and typed errors."""
    bad, good = begun(writer, 2)
    broken = kept(store, bad)
    for _ in range(data.draw(st.integers(1, 4))):
        header = st.integers(4, record.HEADER.itemsize - 1)
        at = data.draw(header | st.integers(0, len(broken) - 1))
        broken = flipped(broken, at, data.draw(st.integers(1, 255)))
    store.set(key("lstm", bad), sealed(broken))
    for ask in (
        lambda: reader.get("lstm", bad),
        lambda: reader.state("lstm", bad),
        lambda: reader.predict("lstm", bad, X),
        lambda: stepped(reader, [bad]),
        lambda: reader.page("lstm", 1000),
        lambda: reader.end("lstm", bad),
    ):
        try:
            ask()
        except RecurraError as error:
            told = error
        else:
            continue
        assert type(told) is not RecurraError, told
    store.delete(key("lstm", bad))
    np.testing.assert_allclose(reader.predict("lstm", good, X).y, LSTM.whole(X, X)[2:], **CLOSE)
