"""The settings of `recurra serve`: one frozen object from flags and RECURRA_* variables; a flag wins."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

PREFIX: Final = "RECURRA_"
EMBEDDED: Final = "embedded"
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_DEVICE: Final = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+")

# Kubernetes gives every pod variables of every service; a service called "recurra" must not stop the server.
_KUBERNETES: Final = re.compile(PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")

_CLIENTS: Final = {PREFIX + "ADDRESS"}  # the command line's other half


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of "HOST:PORT" ("[::1]:8500" for IPv6). Raises ValueError."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host.strip("[]") and port.isascii() and port.isdecimal()) or (":" in host) != bracketed:
        raise ValueError(address)
    if int(port) > 65_535:  # noqa: PLR2004
        raise ValueError(address)
    return host[1:-1] if bracketed else host, int(port)


def _address(text: str) -> str:
    split_address(text)
    return text


def _address_or_off(text: str) -> str | None:
    return None if text == "off" else _address(text)


def _folder(text: str) -> Path:
    path = Path(text)
    if not text or not path.is_dir():
        raise ValueError(text)
    return path


def _path(text: str) -> Path:
    path = Path(text)
    if not text or (path.exists() and not path.is_dir()):
        raise ValueError(text)
    return path


def _cache(text: str) -> Path | None:
    whole = os.path.expanduser(text)  # noqa: PTH111 # it leaves the text as it is for a user who has no home
    return None if text == "off" or whole.startswith("~") else _path(whole)


_STORES: Final = {  # by scheme, "s" for TLS and all: what a URL's path may be
    # redis-py ignores a path that is no database number; here it is more likely half of an unquoted password.
    r"rediss?": r"/?\d*",
    r"rediss?\+cluster": r"/?",
    r"rediss?\+sentinel": r"/[\w.-]+",
}


def _store(text: str) -> str:
    if text == EMBEDDED:
        return text
    url = urlsplit(text)
    if url.fragment:
        raise ValueError
    if url.scheme == "unix":
        good = url.path.startswith("/")
    else:
        path = next((path for scheme, path in _STORES.items() if re.fullmatch(scheme, url.scheme)), None)
        good = path is not None and re.fullmatch(path, url.path) is not None and _hosts(url)
    if not good:
        raise ValueError
    return text


def _hosts(url: SplitResult) -> bool:
    """Whether the URL names a host, and a port that can be one, or several where these are allowed."""
    hosts = url.netloc.rpartition("@")[2]
    each = [urlsplit(f"//{host}") for host in (hosts.split(",") if "+" in url.scheme else [hosts])]
    return all(one.hostname and "," not in one.hostname and one.port != 0 for one in each)


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError(text)
        return number

    return parse


def _workers(text: str) -> int:
    return len(os.sched_getaffinity(0)) if text == "auto" else _whole(1, 1024)(text)


def _devices(text: str) -> tuple[str, ...]:
    if text == "off":
        return ()
    devices = tuple(str(int(each)) if each.isdecimal() else each for each in text.split(","))
    if not all(map(_DEVICE.fullmatch, devices)) or len(set(devices)) < len(devices):
        raise ValueError(text)
    return devices


def _seconds(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(text)
    return number


def _seconds_or_off(text: str) -> float | None:
    return None if text == "off" else _seconds(text)


class _Rule(NamedTuple):
    """How a setting is read: the text that stands for it where nothing is given, and what it takes, in words."""

    default: str | None
    parse: Callable[[str], object]
    takes: str
    about: str


_RULES: Final = {
    "models": _Rule("./models/repository", _folder, "a folder that exists", "the model repository"),
    "listen": _Rule("127.0.0.1:8500", _address, "HOST:PORT", "where to serve gRPC; port 0 takes a free one"),
    "transport": _Rule(
        "grpc",
        _choice("grpc", "native"),
        "grpc or native",
        "what speaks gRPC; native, of the extra of that name, halves a unary call's cost and adds to a frame's",
    ),
    "store": _Rule(
        EMBEDDED,
        _store,
        "embedded, or a redis://, rediss:// or unix:// URL, redis+cluster://HOST:PORT,HOST:PORT or "
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE",
        "where the sessions' state is kept",
    ),
    "replicas": _Rule(
        "1", _whole(1, 64), "a whole number of replicas, 1 to 64", "of the store, that must have what is replicated"
    ),
    "data": _Rule("./data", _path, "a folder, made if it is missing", "the embedded store's folder"),
    "provider": _Rule(
        "auto", _choice("auto", "cuda", "tensorrt", "cpu"), "auto, cuda, tensorrt or cpu", "what runs the models"
    ),
    "states": _Rule(
        "auto",
        _choice("auto", "host", "device"),
        "auto, host or device",
        "the memory that hot states are in; auto: the device's where that is a GPU",
    ),
    "state_memory_bytes": _Rule(
        str(1 << 30),
        _whole(1, 1 << 40),
        "a whole number of bytes, 1 to 1099511627776",
        "for hot states, per model; sessions beyond it are read from the store again",
    ),
    "cuda_graphs": _Rule(
        "off", _choice("on", "off"), "on or off", "whether single timesteps on a GPU are recorded once and played"
    ),
    "workers": _Rule(
        "1", _workers, "a whole number of processes, 1 to 1024, or auto: one a core", "processes that share the port"
    ),
    "devices": _Rule(
        "off",
        _devices,
        "different GPUs separated by commas, by number or UUID as CUDA_VISIBLE_DEVICES has them, such as 0,1, or off",
        "each worker sees one of them, in turn; without --workers there is one worker for each",
    ),
    "model_control": _Rule(
        "none",
        _choice("none", "explicit"),
        "none or explicit",
        "whether Triton's clients may load and unload models; with one worker",
    ),
    "threads": _Rule("1", _whole(1, 1024), "a whole number of threads, 1 to 1024", "that one run of a model uses"),
    "trial_seconds": _Rule(
        "120.0",
        _seconds_or_off,
        "seconds above 0, or off",
        "longest that a model's first load, in a process of its own, may take; off: no such trial",
    ),
    "cache": _Rule(
        "~/.cache/recurra", _cache, "a folder, made if it is missing, or off", "where the trials' verdicts are kept"
    ),
    "metrics": _Rule(None, _address_or_off, "HOST:PORT or off", "where to serve Prometheus metrics"),
    "queue_limit": _Rule(
        "8192", _whole(1, 1 << 24), "a whole number of operations, 1 to 16777216", "operations waiting per model"
    ),
    "slots": _Rule("16384", _whole(1, 1 << 24), "a whole number of sessions, 1 to 16777216", "kept hot per model"),
    "store_timeout_seconds": _Rule("5.0", _seconds, "seconds above 0", "longest wait for the store's answer"),
    "checkpoint_seconds": _Rule(
        "1.0", _seconds, "seconds above 0", "longest that a checkpointed operation is kept from the store"
    ),
    "max_message_bytes": _Rule(
        str(64 << 20), _whole(1 << 16, (1 << 31) - 1), "a whole number of bytes, 65536 to 2147483647", "largest message"
    ),
    "appendfsync": _Rule(
        "always", _choice("always", "everysec", "no"), "always, everysec or no", "when the embedded store syncs to disk"
    ),
    "log_level": _Rule(
        "info", _choice("debug", "info", "warning", "error"), "debug, info, warning or error", "least level logged"
    ),
    "log_format": _Rule("text", _choice("text", "json"), "text or json", "form of the log"),
    "drain_seconds": _Rule("10.0", _seconds, "seconds above 0", "longest wait for operations at shutdown"),
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """What one server runs with. Every field is the flag of its name and the variable RECURRA_<NAME>.

    `queue_limit` counts operations waiting per model, `slots` sessions kept hot per model, both in each worker;
    `trial_seconds`, `cache` and `metrics` are None when off. `devices` are none or at most as many as `workers`.
    """

    models: Path
    listen: str
    transport: Literal["grpc", "native"]
    store: str
    replicas: int
    data: Path
    provider: Literal["auto", "cuda", "tensorrt", "cpu"]
    states: Literal["auto", "host", "device"]
    state_memory_bytes: int
    cuda_graphs: Literal["on", "off"]
    workers: int
    devices: tuple[str, ...]
    model_control: Literal["none", "explicit"]
    threads: int
    trial_seconds: float | None
    cache: Path | None
    metrics: str | None
    queue_limit: int
    slots: int
    store_timeout_seconds: float
    checkpoint_seconds: float
    max_message_bytes: int
    appendfsync: Literal["always", "everysec", "no"]
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
    drain_seconds: float

    @classmethod
    def parse(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Self:
        """Read flags and variables; exits with status 2 and one line on stderr that names what is wrong."""
        parser = _parser()
        flags, rest = parser.parse_known_args(argv)
        _refuse_unknown(parser, rest, environ)
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        for name, rule in _RULES.items():
            flag, variable = _flag(name), PREFIX + name.upper()
            source, text = f"{flag} ({variable})", rule.default
            if variable in environ:
                given[name] = source = variable
                text = environ[variable]
            if getattr(flags, name) is not None:
                given[name] = source = flag
                text = getattr(flags, name)
            try:
                values[name] = None if text is None else rule.parse(text)
            except (ValueError, OSError):
                # The store's URL may hold a password.
                but = "" if name == "store" else f", not {text!r}"
                parser.error(f"{source} takes {rule.takes}{but}")
        if values["devices"]:
            try:
                values |= _spread(values, given, environ.get(VISIBLE))
            except ValueError as error:
                parser.error(str(error))
        return cls(**values)

    def variables(self) -> dict[str, str]:
        """The environment that is parsed to just these settings."""
        return {PREFIX + name.upper(): _shown(getattr(self, name)) for name in _RULES}

    def public(self) -> dict[str, str | int | float | None]:
        """Every setting by name, for the log: without user, password and option values of the store's URL."""
        plain = {name: getattr(self, name) for name in _RULES}
        shown = {name: _shown(value) if isinstance(value, Path | tuple) else value for name, value in plain.items()}
        return shown | {"store": _public_url(self.store)}

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.public().items())})"


