"""The calls of CUDA's libraries that a process made, as the stand-ins wrote them down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_COPY: Final = re.compile(r"cudaMemcpy(?:2D)?(?:Async)? (\w+) (\d+)")


@dataclass
class Calls:
    """Some in a row: the function's name, and what it was told."""

    lines: list[str] = field(default_factory=list)

    def count(self, name: str) -> int:
        """Calls of functions whose names begin so."""
        return sum(line.startswith(name) for line in self.lines)

    def copies(self, direction: str = "") -> list[int]:
        """The bytes of each: "HtoD", "DtoH", "DtoD"; all of them."""
        found = [match for match in map(_COPY.match, self.lines) if match]
        return [int(match[2]) for match in found if direction in match[1]]


class Log:
    """The file that STANDIN_LOG named to a process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def during(self) -> Iterator[Calls]:
        """Filled when the block ends."""
        calls, begin = Calls(), self._path.stat().st_size
        yield calls
        with self._path.open() as file:
            file.seek(begin)
            calls.lines += file.read().splitlines()

    def of(self, run: Callable[[], object]) -> Calls:
        with self.during() as calls:
            run()
        return calls
