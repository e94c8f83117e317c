"""The same work on many shards, in several processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int | None, about: str) -> Iterator[tuple[int, R]]:
    """(index of the task, its result) in the order in which they finish, with a progress bar on a terminal.

    Args:
        function: of a module; tasks and results are pickled.
        workers: processes, all cores by default; one does the work in this process.
        about: what the progress bar counts.

    Raises:
        RuntimeError: a process died. The first exception of a task ends all.
    """
    from tqdm import tqdm

    workers = min(workers or available_cores(), len(tasks))
    found = enumerate(map(function, tasks)) if workers <= 1 else _finished(function, tasks, workers)
    yield from tqdm(found, total=len(tasks), unit=about, disable=None, leave=False)


def _finished(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Iterator[tuple[int, R]]:
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    waiting, running = iter(enumerate(tasks)), dict[concurrent.futures.Future[R], int]()
    try:
        while True:
            for index, task in waiting:
                running[pool.submit(function, task)] = index
                if len(running) >= 2 * workers:  # enough to keep every process busy
                    break
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise RuntimeError("a process died (killed, or out of memory?); use fewer --num-workers, or more memory") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
