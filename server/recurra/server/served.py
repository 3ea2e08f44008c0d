"""The models that this server serves: an engine each, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from recurra.server.engine.engine import Engine
from recurra.wire.errors import ModelNotFound, ModelUnavailable


@dataclass
class Served:
    """By name: engines, and what is wrong with the models that have none."""

    engines: dict[str, Engine] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def engine(self, model: str) -> Engine:
        """The model's engine. Raises ModelNotFound, ModelUnavailable."""
        engine = self.engines.get(model)
        if engine is not None:
            return engine
        if model in self.refused:
            raise ModelUnavailable(f"model '{model}' could not be loaded: {self.refused[model]}")
        there = ", ".join(f"'{name}'" for name in sorted(self.engines)) or "none"
        raise ModelNotFound(f"no model '{model[:64]}'; this server has {there}")
