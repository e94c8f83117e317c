"""What is there: the files of a pattern with size and version, by listing requests, not by one request a file."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from open_lm.storage.faults import RemoteNotFoundError, retry
from open_lm.storage.remote import filesystem, is_http, is_s3
from open_lm.storage.s3 import Bucket
from open_lm.storage.source import WebSource
from open_lm.storage.urls import is_remote, local_path, parent

_MAGIC = re.compile(r"[*?\[]")
_STAMPS = (
    "ETag",
    "etag",
    "blob_id",
    "oid",
    "md5Hash",
    "generation",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "created",
)
_NAMED_TOGETHER = 3  # so many named files of one S3 folder are looked up by listing it
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Stored:
    """A file: its url, its bytes, and what changes when its content does.

    stamp: the mtime in ns of a local file; the ETag, else a date, of a remote one; "" if unknown.
    """

    url: str
    size: int
    stamp: str


def stat(url: str) -> Stored:
    """One file. Raises FileNotFoundError (also for a folder), StorageError."""
    if not is_remote(url):
        return _local(local_path(url), url)
    return retry(url, lambda: _remote(url))


def size(url: str) -> int:
    """Bytes of a file. Raises FileNotFoundError, StorageError."""
    return stat(url).size


def exists(url: str) -> bool:
    """True for a file or a folder. Raises StorageError when the storage can't tell."""
    if not is_remote(url):
        return local_path(url).exists()
    try:
        if is_http(url):
            retry(url, lambda: _asked_web(url))
        else:
            stat(url)
    except RemoteNotFoundError:
        return not is_http(url) and _is_folder(url)
    return True


def list_files(pattern: str) -> list[Stored]:
    """The files of a pattern: of each brace alternative (`{000..099}`, `{a,b}`) in turn,

    - of a glob (`*`, `?`, `[..]`, `**` for any folders), sorted by url;
    - of a folder or prefix, those at any depth, sorted by url; with a final `/` nothing else is looked for;
    - or the one file of that name; locally a name that exists is taken as it is, whatever it looks like.

    Hidden files (`.name`) are left out unless named. A glob or a folder without files gives none.

    Raises:
        FileNotFoundError: a name that is neither a file nor a folder.
        StorageError, ValueError: the storage can't be asked; a link that leads nowhere.
    """
    if not is_remote(pattern) and local_path(pattern).exists():
        return _one_local(pattern)
    names = expand_braces(pattern)
    found = _listed_together(names)
    alone = [name for name in names if name not in found]
    with ThreadPoolExecutor(min(_THREADS, max(1, len(alone)))) as pool:
        found.update(zip(alone, pool.map(_one, alone)))
    return [stored for name in names for stored in found[name]]


def expand(pattern: str) -> list[str]:
    """Brace patterns (`{000..099}`, `{a,b}`) in their order, then globs (`*`, `?`, `[..]`, sorted).

    Brace results are taken as they are; only a glob looks at the storage. A glob that matches nothing gives no url.
    """
    urls: list[str] = []
    for name in expand_braces(pattern):
        if not _has_magic(name):
            urls.append(name)
        elif is_remote(name):
            urls += [stored.url for stored in _glob(name)]
        else:
            urls += sorted(glob.glob(str(local_path(name)), recursive=True))
    return urls


def expand_braces(pattern: str) -> list[str]:
    """Brace patterns in their order; nothing is looked at."""
    from braceexpand import braceexpand

    return list(braceexpand(pattern))


def _has_magic(url: str) -> bool:
    return not is_http(url) and bool(_MAGIC.search(url.split("://")[-1]))


def _one(name: str) -> list[Stored]:
    if _has_magic(name):
        return _glob(name)
    if not is_remote(name):
        return _one_local(name)
    if is_http(name):
        return [stat(name)]
    if not name.endswith("/"):
        try:
            return [stat(name)]
        except RemoteNotFoundError:
            below = _below(name + "/")
            if below or _is_folder(name):
                return below
            raise
    return _below(name)


def _glob(pattern: str) -> list[Stored]:
    if not is_remote(pattern):
        return _local_files(glob.glob(str(local_path(pattern)), recursive=True))
    if is_s3(pattern):
        return sorted(_s3_glob(pattern), key=lambda stored: stored.url)
    clients, path = filesystem(pattern)
    return _visible(retry(pattern, lambda: _infos(pattern, clients.glob(path, detail=True))), pattern)


def _one_local(name: str) -> list[Stored]:
    path = local_path(name)
    if path.is_dir():
        return _local_below(str(path))
    if name.endswith("/"):
        return []
    if path.is_symlink():
        _looked_at(str(path))
    return [stat(name)]


