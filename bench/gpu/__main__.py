"""`python -m bench.gpu`: the model alone, the service on it, and PyTorch with a dict of states, on one provider.

python -m bench.gpu                     on a GPU, about a quarter of an hour
python -m bench.gpu --minutes 5         less of each
python -m bench.gpu --quick --provider cpu      small models for a second each: whether the bench itself works
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib.util
import json
import os
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
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
    found = Found(_machine(options.provider))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = models.repository(scratch / "models", **{name: case.build() for name, case in cases.items()})
        for name, case in cases.items():
            (repository / name / "model.toml").write_text(f"max_batch = {case.max_batch}\n")
        for name, case in cases.items():
            for count in counts:
                _alone(found, repository / name, case, count, provider=options.provider, seconds=seconds)
        for graphs in ("off", "on") if options.provider == "cuda" else ("off",):
            asyncio.run(_served(found, options, repository, graphs, seconds))
    _print(found)
    return 0


class Found:
    """What was measured, kept after each: one that fails has its reason for a remark, and the others are measured."""

    def __init__(self, machine: str) -> None:
        self.machine, self.rows = machine, list[Row]()

    @contextmanager
    def row(self, case: Case, sessions: int, kind: str, remark: str = "") -> Iterator[Row]:
        """To be given its "rate", timesteps a second."""
        row: Row = {"model": case.title, "sessions": sessions, "kind": kind, "rate": 0.0, "remark": remark}
        try:
            yield row
        except Exception as error:  # noqa: BLE001 # whatever it is, it is told
            row["remark"] = f"failed: {str(error).strip().partition(chr(10))[0][:200]}"
        self.rows.append(row)
        _OUT.parent.mkdir(exist_ok=True)
        _OUT.write_text(json.dumps({"machine": self.machine, "found": self.rows}, indent=1) + "\n")
        sys.stdout.write(f"{case.title}, {sessions}, {kind}: {row['rate']:,.0f} {row['remark']}\n")
        sys.stdout.flush()


def _alone(found: Found, folder: Path, case: Case, count: int, *, provider: str, seconds: float) -> None:
    batch, model = min(count, case.max_batch), cache(partial(load, folder, provider=provider))
    at = f"batch {batch}"
    with found.row(case, count, "raw", at) as row:
        row["rate"] = alone.raw(model(), batch, seconds)
    with found.row(case, count, "pool, no service", at) as row:
        row["rate"], _ = alone.pooled(model(), batch, seconds)
    if provider == "cuda":
        with found.row(case, count, "pool, no service, CUDA graphs", at) as row:
            row["rate"], why = alone.pooled(model(), batch, seconds, record=True)
            row["remark"] = f"{at} {why}".strip()
    if importlib.util.find_spec("torch") is not None:
        with found.row(case, count, "PyTorch, a dict of states", at) as row:
            row["rate"] = alone.eager(case, batch, seconds)


async def _served(found: Found, options: argparse.Namespace, repository: Path, graphs: str, seconds: float) -> None:
    """Frames of all sessions, two in flight, on a server and a store of their own."""
    cases, counts = _plan(options)
    folder, metrics = repository.parent, _free_address()
    with ExitStack() as stack:
        url, _ = stack.enter_context(processes.store(folder / f"store-{graphs}", append_only="off"))
        flags = ["--provider", options.provider, "--states", "device", "--cuda-graphs", graphs, "--metrics", metrics]
        flags += ["--cache", str(folder / "cache"), "--slots", "4096", "--state-memory-bytes", _MEMORY]
        address, _ = stack.enter_context(processes.server(repository, url, *flags))
        for (name, case), count, durability in product(cases.items(), counts, ("checkpointed", "committed")):
            kind = f"frames, {durability}" + (", CUDA graphs" if graphs == "on" else "")
            with found.row(case, count, kind) as row:
                async with Sessions(
                    address, names(count), model=name, shape=case.shape, durability=durability
                ) as sessions:
                    row.update(await _frames(sessions, metrics, seconds))


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


def _print(found: Found) -> None:
    raw = {(row["model"], row["sessions"]): row["rate"] for row in found.rows if row["kind"] == "raw"}
    table = Table("model", "sessions", "", "timesteps/s", "x raw", "state bytes a timestep", "", title=found.machine)
    for row in sorted(found.rows, key=lambda row: (row["model"], row["sessions"])):
        share = row["rate"] / (raw[row["model"], row["sessions"]] or np.nan)
        moved = f"{row['state_bytes']:,.0f}" if "state_bytes" in row else ""
        cells = row["model"], str(row["sessions"]), row["kind"], f"{row['rate']:,.0f}", f"{share:.2f}", moved
        table.add_row(*cells, row["remark"])
    Console(width=150).print(table)
    sys.stdout.write(f"target: frames, checkpointed, at 1,024 sessions at least {TARGET:.0%} of raw. Also in {_OUT}\n")


if __name__ == "__main__":
    sys.exit(main())
