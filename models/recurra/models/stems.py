"""What the names of a graph's inputs and outputs tell about its states."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

# Affixes of direction. Those of time mark a state by themselves; the others also stand on data.
_TIME: Final = frozenset(
    [
        "prev",
        "previous",
        "past",
        "next",
        "new",
        "present",
        "last",
        "cur",
        "current",
        "init",
        "initial",
        "n",
        "final",
        "updated",
    ]
)
_PORT: Final = frozenset(["in", "out", "input", "output", "i", "o"])

_STATE: Final = frozenset(
    [
        "h",
        "c",
        "hn",
        "cn",
        "hx",
        "cx",
        "hc",
        "ht",
        "ct",
        "h0",
        "c0",
        "state",
        "states",
        "hidden",
        "cell",
        "cells",
        "cache",
        "caches",
        "carry",
        "memory",
        "mem",
        "buffer",
        "buf",
    ]
)


def tokens(name: str) -> list[str]:
    """Lower-case words and numbers of a name: "rnn1.hiddenN_out:0" -> rnn 1 hidden n out."""
    name = re.sub(r":\d+$", "", name)
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", name) if word]
    return [part for word in words for part in re.findall(r"^(?:[hc][n0xt])(?=$|\d)|[a-z]+|\d+", word)]


def stem(name: str) -> tuple[str, ...]:
    """What is left of a name without its direction: h0 and hn, h_in and h_out, state and stateN are each one."""
    left = [word for word in tokens(name) if word not in _TIME | _PORT]
    return tuple(word[0] if re.fullmatch(r"[hc][n0t]", word) else word for word in left)


def speak_of_state(before: str, after: str, *, strict: bool) -> bool:
    """Whether two names are a state's, not only an input's and an output's: audio_in, audio_out are not.

    With `strict` a word of time is not enough: last_price, next_price are data where something else is the state.
    """
    words = {*tokens(before), *tokens(after)}
    return bool(words & (_STATE if strict else _TIME | _STATE))


def matches(inputs: Sequence[str], outputs: Sequence[str], *, strict: bool = False) -> Iterator[tuple[str, str]]:
    """Pairs of names of one stem that no other name has, and that speak of a state."""
    for before in inputs:
        same = [after for after in outputs if stem(after) == stem(before)]
        twins = [other for other in inputs if stem(other) == stem(before)]
        if len(same) == 1 and len(twins) == 1 and stem(before) and speak_of_state(before, same[0], strict=strict):
            yield before, same[0]


def nearest(name: str, others: Sequence[str]) -> str:
    """The one of `others` that is named most like `name`, empty if there is none or several are equally near."""
    if len(others) <= 1:
        return others[0] if others else ""
    same = [other for other in others if stem(other) == stem(name)]
    if len(same) == 1:
        return same[0]
    near = sorted(others, key=lambda other: SequenceMatcher(None, name, other).ratio(), reverse=True)
    first, second = (SequenceMatcher(None, name, other).ratio() for other in near[:2])
    return near[0] if first > second else ""


def layer(name: str) -> str:
    """The layer that a state's name speaks of, the name itself if it tells none: "rnn1_h_in" -> rnn1."""
    words = [word for word in re.split(r"[./:]+|_(?=[a-zA-Z])", name) if word]
    kept = [word for word in words if not set(tokens(word)) <= _TIME | _PORT | _STATE]
    return "_".join(kept) or name