def _local(path: Path, url: str) -> Stored:
    status = path.stat()
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{url}: is a folder, not a file")
    return Stored(url, status.st_size, str(status.st_mtime_ns))


def _local_files(paths: Iterable[str]) -> list[Stored]:
    """Those of some paths that are files, sorted; one look at each, since there may be a million."""
    found = ((path, _looked_at(path)) for path in sorted(paths))
    return [Stored(path, look.st_size, str(look.st_mtime_ns)) for path, look in found if look and S_ISREG(look.st_mode)]


def _looked_at(path: str) -> os.stat_result | None:
    """What a listed path is; None for one that is gone since. Raises ValueError for a link that leads nowhere."""
    try:
        return os.stat(path)  # noqa: PTH116 (a Path costs more than the look)
    except OSError as error:
        if Path(path).is_symlink():
            target = os.readlink(path)  # noqa: PTH115
            raise ValueError(f"{path}: is a link to {target}, which can't be opened; mend or remove the link") from None
        if isinstance(error, FileNotFoundError):
            return None
        raise


def _local_below(folder: str) -> list[Stored]:
    """The files of a local folder at any depth, sorted. A folder to which links lead once more is listed once."""
    found: list[Stored] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        identity = Path(here).stat()
        if (identity.st_dev, identity.st_ino) in seen:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        with os.scandir(here) as entries:
            visible = sorted(entry.path for entry in entries if not entry.name.startswith("."))
        looks = {path: _looked_at(path) for path in visible}
        waiting += [path for path in reversed(visible) if (look := looks[path]) and S_ISDIR(look.st_mode)]
        found += [Stored(path, look.st_size, str(look.st_mtime_ns)) for path, look in looks.items() if look and S_ISREG(look.st_mode)]
    return sorted(found, key=lambda stored: stored.url)


def _remote(url: str) -> Stored:
    if is_s3(url):
        bucket = Bucket(url)
        if not bucket.key or url.endswith("/"):
            raise FileNotFoundError(url)
        head = bucket.head()
        return Stored(url, int(head["ContentLength"]), _stamp(head))
    if is_http(url):
        source = _asked_web(url)
        if source.total is None:
            raise ValueError(f"{url}: the server doesn't tell its size; download it and name the local file")
        return Stored(url, source.total, (source.stamp or "").strip('"'))
    clients, path = filesystem(url)
    info = clients.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(url)
    return Stored(url, int(info["size"]), _stamp(info))


def _asked_web(url: str) -> WebSource:
    """A source that has been asked for one byte; more servers answer that rightly than HEAD, and signed urls allow nothing else."""
    source = WebSource(url)
    try:
        source.fetch(0, 1)
    finally:
        source.close()
    return source


def _stamp(info: dict[str, Any]) -> str:
    value = next((info[name] for name in _STAMPS if info.get(name)), "")
    return value.strip('"') if isinstance(value, str) else str(value.timestamp() if hasattr(value, "timestamp") else value)


def _is_folder(url: str) -> bool:
    if is_s3(url):
        bucket = Bucket(url)
        prefix = bucket.key.rstrip("/") + "/" if bucket.key else ""
        try:
            page = retry(url, lambda: bucket.call("list_objects_v2", Prefix=prefix, MaxKeys=1))
        except RemoteNotFoundError:
            return False
        return bool(page.get("Contents")) or not prefix
    clients, path = filesystem(url)
    return retry(url, lambda: bool(clients.isdir(path)))


def _below(folder: str) -> list[Stored]:
    """All files at any depth below a remote folder."""
    if is_s3(folder):
        bucket = Bucket(folder)
        prefix = bucket.key.rstrip("/") + "/" if bucket.key else ""
        return _visible((stored for stored, _ in _s3_names(folder, bucket, prefix, "")), folder)
    if is_http(folder):
        raise ValueError(f"{folder}: a web server lists no folders; name the files")
    clients, path = filesystem(folder)
    return _visible(retry(folder, lambda: _infos(folder, clients.find(path, detail=True))), folder)


def _infos(url: str, found: dict[str, Any]) -> list[Stored]:
    start = url.split("://")[0]
    files = [info for info in found.values() if info["type"] == "file"]
    return [Stored(f"{start}://{info['name'].removeprefix(start + '://').lstrip('/')}", int(info["size"]), _stamp(info)) for info in files]


