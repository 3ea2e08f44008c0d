"""The demo: hundreds of sessions of real temperatures, a server and a store killed half way, and every reply compared.

    make demo        (python -m bench.demo)

Each session is one week of hourly readings from somewhere in the year, sent one hour at a time. After the kill the
server starts again on the same data folder, and new handles go on where the old ones stopped. Exit status 1 if a reply
is not the model's output over the whole week in one offline run.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import onnxruntime
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from vega_datasets import local_data

from recurra.client import Client

MODELS: Final = Path(__file__).parents[1] / "models" / "repository"
PICTURE: Final = Path("out") / "demo.png"
MODEL: Final = "forecaster"
SESSIONS: Final = 320
SINGLE: Final = 32
"""So many sessions are predicted by a call each; the others share one frame an hour."""
HOURS: Final = 168
RESTART_HOUR: Final = HOURS // 2
TOLERANCE: Final = 1e-5
START_SECONDS: Final = 60.0

Array = npt.NDArray[np.float32]


def year(city: str) -> Array:
    """A city's hourly readings, (hours, 3): °C, hour of the day, day of the year."""
    table = local_data(city).sort_values("date")
    date = table["date"].dt
    return np.stack([(table["temp"] - 32.0) / 1.8, date.hour, date.day_of_year], axis=1).astype(np.float32)


