import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.server.store import record
from recurra.server.store.record import HEADER, NAME_BYTES
from recurra.wire.errors import DataLoss

# What is the engine's; the rest of a header pack fills in, whatever was there.
FIELDS = (
    "operation",
    "flags",
    "layout",
    "incarnation",
    "id",
    "digest",
    "commit",
    "recent",
    "position",
    "update_ms",
    "expire_ms",
    "reply_tag",
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= NAME_BYTES
)


@st.composite
def batches(draw, most_rows=5):
    """Names, headers, states and replies of a batch, as the engine would have them."""
    named = draw(st.lists(names, min_size=1, max_size=most_rows, unique=True))
    rows = len(named)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    headers = np.frombuffer(random.bytes(rows * HEADER.itemsize), HEADER).copy()
    headers["format"], headers["kind"] = record.FORMAT, draw(st.sampled_from([record.LIVE, record.CLOSED]))
    headers["identity"] = [np.frombuffer(record.identity("t", "m", name), "<u8") for name in named]
    headers["name_bytes"] = [len(name.encode()) for name in named]
    padded = np.array([list(name.encode().ljust(NAME_BYTES, b"\0")) for name in named], np.uint8)
    state, reply = (
        random.integers(0, 256, (rows, draw(st.integers(0, most) | st.sampled_from([1, 7, 8, 9]))), np.uint8)
        for most in (300, 40)
    )
    return named, headers, padded, state, reply


@given(batches())
def test_each_row_of_a_batch_comes_back_as_it_was_packed(batch):
    named, headers, padded, state, reply = batch
    wanted = headers.copy()
    records = record.pack(headers, padded, state, reply)
    assert records.shape[1] % 8 == 0
    for row, name in enumerate(named):
        data = records[row].tobytes()
        back = record.unpack(data, record.identity("t", "m", name))
        assert back.name == name
        assert back.state == state[row].tobytes()
        assert back.reply == reply[row].tobytes()
        assert back.header[0] == headers[row]
        assert data[: HEADER.itemsize] == headers[row].tobytes()
        for field in ("format", "kind", "identity", "name_bytes", *FIELDS):
            assert (back.header[field][0] == wanted[field][row]).all()


@given(batches(most_rows=1), st.data())
def test_a_byte_that_changed_anywhere_is_data_loss(batch, data):
    [name], headers, padded, state, reply = batch
    bad = bytearray(record.pack(headers, padded, state, reply)[0].tobytes())
    bad[data.draw(st.integers(0, len(bad) - 1), label="at")] ^= data.draw(st.integers(1, 255), label="by")
    with pytest.raises(DataLoss):
        record.unpack(bytes(bad), record.identity("t", "m", name))


def one(name: str = "ä session", *, state: int = 21, reply: int = 13) -> bytes:
    headers = np.zeros(1, HEADER)
    headers["format"], headers["kind"] = record.FORMAT, record.LIVE
    headers["identity"], headers["name_bytes"] = (
        np.frombuffer(record.identity("t", "m", name), "<u8"),
        len(name.encode()),
    )
    padded = np.frombuffer(name.encode().ljust(NAME_BYTES, b"\0"), np.uint8)[None]
    return record.pack(headers, padded, np.ones((1, state), np.uint8), np.ones((1, reply), np.uint8))[0].tobytes()


OWN = record.identity("t", "m", "ä session")


def test_every_single_byte_of_one_record_is_watched():
    good = one()
    record.unpack(good, OWN)
    for at in range(len(good)):
        for by in (1, 128):
            bad = bytearray(good)
            bad[at] ^= by
            with pytest.raises(DataLoss):
                record.unpack(bytes(bad), OWN)


def test_a_name_that_is_no_text_under_a_right_checksum_is_data_loss():
    words = np.frombuffer(one().replace("ä".encode(), b"\xff\xfe"), "<u8").copy()
    place = dict(HEADER.fields or {})["checksum"][1] // 8
    words[place] = 0
    words[place] = words.sum(dtype=np.uint64)
    with pytest.raises(DataLoss):
        record.unpack(words.tobytes(), OWN)


def test_a_record_cut_short_or_with_more_behind_it_is_data_loss():
    good = one()
    for bad in (*(good[:size] for size in range(len(good))), good + bytes(8), good + b"\1"):
        with pytest.raises(DataLoss):
            record.unpack(bad, OWN)


@given(st.binary(max_size=400))
def test_anything_else_at_the_key_is_data_loss(data):
    for tried in (data, record.FORMAT.to_bytes(4, "little") + data):
        with pytest.raises(DataLoss):
            record.unpack(tried, OWN)


@pytest.mark.parametrize("other", [("t", "m", "b"), ("t", "n", "ä session"), ("u", "m", "ä session")])
def test_another_sessions_record_is_not_believed(other):
    with pytest.raises(DataLoss, match="corrupt"):
        record.unpack(one(), record.identity(*other))


def test_a_record_of_a_later_release_is_not_called_corrupt():
    later = bytearray(one())
    later[3] = 2
    with pytest.raises(DataLoss, match="has format 2, this release reads format 1: serve it with a newer release"):
        record.unpack(bytes(later), OWN)


@given(st.tuples(names, names, names), st.tuples(names, names, names))
def test_an_identity_names_one_session(one_, other):
    same = record.identity(*one_) == record.identity(*other)
    assert same == (one_ == other)


@given(names)
def test_no_session_id_can_steer_where_its_key_lives(name):
    key = record.key(record.key_prefix("default", "m"), record.identity("default", "m", name))
    head, _, tag = key.partition(b"{")
    assert head == b"recurra:default:m:"
    assert tag.endswith(b"}")
    assert len(tag) == 33
    assert set(tag[:-1]) <= set(b"0123456789abcdef")


def test_the_header_of_a_missing_session_is_all_zeros():
    assert not any(record.MISSING.tobytes())
    assert HEADER.itemsize % 8 == 0  # the checksum adds up 64-bit words


# Replicas of two releases serve side by side: what one wrote, the other must read. Change it only with FORMAT.
def test_the_layout_of_format_1_stays():
    assert int.from_bytes(b"RCR\1", "little") == record.FORMAT
    assert {name: offset for name, (_, offset) in HEADER.fields.items()} == {
        "format": 0,
        "kind": 4,
        "operation": 5,
        "flags": 6,
        "_": 7,
        "identity": 8,
        "layout": 24,
        "incarnation": 40,
        "id": 56,
        "recent": 72,
        "digest": 136,
        "commit": 152,
        "position": 168,
        "update_ms": 176,
        "expire_ms": 184,
        "owner": 192,
        "owned_until_ms": 208,
        "checksum": 216,
        "name_bytes": 224,
        "name_width": 226,
        "state_bytes": 228,
        "reply_bytes": 232,
        "reply_tag": 236,
    }
    assert record.identity("default", "m", "a").hex() == "2b922aefa8dbf77ee6053a2af5105ad6"