def _visible(files: Iterable[Stored], asked: str) -> list[Stored]:
    """Sorted, without hidden files and those in hidden folders, unless the part that was asked for is hidden too."""
    fixed = len(_MAGIC.split(asked)[0].rpartition("/")[0])
    hidden_asked = "/." in asked[fixed:]
    return sorted((s for s in files if hidden_asked or "/." not in s.url[fixed:]), key=lambda stored: stored.url)


def _s3_names(url: str, bucket: Bucket, prefix: str, delimiter: str) -> Iterator[tuple[Stored, bool]]:
    """Files that start with a prefix (False), and with a delimiter the folders on its level (True); each page is retried for itself."""
    start, token = f"{url.split('://')[0]}://{bucket.name}/", None
    while True:
        page = retry(url, _page(bucket, prefix, token, delimiter))
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # an empty object that a console makes for a folder
                yield Stored(start + item["Key"], int(item["Size"]), _stamp(item)), False
        for folder in page.get("CommonPrefixes", ()):
            yield Stored(start + folder["Prefix"], 0, ""), True
        token = page.get("NextContinuationToken")
        if not token:
            return


def _page(bucket: Bucket, prefix: str, token: str | None, delimiter: str) -> Callable[[], dict[str, Any]]:
    return lambda: bucket.page(prefix, token, delimiter)


def _s3_glob(pattern: str) -> Iterator[Stored]:
    """Files of a pattern, level by level, so that only folders that match are listed."""
    bucket = Bucket(pattern)
    yield from _s3_level(pattern, bucket, "", bucket.key.split("/"))


def _s3_level(pattern: str, bucket: Bucket, folder: str, steps: list[str]) -> Iterator[Stored]:
    """Files below `folder` (empty, or ending in "/") whose names match the remaining steps of the pattern."""
    while len(steps) > 1 and not _MAGIC.search(steps[0]):
        folder, steps = f"{folder}{steps[0]}/", steps[1:]
    step, rest = steps[0], steps[1:]
    matches = _pattern_of(steps if step == "**" else [step])
    start = len(pattern.split("://")[0]) + 3 + len(bucket.name) + 1 + len(folder)
    prefix = folder + _MAGIC.split(step)[0]
    if step == "**":
        for stored, _ in _s3_names(pattern, bucket, folder, ""):
            if matches.fullmatch(stored.url[start:]):
                yield stored
        return
    for stored, is_folder in _s3_names(pattern, bucket, prefix, "/"):
        name = stored.url[start:].rstrip("/")
        if is_folder == bool(rest) and matches.fullmatch(name):
            yield from _s3_level(pattern, bucket, f"{folder}{name}/", rest) if rest else (stored,)


def _pattern_of(steps: list[str]) -> re.Pattern[str]:
    """`**` stands for any number of visible folders (at the end: for any visible file below), the others for one name each."""
    folders, visible = r"(?:[^/.][^/]*/)*", r"(?!\.)"
    parts = []
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if step == "**":
            parts.append(folders + (r"[^/.][^/]*" if last else ""))
        else:
            parts.append(("" if step.startswith(".") else visible) + _name_of(step) + ("" if last else "/"))
    return re.compile("".join(parts))


def _name_of(step: str) -> str:
    """A regular expression for one name of a glob."""
    parts = re.split(r"(\*+|\?|\[!?[^\]]+\])", step)
    return "".join(_GLOB_PARTS.get(part[:1], _class)(part) if i % 2 else re.escape(part) for i, part in enumerate(parts))


def _class(part: str) -> str:
    return "[^" + part[2:-1] + "]" if part.startswith("[!") else part


_GLOB_PARTS: dict[str, Callable[[str], str]] = {"*": lambda _: "[^/]*", "?": lambda _: "[^/]"}


def _listed_together(names: list[str]) -> dict[str, list[Stored]]:
    """Several named files of one S3 folder, looked up in one listing of it; a name that isn't there is left for `_one` to report."""
    folders: dict[str, list[str]] = {}
    for name in names:
        if is_s3(name) and not name.endswith("/") and not _has_magic(name):
            folders.setdefault(parent(name), []).append(name)
    found: dict[str, list[Stored]] = {}
    for folder, together in folders.items():
        if len(together) >= _NAMED_TOGETHER:
            bucket = Bucket(folder)
            prefix = _common_start([name[len(folder) + 1 :] for name in together])
            listed = _s3_names(folder, bucket, f"{bucket.key}/{prefix}".lstrip("/"), "/")
            wanted = set(together)
            found.update({stored.url: [stored] for stored, is_folder in listed if not is_folder and stored.url in wanted})
    return found


def _common_start(names: list[str]) -> str:
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[:same]
