"""Which part of a corpus a document belongs to: a pure function of its id or text, so that it keeps its side whatever else is there."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

SPLITS = ("train", "val", "test")


def parse_fractions(text: str) -> tuple[float, ...]:
    """Shares of train, val and test, as in 0.98,0.01,0.01. Raises ValueError."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        fractions = ()
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or not abs(sum(fractions) - 1) < 1e-9:
        raise ValueError(f"--split-fractions {text}: give the shares of {', '.join(SPLITS)}, which add up to 1, such as 0.98,0.01,0.01")
    return fractions


def split_of(key: str, fractions: Sequence[float]) -> str:
    """train, val or test, by 64 bits of the key's sha256."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    ends = list(itertools.accumulate(fractions))
    index = next((i for i, end in enumerate(ends[:-1]) if number < end), len(ends) - 1)
    while fractions[index] == 0:  # a share of 0 gets nothing, also where rounding would give it the last number
        index -= 1
    return SPLITS[index]
