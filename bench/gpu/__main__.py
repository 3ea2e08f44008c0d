"""`python -m bench.gpu`: the model alone, the service on it, and PyTorch with a dict of states, on one provider.

python -m bench.gpu                     on a GPU, about a quarter of an hour
python -m bench.gpu --minutes 5         less of each
python -m bench.gpu --quick --provider cpu      small models for a second each: whether the bench itself works
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import re
import socket
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench import models, processes
from bench.gpu import alone
from bench.gpu.cases import QUICK, WHOLE, Case
from bench.loads import Sessions, names
from recurra.models import ModelRefused, choose, load

COUNTS: Final = (64, 256, 1024, 4096)
TARGET: Final = 0.7
_OUT: Final = Path("out") / "gpu.json"
_MEMORY: Final = str(24 << 30)  # 4,096 states of 2 MB, and as much again
Row = dict[str, Any]


def main() -> int:
    """Exit status 1 where the provider does not work here."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--provider", default="cuda", choices=("cuda", "tensorrt", "cpu"))
    parser.add_argument("--minutes", type=float, default=12.0, help="for all that is measured (default %(default)g)")
    parser.add_argument("--quick", action="store_true", help="small models, few sessions, a second each")
    options = parser.parse_args()
    try:
        choose(options.provider)
    except ModelRefused as error:
        parser.error(str(error))
    cases, counts = _plan(options)
    plan = len(cases) * len(counts) * (4 + 2 * 2)
    seconds = 0.5 if options.quick else max(1.0, 60 * options.minutes / plan)
    rows: list[Row] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = models.repository(scratch / "models", **{name: case.build() for name, case in cases.items()})
        for name, case in cases.items():
            (repository / name / "model.toml").write_text(f"max_batch = {case.max_batch}\n")
        for name, case in cases.items():
            for count in counts:
                rows += _alone(repository / name, case, count, options.provider, seconds)
        for graphs in ("off", "on") if options.provider == "cuda" else ("off",):
            rows += asyncio.run(_served(options, repository, graphs, seconds))
    machine = _machine(options.provider)
    _OUT.parent.mkdir(exist_ok=True)
    _OUT.write_text(json.dumps({"machine": machine, "found": rows}, indent=1) + "\n")
    _print(machine, rows)
    return 0


def _alone(folder: Path, case: Case, count: int, provider: str, seconds: float) -> list[Row]:
    batch = min(count, case.max_batch)
    model = load(folder, provider=provider)
    found = [("raw", alone.raw(model, batch, seconds), "")]
    found.append(("pool, no service", *alone.pooled(model, batch, seconds)))
    if provider == "cuda":
        found.append(("pool, no service, CUDA graphs", *alone.pooled(model, batch, seconds, record=True)))
    peer = alone.eager(case, batch, seconds)
    if peer is not None:
        found.append(("PyTorch, a dict of states", peer, ""))
    return [
        {
            "model": case.title,
            "sessions": count,
            "kind": kind,
            "rate": rate,
            "remark": f"batch {batch} {remark}".strip(),
        }
        for kind, rate, remark in found
    ]


async def _served(options: argparse.Namespace, repository: Path, graphs: str, seconds: float) -> list[Row]:
    """Frames of all sessions, two in flight, on a server and a store of their own."""
    found: list[Row] = []
    cases, counts = _plan(options)
    folder, metrics = repository.parent, _free_address()
    with ExitStack() as stack:
        url, _ = stack.enter_context(processes.store(folder / f"store-{graphs}", append_only="off"))
        flags = ["--provider", options.provider, "--states", "device", "--cuda-graphs", graphs, "--metrics", metrics]
        flags += ["--cache", str(folder / "cache"), "--slots", "4096", "--state-memory-bytes", _MEMORY]
        address, _ = stack.enter_context(processes.server(repository, url, *flags))
        for (name, case), count, durability in product(cases.items(), counts, ("checkpointed", "committed")):
            async with Sessions(address, names(count), model=name, shape=case.shape, durability=durability) as sessions:
                kind = f"frames, {durability}" + (", CUDA graphs" if graphs == "on" else "")
                measured = await _frames(sessions, metrics, seconds)
                found.append({"model": case.title, "sessions": count, "kind": kind, "remark": ""} | measured)
    return found


async def _frames(sessions: Sessions, metrics: str, seconds: float) -> Row:
    await sessions.begin()
    await sessions.some_frames(3)
    before, began = _crossed(metrics, sessions.model), time.perf_counter()
    done = await sessions.pairs(time.perf_counter() + seconds)
    taken = time.perf_counter() - began
    crossed = _crossed(metrics, sessions.model) - before
    await sessions.end(len(sessions.names))
    return {"rate": done.timesteps / taken, "state_bytes": crossed / done.timesteps}


def _plan(options: argparse.Namespace) -> tuple[dict[str, Case], tuple[int, ...]]:
    return (QUICK, (16, 64)) if options.quick else (WHOLE, COUNTS)


def _crossed(metrics: str, model: str) -> float:
    """Bytes of this model's states that went over the bus so far."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as reply:  # its own server
        text = reply.read().decode()
    lines = re.findall(rf'^recurra_state_bytes_total{{.*model="{model}".*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, lines))


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _machine(provider: str) -> str:
    cpu = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    named = f"{os.cpu_count()} cores of {cpu[0] if cpu else 'an unknown processor'}"
    return f"{_device() if provider != 'cpu' else 'on the CPU provider: no GPU was measured'}; {named}"


def _device() -> str:
    """The first GPU that this process sees, as the driver that runs it says."""
    driver, version, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    size, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    return f"{name.value.decode()}, {size.value / (1 << 30):.0f} GiB, {cuda}"


def _print(machine: str, rows: list[Row]) -> None:
    raw = {(row["model"], row["sessions"]): row["rate"] for row in rows if row["kind"] == "raw"}
    table = Table("model", "sessions", "", "timesteps/s", "x raw", "state bytes a timestep", "", title=machine)
    for row in sorted(rows, key=lambda row: (row["model"], row["sessions"])):
        share = row["rate"] / raw[row["model"], row["sessions"]]
        moved = f"{row['state_bytes']:,.0f}" if "state_bytes" in row else ""
        cells = row["model"], str(row["sessions"]), row["kind"], f"{row['rate']:,.0f}", f"{share:.2f}", moved
        table.add_row(*cells, row["remark"])
    Console(width=150).print(table)
    sys.stdout.write(f"target: frames, checkpointed, at 1,024 sessions at least {TARGET:.0%} of raw. Also in {_OUT}\n")


if __name__ == "__main__":
    sys.exit(main())