def _spread(values: Mapping[str, Any], given: Mapping[str, str], visible: str | None) -> dict[str, Any]:
    """How many workers there are, and the devices as each is to be told its own. Raises ValueError.

    Args:
        values: as parsed.
        given: by its name, where a setting was given.
        visible: CUDA_VISIBLE_DEVICES so far; a number counts in it, as CUDA itself numbers what it lists.

    """
    devices, flag = values["devices"], given["devices"]
    if values["provider"] == "cpu":
        raise ValueError(f"{flag} names GPUs, but {given['provider']} is cpu: leave one of them out")
    workers = values["workers"] if "workers" in given else len(devices)
    if workers < len(devices):
        raise ValueError(
            f"{flag} names {len(devices)} GPUs, but {given['workers']} is {workers}: each needs a worker of its own"
        )
    if visible is not None:
        there = list(takewhile(_DEVICE.fullmatch, map(str.strip, visible.split(","))))
        for number in filter(str.isdecimal, devices):
            if int(number) >= len(there):
                raise ValueError(
                    f"{flag} names GPU {number}, but {VISIBLE}={visible!r} shows {len(there)}, counted from 0"
                )
        devices = tuple(there[int(each)] if each.isdecimal() else each for each in devices)
    return {"workers": workers, "devices": devices}


