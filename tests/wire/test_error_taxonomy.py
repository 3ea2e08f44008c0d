import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from recurra.wire import errors
from recurra.wire.errors import BY_REASON, DOMAIN, Behind, Mismatch, Overloaded, RecurraError, from_status, to_status

CODES = list(grpc.StatusCode)


def family(cls: type[RecurraError] = RecurraError) -> list[type[RecurraError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in family(sub))]


classes = st.sampled_from(sorted(BY_REASON.values(), key=lambda cls: cls.reason))
texts = st.text(st.characters(codec="utf-8"))


def test_every_class_but_the_abstract_one_has_a_reason_of_its_own():
    named = [cls for cls in family() if cls is not Mismatch]
    assert all("reason" in vars(cls) for cls in named)
    assert len({cls.reason for cls in named}) == len(named)
    assert all(cls.reason == cls.reason.upper() for cls in named)


def test_the_reasons_are_all_of_the_classes_of_the_module():
    assert set(BY_REASON.values()) == set(family()) - {Mismatch}
    assert all(reason == cls.reason for reason, cls in BY_REASON.items())
    public = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, RecurraError)}
    assert public == set(family())


def test_every_class_says_what_it_means_and_none_is_ok():
    for cls in family():
        assert cls.__doc__
        assert cls.code in CODES
        assert cls.code is not grpc.StatusCode.OK


def test_what_may_be_sent_again_never_tells_of_a_fault_in_the_request():
    codes = {cls.code for cls in family() if cls.retryable}
    assert codes == {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }


def test_a_text_too_long_for_a_trailer_is_cut():
    for letter in "a", "ä", "語", "🌡":
        status = to_status(RecurraError(letter * 100_000))
        assert len(status.message.encode()) <= errors.MAX_MESSAGE_BYTES
        assert status.message.startswith(letter * 200)
        assert status.message.endswith(letter + "...")
    exact = "a" * errors.MAX_MESSAGE_BYTES
    assert to_status(RecurraError(exact)).message == exact


def test_a_text_that_is_no_utf8_still_goes_over_the_wire():
    assert to_status(RecurraError("a\udcffb")).message == "a?b"


@given(classes, texts, st.dictionaries(texts, texts), st.none() | st.floats(0, 1e6))
def test_an_error_comes_over_the_wire_as_it_was(cls, message, metadata, retry_after):
    error = cls(message, retry_after=retry_after)
    error.metadata = metadata
    status = to_status(error)
    back = from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert status.code == cls.code.value[0]
    assert type(back) is cls
    assert str(back) == message
    assert back.metadata == metadata
    if retry_after is None:
        assert back.retry_after is None
    else:
        assert back.retry_after == pytest.approx(retry_after, abs=1e-8)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_a_status_that_grpc_made_itself_is_some_error(code):
    error = from_status(status_pb2.Status(code=code.value[0], message="why"))
    assert isinstance(error, RecurraError)
    assert str(error) == "why"
    assert error.metadata == {}
    assert error.retry_after is None


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgument),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.InvalidArgument),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.UNKNOWN, RecurraError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_grpcs_own_codes_have_a_class_where_one_fits(code, cls):
    assert type(from_status(status_pb2.Status(code=code.value[0]))) is cls


def with_detail(code: grpc.StatusCode, detail: any_pb2.Any) -> status_pb2.Status:
    return status_pb2.Status(code=code.value[0], message="why", details=[detail])


def info(reason: str, domain: str) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"a": "b"}))
    return packed


def test_a_reason_of_a_later_release_is_classed_by_its_code_and_keeps_its_metadata():
    error = from_status(with_detail(grpc.StatusCode.UNAVAILABLE, info("MOON_IN_THE_WAY", DOMAIN)))
    assert type(error) is errors.Unreachable
    assert error.metadata == {"a": "b"}


def test_somebody_elses_reason_is_not_taken_for_ours():
    error = from_status(with_detail(grpc.StatusCode.UNAVAILABLE, info("BEHIND", "googleapis.com")))
    assert type(error) is errors.Unreachable
    assert error.metadata == {}


@given(st.sampled_from(["ErrorInfo", "RetryInfo", "DebugInfo", "Nothing"]), st.binary(max_size=12))
def test_details_that_cannot_be_read_do_not_hide_the_error(name, value):
    detail = any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{name}", value=value)
    error = from_status(with_detail(grpc.StatusCode.UNAVAILABLE, detail))
    assert type(error) is errors.Unreachable
    assert str(error) == "why"


def test_a_mismatch_tells_where_the_session_stands():
    metadata = {"last_id": bytes(range(16)).hex(), "position": "7", "incarnation": (b"\1" * 16).hex()}
    error = from_status(to_status(Behind("there", **metadata)))
    assert isinstance(error, Mismatch)
    assert error.last_id == bytes(range(16))
    assert error.position == 7
    assert error.incarnation == b"\1" * 16
    assert (Behind("?").last_id, Behind("?").position, Behind("?").incarnation) == (b"", 0, b"")


def test_what_the_constructor_is_given_is_on_the_error():
    error = Overloaded("full", retry_after=0.5, queue="9")
    assert (str(error), error.retry_after, error.metadata) == ("full", 0.5, {"queue": "9"})
    assert (error.reason, error.code, error.retryable) == ("OVERLOADED", grpc.StatusCode.RESOURCE_EXHAUSTED, True)
