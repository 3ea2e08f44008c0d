"""Korean text as conjoining jamo: what the model `hangul` reads and writes, and the text that it learned from."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

_LEADING, _VOWELS, _TRAILING = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)
VOCABULARY: Final = (*"\n .,?!", *map(chr, (*_LEADING, *_VOWELS, *_TRAILING)))
"""The 73 characters by id; id 0 ends a line, and begins the first."""

CORPUS: Final = Path(__file__).with_name("hangul_corpus.txt")
HELD_OUT_EVERY: Final = 10

Ids = npt.NDArray[np.int64]


class Corpus(NamedTuple):
    """Lines of text with their ends: those to learn from, and every tenth, which is never learned from."""

    learned: list[str]
    held_out: list[str]


def corpus() -> Corpus:
    lines = CORPUS.read_text("utf-8").splitlines(keepends=True)
    return Corpus([line for number, line in enumerate(lines) if number % HELD_OUT_EVERY], lines[::HELD_OUT_EVERY])


def encode(text: str) -> Ids:
    """The ids of a text, (jamo,). Raises ValueError for what is not in the vocabulary."""
    return np.array([VOCABULARY.index(jamo) for jamo in unicodedata.normalize("NFD", text)], np.int64)


def decode(ids: Ids) -> str:
    """The text of ids, (jamo,), with jamo composed to syllables."""
    return unicodedata.normalize("NFC", "".join(VOCABULARY[each] for each in ids))
