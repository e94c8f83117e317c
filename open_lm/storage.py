"""Files on a local disk or behind a URL (s3://, https://, gs://, ...). The only file that knows fsspec.

A path without `scheme://` is local, whatever its name; `file://` is local too.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(url: str) -> bool:
    """True for `scheme://` URLs other than file://."""
    match = _SCHEME.match(url)
    return bool(match) and match.group(1).lower() != "file"  # type: ignore[union-attr]


def local_path(url: str) -> Path:
    """The path of a local url. `~` is the home folder."""
    assert not is_remote(url), url
    return Path(os.path.expanduser(url.removeprefix("file://")))


def join(folder: str, name: str) -> str:
    """`name` inside `folder`; an empty folder is the working folder, never the root."""
    return name if folder in ("", ".") else f"{folder.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder of a url; "" where it has none."""
    return url.rpartition("/")[0] if "/" in url else ""


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(url)


def open_read(url: str) -> IO[bytes]:
    """Open for reading, unbuffered decompression left to the caller. Raises FileNotFoundError, OSError."""
    if not is_remote(url):
        return open(local_path(url), "rb")
    filesystem, path = _filesystem(url)
    return filesystem.open(path, "rb")


def read_bytes(url: str) -> bytes:
    """The whole content."""
    with open_read(url) as file:
        return file.read()


def exists(url: str) -> bool:
    """True for a file or a folder."""
    if not is_remote(url):
        return local_path(url).exists()
    filesystem, path = _filesystem(url)
    return bool(filesystem.exists(path))


def size(url: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    if not is_remote(url):
        return local_path(url).stat().st_size
    filesystem, path = _filesystem(url)
    return int(filesystem.size(path))


def expand(pattern: str) -> list[str]:
    """Brace patterns (`{000..099}`, `{a,b}`) in their order, then globs (`*`, `?`, `[..]`, sorted).

    Brace results are taken as they are; only a glob looks at the storage. A glob that matches nothing gives no url.
    """
    from braceexpand import braceexpand

    urls: list[str] = []
    for one in braceexpand(pattern):
        urls += _glob(one) if re.search(r"[*?\[]", one.split("://")[-1]) else [one]
    return urls


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        import glob

        return sorted(glob.glob(str(local_path(pattern)), recursive=True))
    filesystem, path = _filesystem(pattern)
    return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A local file that appears under its name only when whole and flushed to disk; on an exception nothing is left."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
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
