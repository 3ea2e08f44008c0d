"""Records of another release: an older format is read, a newer one is refused with what to do.

record-1.bin is what release 0.1 wrote of the session "golden" of zoo's "lstm", after draw(0, 5) as one operation. It
stays as it is: whatever this release writes, it must read that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import redis

from recurra.server.store import record
from recurra.wire.errors import DataLoss
from tests.service.caller import Caller
from tests.service.conftest import key
from tests.service.zoo import CLOSE, MODELS

LSTM, X, NEXT = MODELS["lstm"], MODELS["lstm"].draw(0, 5), MODELS["lstm"].draw(1, 5)
GOLDEN = (Path(__file__).parents[1] / "server/store/record-1.bin").read_bytes()
ID = b"the operation 01"
AT = key("lstm", "golden")


@pytest.fixture
def golden(store: redis.Redis) -> redis.Redis:
    """The store, where the session stands as release 0.1 left it."""
    store.set(AT, GOLDEN, px=3_600_000)
    return store


def test_a_record_of_format_1_is_read() -> None:
    read = record.unpack(GOLDEN, record.identity("default", "lstm", "golden"))
    head = read.header[0]
    assert (read.name, head["id"].tobytes(), int(head["position"])) == ("golden", ID, 5)
    np.testing.assert_allclose(np.frombuffer(read.state, np.float32), np.ravel(LSTM.after(X)), **CLOSE)


def test_a_session_of_format_1_goes_on(golden: redis.Redis, caller: Caller, other: Caller) -> None:
    assert caller.get("lstm", "golden").position == 5
    for each in (caller, other):
        again = each.predict("lstm", "golden", X, id=ID)
        assert again.duplicate
        np.testing.assert_allclose(again.y, LSTM.whole(X), **CLOSE)
    reply = caller.predict("lstm", "golden", NEXT, after=ID)
    np.testing.assert_allclose(reply.y, LSTM.whole(X, NEXT)[5:], **CLOSE)
    assert "golden" in {each.session for each in caller.page("lstm", 1000).sessions}
    golden.delete(AT)


def test_a_session_of_a_newer_format_is_refused_and_left_as_it_is(golden: redis.Redis, other: Caller) -> None:
    newer = (record.FORMAT + (1 << 24)).to_bytes(4, "little") + GOLDEN[4:]
    golden.set(AT, newer, px=3_600_000)
    said = f"has format {(record.FORMAT >> 24) + 1}, this release reads format 1: serve it with a newer release"
    for call in (
        lambda: other.predict("lstm", "golden", NEXT, after=ID),
        lambda: other.predict("lstm", "golden", NEXT),
        lambda: other.reset("lstm", "golden"),
        lambda: other.end("lstm", "golden"),
        lambda: other.get("lstm", "golden"),
    ):
        with pytest.raises(DataLoss, match=said):
            call()
    assert golden.get(AT) == newer
    golden.delete(AT)
