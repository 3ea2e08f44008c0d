"""Monthly share prices that the model `stocks` learns from, from the package vega-datasets."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from vega_datasets import local_data

FIRST_HELD_OUT: Final = np.datetime64("2007-01")
"""Months from this one on are never trained on."""


class Prices(NamedTuple):
    """A share's months, (months,), and its price in each, (months, 1), in dollars."""

    months: npt.NDArray[np.datetime64]
    prices: npt.NDArray[np.float32]

    @property
    def returns(self) -> npt.NDArray[np.float32]:
        """The log return from each month to the next, (months - 1,)."""
        return np.diff(np.log(self.prices[:, 0]))

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Which of the returns end in a held-out month, (months - 1,)."""
        return self.months[1:] >= FIRST_HELD_OUT


def shares() -> dict[str, Prices]:
    """The five shares by symbol, 2000 to 2010; Google's prices begin in August 2004."""
    table = local_data("stocks").sort_values("date")
    return {
        symbol: Prices(rows["date"].to_numpy().astype("datetime64[M]"), rows["price"].to_numpy(np.float32)[:, None])
        for symbol, rows in table.groupby("symbol")
    }