def weeks() -> Array:
    """A week of readings a session, (SESSIONS, HOURS + 1, 3): Seattle's, then San Francisco's, spread over the year."""
    cities = [year("seattle-temps"), year("sf-temps")]
    starts = np.linspace(0, len(cities[0]) - HOURS - 1, SESSIONS // 2).astype(int)
    return np.stack([city[start : start + HOURS + 1] for city in cities for start in starts])


def offline(readings: Array) -> Array:
    """The model's forecasts over whole windows in one run of its original file, (sessions, hours, 1)."""
    run = onnxruntime.InferenceSession(str(MODELS / MODEL / "1" / "model.onnx"), providers=["CPUExecutionProvider"]).run
    return np.asarray(run(["forecast"], {"readings": readings})[0], np.float32)


@dataclass(frozen=True)
class Server:
    """A running `recurra serve` and the store that it started."""

    process: subprocess.Popen[str]
    address: str
    store_pid: int

    def kill(self) -> None:
        """Ends both by SIGKILL, so that neither can write anything more."""
        os.kill(self.store_pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A server with the embedded store in `folder`, stopped in good order at the end if it still runs."""
    command = [str(Path(sys.executable).with_name("recurra")), "serve", "--models", str(MODELS)]
    command += ["--listen", "127.0.0.1:0", "--store", "embedded", "--data", str(folder / "data"), "--provider", "cpu"]
    log = folder / "server.log"
    with (
        log.open("a") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            line = first_line(process.stdout)
            address = re.search(r"\S+:\d+", line)
            if address is None:
                sys.exit(f"the server did not start: {line.strip()}\n{log.read_text()[-2000:]}")
            yield Server(process, address.group(), store_of(process.pid))
        finally:
            process.terminate()


def first_line(stream: IO[str]) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(START_SECONDS) else f"nothing said in {START_SECONDS:.0f} seconds"


def store_of(server_pid: int) -> int:
    """The process id of the Valkey that the server started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # processes come and go meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
            if int(rest.split()[1]) == server_pid and re.search("valkey|redis", name):
                return int(stat.parent.name)
    sys.exit(f"process {server_pid} has no store of its own")


def stream(address: str, readings: Array, replies: Array, hours: range, progress: Progress) -> npt.NDArray[np.float64]:
    """Sends these hours of all sessions, one hour at a time, and fills in `replies`.

    Returns the seconds that the single calls took, one after another, and those that the frames took.
    """
    names = [f"{'seattle' if i < SESSIONS // 2 else 'sf'}-{i:03d}" for i in range(SESSIONS)]
    task = progress.add_task(f"hours {hours.start}-{hours.stop - 1}", total=len(hours) * SESSIONS)
    with Client(address) as client:
        singles = [client.session(MODEL, name) for name in names[:SINGLE]]
        batch = client.batch(MODEL, names[SINGLE:])
        seconds = np.zeros(2)
        for hour in hours:
            now = slice(hour, hour + 1)
            start = time.perf_counter()
            for i, session in enumerate(singles):
                replies[i, now] = session.predict(readings[i, now])
            between = time.perf_counter()
            replies[SINGLE:, now] = batch.predict(readings[SINGLE:, now])
            seconds += between - start, time.perf_counter() - between
            progress.advance(task, SESSIONS)
        return seconds


def draw(readings: Array, replies: Array, differences: Array) -> None:
    """One session's readings and forecasts, and below it the largest difference of any session, hour by hour."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of a backend that needs no screen

    day = slice(RESTART_HOUR, RESTART_HOUR + 24)
    # The session where a state lost in the restart would have shown most.
    forgetful = offline(readings[:, day])[:, :, 0]
    shown = int(np.abs(forgetful - replies[:, day, 0]).mean(axis=1).argmax())
    hours = np.arange(1, HOURS + 1)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 4.8), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    above.plot(hours, readings[shown, 1:, 0], color="#b8c1cc", linewidth=5, label="reading")
    above.plot(hours, replies[shown, :, 0], color="#c2410c", linewidth=1.5, label="forecast, made an hour before")
    label = "had the restart lost the state"
    above.plot(hours[day], forgetful[shown], color="#1d4ed8", linewidth=1.5, linestyle=(0, (2, 1.5)), label=label)
    above.set_ylabel("°C")
    above.set_title(f"One of {SESSIONS} sessions", loc="left", fontsize=11)
    above.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=9, borderaxespad=0.2)
    below.plot(hours, differences * 1e6, color="#c2410c", drawstyle="steps-mid", linewidth=1.2)
    below.axhline(TOLERANCE * 1e6, color="#6b7280", linestyle=":", linewidth=1)
    below.text(HOURS, TOLERANCE * 0.95e6, "allowed", color="#6b7280", ha="right", va="top", fontsize=9)
    below.set(xlabel="hour", ylabel="10⁻⁶ °C", xlim=(0, HOURS + 1), ylim=(0, TOLERANCE * 1.2e6))
    below.set_title("Largest difference of any session from the model run offline", loc="left", fontsize=11)
    for axes in (above, below):
        axes.axvline(RESTART_HOUR + 0.5, color="#111827", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    low, high = above.get_ylim()
    above.set_ylim(low, high + (high - low) * 0.12)
    above.text(RESTART_HOUR + 2, above.get_ylim()[1], "server and store killed, started again", va="top", fontsize=9)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100)


def main() -> int:
    console = Console()
    weekly = weeks()
    readings = weekly[:, :HOURS]
    replies = np.full((SESSIONS, HOURS, 1), np.nan, np.float32)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("timesteps"))
    with tempfile.TemporaryDirectory(prefix="recurra-demo-") as name:
        folder = Path(name)
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            with serve(folder) as first:
                seconds = stream(first.address, readings, replies, range(RESTART_HOUR), progress)
                first.kill()
            progress.console.print(f"server {first.process.pid} and store {first.store_pid} killed with SIGKILL")
            with serve(folder) as second:
                seconds += stream(second.address, readings, replies, range(RESTART_HOUR, HOURS), progress)

    differences = np.abs(replies - offline(readings))[:, :, 0]
    draw(weekly, replies, differences.max(axis=0))
    largest = float(differences.max())
    rates = np.array([SINGLE, SESSIONS - SINGLE]) * HOURS / seconds
    table = Table(show_header=False)
    for what, value in {
        "sessions": f"{SESSIONS}: {SINGLE} by calls of their own, {SESSIONS - SINGLE} by frames",
        "timesteps": f"{replies.size:,}",
        "timesteps/s": f"{rates[1]:,.0f} by frames; {rates[0]:,.0f} by calls, one after another",
        "server process": f"{first.process.pid}, then {second.process.pid}",
        "store process": f"{first.store_pid}, then {second.store_pid}",
        "largest difference": f"{largest:.1e} °C (allowed: {TOLERANCE:.0e})",
        "picture": str(PICTURE),
    }.items():
        table.add_row(what, value)
    console.print(table)
    if not largest <= TOLERANCE:  # NaN is no answer either
        wrong = int((~(differences <= TOLERANCE)).sum())
        console.print(f"[red]{wrong} replies differ from the offline run by more than {TOLERANCE:.0e}[/red]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
