"""Which source each row of a run comes from.

The numbers g of a run are dealt to L streams, g = t * L + k being position t of stream k. A stream's positions come in blocks of
1024. In each block source s has exactly `shares[s]` of them, in an order seeded by (stream, block). Block b of all streams
covers the numbers [1024 b L, 1024 (b+1) L), so that whole blocks count by multiplication and only one block is ever looked into.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from open_lm.data import keyed

BLOCK = 1024
"""Positions of a stream in which each source has its whole share."""


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of each source in a block: largest remainder, at least 1 each, `BLOCK` in all.

    Args:
        weights: positive, not necessarily normalised.

    Raises:
        ValueError: a weight that isn't positive and finite, or more sources than positions.
    """
    if len(weights) > BLOCK:
        raise ValueError(f"{len(weights)} sources: at most {BLOCK}; join some with `::`")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ValueError(f"--train-data-mix-weights {weight}: must be positive; leave out a source that is not wanted")
    total = sum(Fraction(w) for w in weights)
    quotas = [Fraction(w) * BLOCK / total for w in weights]
    shares = [max(1, int(q)) for q in quotas]
    while sum(shares) != BLOCK:
        step = 1 if sum(shares) < BLOCK else -1
        able = [i for i, share in enumerate(shares) if step > 0 or share > 1]
        index = max(able, key=lambda i: (step * (quotas[i] - shares[i]), -i))
        shares[index] += step
    return tuple(shares)


@dataclass(frozen=True, eq=False)
class _Block:
    """One block of all streams: the source of each position, and its rank among the block's numbers of that source.

    Both [streams, BLOCK]; labels uint16, ranks int32.
    """

    labels: np.ndarray
    ranks: np.ndarray


@functools.lru_cache(maxsize=4)
def _block(seed: int, shares: tuple[int, ...], streams: int, block: int) -> _Block:
    deck = np.repeat(np.arange(len(shares), dtype=np.uint16), shares)
    labels = deck[keyed.permutation(keyed.key(seed, "mix", np.arange(streams), block), BLOCK)]
    by_number = labels.T.ravel()
    by_source = np.argsort(by_number, kind="stable")
    ranks = np.empty(len(by_number), dtype=np.int32)
    ranks[by_source] = np.concatenate([np.arange(share * streams) for share in shares])
    return _Block(labels, ranks.reshape(BLOCK, streams).T)


@dataclass(frozen=True)
class Mix:
    """The dealing of numbers to streams and sources.

    Args:
        seed: of the run.
        streams: L.
        shares: positions of each source in a block, `BLOCK` in all.
    """

    seed: int
    streams: int
    shares: tuple[int, ...]

    def split(self, stream: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions [start, stop) of a stream: the source of each, and its position among the stream's positions of that source.

        Returns:
            Two int64 arrays [stop - start].
        """
        if len(self.shares) == 1:
            return np.zeros(stop - start, dtype=np.int64), np.arange(start, stop)
        blocks = np.arange(start // BLOCK, (stop - 1) // BLOCK + 1)
        labels = np.stack([self._block(int(b)).labels[stream] for b in blocks]).astype(np.int64)
        by_label = np.argsort(labels, axis=1, kind="stable")
        first = np.cumsum(self.shares) - self.shares
        rank = np.empty_like(labels)
        np.put_along_axis(rank, by_label, np.arange(BLOCK) - first[np.take_along_axis(labels, by_label, axis=1)], axis=1)
        positions = blocks[:, None] * np.array(self.shares)[labels] + rank
        cut = slice(start - blocks[0] * BLOCK, stop - blocks[0] * BLOCK)
        return labels.ravel()[cut], positions.ravel()[cut]

    def _block(self, block: int) -> _Block:
        return _block(self.seed, self.shares, self.streams, block)

    def place(self, number: int) -> int:
        """How many numbers of its source come before a number."""
        if len(self.shares) == 1:
            return number
        position, stream = divmod(number, self.streams)
        one = self._block(position // BLOCK)
        share = self.shares[int(one.labels[stream, position % BLOCK])]
        return position // BLOCK * share * self.streams + int(one.ranks[stream, position % BLOCK])

    def counts_before(self, source: int, number: int) -> np.ndarray:
        """int64 [streams]: how many of the numbers below `number` each stream has for `source`."""
        ks = np.arange(self.streams)
        if len(self.shares) == 1:
            return (number - ks + self.streams - 1) // self.streams
        block, rest = divmod(number, BLOCK * self.streams)
        whole = np.full(self.streams, block * self.shares[source], dtype=np.int64)
        if rest == 0:
            return whole
        mine = self._block(block).labels == source
        full, last = divmod(rest, self.streams)
        return whole + mine[:, :full].sum(axis=1) + (mine[:, full] & (ks < last))

    def number_of(self, source: int, count: int) -> int:
        """The number that is preceded by exactly `count` numbers of `source` and is one itself."""
        if len(self.shares) == 1:
            return count
        block, rest = divmod(count, self.shares[source] * self.streams)
        mine = self._block(block).labels == source
        return block * BLOCK * self.streams + int(np.flatnonzero(mine.T.ravel())[rest])
