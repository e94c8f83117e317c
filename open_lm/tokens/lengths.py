"""How long things are: a histogram that adds up over parts of a corpus. Pure.

Lengths (tokens of documents, documents of sequences, ...) in; counts by quarter octave out, with exact number, sum, smallest and largest.
Bin i holds the lengths from EDGES[i] up to, not including, EDGES[i + 1]: 0, 1, 2, ... 8, 10, 12, 14, 16, 20, 23, 27, 32, ...
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


def _edge(quarters: int) -> int:
    """The smallest whole number that is not below 2 ** (quarters / 4), in whole numbers."""
    low, high = 1, 1 << (quarters // 4 + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**4 >= 1 << quarters else (middle + 1, high)
    return low


EDGES: tuple[int, ...] = (0, *sorted({_edge(quarters) for quarters in range(4 * 62 + 1)}))
_EDGES = np.array(EDGES, np.int64)
_SMALL = 1 << 16
_BIN_OF_SMALL = (np.searchsorted(_EDGES, np.arange(_SMALL), side="right") - 1).astype(np.uint8)


@dataclass(frozen=True)
class Lengths:
    """Some lengths, each from 0 to below 2**62.

    Args:
        counts: lengths in each bin, up to the last that is not empty.
        total: their sum.
        smallest, largest: 0 when there are none.
    """

    counts: tuple[int, ...] = ()
    total: int = 0
    smallest: int = 0
    largest: int = 0

    @staticmethod
    def of(lengths: np.ndarray) -> Lengths:
        """Of an array [n] of whole numbers; about 5 ns each below 65,536."""
        if len(lengths) == 0:
            return Lengths()
        smallest, largest = int(lengths.min()), int(lengths.max())
        assert smallest >= 0, smallest
        if largest < _SMALL:
            bins = _BIN_OF_SMALL[lengths]
        else:
            bins = np.searchsorted(_EDGES, lengths.astype(np.int64), side="right") - 1
        return Lengths(tuple(np.bincount(bins).tolist()), int(lengths.sum(dtype=np.int64)), smallest, largest)

    @property
    def number(self) -> int:
        """How many lengths."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """0 when there are none."""
        return self.total / self.number if self.counts else 0.0

    def __add__(self, other: Lengths) -> Lengths:
        if not (self.counts and other.counts):
            return self if self.counts else other
        counts = tuple(a + b for a, b in itertools.zip_longest(self.counts, other.counts, fillvalue=0))
        return Lengths(counts, self.total + other.total, min(self.smallest, other.smallest), max(self.largest, other.largest))

    def bins(self) -> list[tuple[int, int, int]]:
        """(from, up to but not including, how many) of each bin from the first to the last that is not empty."""
        first = next((i for i, count in enumerate(self.counts) if count), 0)
        return [(EDGES[i], EDGES[i + 1], self.counts[i]) for i in range(first, len(self.counts))]

    def quantile(self, share: float) -> float:
        """The length that `share` of them (0 to 1) do not exceed; exact up to 8 and at the ends, else right to its bin.

        Inside a bin the lengths are taken to be spread evenly. 0 when there are none.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is a share from 0 to 1, not {share}")
        rank, before = share * (self.number - 1), 0
        if rank <= 0 or rank >= self.number - 1:
            return float(self.smallest if rank <= 0 and self.number > 1 else self.largest)
        for low, high, count in self.bins():
            if count and rank < before + count:
                low, high = max(low, self.smallest), min(high - 1, self.largest)
                inside = (rank - before) / (count - 1) if count > 1 else 0.5
                return low + (high - low) * min(1.0, inside)
            before += count
        raise AssertionError("the rank lies in a bin")

    def to_json(self) -> dict[str, Any]:
        """Bins that are not empty, by their smallest length."""
        bins = {str(EDGES[i]): count for i, count in enumerate(self.counts) if count}
        return {"number": self.number, "total": self.total, "smallest": self.smallest, "largest": self.largest, "bins": bins}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Lengths:
        """What `to_json` gave. Raises ValueError for anything else."""
        try:
            bins = {EDGES.index(int(edge)): int(count) for edge, count in values["bins"].items()}
            counts = tuple(bins.get(i, 0) for i in range(max(bins, default=-1) + 1))
            return Lengths(counts, int(values["total"]), int(values["smallest"]), int(values["largest"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"is no histogram of lengths: {error!r}") from None
