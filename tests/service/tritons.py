"""What a test needs of Triton's own client: inputs of the zoo's models, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any, Self

import grpc
import pytest
from grpc_status import rpc_status
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from recurra.wire.errors import RecurraError, from_status

Array = NDArray[Any]

TIMEOUT_SECONDS = 30.0
INPUTS = {"embed": "tokens"}  # other models of the zoo take x


def tensor(name: str, array: Array) -> InferInput:
    """An input with its bytes in raw_input_contents."""
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def step(model: str, x: Array) -> list[InferInput]:
    """One step's inputs, x (T, ...) in a batch of one."""
    return [tensor(INPUTS.get(model, "x"), x[None])]


def infer(client: InferenceServerClient, model: str, x: Array, sequence: int | str, **more: Any) -> Array:
    """One step, and its output without the batch axis; `start` and `end` are the sequence's."""
    renamed = {f"sequence_{name}": more.pop(name) for name in ("start", "end") if name in more}
    result = client.infer(
        model, step(model, x), sequence_id=sequence, client_timeout=TIMEOUT_SECONDS, **renamed, **more
    )
    return result.as_numpy("y")[0]


@contextmanager
def refused(code: str, text: str = "") -> Iterator[pytest.ExceptionInfo[InferenceServerException]]:
    """The block ends in a refusal of this status, with exactly this text if one is given."""
    with pytest.raises(InferenceServerException) as caught:
        yield caught
    assert caught.value.status() == f"StatusCode.{code}"
    assert text in ("", caught.value.message())


def reason(error: InferenceServerException) -> RecurraError:
    """The typed reason in the trailing metadata."""
    call = error.__context__  # the client tells the status and the text alone
    assert isinstance(call, grpc.RpcError)
    status = rpc_status.from_call(call)
    assert status is not None
    return from_status(status)


class Streaming:
    """A stream of Triton's client: what is sent, and the replies in their order."""

    def __init__(self, address: str) -> None:
        self._replies: Queue[tuple[InferResult | None, InferenceServerException | None]] = Queue()
        self.client = InferenceServerClient(address)

    def __enter__(self) -> Self:
        self.client.start_stream(lambda result, error: self._replies.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def send(self, model: str, x: Array, sequence: int | str, **more: Any) -> None:
        renamed = {f"sequence_{name}": more.pop(name) for name in ("start", "end") if name in more}
        self.client.async_stream_infer(model, step(model, x), sequence_id=sequence, **renamed, **more)

    def reply(self) -> InferResult:
        """Raises InferenceServerException."""
        result, error = self._replies.get(timeout=TIMEOUT_SECONDS)
        if error is not None:
            raise error
        assert result is not None
        return result

    def y(self) -> Array:
        return self.reply().as_numpy("y")[0]
