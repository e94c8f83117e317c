"""Whole shards from elsewhere, kept as local files in a folder of bounded size: the ones used last stay.

Any number of processes may share a folder. A shard is fetched by one of them (a lock on one of 256 files), appears under its name
when it is whole and compared with its manifest, and is removed when room is needed; who has it open reads on. The name of a cached
shard tells what it is: url, bytes, and sha256 or the store's stamp. A private folder belongs to one process and its children,
and is removed at its end; what a killed process left is removed by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from open_lm import storage
from open_lm.data.places import Remote, open_place
from open_lm.params.sizes import parse_size
from open_lm.storage.faults import StorageError, retry

_log = logging.getLogger(__name__)
_BLOCK = 4 << 20
_FETCHES = 2
"""Times that a shard is fetched when what came is not what its manifest says."""
_ABANDONED = 3600.0
"""Seconds without a write after which an unfinished file belongs to a dead process."""
_NEW = 60.0
_PRIVATE = "open_lm-shards-"
_OURS = re.compile(r"[0-9a-f]{32}\.(tar|part)")
"""Names of cached shards: whatever else lies in the folder is left alone."""

_LOCKS = re.compile(r"owner|lock|locks/([0-9a-f]{2})?")


class CacheError(ValueError):
    """The folder of the cache can't be used. Says nothing about a shard, so none is lost for it."""


@dataclass(frozen=True)
class CacheConfig:
    """A folder and the bytes that its shards may take together."""

    folder: Path
    limit: int


@dataclass(frozen=True)
class Wanted:
    """A shard from elsewhere, and what is known about its content.

    Args:
        bytes, sha256: as its manifest or the listing of its folder tells them.
        stamp: what changes in the store when its content does; "" if unknown.
    """

    place: Remote
    bytes: int | None
    sha256: str | None
    stamp: str = ""


def cache_config(folder: str | None, size: str | None) -> CacheConfig:
    """The cache that options ask for. Only a private folder is made; another one is when a shard is to be read (`ShardCache`).

    Args:
        folder: `--data-cache`; None for a private temporary folder of this process.
        size: `--data-cache-size`; None for half of what is free on the disk, of which private folders have equal parts.

    Raises:
        ValueError: an impossible folder or size.
    """
    if problems := storage.unwritable("--data-cache", folder, folder=True):
        raise ValueError(problems[0])
    try:
        path = private_folder() if folder is None else storage.local_path(folder).absolute()
        there = next(one for one in (path, *path.parents) if one.exists())
        if size is None:
            kept = sum(status.st_size for _, status in _shards(path)) if path.exists() else 0
            sharing = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if folder is None else 1  # torchrun's processes on this machine
            return CacheConfig(path, (kept + shutil.disk_usage(there).free) // (2 * sharing))
    except OSError as error:
        raise ValueError(f"--data-cache {folder or tempfile.gettempdir()}: can't be used: {error}") from None
    try:
        return CacheConfig(path, parse_size(size))
    except ValueError as error:
        raise ValueError(f"--data-cache-size {error}") from None


@lru_cache(maxsize=1)
def private_folder() -> Path:
    """A temporary folder that this process removes at its end."""
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_PRIVATE))
    lock = open(folder / "owner", "w")  # noqa: SIM115  # held as long as the process, and by its children
    fcntl.flock(lock, fcntl.LOCK_EX)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()

    atexit.register(remove)
    return folder


