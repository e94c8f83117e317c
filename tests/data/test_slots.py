"""Parts of batches through memory that processes share."""

import mmap

import numpy as np
import pytest
import torch

from open_lm.data.batch import Batch
from open_lm.data.loader import _rows_of
from open_lm.data.rows import _LOCATED_BYTES, _positions_ahead
from open_lm.data.slots import Slots


def part(rows: int, first: int) -> Batch:
    tokens = torch.arange(first, first + rows * 5, dtype=torch.int32).reshape(rows, 5)
    return Batch(tokens, tokens[:, 1:] + 1, torch.arange(rows) + first)


def empty(rows: int) -> Batch:
    return Batch(torch.zeros((rows, 5), dtype=torch.int64), torch.zeros((rows, 4), dtype=torch.int32), torch.zeros(rows, dtype=torch.int64))


def test_what_workers_put_is_what_is_taken_whatever_the_others_write() -> None:
    slots = Slots(2, 3, 4, 5, documents=True, sources=True)
    for turn in range(7):
        for worker, rows in ((0, 4), (1, 3)):
            slots.put(worker, turn, 10 * turn, part(rows, 100 * turn + 1000 * worker))
        for worker, rows in ((0, 4), (1, 3)):
            found = empty(rows)
            slots.take(worker, turn, 10 * turn, slice(None), rows, found)
            expected = part(rows, 100 * turn + 1000 * worker)
            assert torch.equal(found.tokens, expected.tokens.long())
            assert torch.equal(found.document_ids, expected.document_ids) and torch.equal(found.sources, expected.sources)  # type: ignore[arg-type]


def test_a_slot_that_was_written_again_before_it_was_read_is_noticed() -> None:
    slots = Slots(1, 2, 4, 5, documents=False, sources=False)
    for turn in range(3):
        slots.put(0, turn, 8 * turn, Batch(part(4, turn).tokens))
    with pytest.raises(AssertionError, match="before it was read"):
        slots.take(0, 0, 0, slice(None), 4, Batch(torch.zeros((4, 5), dtype=torch.int64)))


def test_the_memory_of_slots_is_bounded_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda file, size: sizes.append(size) or real(file, size))
    Slots(3, 6, 64, 2049, documents=False, sources=True)
    assert 3 * 6 * 64 * 2049 * 4 <= sizes[0] < 3 * 6 * (64 * (2049 * 4 + 8) + 3 * 64)


@pytest.mark.parametrize("owner", [[0, 1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0, 1, 0, 0], [1, 1], [0]])
def test_the_slots_of_a_worker_are_found_as_a_slice_or_one_by_one(owner: list[int]) -> None:
    numbers = torch.arange(len(owner))
    for worker in (0, 1):
        assert numbers[_rows_of(np.array(owner), worker)].tolist() == [i for i, one in enumerate(owner) if one == worker]


def test_what_is_located_ahead_fits_into_bounded_memory_however_many_streams_there_are() -> None:
    from types import SimpleNamespace

    for streams in (1, 64, 1000, 5000, 100_000):
        plan = SimpleNamespace(sources=[SimpleNamespace(total=10**12)], streams=streams)
        ahead = _positions_ahead(plan, streams)  # type: ignore[arg-type]
        assert 16 <= ahead <= 1024 and 24 * ahead * streams <= max(_LOCATED_BYTES, 24 * 16 * streams)
