"""A stream's two ways: requests are read and replies written at once, and neither end cuts the other off."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from recurra.server.served import Served
from recurra.wire.errors import Draining


async def serve(served: Served, read: Coroutine[Any, Any, None], write: Coroutine[Any, Any, None]) -> None:
    """Run both. `write` ends once all that was read is answered, however `read` ended.

    It is not cancelled when `read` fails: gRPC would wait for ever for a message that was cut off in its midst.

    Raises Draining where the server stops meanwhile, and what either raises.
    """
    with served.stream():
        reading = asyncio.create_task(read, name="a stream's requests")
        try:
            await write
            await asyncio.wait((reading,))
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
            failure = None if reading.cancelled() else reading.exception()
    if reading.cancelled():
        raise Draining("this replica is shutting down: retry, another one serves")
    if failure is not None:
        raise failure
