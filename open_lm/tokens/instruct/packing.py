"""Conversations into rows, none divided that fits, by best fit in bounded memory. Pure; a function of the conversations and their order.

Conversations are gathered until a window is full. The longest are placed first, each into the row with the least room that is
enough. The emptiest rows are taken apart again, and their conversations wait for the next window; in the end they are the unit's tail.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np

from open_lm.shards.members import MASKED
from open_lm.tokens.instruct.options import Long
from open_lm.tokens.pieces import PIECE, Rows

WINDOW_TOKENS = 4 << 20
"""Tokens that are packed together. Decides memory, and a little how full rows are; part of what makes the output."""
_TAIL_ROWS = 2


def best_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Numbers of the items in each row, ascending; rows in the order of their first item.

    Args:
        lengths: of items, each at most `length`.
    """
    rooms: list[tuple[int, int]] = []  # (room, -row) of each row that has any, ascending
    rows: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        size = lengths[item]
        place = bisect_left(rooms, (size, -len(rows)))
        if place == len(rooms):
            room, row = length, len(rows)
            rows.append([])
        else:
            room, row = rooms[place][0], -rooms[place][1]
            del rooms[place]
        rows[row].append(item)
        if room > size:
            insort(rooms, (room - size, -row))
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def fitted(tokens: np.ndarray, pieces: np.ndarray, length: int, long: Long, eot_id: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Conversations none of which is longer than a row.

    Args:
        tokens: int32 [total], masked targets negative.
        pieces: PIECE [conversations], whose lengths add up to total.

    Returns:
        The same two of what is left (a split conversation has several pieces), how many conversations were too long, and how many
        tokens were left out. A truncated one ends with a masked end of text.
    """
    over = np.flatnonzero(pieces["length"] > length)
    if not len(over):
        return tokens, pieces, 0, 0
    if long == "split":
        return tokens, _split(pieces, length), len(over), 0
    sizes, starts = pieces["length"].astype(np.int64), np.cumsum(pieces["length"], dtype=np.int64) - pieces["length"]
    keep = np.where(sizes > length, length if long == "truncate" else 0, sizes)
    place = np.arange(len(tokens)) - np.repeat(starts, sizes)
    left = tokens[place < np.repeat(keep, sizes)]
    pieces = pieces.copy()
    pieces["length"] = keep
    if long == "truncate":
        left[np.cumsum(keep)[over] - 1] = ~eot_id
    return left, pieces[keep > 0], len(over), len(tokens) - len(left)


def _split(pieces: np.ndarray, length: int) -> np.ndarray:
    parts = -(-pieces["length"].astype(np.int64) // length)
    out = np.repeat(pieces, parts)
    number = np.arange(len(out)) - np.repeat(np.cumsum(parts) - parts, parts)
    out["start"] += (number * length).astype("<u4")
    out["length"] = np.minimum(np.repeat(pieces["length"].astype(np.int64), parts) - number * length, length)
    return out


class ConversationPacker:
    """Conversations to rows, a window at a time.

    Args:
        length: tokens of a row.
        window: tokens of a window.
    """

    def __init__(self, length: int, window: int = WINDOW_TOKENS):
        self._length, self._window = length, window
        self._tokens: list[np.ndarray] = []
        self._pieces: list[np.ndarray] = []
        self._held = 0

    def add(self, tokens: np.ndarray, pieces: np.ndarray) -> Iterator[Rows]:
        """Take items in order: tokens int32 [total], PIECE [items] whose lengths add up to total, each at most a row.

        How items are divided among calls makes no difference.
        """
        while len(pieces):
            ends = np.cumsum(pieces["length"], dtype=np.int64)
            taken = int(np.searchsorted(ends, self._window - self._held, side="left")) + 1
            size = int(ends[min(taken, len(ends)) - 1])
            self._tokens.append(tokens[:size])
            self._pieces.append(pieces[:taken])
            self._held += size
            tokens, pieces = tokens[size:], pieces[taken:]
            if self._held >= self._window:
                yield self._pack(self._window // 4)

    def finish(self, tail_rows: int = _TAIL_ROWS) -> tuple[Rows, np.ndarray, np.ndarray]:
        """The last rows, and what the emptiest of them held, at most `tail_rows` rows full: its tokens and pieces."""
        rows = self._pack(tail_rows * self._length)
        return rows, np.concatenate([np.empty(0, np.int32), *self._tokens]), np.concatenate([np.empty(0, PIECE), *self._pieces])

    def _pack(self, keep: int) -> Rows:
        """Rows of what is held; those that are not full wait, the emptiest first, up to `keep` tokens."""
        tokens, pieces = np.concatenate([np.empty(0, np.int32), *self._tokens]), np.concatenate([np.empty(0, PIECE), *self._pieces])
        sizes = pieces["length"].tolist()
        rows = best_fit(sizes, self._length)
        waiting, kept = set[int](), 0
        fills = [sum(sizes[item] for item in row) for row in rows]
        for row in sorted(range(len(rows)), key=lambda row: (fills[row], row)):
            if fills[row] == self._length or kept + fills[row] > keep:
                break
            waiting.add(row)
            kept += fills[row]
        starts = (np.cumsum(pieces["length"], dtype=np.int64) - pieces["length"]).tolist()
        items = sorted(item for row in waiting for item in rows[row])
        self._tokens = [tokens[starts[item] : starts[item] + sizes[item]] for item in items]
        self._pieces = [pieces[items]]
        self._held = kept
        return self._filled([items for row, items in enumerate(rows) if row not in waiting], tokens, pieces, starts)

    def _filled(self, rows: list[list[int]], tokens: np.ndarray, pieces: np.ndarray, starts: list[int]) -> Rows:
        out = np.full((len(rows), self._length), MASKED, np.int32)
        sizes = pieces["length"].tolist()
        for row, items in zip(out, rows):
            at = 0
            for item in items:
                row[at : at + sizes[item]] = tokens[starts[item] : starts[item] + sizes[item]]
                at += sizes[item]
        order = np.array([item for items in rows for item in items], np.int64)
        return Rows(out, np.cumsum([len(items) for items in rows], dtype=np.int64), pieces[order])
