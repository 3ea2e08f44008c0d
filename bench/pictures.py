"""The pictures of docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench import results
from bench.cells import COUNTS, LARGE, LOADS, MAX_BATCH, Cell
from bench.models import STATE_KB
from bench.profile import PARTS, RAW
from bench.results import Figures
from bench.tables import Costs, total

_DURABILITIES: Final = {"memory": "#1f77b4", "checkpointed": "#2ca02c", "committed": "#ff7f0e"}
_PARTS: Final = ("#374151", "#7c2d12", "#c2410c", "#ea580c", "#f59e0b", "#a8a29e", "#1d4ed8", "#9ca3af")
_DARK, _GREY, _PALE = "#111827", "#6b7280", "#e5e7eb"


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Writes a picture of each kind that was measured, and returns their paths."""
    costs = results.cells(found["costs"]["found"]) if "costs" in found else {}
    pictures: list[tuple[bool, Callable[[], Figure]]] = [
        (Cell("pairs", "lstm", COUNTS[-1], "committed") in costs, lambda: throughput(costs)),
        (Cell("pairs", "lstm", 64, "committed", load=LOADS[-1]) in costs, lambda: latency(costs)),
        (Cell("pairs", "state1", 16, "committed", LARGE) in costs, lambda: states(costs)),
        ("split" in found, lambda: split(found["split"]["found"])),
        ("stored" in found, lambda: stored(found["stored"]["found"])),
        ("soak" in found, lambda: soak(found["soak"]["found"])),
    ]
    paths = []
    for figure in (make() for measured, make in pictures if measured):
        paths.append(folder / f"{figure.get_label()}.png")
        figure.savefig(paths[-1], dpi=100)
    return paths


def throughput(costs: Costs) -> Figure:
    """Timesteps a second over the number of sessions, and the model's own."""
    figure, axes = _picture("throughput", "LSTM 2x256, frames, two in flight", "sessions", "timesteps a second")
    raw = {count: Cell("raw", "lstm", min(count, MAX_BATCH)) for count in COUNTS}
    _line(axes, costs, raw, _rate, label="ONNX Runtime alone, one thread", color=_DARK, linestyle="--")
    for durability, color in _DURABILITIES.items():
        cells = {count: Cell("pairs", "lstm", count, durability) for count in COUNTS}
        _line(axes, costs, cells, _rate, label=durability, color=color)
    axes.set_xscale("log")
    axes.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_COMMAS)
    axes.legend(frameon=False, fontsize=9)
    return figure


def latency(costs: Costs) -> Figure:
    """Latency over the offered load."""
    figure = Figure(figsize=(9, 4.2), layout="constrained", label="performance-latency")
    shown = {"pairs": "Frames of 64 sessions", "singles": "Single timesteps of 64 sessions on one stream"}
    for (kind, title), axes in zip(shown.items(), figure.subplots(1, 2, sharey=True), strict=True):
        _style(axes, title, "offered load, share of the peak", "ms since a message was due" if kind == "pairs" else "")
        for durability, color in _DURABILITIES.items():
            cells = {load: Cell(kind, "lstm", 64, durability, load=load) for load in LOADS}
            for name, dash in {"p99": "-", "p50": ":"}.items():
                _line(
                    axes,
                    costs,
                    cells,
                    lambda row, name=name: row[name],
                    label=f"{durability}, {name}",
                    color=color,
                    linestyle=dash,
                )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_COMMAS)
        axes.set_xticks(LOADS, [f"{load:.0%}" for load in LOADS])
        axes.axhline(5, color=_GREY, linewidth=0.8)
        axes.legend(frameon=False, fontsize=9)
    return figure


def states(costs: Costs) -> Figure:
    """CPU over the size of the state."""
    title = "Frames of 16 sessions by the size of a session's state, no append-only file"
    figure, axes = _picture("states", title, "state", "µs a timestep, server and store")
    raw = {kb: Cell("raw", f"state{kb}", 16) for kb in STATE_KB}
    _line(axes, costs, raw, total, label="ONNX Runtime alone", color=_DARK, linestyle="--")
    for durability, color in _DURABILITIES.items():
        cells = {kb: Cell("pairs", f"state{kb}", 16, durability, LARGE) for kb in STATE_KB}
        _line(axes, costs, cells, total, label=durability, color=color)
    axes.set_xscale("log", base=2)
    axes.set_xticks(STATE_KB, [f"{kb} KB" if kb < 1024 else "1 MB" for kb in STATE_KB])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_COMMAS)
    axes.legend(frameon=False, fontsize=9)
    return figure


