"""Shards on their way into the cache while others are read: a few threads of one process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from open_lm.data.cache import ShardCache, Wanted
from open_lm.data.places import Remote

_THREADS = 4


class Fetcher:
    """Fetches shards that will be needed. `path` gives those that are.

    Args:
        cache: where they go.
    """

    def __init__(self, cache: ShardCache):
        self.cache = cache
        self._on_the_way: dict[Remote, Future[Path]] = {}
        self._queue: queue.SimpleQueue[tuple[Wanted, Future[Path]]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def ahead(self, shards: Iterable[Wanted]) -> None:
        """Begin to fetch shards, in this order."""
        for shard in shards:
            if shard.place in self._on_the_way:
                continue
            future = self._on_the_way[shard.place] = Future[Path]()
            self._queue.put((shard, future))
            if len(self._threads) < min(_THREADS, len(self._on_the_way)):
                self._threads.append(threading.Thread(target=self._run, name="fetch-shards", daemon=True))
                self._threads[-1].start()

    def path(self, shard: Wanted) -> Path:
        """The local file of a shard, as `ShardCache.enter` gives it; waits for it.

        Raises:
            OSError, ValueError: can't be fetched; names it.
        """
        future = self._on_the_way.pop(shard.place, None)
        if future is None or future.cancel():  # not begun: no reason to wait for those before it
            return self.cache.enter(shard, self._closing)
        path = future.result()
        return path if path.exists() else self.cache.enter(shard, self._closing)

    def close(self) -> None:
        """End what is on its way."""
        self._closing.set()
        for _ in self._threads:
            self._queue.put((Wanted(Remote(""), None, None), Future()))  # wakes a thread that waits

    def _run(self) -> None:
        while True:
            shard, future = self._queue.get()
            if self._closing.is_set():
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self.cache.enter(shard, self._closing))
            except BaseException as error:  # raised where the shard is needed
                future.set_exception(error)
