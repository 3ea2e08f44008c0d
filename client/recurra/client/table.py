"""What a command found, as a table for people, or as plain values for JSON."""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from recurra.client.model import Model, SessionInfo

if TYPE_CHECKING:
    from rich.table import Table


def plain(value: object) -> object:
    """A value that JSON knows; bytes as hex, times as ISO 8601. Raises TypeError for others."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, np.dtype):
        return str(value)
    raise TypeError(type(value).__name__)


def show(found: object) -> None:
    """Print what a command found. Raises ModuleNotFoundError, which says what to install, for a table without rich."""
    if isinstance(found, list) and all(isinstance(item, Model | SessionInfo) for item in found):
        if not found:
            sys.stdout.write("none\n")
            return
        _print(_models(found) if isinstance(found[0], Model) else _sessions(found))
    elif isinstance(found, dict):
        for name, array in found.items():
            sys.stdout.write(f"{name}:\n{array}\n")
    else:
        sys.stdout.write(f"{found}\n")


def _print(table: Table) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich is the command line's, not the SDK's

    Console().print(table)


def _table(*names: str) -> Table:
    try:
        from rich.table import Table  # noqa: PLC0415 - rich is the command line's, not the SDK's
    except ModuleNotFoundError:
        raise ModuleNotFoundError("tables need rich: pip install 'recurra[cli]', or use --json") from None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _models(models: list[Model]) -> Table:
    from rich.text import Text  # noqa: PLC0415 - rich is the command line's, not the SDK's

    table = _table("model", "version", "status", "inputs", "outputs", "states", "state bytes", "runs on")
    for model in models:
        states = "\n".join(f"{state.name} {state.shape}" for state in model.states)
        cells = [
            model.name,
            model.version,
            model.status,
            model.error if model.status == "failed" else "\n".join(map(str, model.inputs)),
            "\n".join(map(str, model.outputs)),
            states,
            str(model.state_bytes),
            "\n".join(_runs_on(model)),
        ]
        table.add_row(*map(Text, cells))
    return table


def _runs_on(model: Model) -> list[str]:
    """Where its nodes run, and what computes on the CPU though the model is on a GPU."""
    nodes = [f"{name.removesuffix('ExecutionProvider')}: {count} nodes" for name, count in model.nodes.items()]
    return nodes + [f"on the CPU: {each.op} {each.name}: {each.reason}" for each in model.strays if not each.sizes]


def _sessions(sessions: list[SessionInfo]) -> Table:
    from rich.text import Text  # noqa: PLC0415 - rich is the command line's, not the SDK's

    table = _table("session", "position", "updated", "expires", "incarnation")
    for session in sessions:
        times = [
            moment.strftime("%Y-%m-%d %H:%M:%S") if moment else ""
            for moment in (session.update_time, session.expire_time)
        ]
        table.add_row(*map(Text, [session.session, str(session.position), *times, session.incarnation.hex()]))
    return table
