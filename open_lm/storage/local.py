"""Local files that are whole or absent: writing them, what is said where the disk is full, whether a name can be written at all; what lies
in a folder, and removing some of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from open_lm.storage.urls import is_remote, local_path

_UNFINISHED = re.compile(r"(.*/)?\.([^/]+)\.[a-z0-9_]{8}\.tmp")


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
        needed = f"{_words(size)} are needed" if size > room else f"{_words(room)} are too few"
        if size > room and number != errno.EDQUOT:  # a quota's room is not the disk's
            needed += f", {_words(size - room)} more than there is room for"
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


def finished_name(name: str) -> str:
    """The name of the file that a killed `atomic_write` was at, for what it left; any other name as it is."""
    left = _UNFINISHED.fullmatch(name)
    return f"{left[1] or ''}{left[2]}" if left else name


def contents(folder: Path) -> dict[str, int]:
    """Bytes by name of all that lies below a local folder, hidden or not: files, links (0 bytes, not followed), and empty folders, whose
    names end in "/". Nothing where there is no folder.
    """
    found: dict[str, int] = {}
    for here, folders, names in os.walk(folder):
        place = Path(here)
        links = [name for name in folders if (place / name).is_symlink()]
        for path in (place / name for name in (*names, *links)):
            with contextlib.suppress(FileNotFoundError):  # whoever writes there has removed it meanwhile
                found[path.relative_to(folder).as_posix()] = 0 if path.is_symlink() else path.lstat().st_size
        if not names and not folders and place != folder:
            found[place.relative_to(folder).as_posix() + "/"] = 0
    return found


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove some of the `contents` of a local folder, in this order, and the folders below it that are empty then."""
    for name in names:
        path = folder / name
        if not name.endswith("/"):
            path.unlink(missing_ok=True)
            path = path.parent
        with contextlib.suppress(OSError):  # something else lies there
            while path != folder:
                path.rmdir()
                path = path.parent


def unwritable(flag: str, path: str | None, folder: bool = False, urls: bool = False) -> list[str]:
    """Why a local file or folder of this name can't be made or written to, in one line; nothing where it can, or no name is given. Nothing
    is made.

    Args:
        flag: what the user has given the name by.
        folder: the name is that of a folder.
        urls: a URL is fine too; it is not asked.
    """
    what = "folder" if folder else "file"
    if not path or (urls and is_remote(path)):
        return []
    if is_remote(path):
        return [f"{flag} {path}: must be a local {what}; copy it from there"]
    target = local_path(path).absolute()
    there = next(one for one in (target, *target.parents) if os.path.lexists(one))
    if there == target and not folder:
        if target.is_dir():
            return [f"{flag} {path}: is a folder; name a file"]
        there = target.parent
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link that leads nowhere"
        return [f"{flag} {path}: {'' if there == target else f'{there} '}is {kind}; name another {what}"]
    try:
        with tempfile.TemporaryFile(dir=there):  # has no name on most file systems, and tells what permission bits don't
            return []
    except OSError as error:
        return [f"{flag} {path}: can't be written: {there}: {error.strerror}; name a {what} in a folder of yours"]


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
