"""The input log against the record: what a committed timestep costs the server, the store and the append-only file.

    python -m bench.log [--sessions N] [--seconds S] [--repeats R]

A prototype at the level of the store's commands. record is today's commit, which writes the whole state. log writes an
operation's input behind the record, and its header and reply over the old ones, by a script with the same
compare-and-set; each K-th commit is today's. Who loads such a session runs K - 1 inputs at most behind its state as one
chunk: the last columns.
CPU microseconds a timestep, medians of interleaved repeats; append-only file everysec.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import models, processes
from recurra.server.store import commit, record
from recurra.server.store.address import primary
from recurra.server.store.pipe import Pipe

Bytes = NDArray[np.uint8]
Figures = dict[tuple[str, str], dict[str, list[float]]]

_NAME, _REPLY, _TTL_MS = 16, 64, 3_600_000
_KS: Final = (8, 32)

# As the commit's script, but ARGV, for each session: the header it must have; its new header, name and reply; the input
# and where in the value that goes; the time to live. Written by place, not appended: what a failed script left behind
# is written over. Answers as commit.SCRIPT.
_SCRIPT: Final = f"""
local size = {record.HEADER.itemsize}
local answers = {{}}
for i, key in ipairs(KEYS) do
  local at = 5 * i - 4
  local expected, head, input, place, ttl = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local there = redis.pcall('GETRANGE', key, 0, size - 1)
  if there == expected then
    redis.call('SETRANGE', key, tonumber(place), input)
    redis.call('SETRANGE', key, 0, head)
    redis.call('PEXPIRE', key, ttl)
    answers[i] = {commit.APPLIED}
  elseif there == '' then
    answers[i] = {commit.MISSING}
  elseif there == string.sub(head, 1, size) then
    redis.call('PEXPIRE', key, ttl)
    answers[i] = {commit.DUPLICATE}
  else
    answers[i] = there
  end
