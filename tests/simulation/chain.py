"""The model of the simulation: a chain of digests, so that an output tells every input that led to it, in order.

state = output = digest(state before, input), 8 bytes a timestep. What was computed is remembered, so that an output can
be told in words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Any, Final

import numpy as np

from recurra.models import Model, ModelConfig, SelfTest, Signature, StateSpec, TensorSpec
from recurra.server.engine.runner import HostStates
from recurra.server.engine.seams import Given, Step

Array = np.ndarray
NAME: Final = "chain"
FRESH: Final = 0x0F0F_0F0F
_BEFORE: Final[dict[int, tuple[int, int]]] = {}  # what was computed: by state, the one before and the input
_INT: Final = np.dtype("<i8")

SIGNATURE: Final = Signature(
    inputs=(TensorSpec("x", _INT, (), has_time_axis=True),),
    outputs=(TensorSpec("y", _INT, (), has_time_axis=True),),
    states=(StateSpec("chain/h", "chain", _INT, (), 0, np.array(FRESH, _INT)),),
)


def model(*, ttl_seconds: float, max_batch: int, durability: str = "committed") -> Model:
    """As the server holds it."""
    config = ModelConfig(session_ttl=ttl_seconds, max_batch=max_batch, durability=durability)
    test = SelfTest(chunked=True, batched=True, chunked_error=0.0, batched_error=0.0)
    program: Any = None  # the runner's affair
    return Model(NAME, "1", SIGNATURE, program, None, None, config, test, max_batch, b"chain's own form", (), {})


def follow(state: int, xs: Sequence[int]) -> list[int]:
    """The outputs of some timesteps from `state`; the last is the new state."""
    outputs = []
    for x in xs:
        digest = blake2b(state.to_bytes(8, "little", signed=True) + int(x).to_bytes(8, "little", signed=True))
        before, state = state, int.from_bytes(digest.digest()[:8], "little", signed=True)
        _BEFORE[state] = before, int(x)
        outputs.append(state)
    return outputs


def forget() -> None:
    """Forget what was computed."""
    _BEFORE.clear()


def before(state: int, steps: int) -> int | None:
    """The state so many timesteps earlier."""
    for _ in range(steps):
        if state not in _BEFORE:
            return None
        state = _BEFORE[state][0]
    return state if steps >= 0 else None


def history(state: int) -> tuple[int, list[int]]:
    """The base of a state, and every input since."""
    xs: list[int] = []
    while state in _BEFORE:
        state, x = _BEFORE[state]
        xs.append(x)
    return state, xs[::-1]


def states(state: int) -> Iterator[int]:
    """A state, and all before it."""
    yield state
    while state in _BEFORE:
        state, _ = _BEFORE[state]
        yield state


def told(state: int) -> str:
    """A state in words."""
    base, xs = history(state)
    return " ".join(["fresh" if base == FRESH else f"set {base}", *map(str, xs)])


class States(HostStates):
    """They come to the host after a while, as from a device, or now and then they do not."""

    __slots__ = ("_came", "_failures", "_random")

    def __init__(self, random: Random, failures: float, numbers: Array) -> None:
        super().__init__(SIGNATURE.states, [numbers])
        self._random, self._failures = random, failures
        self._came: asyncio.Future[None] | None = None

    def only(self, rows: Array) -> States:
        some = States(self._random, self._failures, self.arrays[0][rows])
        some._came = self._came
        return some

    def fetch(self) -> asyncio.Future[None]:
        if self._came is None:
            self._came = came = asyncio.get_running_loop().create_future()
            if self._random.random() < self._failures:
                came.set_exception(RuntimeError("the copy failed"))
                came.exception()  # seen
            elif self._random.random() < 0.5:
                came.set_result(None)
            else:
                seconds = self._random.choice((0.0, 0.0005, 0.004))
                asyncio.get_running_loop().call_later(seconds, lambda: came.done() or came.set_result(None))
        return self._came

    def tensors(self) -> list[Array]:
        assert self._came is not None
        self._came.result()
        return super().tensors()


class Runner:
    """The engine's runner, with slabs of one number. A run takes a while, as a device does; now and then it fails."""

    def __init__(self, random: Random, *, slots: int, failures: float) -> None:
        self._random, self._failures = random, failures
        self._slab = np.full(slots, FRESH, _INT)

    def gather(self, slots: Array, given: Sequence[Given] = ()) -> States:
        state = self._slab[slots]
        for _, rows, values in given:
            state[rows] = values
        return States(self._random, self._failures, state)

    def scatter(self, slots: Array, states: States) -> None:
        (self._slab[slots],) = states.arrays

    def load(self, slots: Array, rows: Array) -> None:
        self._slab[slots] = np.ascontiguousarray(rows).view(_INT).reshape(-1)

    def run(
        self,
        inputs: Sequence[Array],
        states: States,
        lengths: Array | None = None,
        *,
        fetch: bool = True,
        alone: bool = False,
    ) -> asyncio.Future[Step]:
        assert lengths is None
        answer: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
        if self._random.random() < self._failures:
            answer.set_exception(RuntimeError("the device failed"))
            return answer
        outputs = np.array(
            [follow(int(h), xs.tolist()) for h, xs in zip(states.arrays[0], inputs[0], strict=True)], _INT
        )
        step = Step([outputs], States(self._random, self._failures, outputs[:, -1].copy()))
        if alone and self._random.random() < 0.5:
            answer.set_result(step)
        else:
            seconds = self._random.choice((0.0, 0.0005, 0.002))
            asyncio.get_running_loop().call_later(seconds, lambda: answer.done() or answer.set_result(step))
        return answer

    def start(self, inputs: Sequence[Array]) -> asyncio.Future[dict[int, Array]]:
        raise AssertionError("the chain has no start graph")
