"""One source of many sessions' chunks, and what comes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from typing import Final

from recurra.client.arrays import Inputs
from recurra.client.chunk import Outputs
from recurra.client.dispatch import MAX_ASKED, Dispatch
from recurra.client.packing import NO_CHUNK, Answer, Asked, Layer
from recurra.wire.errors import InvalidArgument, RecurraError

Pairs = AsyncIterable[tuple[str, Inputs]] | Iterable[tuple[str, Inputs]]
"""Session ids, each with a chunk as `predict` takes it."""
_PAIRS_A_TURN: Final = 256  # then others have the event loop


class Mapping:
    """One `map`: what it took, and what came of it.

    Attributes:
        taken: pairs taken and not collected.
        failed: errors by session, after which nothing more of it is sent.
        woken: there is something to collect, or the pairs ended.

    """

    def __init__(self, dispatch: Dispatch, layer: Layer, timeout: float) -> None:
        self.taken = 0
        self.failed: dict[str, Exception] = {}
        self.woken = asyncio.Event()
        self._dispatch, self._layer, self._timeout = dispatch, layer, timeout
        self._asked: set[Asked] = set()
        self._outputs: list[tuple[str, Outputs | RecurraError]] = []
        self._broke: Exception | None = None
        self._turn = 0

    async def feed(self, pairs: Pairs) -> None:
        """Take pairs as long as there is room for them."""
        if isinstance(pairs, AsyncIterable):
            async for session, x in pairs:
                await self._take(session, x)
        else:
            for session, x in pairs:
                await self._take(session, x)

    async def _take(self, session: str, x: Inputs) -> None:
        while self._dispatch.full or self.taken >= MAX_ASKED:
            await self._dispatch.stir()
        try:
            asked = Asked(session, self._layer.lay(x), self._timeout, self._answered, self.failed)
        except InvalidArgument as error:
            # In its turn, after what was taken of the session before.
            asked = Asked(session, NO_CHUNK, self._timeout, self._answered, {session: error})
        self.taken += 1
        self._asked.add(asked)
        self._dispatch.put(asked)
        self._turn += 1
        if not self._turn % _PAIRS_A_TURN:
            await asyncio.sleep(0)

    def collect(self) -> list[tuple[str, Outputs | RecurraError]]:
        """What has come since. Raises what is not of one session, as that the client was closed."""
        if self._broke is not None:
            raise self._broke
        outputs, self._outputs = self._outputs, []
        self.taken -= len(outputs)
        self.woken.clear()
        self._dispatch.stirring()
        return outputs

    def leave(self) -> None:
        """Nobody waits for what is still on its way; what was not sent is not sent."""
        for asked in self._asked:
            asked.answer = None

    def _answered(self, asked: Asked, answer: Answer) -> bool:
        self._asked.discard(asked)
        if isinstance(answer, Exception):
            self.failed.setdefault(asked.session, answer)
            if not isinstance(answer, RecurraError):
                self._broke = answer
                answer = RecurraError(str(answer))
        self._outputs.append((asked.session, answer))
        self.woken.set()
        return True