end
return answers
""".strip().encode()
_SHA: Final = sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True)
class Kind:
    """A kind of model: bytes of a session's state and of a timestep's input.

    For a rebuild: its graph, and what that is fed, run by run, for so many timesteps of one session.
    """

    title: str
    state_bytes: int
    input_bytes: int
    build: Callable[[], onnx.ModelProto]
    fed: Callable[[int], list[dict[str, NDArray[np.float32]]]]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.log", description=__doc__)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each form runs")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console, figures = Console(width=120), defaultdict(lambda: defaultdict(list))
    kinds = (
        Kind("LSTM 2x256", 4 << 10, 256, models.lstm, _timed),
        Kind("LSTM 4x1024", 32 << 10, 256, lambda: models.lstm(layers=4, hidden=1024), _timed),
        Kind("ConvLSTM 64x64x8", 256 << 10, 16 << 10, _conv_lstm, _pictures),
    )
    with tempfile.TemporaryDirectory() as folder:
        for repeat in track(range(options.repeats), "measuring", console=console):
            for kind in kinds:
                for at, every in enumerate((1, *_KS)):
                    place = Path(folder) / f"{repeat}{at}{kind.state_bytes}"
                    with processes.store(place, append_only="everysec") as (url, store):
                        row = figures[kind.title, "record" if every == 1 else f"log, K = {every}"]
                        sessions = Sessions(kind, options.sessions, every)
                        asyncio.run(_measure(row, sessions, url, store, options.seconds))
        rebuilds = {kind.title: _rebuild(kind) for kind in kinds}
    console.print(_table(figures, rebuilds))


async def _measure(row: dict[str, list[float]], sessions: Sessions, url: str, store: int, seconds: float) -> None:
    pipe, place = Pipe(primary(url, 30).pool, timeout_seconds=30), Path(url.removeprefix("unix://")).parent
    try:
        await pipe.command("CONFIG", "SET", "auto-aof-rewrite-percentage", 0)
        for script in (commit.SCRIPT, _SCRIPT):
            await pipe.command("SCRIPT", "LOAD", script)
        for _ in range(2 * sessions.every):
            await sessions.step(pipe)
        await sessions.check(pipe)
        steps, until = 0, time.perf_counter() + seconds
        own, theirs, written = time.process_time(), processes.cpu_microseconds(store), _size(place)
        while time.perf_counter() < until or steps % sessions.every:
            await sessions.step(pipe)
            steps += 1
        own, theirs = (time.process_time() - own) * 1e6, processes.cpu_microseconds(store) - theirs
        timesteps = steps * len(sessions.keys)
        row["server"].append(own / timesteps)
        row["store"].append(theirs / timesteps)
        row["file"].append((_size(place) - written) / timesteps)
        [held] = await pipe.command("MEMORY", "USAGE", sessions.keys[0].tobytes())
        row["held"].append(held)
    finally:
        await pipe.close()


def _size(place: Path) -> int:
    return sum(path.stat().st_size for path in (place / "appendonlydir").iterdir())


class Sessions:
    """N sessions of a kind, in step; each K-th commit (`every`) writes the state."""

    def __init__(self, kind: Kind, count: int, every: int) -> None:
        random = np.random.default_rng(0)
        self.kind, self.every = kind, every
        self.keys = np.frombuffer(
            b"".join(record.key(b"recurra:default:lstm:", os.urandom(16)) for _ in range(count)), np.uint8
        ).reshape(count, -1)
        self._names = np.full((count, record.NAME_BYTES), ord("s"), np.uint8)
        self._state = random.integers(0, 256, (kind.state_bytes // 1024, count, 1024), np.uint8)  # as slabs hold it
        self._input = random.integers(0, 256, (count, kind.input_bytes), np.uint8)
        self._reply = random.integers(0, 256, (count, _REPLY), np.uint8)
        self._ttl = np.full(count, _TTL_MS)
        self._headers = np.zeros(count, record.HEADER)
        self._before = self._headers
        self._steps = 0

    async def step(self, pipe: Pipe) -> None:
        """Commit a timestep of every session."""
        expected, new = self._headers, self._headers.copy()
        new["format"], new["kind"], new["name_bytes"] = record.FORMAT, record.LIVE, _NAME
        new["commit"] = np.frombuffer(os.urandom(16 * len(new)), "<u8").reshape(-1, 2)
        new["position"] += np.uint64(1)
        tail = self._steps % self.every
        packed = self._whole(expected, new) if not tail else self._logged(expected, new, tail)
        sent = [pipe.send(command.wire.data, 1) for command in packed]
        for command, answer in zip(packed, sent, strict=True):
            assert await answer == [[commit.APPLIED] * command.rows]
        self._before, self._headers, self._steps = expected, new, self._steps + 1

    async def check(self, pipe: Pipe) -> None:
        """After 2 K steps: the value is the last state and K - 1 inputs, and who comes from before is refused."""
        [value] = await pipe.command("GET", self.keys[0].tobytes())
        header = self._headers[:1].tobytes()
        assert value[: len(header)] == header
        start = len(header) + _NAME + (self.every > 1) * _REPLY
        assert value[start : start + self.kind.state_bytes] == self._state[:, 0].tobytes()
        assert self.every == 1 or value[self._place(1) :] == self._input[0].tobytes() * (self.every - 1)
        late = self._headers.copy()
        late["commit"] = 0
        for command in self._logged(self._before, late, 1)[:1]:
            assert (await pipe.send(command.wire.data, 1))[0][0] == header

    def _whole(self, expected: Any, new: Any) -> list[commit.Command]:
        """Today's commit. A log's record has the reply before the state, where the next one finds its place."""
        state = np.ascontiguousarray(np.moveaxis(self._state, 1, 0)).reshape(len(new), -1)
        parts = (state, self._reply) if self.every == 1 else (self._reply, state)
        return commit.commands(self.keys, expected, record.pack(new, self._names, *parts), self._ttl)

    def _place(self, tail: int) -> int:
        """Where the `tail`-th input behind the state begins, in bytes."""
        return record.HEADER.itemsize + _NAME + _REPLY + self.kind.state_bytes + (tail - 1) * self.kind.input_bytes

    def _logged(self, expected: Any, new: Any, tail: int) -> list[commit.Command]:
        rows, size = len(new), record.HEADER.itemsize
        heads = np.empty((rows, size + _NAME + _REPLY), np.uint8)
        heads[:, size : size + _NAME], heads[:, size + _NAME :] = self._names[:, :_NAME], self._reply
        new["checksum"] = 0
        heads[:, :size] = new.view(np.uint8).reshape(rows, size)
        new["checksum"] = heads.view("<u8").sum(1, dtype=np.uint64) + self._input.view("<u8").sum(1, dtype=np.uint64)
        heads[:, :size] = new.view(np.uint8).reshape(rows, size)
        expected = expected.view(np.uint8).reshape(rows, size)
        place, ttl = (np.tile(np.frombuffer(b"%d" % n, np.uint8), (rows, 1)) for n in (self._place(tail), _TTL_MS))
        together = max(1, min(64, (1 << 20) // self.kind.input_bytes))
        columns = (self.keys, expected, heads, self._input, place, ttl)
        return [_command(*(each[at : at + together] for each in columns)) for at in range(0, rows, together)]


def _command(keys: Bytes, *arguments: Bytes) -> commit.Command:
    rows = len(keys)
    start = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$%d\r\n%d\r\n" % (
        3 + (1 + len(arguments)) * rows,
        _SHA,
        len(str(rows)),
        rows,
    )
    wire = [np.frombuffer(start, np.uint8), _columns(keys), _columns(*arguments)]
    return commit.Command(np.concatenate(wire), rows)


def _columns(*arguments: Bytes) -> Bytes:
    """Bulk strings of (N, bytes) each, a row after the other."""
    rows, parts = len(arguments[0]), list[Bytes]()
    for each in arguments:
        start, end = (np.frombuffer(fixed, np.uint8) for fixed in (b"$%d\r\n" % each.shape[1], b"\r\n"))
        parts += [np.tile(start, (rows, 1)), each, np.tile(end, (rows, 1))]
    return np.concatenate(parts, 1).ravel()


# ---- rebuilding: the inputs behind the state, run by who loads the session


def _rebuild(kind: Kind) -> dict[int, float]:
    """CPU milliseconds of 1, 8 and 32 timesteps of one session, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(kind.build().SerializeToString(), options, ["CPUExecutionProvider"])
    found = {}
    for timesteps in (1, *_KS):
        runs, spans = kind.fed(timesteps), []
        for _ in range(15):
            began = time.process_time()
            for fed in runs:
                session.run(None, fed)
            spans.append((time.process_time() - began) * 1e3)
        found[timesteps] = median(spans)
    return found


