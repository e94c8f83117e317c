"""Where tasks run: anything that maps a function over tasks and hands each result over as it is there.

Tasks are pure and can be done again: (task) in, result out, both picklable; the function is a module's own.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs tasks somewhere."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index of the task, its result) in the order in which they finish. The first exception of a task ends the map."""
        ...


class LocalExecutor:
    """Processes of this machine; with one worker, this process itself."""

    def __init__(self, workers: int):
        self.workers = workers

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """As `Executor.map`. Raises RuntimeError when a worker process dies."""
        if self.workers == 1 or len(tasks) == 1:
            _one_thread()
            for index, task in enumerate(tasks):
                yield index, function(task)
            return
        pool = concurrent.futures.ProcessPoolExecutor(
            min(self.workers, len(tasks)) or 1, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread
        )
        try:
            yield from self._finished(pool, function, tasks)
        except BrokenProcessPool:
            raise RuntimeError("a worker process died (killed, or out of memory?); use fewer --num-workers, or more memory") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _finished(
        self, pool: concurrent.futures.ProcessPoolExecutor, function: Callable[[T], R], tasks: Sequence[T]
    ) -> Iterator[tuple[int, R]]:
        waiting = iter(enumerate(tasks))
        running: dict[concurrent.futures.Future[R], int] = {}
        while True:
            for index, task in waiting:
                running[pool.submit(function, task)] = index
                if len(running) >= 2 * self.workers:  # enough to keep every worker busy, few to drop on an error
                    break
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _one_thread() -> None:
    """A worker is one of many: the tokenizer library must not start a thread for every core in each."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
