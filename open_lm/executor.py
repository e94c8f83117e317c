"""Where tasks run: anything that maps a function over tasks and hands each result over as it is there.

Tasks are pure and can be done again: (task) in, result out, both picklable; the function is a module's own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from open_lm.progress import Progress

T = TypeVar("T")
R = TypeVar("R")

DEATHS_ALLOWED = 3
"""Times in a row, without a task that ended well between, that worker processes may die."""

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs tasks somewhere."""

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(index of the task, its result) in the order in which they finish. The first exception of a task ends the map."""
        ...


class LocalExecutor:
    """Processes of this machine, forked from a clean server process; with one worker, this process itself.

    Use it as a context: leaving it ends the processes, at once when an exception leaves it.

    Args:
        workers: processes.
        preload: modules that the server imports before it forks, so that the workers share their memory.
        environment: more environment variables of the server and the workers.
    """

    def __init__(self, workers: int, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None):
        self.workers = workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._context: multiprocessing.context.BaseContext | None = None
        self._preload, self._environment = list(preload), dict(environment or {})

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        idle = self._context is not None and (self._pool is None or kind is not None)
        self._end_pool(at_once=kind is not None)
        if idle:
            _end_server()

    def start(self) -> None:
        """Start the server, which imports and loads while the caller goes on."""
        if self.workers > 1 and self._context is None:
            self._context = self._start_server()

    def wait(self) -> None:
        """Return when a worker is ready."""
        with Progress("starting the workers"):
            list(self.map(_nothing, [None]))

    def map(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """As `Executor.map`. A task whose worker was killed is done again.

        Raises:
            RuntimeError: workers die again and again.
        """
        if self.workers == 1:
            _one_thread()
            yield from ((index, function(task)) for index, task in enumerate(tasks))
            return
        left, deaths = dict(enumerate(tasks)), 0
        while left:
            try:
                for index, result in self._finished(function, left):
                    del left[index]
                    deaths = 0
                    yield index, result
            except BrokenProcessPool:
                deaths += 1
                self._end_pool(at_once=True)
                if deaths >= DEATHS_ALLOWED:
                    remedy = "use fewer --num-workers, a smaller --memory-limit, or more memory"
                    raise RuntimeError(f"worker processes were killed {deaths} times in a row (out of memory?); {remedy}") from None
                log.warning("a worker process was killed; its work is done again")

    def _finished(self, function: Callable[[T], R], tasks: Mapping[int, T]) -> Iterator[tuple[int, R]]:
        """Results as they finish; only as many tasks are handed out as keep every worker busy."""
        pool, waiting = self._ready_pool(), iter(list(tasks.items()))
        running: dict[concurrent.futures.Future[R], int] = {}
        while True:
            for index, task in waiting:
                running[pool.submit(function, task)] = index
                if len(running) > self.workers:
                    break
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()

    def _ready_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            self.start()
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self.workers, mp_context=self._context, initializer=_start_worker, initargs=(dict(os.environ),)
            )
        return self._pool

    def _start_server(self) -> multiprocessing.context.BaseContext:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(self._preload)
        # the server knows neither our sys.path nor, later, our environment
        paths = [str(Path(path).absolute()) for path in sys.path if path]
        with _set_environment({**self._environment, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}):
            from multiprocessing import forkserver, resource_tracker

            resource_tracker.ensure_running()  # it would unblock the signal again
            # a terminal's interrupt is the first process's affair, also while the server imports; its children inherit that
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                forkserver.ensure_running()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return context

    def _end_pool(self, at_once: bool) -> None:
        if self._pool is None:
            return
        if at_once:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


def _end_server() -> None:
    """End a server that may still import, and read what its first process is about to remove or unmount."""
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int | None, what: str, unit: str) -> Iterator[tuple[int, R]]:
    """`LocalExecutor.map` by processes of its own; its progress is shown.

    Args:
        workers: processes, all cores by default; one does the work in this process.
        what, unit: as in `Progress`.
    """
    with LocalExecutor(max(1, min(workers or available_cores(), len(tasks)))) as executor:
        yield from Progress(what, len(tasks), unit).over(executor.map(function, tasks))


_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A worker is one of many: the tokenizer library must not start a thread for every core in each."""


def _nothing(task: None) -> None:
    """A task that shows that a worker is there."""


def _one_thread() -> None:
    os.environ.update(_ONE_THREAD)


@contextlib.contextmanager
def _set_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker(environment: dict[str, str]) -> None:
    """In each worker: the first process's environment as it is now (the server has that of its start: other credentials, perhaps);
    one thread; no life after its death."""
    os.environ.update(environment)
    _one_thread()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
