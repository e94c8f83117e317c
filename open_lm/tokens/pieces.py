"""Sequences out of documents, and which piece of which document each of them holds. Pure.

A `Packer` takes documents' ids in order and cuts the stream every `length` tokens, wherever that falls. It keeps at most `capacity`
sequences; what it hands over are `Rows`: the sequences and their pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PIECE = np.dtype([("file", "<u4"), ("at", "<u8"), ("start", "<u4"), ("length", "<u4")])
"""A run of tokens of one document: the number of its file in the corpus, where in the file's text it begins (byte of its line, row
of a table), the first of its tokens, and how many. Begin and end of text count as tokens of the document."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences with their pieces.

    Args:
        tokens: uint16 or uint32 [n, length].
        ends: int64 [n], pieces up to and including each sequence's.
        pieces: PIECE [ends[-1]], in the order of the tokens.
    """

    tokens: np.ndarray
    ends: np.ndarray
    pieces: np.ndarray


class Packer:
    """Documents to sequences.

    Args:
        length: tokens of a sequence.
        dtype: uint16 or uint32.
        capacity: sequences that are gathered before they are handed over.
    """

    def __init__(self, length: int, dtype: type[np.unsignedinteger], capacity: int):
        self._length = length
        self._buffer = np.empty(capacity * length, dtype)
        self._filled = 0
        self._pieces: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, pieces: np.ndarray) -> Iterator[Rows]:
        """Take whole or partial documents: tokens [total], and PIECE [documents], whose lengths add up to total."""
        assert int(pieces["length"].sum(dtype=np.int64)) == len(tokens)
        while len(tokens):
            room = len(self._buffer) - self._filled
            taken, pieces = _split(pieces, room) if len(tokens) > room else (pieces, pieces[:0])
            count = min(room, len(tokens))
            self._buffer[self._filled : self._filled + count] = tokens[:count]
            self._filled += count
            self._pieces.append(taken)
            tokens = tokens[count:]
            if self._filled == len(self._buffer):
                yield self._hand_over(self._filled // self._length)

    def finish(self) -> tuple[Rows, np.ndarray, np.ndarray]:
        """The sequences gathered so far, and the tail: its tokens [fewer than length] and their pieces."""
        rows = self._hand_over(self._filled // self._length)
        tail = self._buffer[len(rows.tokens) * self._length : len(rows.tokens) * self._length + self._filled].copy()
        return rows, tail, self._all_pieces()

    def padded(self, token: int, rows: Rows) -> Rows:
        """After `finish` gave `rows`: those and the tail, filled up with `token` (which belongs to no document), as one more sequence."""
        tail, count = self._all_pieces(), len(rows.tokens)
        size = (count + 1) * self._length
        self._buffer[count * self._length + self._filled : size] = token
        ends = np.append(rows.ends, len(rows.pieces) + len(tail))
        return Rows(self._buffer[:size].reshape(-1, self._length), ends, np.concatenate([rows.pieces, tail]))

    def _hand_over(self, count: int) -> Rows:
        """The first `count` sequences as a view of the buffer, good until the next `add`; what follows them stays."""
        size = count * self._length
        whole, rest = _split(self._all_pieces(), size)
        self._pieces = [rest]
        self._filled -= size
        pieces, ends = _cut(whole, count, self._length)
        return Rows(self._buffer[:size].reshape(count, self._length), ends, pieces)

    def _all_pieces(self) -> np.ndarray:
        return np.concatenate([np.empty(0, PIECE), *self._pieces])


def _split(pieces: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the first so many tokens, and of the rest; a piece that lies across is divided."""
    ends = np.cumsum(pieces["length"], dtype=np.int64)
    whole = int(np.searchsorted(ends, tokens, side="right"))
    inside = tokens - (int(ends[whole - 1]) if whole else 0)
    if whole == len(pieces) or inside == 0:
        return pieces[:whole], pieces[whole:]
    left, right = pieces[: whole + 1].copy(), pieces[whole:].copy()
    left["length"][-1] = inside
    right["start"][0] += inside
    right["length"][0] -= inside
    return left, right


def _cut(pieces: np.ndarray, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide pieces of `count` sequences at their borders. Returns the pieces and, int64 [count], their ends by sequence."""
    document_ends = np.cumsum(pieces["length"], dtype=np.int64)
    row_ends = np.arange(1, count + 1, dtype=np.int64) * length
    ends = np.union1d(document_ends, row_ends)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    source = np.searchsorted(document_ends, starts, side="right")
    out = pieces[source]
    out["start"] += (starts - (document_ends - pieces["length"])[source]).astype("<u4")
    out["length"] = ends - starts
    return out, np.searchsorted(ends, row_ends, side="right").astype(np.int64)
