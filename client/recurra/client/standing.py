"""Where a session stands, and the options that decide how a handle meets it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

CreateOption = Literal["if_missing", "must_exist", "must_be_new"]
"""What a handle's first operation does about a session that is not there, or is."""

Durability = Literal["committed", "checkpointed", "replicated"]
"""When an operation is answered: once the store has it, once it is computed, or once the store's replicas have it."""


@dataclass(frozen=True)
class Standing:
    """Where a session stands, as one reply told it.

    Attributes:
        incarnation: 16 bytes, the id of this life of the session.
        position: timesteps since the base state (fresh, reset or set).
        durable_position: timesteps since the base state that the store holds.
        last_id: 16 bytes, the id of the session's last operation; empty where the reply does not tell it.
        created: whether the operation created the session.
        expire_time: when the session expires without another operation; None if unknown.
        durable: whether the store holds all of it.

    """

    incarnation: bytes = b""
    position: int = 0
    durable_position: int = 0
    last_id: bytes = b""
    created: bool = False
    expire_time: datetime | None = None

    @property
    def durable(self) -> bool:
        return self.durable_position >= self.position
