"""A remote file as a seekable binary file that survives faults.

Blocks come by ranged requests: 1 MiB where reading begins, then twice as much each time up to 8 MiB, the next one on its way while this
one is read. A block that fails is asked for again, so reading goes on at the byte it had reached. Memory: two blocks.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import IO, Any

from open_lm.storage.faults import retry
from open_lm.storage.source import Source, open_source
from open_lm.storage.urls import is_remote, local_path

_FIRST, _LARGEST = 1 << 20, 8 << 20
_BUFFER = 128 << 10


def open_read(url: str) -> IO[bytes]:
    """Open for reading, seekable, decompression left to the caller.

    Raises (also while it is read) FileNotFoundError, StorageError, and ValueError for a url that can't work.
    """
    if not is_remote(url):
        return open(local_path(url), "rb")
    return io.BufferedReader(RemoteReader(url, open_source(url)), _BUFFER)


def read_bytes(url: str) -> bytes:
    """The whole content."""
    with open_read(url) as file:
        return file.read()


class Ahead:
    """A block that a thread fetches while another one is read."""

    def __init__(self, fetch: Callable[[int, int], bytes], start: int, stop: int):
        self.start = start
        self._data = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(fetch, start, stop), name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self, fetch: Callable[[int, int], bytes], start: int, stop: int) -> None:
        try:
            self._data = fetch(start, stop)
        except BaseException as error:
            self._error = error  # raised where the block is needed

    def result(self) -> bytes:
        """The block, or its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._data


class RemoteReader(io.RawIOBase):
    """Reads a source. The first block is fetched at once, so that a missing file is an error of opening it."""

    def __init__(self, url: str, source: Source):
        self.name = url
        self._source = source
        self._closing = threading.Event()
        self._ahead: Ahead | None = None
        self._position = self._start = 0
        self._step = _FIRST
        self._ended_at: int | None = None  # the end of a file whose server didn't tell its size
        self._block = self._fetch(0, _FIRST)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = 0
        if whence == io.SEEK_CUR:
            base = self._position
        elif whence == io.SEEK_END:
            size = self._size()
            if size is None:
                raise io.UnsupportedOperation(f"{self.name}: the server doesn't tell the size")
            base = size
        if base + offset < 0:
            raise ValueError(f"{self.name}: seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = self._size()
        if not view or (size is not None and self._position >= size):
            return 0
        if not self._start <= self._position < self._start + len(self._block):
            self._load(self._position)
        at = self._position - self._start
        count = min(len(view), len(self._block) - at)
        view[:count] = memoryview(self._block)[at : at + count]
        self._position += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._closing.set()
            self._block, self._ahead = b"", None
            self._source.close()
        super().close()

    def _size(self) -> int | None:
        return self._ended_at if self._source.total is None else self._source.total

    def _load(self, start: int) -> None:
        """The block that begins at `start`, and the request for the one after it."""
        sequential = start == self._start + len(self._block)
        self._step = min(2 * self._step, _LARGEST) if sequential else _FIRST
        self._block = b""
        data, step = self._awaited(start), self._step
        if data is None:
            data = self._fetch(start, start + step)
        self._start, self._block = start, data
        end, size = start + len(data), self._size()
        if sequential and data and (size is None or end < size):
            self._ahead = Ahead(self._fetch, end, end + min(2 * step, _LARGEST))

    def _awaited(self, start: int) -> bytes | None:
        """The block on its way, when it is the one that is needed."""
        ahead, self._ahead = self._ahead, None
        return ahead.result() if ahead is not None and ahead.start == start else None

    def _fetch(self, start: int, stop: int) -> bytes:
        data = retry(self.name, lambda: self._source.fetch(start, stop), self._closing)
        if self._source.total is None and len(data) < stop - start:
            self._ended_at = start + len(data)
        return data
