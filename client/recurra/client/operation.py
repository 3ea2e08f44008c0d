"""Operations: what changes a session, by name, and what is known of each one's fate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from recurra.client.standing import Standing
from recurra.wire.errors import Contended, Overloaded, RecurraError


class Create(Enum):
    """What an operation says about a session that is not there."""

    IF_MISSING = "if_missing"
    NEVER = "never"
    NEW = "new"


@dataclass(eq=False)
class Operation:
    """One operation and what is known of its fate.

    Attributes:
        id: 16 bytes.
        request: what to send, without the operation's name; None once the window forgot it.
        asked: what tells whether it is asked again: the request, or a plainer form of it.
        nbytes: what the request takes in the window.
        after: 16 bytes, the id of the operation that it continues; empty: none is known.
        create: what to say about a missing session.
        opening: the handle knew nothing of the session when it named this; it continues whatever is there.
        ends: it ends the session.
        dry: it changes nothing (commit=False).
        queued: it was sent before the one it continues was answered.
        unsure: it was sent, and whether it was applied is not known.
        sending: it is being performed.
        kept: it is in the window.
        forgotten: the window let go of it.
        done: the session took it.

    """

    id: bytes
    request: object
    nbytes: int
    after: bytes = b""
    create: Create = Create.NEVER
    opening: bool = False
    ends: bool = False
    dry: bool = False
    queued: bool = False
    unsure: bool = False
    sending: bool = False
    kept: bool = False
    forgotten: bool = False
    done: bool = False
    asked: object = None

    def forget(self) -> None:
        """Let go of the request: it can be recognised, but not sent again. One that is being sent is held."""
        self.forgotten = True
        if not self.sending:
            self.request = self.asked = None


class Look:
    """A step that only asks where the session stands."""


class Reply(NamedTuple):
    """An answer: where the session stands, and the response with the rest."""

    standing: Standing
    body: object


Step = Operation | Look


def doubtful(error: RecurraError) -> bool:
    """Whether an operation that failed with `error` may have been applied nevertheless."""
    if isinstance(error, Overloaded | Contended):
        return False
    return error.retryable or type(error) is RecurraError
