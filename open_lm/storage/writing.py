"""Writing, uploading and removing files. A remote file appears under its name when it is whole, and is then compared with what was sent.

On S3: one request up to 16 MiB, else a multipart upload, completed or aborted. A process killed in the middle leaves no object, but
parts that the store keeps until a lifecycle rule (AbortIncompleteMultipartUpload) or a person removes them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from open_lm.storage.faults import MismatchError, StorageError, explained, retry
from open_lm.storage.listing import Stored, stat
from open_lm.storage.local import atomic_write
from open_lm.storage.reader import open_read
from open_lm.storage.remote import filesystem, is_http, is_s3
from open_lm.storage.s3 import Bucket
from open_lm.storage.urls import is_remote, local_path, scheme

_SINGLE = 16 << 20
_PART = 8 << 20
_MOST_PARTS = 10_000
_THREADS = 4
_OBJECT_STORES = ("gs", "gcs", "abfs", "az", "hf")
_HASHED = 1 << 20

log = logging.getLogger(__name__)


class Payload(NamedTuple):
    """What is sent: its bytes, any range of them (start, stop), and how all go to a path of an fsspec file system."""

    size: int
    read: Callable[[int, int], bytes]
    put: Callable[[Any, str], None]


def upload(path: str | Path, url: str, stop: threading.Event | None = None) -> Stored:
    """Copy a local file to a url, whole or not at all, and compare size and checksum on the other side. Returns what lies there.

    Memory: four parts of 8 MiB (more for files above 80 GB).

    Args:
        stop: when set, no further part is sent and no attempt is made again; the upload ends with StorageError.

    Raises:
        StorageError: after all attempts; there is then no half file under the name.
        FileNotFoundError: no local file.
        ValueError: the local file changed meanwhile, or the url can't be written.
    """
    with open(path, "rb") as file:
        if not is_remote(url):
            with atomic_write(local_path(url), size=os.fstat(file.fileno()).st_size) as copy:
                shutil.copyfileobj(file, copy, _HASHED)
            return stat(url)
        before = os.fstat(file.fileno())
        read = partial(_pread_until, file.fileno(), url, stop)
        put = lambda clients, there: clients.put_file(str(path), there)  # noqa: E731
        stored = _send_and_compare(url, Payload(before.st_size, read, put), stop)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ValueError(f"{path}: changed while it was uploaded to {url}; upload it again when nothing writes to it")
    return stored


def write_bytes(url: str, data: bytes) -> Stored:
    """A whole file at once: locally atomic and flushed, remotely as `upload` does it."""
    if is_remote(url):
        read, put = lambda start, stop: data[start:stop], lambda clients, there: clients.pipe_file(there, data)
        return _send_and_compare(url, Payload(len(data), read, put))
    with atomic_write(local_path(url), size=len(data)) as file:
        file.write(data)
    return stat(url)


def remove(url: str) -> None:
    """Remove a file; that it doesn't exist is no error."""
    if not is_remote(url):
        local_path(url).unlink(missing_ok=True)
    elif is_s3(url):
        bucket = Bucket(url)
        retry(url, lambda: bucket.call("delete_object", Key=bucket.key))
    else:
        clients, path = filesystem(url)
        try:
            retry(url, lambda: clients.rm_file(path))
        except FileNotFoundError:
            return


def _pread_until(file: int, url: str, stopped: threading.Event | None, start: int, stop: int) -> bytes:
    if stopped is not None and stopped.is_set():
        raise StorageError(f"{url}: the upload was stopped")
    return _pread(file, start, stop)


def _pread(file: int, start: int, stop: int) -> bytes:
    data = b""
    while start + len(data) < stop:
        more = os.pread(file, stop - start - len(data), start + len(data))
        if not more:
            raise ValueError(
                f"a file of which {stop} bytes are to be uploaded has only {start + len(data)}; does something still write to it?"
            )
        data += more
    return data


def _send_and_compare(url: str, payload: Payload, stop: threading.Event | None = None) -> Stored:
    if is_http(url):
        raise ValueError(f"{url}: a web server can't be written to; give a local folder or s3://bucket/path")
    if is_s3(url) and not Bucket(url).key:
        raise ValueError(f"{url}: names a bucket only; write s3://bucket/path")

    def once() -> Stored:
        if is_s3(url):
            return _compare(url, payload, _s3_send(url, payload))
        _send(url, payload)
        return _compare(url, payload, None)

    return retry(url, once, stop)