def _shown(value: object) -> str:
    """A setting's value as it may be given."""
    if value is None or value == ():
        return "off"
    return ",".join(value) if isinstance(value, tuple) else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="recurra serve",
        description="Serve the models of a repository, with each session's state in a store.",
        epilog=f"Each setting is also a variable, such as {PREFIX}LISTEN for --listen; the flag wins.",
        allow_abbrev=False,
    )
    for name, rule in _RULES.items():
        told = f"{rule.about}: {rule.takes} (default {rule.default or 'off'})"
        parser.add_argument(_flag(name), dest=name, metavar=name.upper(), help=told)
    return parser


def _refuse_unknown(parser: argparse.ArgumentParser, rest: Sequence[str], environ: Mapping[str, str]) -> None:
    if rest:
        # Only the flag's name is shown: a value beside it may be a URL with a password.
        flag = next((text.partition("=")[0] for text in rest if text.startswith("-")), None)
        if flag is None:
            parser.error("takes flags only, and got a value without one; see --help")
        parser.error(f"unknown flag {flag}{_closest(flag, [_flag(name) for name in _RULES])}")
    variables = [PREFIX + name.upper() for name in _RULES]
    for variable in sorted(environ):
        others = variable in _CLIENTS or _KUBERNETES.fullmatch(variable)
        if variable.startswith(PREFIX) and variable not in variables and not others:
            parser.error(f"unknown variable {variable}{_closest(variable, variables)}")


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; see --help for those there are"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _public_url(store: str) -> str:
    if store == EMBEDDED:
        return store
    url = urlsplit(store)
    user, at, host = url.netloc.rpartition("@")
    options = "&".join(f"{name}=***" for name, _ in parse_qsl(url.query, keep_blank_values=True))
    shown = f"{url.scheme}://{'***' if user else ''}{at}{host}{url.path}"
    return f"{shown}?{options}" if options else shown
