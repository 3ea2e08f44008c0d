"""The picture of a model's memory horizon."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recurra.models.horizon import Curve, Fading
from recurra.models.refusal import ModelRefused


def draw(found: Fading, path: Path, *, name: str, fraction: float) -> None:
    """Writes the curves of the model `name`, and a line at `fraction`, as a picture of the kind that `path` names.

    Raises ModelRefused without matplotlib, or if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - the server serves without it
    except ImportError as error:
        raise ModelRefused(f"a picture needs matplotlib ({error}): pip install 'recurra[plot]'") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    curves = found.curves()
    for label, curve in curves.items():
        line = axes.plot(curve.timesteps, curve.left, linewidth=1.8, label=legend(label, curve, fraction))[0]
        if curve is found.outputs:
            line.set(linestyle="--", color="#111827")
    axes.axhline(fraction, color="#6b7280", linestyle=":", linewidth=1)
    axes.annotate(f"{fraction:g}", (1.005, fraction), xycoords=("axes fraction", "data"), va="center", color="#6b7280")
    lowest = min(float(curve.left[curve.left > 0].min()) for curve in curves.values())
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(lowest, fraction) / 2)
    axes.set_xlim(0, max(int(curve.timesteps[-1]) for curve in curves.values()))
    if any(np.isnan(curve.left[-1]) for curve in curves.values()):
        axes.text(
            0.99, 0.02, "a line ends where rounding begins", transform=axes.transAxes, ha="right", color="#6b7280"
        )
    axes.set(xlabel="timesteps after the disturbance", ylabel="difference that is left")
    axes.set_title(f"{name}: what is left of a disturbance of one timestep", loc="left", fontsize=11)
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ModelRefused(f"'{path}' cannot be written: {error}") from error


def legend(name: str, curve: Curve, fraction: float) -> str:
    """A curve's name and horizon."""
    horizon = curve.horizon(fraction)
    if horizon is not None:
        return f"{name}: under {fraction:g} from timestep {horizon} on"
    return f"{name}: not seen under {fraction:g} within {curve.timesteps[-1]} timesteps"
