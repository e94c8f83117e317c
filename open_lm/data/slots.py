"""The way of a batch from a worker to its training process: memory that both have, with a few slots for each worker.

The memory is an anonymous mapping, which worker processes get by being forked, and takes no room in /dev/shm. A worker puts its rows of
every batch into its slots in turn. It is never so far ahead that it writes into a slot which is still to be read; each slot
carries the number of its batch, which is looked at after reading.
"""

from __future__ import annotations

import mmap
from typing import cast

import numpy as np
import torch

from open_lm.data.batch import Batch

_ALIGN = 64


class Slots:
    """Memory for `workers * slots` parts of batches.

    Args:
        workers: processes that write.
        slots: of each; more than it is ever ahead.
        rows: the most rows of a part.
        row_length: tokens of a row.
        documents, sources: what a batch has beside its tokens.
    """

    def __init__(self, workers: int, slots: int, rows: int, row_length: int, *, documents: bool, sources: bool):
        self._slots = slots
        fields: list[tuple[tuple[int, ...], np.dtype]] = [((), np.dtype(np.int64)), ((rows, row_length), np.dtype(np.int32))]
        fields += [((rows, row_length - 1), np.dtype(np.int32))] if documents else []
        fields += [((rows,), np.dtype(np.int64))] if sources else []
        sizes = [-(-int(np.prod(shape)) * dtype.itemsize // _ALIGN) * _ALIGN for shape, dtype in fields]
        memory = mmap.mmap(-1, workers * slots * sum(sizes))
        strides, arrays, at = (slots * sum(sizes), sum(sizes)), [], 0
        for (shape, dtype), size in zip(fields, sizes, strict=True):
            inner = np.empty(shape, dtype).strides
            arrays.append(np.ndarray((workers, slots, *shape), dtype, cast(bytes, memory), at, strides + inner))
            at += size
        self._starts, self._tokens = arrays[0], arrays[1]
        self._documents = arrays[2] if documents else None
        self._sources = arrays[-1] if sources else None

    def put(self, worker: int, turn: int, start: int, part: Batch) -> None:
        """Write a worker's rows of the batch at `start`, its tokens int32; `turn` counts the worker's parts."""
        for mine, theirs in zip(self._views(worker, turn, len(part.tokens)), (part.tokens, part.document_ids, part.sources), strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        self._starts[worker, turn % self._slots] = start

    def take(self, worker: int, turn: int, start: int, rows: torch.Tensor | slice, count: int, batch: Batch) -> None:
        """Copy a part of `count` rows into `rows` of a batch."""
        batch.put(rows, Batch(*self._views(worker, turn, count)))  # type: ignore[arg-type]
        assert self._starts[worker, turn % self._slots] == start, "a worker wrote into a slot before it was read"

    def _views(self, worker: int, turn: int, count: int) -> list[torch.Tensor | None]:
        fields = (self._tokens, self._documents, self._sources)
        return [None if field is None else torch.from_numpy(field[worker, turn % self._slots, :count]) for field in fields]
