"""Whose step a request is: its parameters, and the sequences that it names. A sequence is the session of its id."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from recurra.inference import service_pb2
from recurra.server.api import operations
from recurra.server.api.triton.front import SEQUENCE_IDS, Front
from recurra.wire.errors import InvalidArgument

Array = NDArray[Any]

_KNOWN: Final = ("triton_enable_empty_final_response",)  # clients always send it; a step has one reply anyway
_RESERVED: Final = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
_INT64: Final = 1 << 64
_LONGEST_ID: Final = 128  # characters


class Asked(NamedTuple):
    """A request's parameters. `timeout` in seconds, 0 for none."""

    sequence: str = ""
    start: bool = False
    end: bool = False
    timeout: float = 0.0


def asked(request: service_pb2.ModelInferRequest) -> Asked:
    """The parameters of a request. Raises InvalidArgument."""
    found: dict[str, Any] = {}
    for name, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        value: Any = getattr(parameter, kind) if kind else None
        match name:
            case "sequence_id" if kind in ("int64_param", "uint64_param"):
                found["sequence"] = str(value % _INT64) if value else ""  # C++ puts an unsigned one into int64_param
            case "sequence_id" if kind == "string_param":
                if len(value) > _LONGEST_ID:
                    raise InvalidArgument(f"a sequence_id has at most {_LONGEST_ID} characters, not {len(value)}")
                found["sequence"] = value
            case "sequence_start" | "sequence_end" if kind == "bool_param":
                found[name.removeprefix("sequence_")] = value
            case "timeout" if kind in ("int64_param", "uint64_param"):
                found["timeout"] = max(0, value) / 1e6
            case "sequence_id" | "sequence_start" | "sequence_end" | "timeout":
                raise InvalidArgument(f"parameter '{name}' has a value of the wrong type")
            case _ if name.startswith("triton_") and name not in _KNOWN:
                raise InvalidArgument(_RESERVED)
    return Asked(**found)


def names(front: Front, asked: Asked, sent: dict[str, Array]) -> list[str]:
    """The id of each row's sequence; takes the input that names them out of `sent`.

    A sequence_id beside that input says nothing: clients send the flags only with one.
    """
    if SEQUENCE_IDS in sent and SEQUENCE_IDS not in front.inputs:
        column = sent.pop(SEQUENCE_IDS)
        if column.dtype != object or column.ndim not in (1, 2) or column.size != len(column):
            raise InvalidArgument(f"input '{SEQUENCE_IDS}' is BYTES of shape [N] or [N, 1]")
        try:
            found = [name.decode() for name in column.ravel().tolist()]
        except UnicodeDecodeError:
            raise InvalidArgument(f"input '{SEQUENCE_IDS}' holds an id that is no UTF-8") from None
        if len(set(found)) < len(found):
            raise InvalidArgument(f"input '{SEQUENCE_IDS}' names a sequence twice")
    else:
        found = [asked.sequence]
    if not found or "" in found:
        raise InvalidArgument(
            f"inference request to model '{front.model.name}' must specify a non-zero or non-empty correlation ID"
        )
    return [operations.session_name(name) for name in found]
