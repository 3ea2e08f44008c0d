"""The command `recurra`: the client's own subcommands, and those that the server's packages bring."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Final

from recurra.client import table
from recurra.client.aio import DEFAULT_TARGET
from recurra.client.rows import BatchError
from recurra.client.source import read_input
from recurra.client.sync import Client
from recurra.wire.errors import InvalidArgument, RecurraError

_BROUGHT: Final = {
    "serve": "serve a folder of models",
    "inspect": "what a .onnx file takes, gives and remembers",
    "export": "write a model of Keras or PyTorch as a folder to serve",
    "import": "make a model folder of Triton's one to serve",
}
_INTERRUPTED: Final = 130  # as shells tell it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status: 0, 1 after an error that it told on stderr, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _brought_names():
        return _brought(arguments[0], arguments[1:])
    options = _parser().parse_args(arguments)
    command: Callable[[Client, argparse.Namespace], object] = options.command
    try:
        with Client(options.address, timeout=options.timeout) as client:
            found = command(client, options)
        if options.json:
            sys.stdout.write(json.dumps(found, default=table.plain, allow_nan=False) + "\n")
        else:
            table.show(found)
    except RecurraError as error:
        return _fail(f"{error.reason}: {error}")
    except BatchError as batch:
        for session, reason in batch.errors.items():
            _fail(f"{reason.reason}: {session}: {reason}")
        return 1
    except (OSError, ValueError, ModuleNotFoundError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _fail(line: str) -> int:
    sys.stderr.write(" ".join(line.split()) + "\n")
    return 1


def _brought_names() -> set[str]:
    return set(_BROUGHT) | {point.name for point in entry_points(group="recurra.commands")}


def _brought(name: str, argv: list[str]) -> int:
    """Run a subcommand of another package."""
    found = list(entry_points(group="recurra.commands", name=name))
    try:
        if not found:
            raise ModuleNotFoundError(name)
        command: Callable[[list[str]], int] = found[0].load()
    except ImportError as error:
        return _fail(f"`recurra {name}` needs more packages ({error}): pip install 'recurra[server]'")
    return command(argv)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    address = os.environ.get("RECURRA_ADDRESS", DEFAULT_TARGET)
    common.add_argument("--address", default=address, help="HOST:PORT (RECURRA_ADDRESS; default %(default)s)")
    common.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="default %(default)g")
    common.add_argument("--json", action="store_true", help="for scripts")

    others = ", ".join(f"{name} ({about})" for name, about in _BROUGHT.items())
    parser = argparse.ArgumentParser("recurra", description="Recurrent models, served with their sessions' state.")
    parser.epilog = f"also: {others}"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", parents=[common], help="the models that a server has")
    models.set_defaults(command=lambda client, _: client.models())

    predict = commands.add_parser("predict", parents=[common], help="outputs for a chunk of input")
    predict.add_argument("model")
    predict.add_argument("--session", metavar="ID", help="from this session's state, which moves on; else from fresh")
    predict.add_argument(
        "--input", default="-", metavar="JSON|@FILE|-", help="JSON, @file.npy, @file.csv, or JSON on stdin (default)"
    )
    predict.add_argument("--start", metavar="JSON|@FILE|-", help="what the states that this starts from are made of")
    predict.set_defaults(command=_predict)

    sessions = commands.add_parser("sessions", help="list, show, reset or end sessions")
    actions = sessions.add_subparsers(required=True, metavar="ACTION")
    for action, command, about in _SESSIONS:
        one = actions.add_parser(action, parents=[common], help=about)
        one.add_argument("model")
        if action != "list":
            one.add_argument("ids", nargs="+", metavar="ID")
        if action == "reset":
            one.add_argument("--state", action="append", default=[], metavar="NAME", help="a state or layer only")
        one.set_defaults(command=command)
    return parser


def _predict(client: Client, options: argparse.Namespace) -> object:
    x = read_input(options.input, sys.stdin)
    start = None if options.start is None else read_input(options.start, sys.stdin, "--start")
    if options.session is None:
        return client.predict(options.model, x, start=start)
    return client.session(options.model, options.session).predict(x, start=start)


def _list(client: Client, options: argparse.Namespace) -> object:
    return list(client.sessions(options.model))


def _show(client: Client, options: argparse.Namespace) -> object:
    return [client.session(options.model, session).info() for session in options.ids]


def _reset(client: Client, options: argparse.Namespace) -> object:
    client.batch(options.model, _unique(options.ids), create="must_exist").reset(*options.state)
    return _show(client, options)


def _end(client: Client, options: argparse.Namespace) -> object:
    client.batch(options.model, _unique(options.ids), create="must_exist").end()
    return f"ended: {', '.join(options.ids)}"


def _unique(ids: Sequence[str]) -> list[str]:
    if len(set(ids)) < len(ids):
        raise InvalidArgument("a session is named twice")
    return list(ids)


_SESSIONS: Final = (
    ("list", _list, "the live sessions of a model"),
    ("show", _show, "where sessions stand"),
    ("reset", _reset, "put sessions back to the fresh state"),
    ("end", _end, "end sessions and forget their state"),
)