def _compare(url: str, payload: Payload, expected: str | None) -> Stored:
    """What lies at the url, when it is what was sent; an ETag that is no MD5 (encrypted stores) is decided by reading it back."""
    stored = stat(url)
    if stored.size != payload.size:
        raise MismatchError(f"{stored.size} bytes arrived of {payload.size}")
    if stored.stamp != expected and _sha256_there(url) != _sha256(payload):
        raise MismatchError("the checksum on the other side is another one")
    return stored


def _sha256_there(url: str) -> bytes:
    digest = hashlib.sha256()
    try:
        with open_read(url) as file:
            while data := file.read(_HASHED):
                digest.update(data)
    except StorageError as error:
        if isinstance(error.__cause__, MismatchError):  # the store's own checksum says so
            raise error.__cause__ from None
        raise
    return digest.digest()


def _sha256(payload: Payload) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, payload.size, _HASHED):
        digest.update(payload.read(start, min(start + _HASHED, payload.size)))
    return digest.digest()


def _send(url: str, payload: Payload) -> None:
    """To any other fsspec file system: an object store shows a file when it is whole, elsewhere it gets its name then."""
    clients, path = filesystem(url)
    if scheme(url) in _OBJECT_STORES:
        payload.put(clients, path)
        return
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/.{name}.tmp"
    clients.makedirs(folder, exist_ok=True)
    payload.put(clients, temporary)
    clients.mv(temporary, path)


def part_ranges(size: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of a multipart upload: at most 10,000, all but the last of one multiple of 8 MiB."""
    part = _PART * -(-size // (_PART * _MOST_PARTS))
    return [(start, min(start + part, size)) for start in range(0, size, part)]


def _s3_send(url: str, payload: Payload) -> str:
    """One attempt at an object; the ETag it must have when the store makes ETags of MD5 sums."""
    bucket = Bucket(url)
    if payload.size <= _SINGLE:
        data = payload.read(0, payload.size)
        retry(url, lambda: bucket.call("put_object", Key=bucket.key, Body=data))
        return _md5(data).hexdigest()
    ranges = part_ranges(payload.size)
    with _multipart(url, bucket) as (names, stop):

        def send(number: int) -> tuple[dict[str, Any], bytes]:
            data = payload.read(*ranges[number])
            answer = retry(url, lambda: bucket.call("upload_part", PartNumber=number + 1, Body=data, **names), stop)
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}, _md5(data).digest()

        parts, sums = zip(*_in_threads(send, len(ranges), stop))
        _complete(url, bucket, names, list(parts))
    return f"{_md5(b''.join(sums)).hexdigest()}-{len(sums)}"


@contextmanager
def _multipart(url: str, bucket: Bucket) -> Iterator[tuple[dict[str, str], threading.Event]]:
    """A multipart upload that is aborted on any error: its names (Key, UploadId), and an event that ends the waiting of its threads."""
    answer = retry(url, lambda: bucket.call("create_multipart_upload", Key=bucket.key))
    names = {"Key": bucket.key, "UploadId": answer["UploadId"]}
    try:
        yield names, threading.Event()
    except BaseException:
        try:
            retry(url, lambda: bucket.call("abort_multipart_upload", **names))
        except FileNotFoundError:
            pass  # it was completed, and only the answer got lost
        except (OSError, ValueError) as error:
            log.warning("%s; the store still holds parts of the upload %s", error, names["UploadId"])
        raise


def _in_threads(send: Callable[[int], Any], count: int, stop: threading.Event) -> list[Any]:
    """The results of send(0) .. send(count - 1); the first error ends the others' waiting, and is raised when all have ended."""
    pool = ThreadPoolExecutor(min(_THREADS, count))
    try:
        return list(pool.map(send, range(count)))
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _complete(url: str, bucket: Bucket, names: dict[str, str], parts: list[dict[str, Any]]) -> None:
    """Complete a multipart upload. "No such upload" after a lost answer means that it is done: comparing decides."""
    tried = 0

    def once() -> None:
        nonlocal tried
        tried += 1
        try:
            bucket.call("complete_multipart_upload", MultipartUpload={"Parts": parts}, **names)
        except FileNotFoundError as error:
            if tried == 1:
                raise explained(url, error) from error

    retry(url, once)


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
