"""Packing: every token once, masks with their tokens, no conversation divided that fits."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.shards.members import MASKED
from open_lm.tokens.instruct.packing import ConversationPacker, best_fit, fitted
from open_lm.tokens.pieces import PIECE, Rows

EOT = 7


def conversations(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that all differ, every third one masked; the place of each conversation is its number."""
    tokens = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    pieces = np.zeros(len(lengths), PIECE)
    pieces["at"], pieces["length"] = np.arange(len(lengths)), lengths
    return np.where(tokens % 3 == 0, ~tokens, tokens), pieces


def packed(tokens: np.ndarray, pieces: np.ndarray, length: int, window: int, cuts: list[int]) -> tuple[list[Rows], np.ndarray, np.ndarray]:
    packer, rows, at = ConversationPacker(length, window), [], 0
    for first, stop in zip([0, *cuts], [*cuts, len(pieces)]):
        size = int(pieces["length"][first:stop].sum())
        rows += packer.add(tokens[at : at + size], pieces[first:stop])
        at += size
    last, tail, tail_pieces = packer.finish()
    return [*rows, last], tail, tail_pieces


sizes = st.lists(st.integers(1, 70), max_size=60)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(sizes, st.integers(5, 40), st.integers(1, 300), st.data())
def test_every_token_is_in_one_row_or_in_the_tail_and_what_fits_is_whole(
    lengths: list[int], length: int, window: int, data: st.DataObject
) -> None:
    tokens, pieces = conversations(lengths)
    parts, part_pieces, long, left_out = fitted(tokens, pieces, length, "split", EOT)
    assert (long, left_out) == (sum(n > length for n in lengths), 0) and np.array_equal(parts, tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(part_pieces)), max_size=4)))
    rows, tail, tail_pieces = packed(parts, part_pieces, length, window, cuts)
    starts = np.cumsum([0, *lengths])
    seen: list[tuple[int, int, int]] = []

    def check(piece: np.void, held: np.ndarray) -> None:
        conversation, start = int(piece["at"]), int(piece["start"])
        first = int(starts[conversation]) + start
        assert held.tolist() == tokens[first : first + len(held)].tolist()  # ids with their masks
        seen.append((conversation, start, len(held)))

    for some in rows:
        for row, first, stop in zip(some.tokens, [0, *some.ends[:-1]], some.ends):
            at = 0
            for piece in some.pieces[first:stop]:
                check(piece, row[at : at + piece["length"]])
                at += int(piece["length"])
            assert at and (row[at:] == MASKED).all()
    for piece, end in zip(tail_pieces, np.cumsum(tail_pieces["length"], dtype=np.int64)):
        check(piece, tail[end - piece["length"] : end])
    assert len(tail) <= 2 * length
    expected = [(c, s, min(length, n - s)) for c, n in enumerate(lengths) for s in range(0, n, length)]
    assert sorted(seen) == expected  # each once, and divided only where it is longer than a row
    again, again_tail, _ = packed(parts, part_pieces, length, window, [])
    assert [r.tokens.tolist() for r in rows if len(r.tokens)] == [r.tokens.tolist() for r in again if len(r.tokens)]
    assert np.array_equal(tail, again_tail)


@settings(derandomize=True, deadline=None)
@given(sizes, st.integers(5, 40))
def test_long_conversations_are_truncated_or_dropped_on_demand(lengths: list[int], length: int) -> None:
    tokens, pieces = conversations(lengths)
    starts, over = np.cumsum([0, *lengths]), sum(n > length for n in lengths)
    kept, kept_pieces, long, left_out = fitted(tokens, pieces, length, "truncate", EOT)
    whole = [tokens[s : s + n].tolist() if n <= length else [*tokens[s : s + length - 1].tolist(), ~EOT] for s, n in zip(starts, lengths)]
    assert kept.tolist() == list(chain(*whole)) and kept_pieces["length"].tolist() == [min(n, length) for n in lengths]
    assert (long, left_out) == (over, len(tokens) - len(kept))
    kept, kept_pieces, long, left_out = fitted(tokens, pieces, length, "drop", EOT)
    assert kept_pieces["at"].tolist() == [i for i, n in enumerate(lengths) if n <= length]
    assert kept.tolist() == list(chain(*(tokens[s : s + n].tolist() for s, n in zip(starts, lengths) if n <= length)))
    assert (long, left_out) == (over, len(tokens) - len(kept))


def test_best_fit_takes_the_row_with_the_least_room_that_is_enough() -> None:
    assert best_fit([6, 7, 3, 4], 10) == [[0, 3], [1, 2]]
    assert best_fit([], 10) == [] and best_fit([10, 10], 10) == [[0], [1]]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_rows_are_as_few_as_best_fit_promises(lengths: list[int]) -> None:
    rows = best_fit(lengths, 50)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 50 for row in rows)
    fills = sorted(sum(lengths[item] for item in row) for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > 50  # no two rows could have been one
