"""Local files that are whole or absent, and what is said where the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from open_lm.storage.urls import is_remote


class FullDiskError(OSError):
    """A file for which the disk, or the quota, has no room; in one line with the file, the room and the remedy."""

    def __init__(self, words: str, number: int = errno.ENOSPC):
        super().__init__(words)
        self.errno = number


@contextlib.contextmanager
def tell_full_disk(path: str | Path, size: int = 0, part: str | Path | None = None) -> Iterator[None]:
    """Around the writing of a local file: a full disk is a FullDiskError that names the file, whoever wrote.

    Args:
        size: bytes that the whole file needs, where they are known.
        part: what is there of the file already, if it lies under another name.
    """
    try:
        yield
    except Exception as error:
        full = _cause(error)
        if full is None or (full is error and isinstance(full, FullDiskError)):
            raise
        if isinstance(full, FullDiskError):
            raise full from None
        folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
        room = shutil.disk_usage(folder).free
        with contextlib.suppress(OSError):
            room += Path(part or path).stat().st_size
        number = full.errno or errno.ENOSPC
        needed = f"{_words(size)} are needed, {_words(size - room)} more than there is room for"
        if size <= room or number == errno.EDQUOT:  # a quota's room is not the disk's
            needed = f"{_words(size)} are needed" if size > room else f"{_words(room)} are too few"
        raise FullDiskError(f"{path}: {os.strerror(number)}: {needed}; make room in {folder}", number) from error


def _cause(error: BaseException | None) -> OSError | None:
    """The full disk behind an error: torch.save tells of it in words of its own."""
    while error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _words(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB" if size >= 1e4 else f"{size} bytes"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, durable: bool = True, size: int = 0) -> Iterator[IO[Any]]:
    """A local file that appears under its name only when whole; on an exception nothing is left.

    Args:
        durable: flushed to the disk before it appears, so that it survives a loss of power.
        size: as `tell_full_disk`.

    Raises:
        ValueError: a remote url: those are written with `upload` or `write_bytes`.
        FullDiskError: no room.
    """
    if is_remote(str(path)):
        raise ValueError(f"{path}: only local files can be written in pieces; make a local file and upload it")
    target = Path(path)
    with tell_full_disk(target, size):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with tell_full_disk(target, size, temporary), os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
