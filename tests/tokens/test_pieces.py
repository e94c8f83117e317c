"""Documents to sequences with their pieces: nothing lost, nothing doubled, every token's document known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokens.pieces import PIECE, Packer


def pieces_of(lengths: list[int], file: int = 3) -> np.ndarray:
    pieces = np.zeros(len(lengths), PIECE)
    pieces["file"], pieces["at"], pieces["length"] = file, np.arange(len(lengths)) * 10, lengths
    return pieces


def batches(tokens: np.ndarray, lengths: list[int], per_batch: int):
    done = 0
    for first in range(0, len(lengths), per_batch):
        some = lengths[first : first + per_batch]
        yield tokens[done : done + sum(some)], pieces_of(lengths)[first : first + per_batch]
        done += sum(some)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 12), st.integers(1, 5), st.integers(1, 8))
def test_sequences_and_tail_are_the_stream_and_pieces_give_every_document_back(lengths, length, capacity, per_batch):
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    packer, found, tail_pieces = Packer(length, np.uint32, capacity), [], None
    for some, pieces in batches(tokens, lengths, per_batch):
        for rows in packer.add(some, pieces):
            found.append((rows.tokens.copy(), rows.ends, rows.pieces))
    rows, tail, tail_pieces = packer.finish()
    found.append((rows.tokens.copy(), rows.ends, rows.pieces))
    stream = np.concatenate([*(f[0].reshape(-1) for f in found), tail])
    assert stream.tolist() == tokens.tolist()
    assert len(tail) < length

    starts = np.concatenate([[0], np.cumsum(lengths)])
    documents: dict[int, list[int]] = {}
    for row_tokens, ends, pieces in found:
        assert len(ends) == len(row_tokens)
        for row, begin, end in zip(row_tokens, np.concatenate([[0], ends[:-1]]), ends):
            assert pieces["length"][begin:end].sum() == length
            take(row, pieces[begin:end], documents)
    take(tail, tail_pieces, documents)
    for number in range(len(lengths)):
        assert documents[number * 10] == tokens[starts[number] : starts[number + 1]].tolist()


def take(row: np.ndarray, pieces: np.ndarray, documents: dict[int, list[int]]) -> None:
    done = 0
    for piece in pieces:
        document = documents.setdefault(int(piece["at"]), [])
        assert piece["file"] == 3
        assert piece["start"] == len(document)
        document += row[done : done + piece["length"]].tolist()
        done += int(piece["length"])
    assert done == len(row)


def test_padding_fills_the_last_sequence_and_belongs_to_no_document():
    packer = Packer(4, np.uint16, 9)
    assert not list(packer.add(np.arange(10, dtype=np.uint16), pieces_of([10])))
    rows, tail, _ = packer.finish()
    padded = packer.padded(7, rows)
    assert tail.tolist() == [8, 9]
    assert padded.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 7, 7]]
    assert padded.ends.tolist() == [1, 2, 3]
    assert padded.pieces["length"].tolist() == [4, 4, 2]
    assert padded.pieces["start"].tolist() == [0, 4, 8]
