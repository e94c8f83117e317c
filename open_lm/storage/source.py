"""Where a remote reader gets its bytes: ranges of a file on S3, on a web server, or on any fsspec file system."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from open_lm.storage.faults import CutShortError, StorageError
from open_lm.storage.remote import filesystem, is_http, is_s3
from open_lm.storage.s3 import Bucket


class Source(Protocol):
    """A remote file. `total` is its bytes, None until known."""

    total: int | None

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes `start <= i < stop`, fewer at the end of the file only. One attempt. May be called from several threads."""
        ...

    def close(self) -> None:
        """End what is still open."""
        ...


def open_source(url: str) -> Source:
    """The source of a remote url. Sends no request."""
    if is_s3(url):
        return S3Source(url)
    return WebSource(url) if is_http(url) else FilesystemSource(url)


class _Watched:
    """Remembers which version of the file was read first; another one is an error."""

    def __init__(self, url: str):
        self.url = url
        self.total: int | None = None
        self.stamp: str | None = None

    def _is_version(self, total: int | None, stamp: str) -> None:
        if self.stamp is not None and (total, stamp) != (self.total, self.stamp):
            raise StorageError(f"{self.url}: changed while it was read; read it again when nothing writes to it")
        self.total, self.stamp = total, stamp

    def close(self) -> None:
        """Nothing stays open between requests."""


class S3Source(_Watched):
    """An object of an S3 store."""

    def __init__(self, url: str):
        super().__init__(url)
        self._bucket = Bucket(url)

    def fetch(self, start: int, stop: int) -> bytes:
        part = self._bucket.read(start, stop)
        self._is_version(part.total, part.stamp)
        return part.data


class WebSource(_Watched):
    """A file on a web server. One that ignores ranges is read as a stream, from the front again after a fault or a step back."""

    def __init__(self, url: str):
        super().__init__(url)
        self._filesystem, self._path = filesystem(url)
        self._stream: Any = None  # the answer of a server without ranges, read up to _at
        self._at = 0
        self._lock = threading.Lock()

    def fetch(self, start: int, stop: int) -> bytes:
        import fsspec.asyn

        with self._lock:
            return fsspec.asyn.sync(self._filesystem.loop, self._fetch, start, stop)

    def close(self) -> None:
        if self._stream is not None:
            self._filesystem.loop.call_soon_threadsafe(self._drop_stream)

    async def _fetch(self, start: int, stop: int) -> bytes:
        if self._stream is not None and self._at <= start:
            return await self._from_stream(start, stop)
        self._drop_stream()
        session = await self._filesystem.set_session()
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        answer = await session.get(self._filesystem.encode_url(self._path), headers=headers)
        try:
            if answer.status != 416:  # what a server says of an empty file, or of a start at its end
                self._filesystem._raise_not_found_for_status(answer, self.url)
            self._is_version(_total(answer), answer.headers.get("ETag") or answer.headers.get("Last-Modified", ""))
            if answer.status == 416:
                return b""
            if answer.status == 206:
                return _whole(await answer.read(), start, stop, self.total)
            self._stream, self._at = answer, 0
            return await self._from_stream(start, stop)
        finally:
            if answer is not self._stream:
                answer.release()

    async def _from_stream(self, start: int, stop: int) -> bytes:
        kept = bytearray()
        try:
            while self._at < stop:
                data = await self._stream.content.read(min(1 << 20, stop - self._at))
                if not data:
                    break
                kept += data[max(0, start - self._at) :]
                self._at += len(data)
            return _whole(bytes(kept), start, stop, self.total)
        except BaseException:
            self._drop_stream()
            raise

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _total(answer: Any) -> int | None:
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status == 200 and answer.headers.get("Content-Encoding", "identity") == "identity":
        size = answer.headers.get("Content-Length", "")
    return int(size) if size.isdigit() else None


def _whole(data: bytes, start: int, stop: int, total: int | None) -> bytes:
    if total is not None and len(data) != min(stop, total) - start:
        raise CutShortError(f"{len(data)} of {min(stop, total) - start} bytes came")
    return data


class FilesystemSource:
    """A file on any other fsspec file system."""

    def __init__(self, url: str):
        self._filesystem, self._path = filesystem(url)
        self._uncached = {} if self._filesystem.async_impl else {"cache_type": "none"}
        self.total: int | None = None

    def fetch(self, start: int, stop: int) -> bytes:
        if self.total is None:
            info = self._filesystem.info(self._path)
            if info["type"] == "directory":
                raise IsADirectoryError(self._path)
            self.total = int(info["size"])
        stop = min(stop, self.total)
        if stop <= start:
            return b""
        return _whole(self._filesystem.cat_file(self._path, start=start, end=stop, **self._uncached), start, stop, self.total)

    def close(self) -> None:
        """Nothing stays open between requests."""
