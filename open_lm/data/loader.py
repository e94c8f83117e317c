"""Batches for one training process: `Batch` with `tokens: [batch, seq_len + 1] int64`, pinned where there is CUDA.

The global batch at number s is the rows s ... s + B - 1. Process r of R has the slots r, r + R, ...: its row j is number s + r + jR.
Its streams are dealt to worker processes, each of which reads its own rows of every batch; the parent puts them in their
slots. Neither R nor the number of workers changes a batch. Masks are applied, documents numbered and sources looked up by the worker.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from open_lm.data.batch import Batch
from open_lm.data.losses import NOTHING_LOST, Lost
from open_lm.data.masks import NO_MASKS, Masks
from open_lm.data.rows import RowReader, Rows
from open_lm.data.slots import Slots
from open_lm.data.worker_signals import leave_signals_to_the_parent
from open_lm.params.fields import counted
from open_lm.shards.members import MASKED

__all__ = ["MASKED", "Loader", "LoaderShape", "allowed_processes", "check_processes", "validation_shape"]

_log = logging.getLogger(__name__)
_PREFETCH = 4
"""Batches that each worker is ahead of training."""
_SLOTS = _PREFETCH + 2
"""Parts of batches that each worker has memory for: those ahead, the one that is copied, and one to spare."""


def allowed_processes(global_batch_size: int, streams: int) -> list[int]:
    """Numbers of processes that a run may have: the common divisors of its batch and its streams."""
    common = math.gcd(global_batch_size, streams)
    return [n for n in range(1, common + 1) if common % n == 0]


def check_processes(world_size: int, global_batch_size: int, streams: int) -> None:
    """Raises ValueError unless the processes divide the batch and the streams, naming the numbers of processes that do."""
    found = allowed_processes(global_batch_size, streams)
    if world_size in found:
        return
    allowed = ", ".join([*map(str, found[:-1]), counted(found[-1], "process")])
    also = f" and --data-streams {streams}" if streams != global_batch_size else ""
    raise ValueError(f"--global-batch-size {global_batch_size}{also}: {world_size} processes don't divide it; run {allowed}")


@dataclass(frozen=True)
class LoaderShape:
    """Which rows a process reads.

    Args:
        rank, world_size: r and R.
        global_batch_size: B, rows of a batch over all processes.
        streams: L; a multiple of R.
        start: number of the first row, any.
        stop: numbers from here on are not read; a batch that would need them is not given. None goes on for ever.
    """

    rank: int
    world_size: int
    global_batch_size: int
    streams: int
    start: int = 0
    stop: int | None = None

    @property
    def local_batch_size(self) -> int:
        """Rows of a batch in this process."""
        return self.global_batch_size // self.world_size

    @property
    def local_streams(self) -> int:
        """Streams of this process."""
        return self.streams // self.world_size

    def numbers(self, start: int) -> np.ndarray:
        """int64 [local_batch_size]: numbers of this process's rows in the batch at `start`."""
        return start + self.rank + np.arange(self.local_batch_size) * self.world_size

    def workers_of(self, numbers: np.ndarray, workers: int) -> np.ndarray:
        """The worker that reads each number: the process's streams are dealt in turn."""
        return numbers % self.streams // self.world_size % workers

    def most_of_a_worker(self, workers: int) -> int:
        """The most rows of a batch that one worker reads, at any start: the streams follow each other in rounds, dealt in turn."""
        rounds, rest = divmod(self.local_batch_size, self.local_streams)
        return rounds * -(-self.local_streams // workers) + min(rest, -(-rest // workers) + 1)

    def batch_starts(self, start: int) -> Iterator[int]:
        """Number of the first row of each batch from `start` on."""
        while self.stop is None or start + self.global_batch_size <= self.stop:
            yield start
            start += self.global_batch_size


def validation_shape(count: int, *, rank: int, world_size: int, global_batch_size: int) -> LoaderShape:
    """The shape that reads `count` rows once, on any number of processes: the batch is rounded up to a multiple of them.

    Every process takes part in every batch; of the last one the rows from `count` on are fully masked.
    """
    batch = -(-global_batch_size // world_size) * world_size
    return LoaderShape(rank, world_size, batch, streams=batch, stop=-(-count // batch) * batch)


@dataclass(frozen=True, eq=False)
class _Part:
    """A worker's rows of the batch at `start`; or why it can't go on. `fetched_bytes`: so far, from elsewhere.

    The rows, tokens int32, are `batch` in the training process; a worker process puts them into its slot of the turn.
    """

    worker: int
    start: int
    turn: int = 0
    rows: int = 0
    batch: Batch | None = None
    problem: str = ""
    lost: Lost = NOTHING_LOST
    fetched_bytes: int = 0


@dataclass(frozen=True)
class _Contents:
    """What a batch holds beside the tokens as they were read."""

    masks: Masks
    sources: bool

    def read(self, reader: RowReader, numbers: np.ndarray) -> Batch:
        """The rows of some numbers, tokens int32."""
        tokens = self.masks.apply(reader.read(numbers))
        documents = self.masks.document_ids(tokens)
        return Batch(
            torch.from_numpy(tokens),
            None if documents is None else torch.from_numpy(documents),
            torch.from_numpy(reader.sources(numbers)) if self.sources else None,
        )

    def slots(self, workers: int, rows: int, row_length: int) -> Slots:
        """Memory for the workers' parts of batches."""
        documents = self.masks.document_end is not None
        return Slots(workers, _SLOTS, rows, row_length, documents=documents, sources=self.sources)

    def empty(self, rows: int, row_length: int, pin: bool) -> Batch:
        """A batch to be filled."""
        documents = self.masks.document_end is not None
        return Batch(
            torch.empty((rows, row_length), dtype=torch.int64, pin_memory=pin),
            torch.empty((rows, row_length - 1), dtype=torch.int32, pin_memory=pin) if documents else None,
            torch.empty(rows, dtype=torch.int64, pin_memory=pin) if self.sources else None,
        )


class _WorkerParts(IterableDataset[_Part]):
    """Iterated in a worker process, or in the training process when there is none."""

    def __init__(self, rows: Rows, shape: LoaderShape, contents: _Contents, slots: Slots | None):
        self._rows, self._shape, self._contents, self._slots = rows, shape, contents, slots

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            leave_signals_to_the_parent()
        reader = self._rows.reader(-(-self._shape.local_streams // workers), self._shape.stop)
        try:
            for turn, start in enumerate(self._shape.batch_starts(self._shape.start)):
                numbers = self._shape.numbers(start)
                mine = numbers[self._shape.workers_of(numbers, workers) == worker]
                try:
                    batch = self._contents.read(reader, mine)
                except (ValueError, OSError) as error:  # a line for the user instead of a traceback of two processes
                    yield _Part(worker, start, problem=str(error) or repr(error))
                    return
                if self._slots is not None:
                    self._slots.put(worker, turn, start, batch)
                kept = batch if self._slots is None else None
                yield _Part(worker, start, turn, len(mine), kept, lost=reader.losses.take(), fetched_bytes=reader.fetched_bytes)
        finally:
            reader.close()


def _rows_of(owner: np.ndarray, worker: int) -> slice | torch.Tensor:
    """The slots of a worker, as a slice where they are evenly spaced: that is copied faster."""
    rows = np.flatnonzero(owner == worker)
    steps = np.diff(rows)
    if len(rows) and (steps == steps[:1]).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]) if len(steps) else 1)
    return torch.from_numpy(rows)


class Loader:
    """The batches of one process, in order, from a number on. Close it, or use it in a `with`.

    Args:
        rows: what is read.
        shape: which rows of it.
        workers: processes that read; 0 reads in this one. At most one for each stream of the process is started.
        masks: of targets and documents, for training data.
        sources: give the source of each row as well.
        tolerate: share of this process's rows of the whole run that may be lost, where `rows` masks what can't be read.
        rows_before: of the run, that come before the number 0.
        lost_before: rows of the run that were lost before `shape.start`, on all processes.
        tell: is called with a line for each shard or member that is lost, beside the log, which other processes than the first lack.

    Attributes:
        next_number: number of the first row of the next batch.
        wait_seconds: time that the caller has waited for batches.
        tolerate: as given.
        lost_rows: rows that could not be read and are fully masked: of this process, with its part of `lost_before`.
        fetched_bytes: that this process and its workers brought from elsewhere.

    Raises:
        ValueError: the processes don't divide batch and streams; while iterating: what can't be read, with its shard.
    """

    def __init__(
        self,
        rows: Rows,
        shape: LoaderShape,
        workers: int,
        tolerate: float = 0.0,
        masks: Masks = NO_MASKS,
        sources: bool = False,
        rows_before: int = 0,
        lost_before: int = 0,
        tell: Callable[[str], None] | None = None,
    ):
        check_processes(shape.world_size, shape.global_batch_size, shape.streams)
        if workers < 0:
            raise ValueError(f"--workers {workers}: give 0 or more")
        self._shape, self._row_length, self._contents = shape, rows.seq_len + 1, _Contents(masks, sources)
        self.workers = min(workers, shape.local_streams)
        if self.workers < workers:
            idle = workers - self.workers
            _log.info(
                f"--workers {workers}: this process has {counted(shape.local_streams, 'stream')}, so {counted(idle, 'worker')} too many"
            )
        self.next_number, self.wait_seconds = shape.start, 0.0
        self.tolerate, self._rows_before, self._why = tolerate, rows_before, ""
        self._tell, self._named = tell, set[str]()
        self.lost_rows = len(range(shape.rank, lost_before, shape.world_size))
        self._fetched = [0] * max(1, self.workers)
        self._pin = torch.cuda.is_available()
        self._slots = self._contents.slots(self.workers, shape.most_of_a_worker(self.workers), self._row_length) if self.workers else None
        self._parts: Iterator[_Part] | None = self._start(_WorkerParts(rows, shape, self._contents, self._slots))

    def _start(self, parts: _WorkerParts) -> Iterator[_Part]:
        if self.workers == 0:
            return iter(parts)
        # its own generator: torch's global one is the model's, and stays the same with any number of workers
        generator = torch.Generator()
        ahead: dict[str, Any] = {"prefetch_factor": _PREFETCH, "multiprocessing_context": "fork"}  # the slots are inherited
        return iter(webdataset.WebLoader(parts, batch_size=None, num_workers=self.workers, generator=generator, **ahead))

    @property
    def fetched_bytes(self) -> int:
        """Read from elsewhere by this process and its workers so far."""
        return sum(self._fetched)

    def __iter__(self) -> Iterator[Batch]:
        for start in self._shape.batch_starts(self.next_number):
            began = time.perf_counter()
            try:
                batch = self._assemble(start)
            except BaseException:  # torch tells of a killed worker from a signal handler, wherever the program is
                self.close()
                raise
            self.next_number = start + self._shape.global_batch_size
            self.wait_seconds += time.perf_counter() - began
            yield batch

    def _assemble(self, start: int) -> Batch:
        """The batch at `start`, put together from the workers' parts."""
        batch = self._contents.empty(self._shape.local_batch_size, self._row_length, self._pin)
        workers = max(1, self.workers)
        owner = self._shape.workers_of(self._shape.numbers(start), workers)
        for worker in range(workers):
            if self._parts is None:
                raise ValueError("the loader is closed")
            part = self._next_part(self._parts)
            if part.problem:
                self.close()
                raise ValueError(part.problem)
            assert (part.worker, part.start) == (worker, start), "a worker's part is out of order"
            self._fetched[worker] = part.fetched_bytes
            self._lose(part.lost)
            rows = slice(None) if workers == 1 else _rows_of(owner, worker)
            if part.batch is not None:
                batch.put(rows, part.batch)
            elif self._slots is not None:
                self._slots.take(worker, part.turn, start, rows, part.rows, batch)
        return batch

    def log_lines(self) -> list[str]:
        """What the log says about this process's data when it is through."""
        if not self.fetched_bytes:
            return []
        rows = (self.next_number - self._shape.start) // self._shape.world_size
        each = self.fetched_bytes / max(1, rows)
        return [f"data: this process fetched {self.fetched_bytes / 1e6:,.1f} MB from elsewhere for {rows} rows, {each:,.0f} bytes a row"]

    def _lose(self, lost: Lost) -> None:
        """Count and name lost rows. Raises ValueError above the share that may be lost."""
        if not lost.rows:
            return
        for name, why in lost.why:
            self._why = why
            if name not in self._named:  # several workers read of one shard
                self._named.add(name)
                _log.warning(f"{why}; its rows are masked")
                if self._tell:
                    self._tell(f"{why}; its rows are masked")
        self.lost_rows += lost.rows
        end = self._shape.stop or self.next_number + self._shape.global_batch_size
        rows = (self._rows_before + end) // self._shape.world_size
        if self.lost_rows > self.tolerate * rows:
            self.close()
            raise ValueError(
                f"{self._why}; {counted(self.lost_rows, 'row')} lost, more than --data-tolerate-error-p "
                f"{self.tolerate:g} of this process's {rows} rows"
            )

    def _next_part(self, parts: Iterator[_Part]) -> _Part:
        try:
            return next(parts)
        except (RuntimeError, ConnectionError, EOFError) as error:
            if self.workers == 0:
                raise
            self.close()  # a killed worker shows as any of these, depending on where it was
            why = " ".join(str(error).split())[:200]
            raise ChildProcessError(f"a data worker ended before its time, perhaps killed for want of memory: {why}") from error

    def close(self) -> None:
        """End the workers."""
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()  # type: ignore[attr-defined]  # both kinds are generators

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
