"""What the example models do, streamed through the SDK: a page of Korean, and two pictures in out/.

    python -m bench.examples [hangul] [stocks] [nowcaster]

Starts a server of its own. Every call carries one timestep; what came before is in the session's state.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np

from bench.demo import serve
from models.scripts import jamo, prices, rain
from recurra.client import Client

PICTURES: Final = Path("out")
SEED: Final = 3
LINES: Final = 12
TEMPERATURE: Final = 0.4
SYMBOL: Final = "AAPL"
SEQUENCE: Final = 15
SHOWN: Final = range(6, 18, 2)
_GREY, _RED = "#9aa5b1", "#c2410c"


def hangul(client: Client) -> None:
    """Prints lines that the model writes, each jamo drawn from the logits that the jamo before it gave."""
    rng = np.random.default_rng(SEED)
    session = client.session("hangul", "writer")
    written = [0]
    while written.count(0) <= LINES:
        logits = np.asarray(session.predict(np.array(written[-1])), np.float64) / TEMPERATURE
        likely = np.exp(logits - logits.max())
        written.append(int(rng.choice(len(likely), p=likely / likely.sum())))
    learned = set(jamo.corpus().learned)
    for line in jamo.decode(np.array(written[1:])).splitlines(keepends=True):
        print("=" if line in learned else " ", line, end="")
    print(f"{len(written) - 1} calls; lines marked = are in the text that it learned from")


def stocks(client: Client) -> None:
    """Draws a share's prices and, for each month, the price that the model had forecast a month before."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of a backend that needs no screen

    share = prices.shares()[SYMBOL]
    session = client.session("stocks", SYMBOL)
    returns = np.array([session.predict(price) for price in share.prices[:-1]])[:, 0]
    quoted, forecast = share.prices[1:, 0], share.prices[:-1, 0] * np.exp(returns)
    months = share.months[1:].astype("datetime64[D]")
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(9, 4.8), sharex=True, height_ratios=[3, 2], layout="constrained"
    )
    above.plot(months, quoted, color=_GREY, linewidth=4, label="price")
    above.plot(months, forecast, color=_RED, linewidth=1.3, label="forecast, made a month before")
    above.set_ylabel("dollars")
    above.set_title(f"{SYMBOL}: the forecast is nearly the price of the month before", loc="left", fontsize=11)
    above.legend(frameon=False, loc="upper left", fontsize=9)
    below.bar(months, share.returns * 100, width=22, color=_GREY, label="return")
    below.plot(months, returns * 100, color=_RED, linewidth=1.3, label="forecast")
    below.set_ylabel("% in a month (log)")
    below.set_title("What it forecasts is the return, and that is little beside what comes", loc="left", fontsize=11)
    for axes in (above, below):
        axes.axvline(prices.FIRST_HELD_OUT.astype("datetime64[D]"), color="#111827", linestyle="--", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    above.text(prices.FIRST_HELD_OUT.astype("datetime64[D]"), above.get_ylim()[1], "  held out", va="top", fontsize=9)
    figure.savefig(PICTURES / "stocks.png", dpi=100)


def nowcaster(client: Client) -> None:
    """Draws frames of one held-out sequence, what the model had forecast for them, and the frame before each."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of a backend that needs no screen

    frames = rain.held_out()[SEQUENCE]
    session = client.session("nowcaster", "radar")
    before, truth = frames[:-1], frames[1:]
    rows = {"forecast": np.stack([session.predict(frame) for frame in before]), "no change": before}
    figure, grid = plt.subplots(1 + len(rows), len(SHOWN), figsize=(9, 4.9), layout="constrained")
    for name, shown, line in zip(("radar", *rows), (truth, *rows.values()), grid, strict=True):
        line[0].set_ylabel(name, fontsize=11)
        for frame, axes in zip(SHOWN, line, strict=True):
            image = axes.imshow(shown[frame, :, :, 0], cmap="PuBu", vmin=0, vmax=truth[SHOWN].max())
            axes.set(xticks=[], yticks=[])
            if name == "radar":
                axes.set_title(f"frame {frame + 2}", fontsize=10)
            else:
                axes.set_xlabel(f"error {np.abs(shown[frame] - truth[frame]).mean():.2f}", fontsize=9)
    figure.colorbar(image, ax=grid, label="mm/h", shrink=0.6)
    figure.savefig(PICTURES / "nowcaster.png", dpi=100)


def main() -> None:
    shows = {show.__name__: show for show in (hangul, stocks, nowcaster)}
    arguments = argparse.ArgumentParser(prog="python -m bench.examples", description=__doc__.splitlines()[0])
    arguments.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(shows)} (default: all)")
    chosen = arguments.parse_args().models or list(shows)
    if unknown := set(chosen) - set(shows):
        arguments.error(f"no example of {', '.join(sorted(unknown))}; there are {', '.join(shows)}")
    mpl.use("Agg")
    PICTURES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="recurra-examples-") as folder,
        serve(Path(folder)) as server,
        Client(server.address) as client,
    ):
        for name in chosen:
            shows[name](client)


if __name__ == "__main__":
    main()