def _open_warily(path: str, flags: int) -> int:
    """Of a file that anyone may have put there: a fifo must not block, nor a link lead elsewhere."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _remove_abandoned() -> None:
    """Remove the private folders of processes that are gone."""
    for owner in Path(tempfile.gettempdir()).glob(f"{_PRIVATE}*/owner"):
        with contextlib.suppress(OSError), open(owner, opener=_open_warily) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or time.time() - status.st_mtime < _NEW:
                continue  # not ours, or perhaps made at this moment and not yet locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = [name for name in storage.contents(owner.parent) if _OURS.fullmatch(name) or _LOCKS.fullmatch(name)]
            storage.remove_files(owner.parent, ours)
            owner.parent.rmdir()


class ShardCache:
    """The shards of a folder. May be used by several threads.

    Attributes:
        fetched_bytes: that this object has brought from elsewhere.
        fetched_shards: how often it has brought one.
    """

    def __init__(self, config: CacheConfig):
        self._folder, self._limit = config.folder, config.limit
        self._names: dict[Remote, str] = {}
        self._counting = threading.Lock()
        self.fetched_bytes = self.fetched_shards = 0
        (self._folder / "locks").mkdir(parents=True, exist_ok=True)

    def has(self, shard: Wanted) -> bool:
        """True for a shard that is here; it counts as used now."""
        try:
            os.utime(self._folder / self._name(shard))
        except FileNotFoundError:
            return False
        return True

    def enter(self, shard: Wanted, stop: threading.Event | None = None) -> Path:
        """The local file of a shard, fetched if need be. It may be gone again when it is opened: then ask again.

        Args:
            stop: when set, fetching ends with an error.

        Raises:
            StorageError: can't be read, or is not what its manifest says.
            CacheError: the folder can't be used, or its disk is full.
            ValueError: a place that can't work.
        """
        name = self._name(shard)
        path = self._folder / name
        try:
            if not self.has(shard):
                with self._locked(f"locks/{name[:2]}"):
                    if not self.has(shard):
                        self._fetch(shard, path, stop)
        except StorageError:
            raise
        except OSError as error:
            raise self._error(shard.place, error) from error
        return path

    def _error(self, place: Remote, error: OSError) -> CacheError:
        why = error.strerror or error
        return CacheError(
            f"{place}: can't be put into the cache {self._folder}: {why}; give --data-cache on a disk with more room, "
            "or a smaller --data-cache-size"
        )

    def _name(self, shard: Wanted) -> str:
        """File name of a shard here. One without known content is asked for its stamp, once."""
        known = self._names.get(shard.place)
        if known is None:
            stamp, size = shard.sha256 or shard.stamp, shard.bytes
            if not stamp and not shard.place.is_pipe:
                with contextlib.suppress(ValueError):  # a server that doesn't tell sizes
                    stored = storage.stat(shard.place)
                    stamp, size = stored.stamp, size or stored.size
            digest = hashlib.sha256(f"{shard.place}\n{size}\n{stamp}".encode()).hexdigest()[:32]
            known = self._names[shard.place] = f"{digest}.tar"
        return known

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self._folder / name, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _fetch(self, shard: Wanted, path: Path, stop: threading.Event | None) -> None:
        part = path.with_suffix(".part")
        self._make_room(shard.bytes or 0, path)
        try:
            for attempt in range(1, _FETCHES + 1):
                wrong = self._download(shard, part, stop)
                if not wrong:
                    break
                if attempt == _FETCHES:
                    raise StorageError(
                        f"{shard.place}: {wrong}; copy the shard again, or make a new manifest with python -m open_lm.shards.manifest"
                    )
                _log.warning(f"{shard.place}: {wrong}; it is fetched once more")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._make_room(0, path)

    def _download(self, shard: Wanted, part: Path, stop: threading.Event | None) -> str:
        """Fetch into `part`; what differs from the manifest, "" when all is well."""
        place = shard.place
        if place.is_pipe:  # other storages retry each block
            size, digest = retry(place, lambda: self._copy(place, part, stop), stop)
        else:
            size, digest = self._copy(place, part, stop)
        if shard.bytes not in (None, size):
            return f"has {size} bytes, its manifest says {shard.bytes}"
        return f"has sha256 {digest}, its manifest says {shard.sha256}" if shard.sha256 not in (None, digest) else ""

    def _copy(self, place: Remote, part: Path, stop: threading.Event | None) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        with open_place(place) as source, self._open(place, part) as out:
            while data := source.read(_BLOCK):
                if stop is not None and stop.is_set():
                    raise StorageError(f"{place}: reading was ended")
                digest.update(data)
                self._write(place, out, data)
                size += len(data)
                with self._counting:
                    self.fetched_bytes += len(data)
        with self._counting:
            self.fetched_shards += 1
        return size, digest.hexdigest()

    def _open(self, place: Remote, part: Path) -> io.FileIO:
        try:
            return open(part, "wb", buffering=0)  # nothing is left that closing could fail to write
        except OSError as error:
            raise self._error(place, error) from error

    def _write(self, place: Remote, out: io.FileIO, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[out.write(rest) :]
        except OSError as error:
            raise self._error(place, error) from error

    def _make_room(self, size: int, keep: Path) -> None:
        """Remove the shards used longest ago until `size` more bytes fit."""
        with self._locked("lock"):
            found = _shards(self._folder)
            excess = sum(status.st_size for _, status in found) + size - self._limit
            for path, status in sorted(found, key=lambda item: item[1].st_mtime_ns):
                abandoned = path.suffix == ".part" and status.st_mtime < time.time() - _ABANDONED
                if abandoned or (excess > 0 and path.suffix == ".tar" and path != keep):
                    path.unlink(missing_ok=True)
                    excess -= status.st_size


def _shards(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Shards of a cache, unfinished ones included, with their state."""
    found = []
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                found.append((path, path.stat()))
    return found
