"""Input files: what was named or found, what each holds, and which version of it was seen.

Files keep the order in which they were given; those of a folder are sorted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from open_lm import storage
from open_lm.storage import Stored

Holds = Literal["lines", "document", "table"]
Compression = Literal["zst", "gz"]

STDIN = "-"
CONTENT = "sha256:"
"""What a stamp begins with that is a checksum of the text."""

_KINDS: dict[str, Holds] = {".jsonl": "lines", ".json": "lines", ".txt": "document"}
_COMPRESSIONS: dict[str, Compression | None] = {"": None, ".zst": "zst", ".gz": "gz"}
_KNOWN: dict[str, tuple[Holds, Compression | None]] = {
    **{kind + packed: (holds, how) for kind, holds in _KINDS.items() for packed, how in _COMPRESSIONS.items()},
    ".parquet": ("table", None),
}
_NAMES = ".jsonl, .json and .txt, each also .zst or .gz, and .parquet"
_NAMED_SKIPS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file: its stored bytes, whether its lines, the whole of it or its rows are documents, and its compression.

    stamp: the mtime in ns of a local file, the ETag or date of a remote one, "sha256:..." of a text that nobody else can change, "" if
    unknown.
    """

    path: str
    size: int
    holds: Holds
    compression: Compression | None
    stamp: str = ""

    @property
    def has_version(self) -> bool:
        """The stamp tells whether the file on the storage has changed."""
        return bool(self.stamp) and not self.stamp.startswith(CONTENT)


@dataclass(frozen=True, slots=True)
class Part:
    """Of a file, the lines that start at `start <= offset < stop` of its text, or such row groups of a table; stop None: to its end.

    A file that is one document has one part.
    """

    file: InputFile
    start: int = 0
    stop: int | None = None


def input_file(path: str) -> InputFile:
    """What a path's name and its storage say. Raises ValueError for an unknown kind of file, or a missing one."""
    try:
        found = storage.stat(path)
    except FileNotFoundError:
        raise ValueError(f"--input-files {path}: no file of that name; check the path") from None
    except OSError as error:
        raise _unlisted(path, error) from None
    return _of_known_kind(found)


def list_inputs(patterns: Iterable[str], stdin: InputFile | None = None) -> list[InputFile]:
    """The files of paths, globs, folders and prefixes, local and remote, in order.

    One that is named again is left out with a warning; so are files of other kinds in a folder. Hidden files have to be named.

    Args:
        stdin: what `-` stands for.

    Raises:
        ValueError: a pattern that matches nothing; no such file; an unknown kind of file; an unreadable folder.
        OSError: a remote storage fails.
    """
    found: dict[str, InputFile] = {}
    again = 0
    skipped: list[str] = []
    for pattern in patterns:
        files = [_standard_input(stdin)] if pattern == STDIN else _matching(pattern, skipped)
        before = len(found)
        for file in files:
            found.setdefault(file.path, file)
        again += len(files) - (len(found) - before)
    if again:
        log.warning("--input-files names %d files more than once; each is read once", again)
    if skipped:
        some = ", ".join(skipped[:_NAMED_SKIPS]) + (", ..." if len(skipped) > _NAMED_SKIPS else "")
        log.warning("--input-files: %d files in folders are of an unknown kind and are left out: %s", len(skipped), some)
    return list(found.values())


def _matching(pattern: str, skipped: list[str]) -> list[InputFile]:
    """The files of one pattern; names of those that a folder holds besides are added to `skipped`."""
    stored = _listed(pattern)
    found: list[InputFile] = []
    named = _names_files(pattern, stored)
    for one in stored:
        kind = _kind(one.url)
        if kind is not None:
            found.append(InputFile(one.url, one.size, *kind, one.stamp))
        elif named is None or one.url in named:
            _of_known_kind(one)
        else:
            skipped.append(one.url)
    if not found:
        holds = f"holds no file of a known kind ({_NAMES})" if stored else "no file matches; check the path"
        raise ValueError(f"--input-files {pattern}: {holds}")
    return found


def _listed(pattern: str) -> list[Stored]:
    try:
        return storage.list_files(pattern) if pattern else []
    except FileNotFoundError as error:
        missing = str(error.filename or error)
        raise ValueError(f"--input-files {pattern}: no file matches{f' {missing}' * (missing != pattern)}; check the path") from None
    except OSError as error:
        raise _unlisted(pattern, error) from None
    except ValueError as error:  # a link that leads nowhere, or a web server, which lists nothing
        raise ValueError(f"--input-files {error}") from None


def _unlisted(pattern: str, error: OSError) -> Exception:
    if isinstance(error, storage.StorageError):
        return error
    return ValueError(f"--input-files {pattern}: can't be looked up: {error.strerror or error}; allow it or leave it out")


def _names_files(pattern: str, stored: Sequence[Stored]) -> frozenset[str] | None:
    """The urls that a pattern spells out, as against those that a folder of it holds; None: all, it is a glob."""
    if any(one.url == pattern for one in stored[:1]):
        return frozenset([pattern])
    if any(mark in pattern for mark in "*?["):
        return None
    return frozenset(storage.expand(pattern))


def _kind(url: str) -> tuple[Holds, Compression | None] | None:
    """What a file of that name holds and how it is compressed; None if nobody knows."""
    name = url.rpartition("/")[2].lower()
    if "?" in name and storage.is_remote(url):
        name = name.partition("?")[0]  # of a web address, what follows is no part of the name
    stem, dot, last = name.rpartition(".")
    if last in ("zst", "gz"):
        last = f"{stem.rpartition('.')[2]}.{last}" if "." in stem else last
    return _KNOWN.get(dot + last)


def _of_known_kind(stored: Stored) -> InputFile:
    kind = _kind(stored.url)
    if kind is None:
        raise ValueError(f"--input-files {stored.url}: unknown kind of file; known are {_NAMES}")
    return InputFile(stored.url, stored.size, *kind, stored.stamp)


def _standard_input(stdin: InputFile | None) -> InputFile:
    if stdin is None:
        raise ValueError(f"--input-files {STDIN}: standard input can't be read here; name files")
    return stdin
