"""What was measured, as tables in Markdown. A cell that was not measured leaves its row out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Final

from bench import results
from bench.cells import COUNTS, ECHO, FLOORS, LARGE, MAIN, STORES, Cell
from bench.models import EXAMPLES
from bench.results import Figures

KINDS: Final = {
    "pairs": "frames of all, two in flight",
    "frames": "frames of all, one in flight",
    "packed": "single timesteps, the SDK's stream",
    "singles": "single timesteps on one stream, a frame each",
    "streams": "single timesteps, a stream each",
    "unary": "unary calls",
}
_FLOORS: Final = {
    "raw": "ONNX Runtime, one thread, batch of {sessions}",
    "echo": "gRPC echo, unary, {size:,} bytes",
    "stream echo": "gRPC echo on a stream, {size:,} bytes",
    "sets": "SET of {size:,} bytes, {sessions} in a pipeline of redis-py",
}
_FEW: Final = 1000  # messages under which the slowest of a thousand says nothing
Costs = dict[Cell, Figures]


def every(found: dict[str, Any]) -> dict[str, str]:
    """Each table by its name."""
    made: dict[str, str] = {}
    if "costs" in found:
        costs = results.cells(found["costs"]["found"])
        facts = found["costs"]["machine"]
        made["machine"] = f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']})."
        made |= {table.__name__: table(costs) for table in (targets, loads, counts, models)}
    for table in (split, sizes, stored, soak):
        if table.__name__ in found:
            made[table.__name__] = table(found[table.__name__]["found"])
    return made


def targets(costs: Costs) -> str:
    """What was aimed at, and whether it is met: (what, limit, unit, whether more is better, figures)."""
    pairs = Cell("pairs", "lstm", 64, "committed")
    checkpointed, wide = pairs._replace(durability="checkpointed"), pairs._replace(model="wide")
    packed, singles, unary = (pairs._replace(kind=kind) for kind in ("packed", "singles", "unary"))
    alone, half, single_half = unary._replace(sessions=1), pairs._replace(load=0.5), singles._replace(load=0.5)
    aims: list[tuple[str, float, str, bool, Callable[[], list[float]]]] = [
        ("frames, checkpointed: server, x raw", 1.5, "", False, lambda: over_raw(costs, checkpointed, "server")),
        ("frames, committed: server and store, x raw", 2.6, "", False, lambda: over_raw(costs, pairs)),
        ("single timesteps, the SDK's stream: server", 100, "µs", False, lambda: costs[packed]["server"]),
        ("the same, a frame each: server", 100, "µs", False, lambda: costs[singles]["server"]),
        ("unary: server, x echo", 1.6, "", False, lambda: ratios(costs[unary]["server"], costs[ECHO]["server"])),
        ("one session alone, unary: p50", 1, "ms", False, lambda: costs[alone]["p50"]),
        ("frames at half load: p99", 5, "ms", False, lambda: costs[half]["p99"]),
        ("single timesteps on one stream at half load: p99", 5, "ms", False, lambda: costs[single_half]["p99"]),
        ("a model of 1 ms a run: timesteps/s, x raw", 0.9, "", True, lambda: throughput(costs, wide)),
    ]
    lines = []
    for what, limit, unit, more, figures in aims:
        try:
            values = figures()
        except KeyError:
            continue
        met = median(values) >= limit if more else median(values) <= limit
        aim = f"{'at least' if more else 'at most'} {limit:g} {unit}"
        lines.append([what, aim, f"{spread(values, 2)} {unit}", "met" if met else "missed"])
    return _table(["committed unless said", "target", "measured", ""], lines)


def loads(costs: Costs) -> str:
    """Every load on 64 sessions of one model, below its floors."""
    raw = Cell("raw", "lstm", 64)
    head = ["", "server µs", "store µs", "client µs", "server + store", "x raw", "timesteps/s", "p50, p99, p99.9 ms"]
    lines = []
    for cell in (raw, *FLOORS, *MAIN, *STORES):
        if (row := costs.get(cell)) is None:
            continue
        name = _FLOORS[cell.kind].format(**cell._asdict()) if not cell.durability else KINDS[cell.kind]
        kept = f"; {cell.durability}" if cell.durability else ""
        policy = f", file {cell.store}" if cell.store != "everysec" else ""
        parts = [f"{median(row[part]):.1f}" if part in row else "" for part in ("server", "store", "client")]
        both = [spread(total(row)), spread(over_raw(costs, cell))] if cell.model else ["", ""]
        lines.append([name + kept + policy, *parts, *both, spread(row["rate"], 0), _latency(row)])
    return _table(head, lines)


def counts(costs: Costs) -> str:
    """Frames over the number of sessions."""
    lines = []
    for durability in ("memory", "checkpointed", "committed"):
        cells = [Cell("pairs", "lstm", count, durability) for count in COUNTS]
        if not any(cell in costs for cell in cells):
            continue
        measured = [costs.get(cell) for cell in cells]
        lines.append([f"{durability}: server + store µs", *(spread(total(row)) if row else "" for row in measured)])
        lines.append(["x raw", *(spread(over_raw(costs, cell)) if cell in costs else "" for cell in cells)])
        lines.append(["timesteps/s", *(spread(row["rate"], 0) if row else "" for row in measured)])
    return _table(["sessions", *map(str, COUNTS)], lines)


def models(costs: Costs) -> str:
    """Frames of 64 sessions, model by model."""
    head = ["", "raw µs", "committed: server + store µs", "x raw", "timesteps/s, x raw"]
    head += ["checkpointed: server + store µs", "x raw", "timesteps/s, x raw"]
    lines = []
    for name, example in EXAMPLES.items():
        policy = LARGE if name == "conv" else "everysec"
        cells = [Cell("pairs", name, 64, durability, policy) for durability in ("committed", "checkpointed")]
        if cells[0] not in costs:
            continue
        line = [example.title, spread(costs[cells[0].floor]["server"])]
        for cell in cells:
            known = cell in costs
            line += [spread(total(costs[cell])), spread(over_raw(costs, cell))] if known else ["", ""]
            line += [spread(throughput(costs, cell), 2)] if known else [""]
        lines.append(line)
    return _table(head, lines)


def total(row: Figures) -> list[float]:
    """Server's and store's CPU, repeat by repeat."""
    return [sum(parts) for parts in zip(row["server"], row.get("store", [0.0] * len(row["server"])), strict=True)]


def ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """Repeat by repeat: what was measured within a minute is divided."""
    return [one / other for one, other in zip(above, below, strict=False)]


def over_raw(costs: Costs, cell: Cell, part: str = "") -> list[float]:
    """A cell's CPU, server and store or one of them, as multiples of the model's own."""
    return ratios(costs[cell][part] if part else total(costs[cell]), costs[cell.floor]["server"])


def throughput(costs: Costs, cell: Cell) -> list[float]:
    return ratios(costs[cell]["rate"], costs[cell.floor]["rate"])


def spread(values: list[float], digits: int = 1) -> str:
    """The median, and the range in brackets."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}-{high})"


