"""The models that this server serves: an engine each, or why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from recurra.server.engine.engine import Engine
from recurra.wire.errors import ModelNotFound, ModelUnavailable


@dataclass
class Served:
    """By name: engines, and what is wrong with the models that have none.

    Attributes:
        stopping: done once the server is told to stop: streams end then, after what they have read.
        streams: the tasks of those that are open.
    """

    engines: dict[str, Engine] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    stopping: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    streams: set[asyncio.Task[Any]] = field(default_factory=set)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The current task is a stream, which the end of the server waits for."""
        task = _current()
        self.streams.add(task)
        try:
            yield
        finally:
            self.streams.discard(task)

    @contextmanager
    def until_stopping(self) -> Iterator[None]:
        """The current task is cancelled if the server stops meanwhile."""
        task = _current()

        def cancel(_: asyncio.Future[None]) -> None:
            task.cancel()

        self.stopping.add_done_callback(cancel)
        try:
            yield
        finally:
            self.stopping.remove_done_callback(cancel)

    def engine(self, model: str) -> Engine:
        """The model's engine. Raises ModelNotFound, ModelUnavailable."""
        engine = self.engines.get(model)
        if engine is not None:
            return engine
        if model in self.refused:
            raise ModelUnavailable(f"model '{model}' could not be loaded: {self.refused[model]}")
        there = ", ".join(f"'{name}'" for name in sorted(self.engines)) or "none"
        raise ModelNotFound(f"no model '{model[:64]}'; this server has {there}")


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