def split(found: list[dict[str, Any]]) -> Figure:
    """Where a frame's CPU time goes: a bar a durability and number of sessions."""
    rows = {f"{row['durability']},\n{row['sessions']:,} sessions": row["costs"] for row in found}
    figure, axes = _picture(
        "split", "LSTM 2x256, frames, two in flight", "µs a timestep", "", height=1.4 + 0.8 * len(rows)
    )
    left = [0.0] * len(rows)
    for part, color in zip(PARTS, _PARTS, strict=True):
        widths = [row.get(part, 0.0) for row in rows.values()]
        axes.barh(list(rows), widths, 0.6, left, color=color, label=part)
        for at, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width >= 2:
                axes.text(start + width / 2, at, f"{width:.0f}", ha="center", va="center", fontsize=8, color="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for at, row in enumerate(rows.values()):
        label = "" if at else RAW
        axes.plot([row[RAW]] * 2, [at - 0.4, at + 0.4], color="#ef4444", linewidth=2, label=label)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def stored(found: list[dict[str, Any]]) -> Figure:
    """CPU over the number of sessions in the store."""
    title = "LSTM 1x32, frames of 64 committed: by the sessions in the store"
    figure, axes = _picture("stored", title, "sessions in the store", "µs a timestep, server and store")
    sessions = [point["sessions"] for point in found]
    for name, (label, color) in {
        "hot": ("the same 64 sessions", "#1f77b4"),
        "random": ("64 at random among all: cold beyond 16,384", "#ff7f0e"),
    }.items():
        both = [point[name]["server"] + point[name]["store"] for point in found]
        axes.plot(sessions, both, color=color, marker="o", markersize=4, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_COMMAS)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def soak(found: list[dict[str, float]]) -> Figure:
    """Memory while sessions come and go."""
    last = found[-1]
    title = f"{last['sessions']:,.0f} sessions come and go, {last['timesteps']:,.0f} timesteps of an LSTM 2x256"
    figure, axes = _picture("soak", title, "seconds", "MB")
    seconds = [point["seconds"] for point in found]
    names = {"server": "server, resident", "store": "store, resident", "used": "store, used: sessions and tombstones"}
    for (name, label), color in zip(names.items(), ("#ff7f0e", "#1f77b4", "#93c5fd"), strict=True):
        axes.plot(seconds, [point[name] / 1e6 for point in found], color=color, label=label)
    axes.axvline(found[-2]["seconds"], color=_GREY, linestyle=":", linewidth=1)
    axes.annotate(
        " no more come",
        (found[-2]["seconds"], 0.02),
        xycoords=("data", "axes fraction"),
        fontsize=9,
        ha="right",
        color=_GREY,
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="center right")
    return figure


def overload(found: dict[str, Any]) -> Figure:
    """What becomes of calls that are too many, and of those during which the store hangs."""
    figure = Figure(figsize=(9, 5), layout="constrained", label="overload")
    rates, memory = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    title = f"Unary calls, {found['times']:g} times the peak, deadline {found['timeout']:g} s; then a store that hangs"
    _style(rates, title, "", "calls a second")
    _style(memory, "", "seconds", "MB")
    slices = [row for phase in ("peak", "overload", "hung") for row in found[phase]["slices"]]
    seconds = np.arange(len(slices)) / 2
    for at, (label, color) in enumerate(
        {"offered": _GREY, "answered in time": "#2ca02c", "refused": "#ef4444"}.items()
    ):
        rates.plot(seconds, [row[at] * 2 for row in slices], color=color, label=label, linewidth=1.2)
    for at, (label, color) in enumerate({"server": "#ff7f0e", "store": "#1f77b4"}.items()):
        memory.plot(seconds, [row[3 + at] / 1e6 for row in slices], color=color, label=label)
    peak, under = (len(found[phase]["slices"]) / 2 for phase in ("peak", "overload"))
    for begin, label in ((0, "peak"), (peak, "overload"), (peak + under, "0.6 of the peak")):
        rates.axvline(begin, color=_DARK, linestyle=":", linewidth=1)
        rates.annotate(f" {label}", (begin, 0.96), xycoords=("data", "axes fraction"), fontsize=9, color=_DARK)
    rates.axvspan(peak + under + 4, peak + under + 12, color=_PALE, label="the store is stopped")
    for axes in (rates, memory):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_COMMAS)
        axes.legend(frameon=False, fontsize=9, loc="center right")
    return figure


def _rate(row: Figures) -> list[float]:
    return row["rate"]


def _line(
    axes: Axes,
    costs: Costs,
    cells: dict[Any, Cell],
    values: Callable[[Figures], list[float]],
    *,
    label: str,
    color: str,
    linestyle: str = "-",
) -> None:
    """The medians of these cells by what stands on the x axis, with their range; of those that were measured."""
    rows = {x: values(costs[cell]) for x, cell in cells.items() if cell in costs}
    if rows:
        middle, low, high = (np.array([of(figures) for figures in rows.values()]) for of in (median, min, max))
        range_ = [middle - low, high - middle]
        axes.errorbar(
            list(rows), middle, range_, fmt=f"o{linestyle}", markersize=4, color=color, elinewidth=0.8, label=label
        )


def _picture(name: str, title: str, x: str, y: str, *, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained", label=f"performance-{name}")
    axes = figure.add_subplot()
    _style(axes, title, x, y)
    return figure, axes


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(visible=True, color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


_COMMAS: Final = FuncFormatter(lambda value, _: f"{value:,.10g}")