def _timed(timesteps: int) -> list[dict[str, NDArray[np.float32]]]:
    return [{"x": np.random.default_rng(0).normal(size=(1, timesteps, 64)).astype(np.float32)}]


def _pictures(timesteps: int) -> list[dict[str, NDArray[np.float32]]]:
    shapes = {"x": (1, 1, 64, 64), "h": (1, 8, 64, 64), "c": (1, 8, 64, 64)}
    return [{name: np.ones(shape, np.float32) for name, shape in shapes.items()}] * timesteps


def _conv_lstm() -> onnx.ModelProto:
    """One timestep of a ConvLSTM: pictures of 64 x 64, 8 filters of 3 x 3."""
    weights = np.random.default_rng(0).normal(0, 0.1, (32, 9, 3, 3)).astype(np.float32)
    node, value, float_ = helper.make_node, helper.make_tensor_value_info, TensorProto.FLOAT
    nodes = [
        node("Concat", ["x", "h"], ["xh"], axis=1),
        node("Conv", ["xh", "w"], ["gates"], pads=[1, 1, 1, 1]),
        node("Split", ["gates"], ["i_", "f_", "o_", "g_"], axis=1, num_outputs=4),
        *(node("Sigmoid", [f"{gate}_"], [gate]) for gate in "ifo"),
        node("Tanh", ["g_"], ["g"]),
        node("Mul", ["f", "c"], ["fc"]),
        node("Mul", ["i", "g"], ["ig"]),
        node("Add", ["fc", "ig"], ["c_new"]),
        node("Tanh", ["c_new"], ["tc"]),
        node("Mul", ["o", "tc"], ["h_new"]),
    ]
    ins = [value("x", float_, [1, 1, 64, 64]), *(value(name, float_, [1, 8, 64, 64]) for name in "hc")]
    outs = [value(name, float_, [1, 8, 64, 64]) for name in ("h_new", "c_new")]
    graph = helper.make_graph(nodes, "conv_lstm", ins, outs, [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


# ---- what was found


def _table(figures: Figures, rebuilds: dict[str, dict[int, float]]) -> Table:
    table = Table(
        title="A committed timestep: CPU µs, bytes in the append-only file; a session held; a rebuild (medians)"
    )
    for name in ("", "", "server", "store", "both", "x record", "file", "held", "rebuild ms", "a timestep ms"):
        table.add_column(name, justify="right" if name else "left")
    for (kind, form), row in figures.items():
        middle = {name: median(values) for name, values in row.items()}
        record_ = figures[kind, "record"]
        both, before = middle["server"] + middle["store"], median(record_["server"]) + median(record_["store"])
        every = int(form.rpartition(" ")[2]) if form != "record" else 0
        cost = f"{rebuilds[kind][every]:.2f}" if every else ""
        table.add_row(
            kind if not every else "",
            form,
            *(f"{middle[name]:.1f}" for name in ("server", "store")),
            f"{both:.1f}",
            f"{both / before:.2f}",
            *(f"{middle[name]:,.0f}" for name in ("file", "held")),
            cost,
            f"{rebuilds[kind][1]:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