def _latency(row: Figures) -> str:
    slowest = ["p999"] if median(row["messages"]) >= _FEW else []
    return ", ".join(
        f"{median(row[name]):.2g}" if median(row[name]) < 10 else f"{median(row[name]):.0f}"
        for name in ["p50", "p99", *slowest]
    )


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def split(found: list[dict[str, Any]]) -> str:
    """Python calls a frame, profiled."""
    lines = [["the service's own, and numpy's", *(f"{row['calls']:,.0f}" for row in found)]]
    lines.append(["asyncio's turns", *(f"{row['turns']:,.0f}" for row in found)])
    heads = [f"{row['durability']}, {row['sessions']:,} sessions" for row in found]
    return _table(["Python calls a frame", *heads], lines)


def sizes(found: dict[str, dict[str, float]]) -> str:
    """What a session of each model takes."""
    head = ["bytes", "state", "hot: server's memory", "beyond the state", "stored: store's memory", "beyond the state"]
    head += ["append-only file, a timestep", "MB/s at 1,000 timesteps/s"]
    lines = []
    for name, row in found.items():
        state, hot, stored, file = (row[part] for part in ("state", "hot", "stored", "file"))
        amounts = [f"{bytes_:,.0f}" for bytes_ in (state, hot, hot - state, stored, stored - state, file)]
        lines.append([EXAMPLES[name].title, *amounts, f"{file / 1e3:,.1f}"])
    return _table(head, lines)


def stored(found: list[dict[str, Any]]) -> str:
    """Frames of 64 while the store holds so many sessions."""
    lines = []
    for name, what in {"hot": "the same 64 sessions", "random": "64 at random among all"}.items():
        rows = [point[name] for point in found]
        lines.append([f"{what}: server + store µs", *(f"{row['server'] + row['store']:.1f}" for row in rows)])
        lines.append(["timesteps/s", *(f"{row['rate']:,.0f}" for row in rows)])
        lines.append(["p50, p99 ms", *(f"{row['p50']:.1f}, {row['p99']:.1f}" for row in rows)])
    parts = ("server", "store")
    lines += [[f"memory of the {part}, MB", *(f"{point[part] / 1e6:,.0f}" for point in found)] for part in parts]
    return _table(["sessions in the store", *(f"{point['sessions']:,}" for point in found)], lines)


def soak(found: list[dict[str, float]]) -> str:
    """What server and store held at a few moments of the soak, and what was left."""
    run, end = found[1:-1], found[-1]
    shown = [found[0], *(run[round(share * (len(run) - 1))] for share in (0.25, 0.5, 0.75, 1)), end]
    names = {"sessions": "sessions that came", "timesteps": "timesteps", "keys": "sessions and tombstones in the store"}
    lines = [[what, *(f"{point[name]:,.0f}" for point in shown)] for name, what in names.items()]
    parts = {"server": "memory of the server, MB", "store": "of the store, MB", "used": "the store's used memory, MB"}
    lines += [[what, *(f"{point[name] / 1e6:,.1f}" for point in shown)] for name, what in parts.items()]
    return _table(["after", *(f"{point['seconds']:,.0f} s" for point in shown)], lines)
