"""Strategies: bytes and messages that a method may be sent."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

MODELS: Final = ("lstm", "gru", "cell", "embed", "broken", "nothing")
SESSIONS: Final = st.sampled_from(("fuzz", "fuzz 2", "", "{fuzz}", "x" * 257, "ä" * 128, "a\0b", "\u202e"))
_EDGES: Final = (0, 1, 2, 3, 127, 128, 255, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1)
_WHOLE: Final = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}


@st.composite
def mutated(draw: DrawFn, *valid: bytes) -> bytes:
    """One of the messages, as bytes, with some of them changed, cut out, said twice, or put in."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 6))):
        at, to = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(st.sampled_from(("flip", "cut", "twice", "insert", "edge", "tail"))):
            case "flip" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : min(to, at + 8)]
            case "twice":
                data[at:at] = data[at:to]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "edge":
                data[at : at + 1] = _varint(draw(st.sampled_from(_EDGES)))
            case "tail":
                del data[at:]
    return bytes(data)


def messages(of: Descriptor, depth: int = 3) -> SearchStrategy[Message]:
    """Well-formed messages of a type, whatever they say."""
    cls = message_factory.GetMessageClass(of)

    @st.composite
    def built(draw: DrawFn) -> Message:
        message = cls()
        for field in of.fields:
            if draw(st.booleans()):
                _fill(draw, message, field, depth)
        return message

    return built()


def _fill(draw: DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            for entry in draw(st.lists(messages(field.message_type, depth - 1), max_size=3)) if depth else ():
                _put(getattr(message, field.name), entry)
        elif depth and field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(messages(field.message_type, depth - 1), max_size=3)))
        elif depth:
            getattr(message, field.name).CopyFrom(draw(messages(field.message_type, depth - 1)))
        return
    values = _values(field)
    if field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(values, max_size=4)))
    else:
        setattr(message, field.name, draw(values))


def _put(there: Any, entry: Any) -> None:
    if hasattr(there, "get_or_create"):
        there[entry.key].CopyFrom(entry.value)
    else:
        there[entry.key] = entry.value


def _values(field: FieldDescriptor) -> SearchStrategy[Any]:
    if field.type in _WHOLE:
        low, high = _WHOLE[field.type]
        edges = [edge for edge in (*_EDGES, -1, low, high) if low <= edge <= high]
        return st.sampled_from(edges) | st.integers(low, high) | st.integers(0, 4)
    match field.name, field.type:
        case "model" | "model_name", _:
            return st.sampled_from(MODELS)
        case "session" | "sessions", _:
            return SESSIONS
        case "name", _:
            return st.sampled_from(("", "x", "x", "tokens", "h0", "lstm_1/h")) | st.text(max_size=8)
        case _, FieldDescriptor.TYPE_STRING:
            return st.text(max_size=40)
        case "id" | "after" | "ids" | "afters", _:
            return st.binary(min_size=16, max_size=16) | st.binary(max_size=40)
        case "handles" | "lengths", _:
            return st.sampled_from((bytes(4), b"\1\0\0\0", bytes(8), b"\xff" * 4)) | st.binary(max_size=16)
        case _, FieldDescriptor.TYPE_BYTES:
            return st.sampled_from((bytes(12), bytes(24), bytes(36))) | st.binary(max_size=48)
        case _, FieldDescriptor.TYPE_BOOL:
            return st.booleans()
    return st.floats(width=32)


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
