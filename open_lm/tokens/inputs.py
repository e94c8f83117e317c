"""Input files and their division into units, the pieces of work whose result depends on nothing else.

A unit is a run of consecutive files up to 64 MiB stored, or a 64 MiB block of the decompressed bytes of a longer file: the lines that
start in it. Files keep the order in which they were given.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from open_lm import storage

UNIT_BYTES = 64 << 20
RUNS_PER_FILE = 8
"""Tasks that share a long compressed file. Each decompresses it from the front to its own blocks, so more of them cost more."""

_COMPRESSED_RATIO = 4  # text to stored bytes, for estimates
_LINES, _DOCUMENT = (".jsonl", ".json"), (".txt",)
_COMPRESSIONS: dict[str, Literal["zst", "gz"]] = {".zst": "zst", ".gz": "gz"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputFile:
    """A local file: its stored bytes, whether its lines or the whole of it are documents, and its compression."""

    path: str
    size: int
    holds: Literal["lines", "document"]
    compression: Literal["zst", "gz"] | None

    @property
    def text_bytes(self) -> int:
        """Decompressed bytes, estimated from the stored ones."""
        return self.size * (_COMPRESSED_RATIO if self.compression else 1)


@dataclass(frozen=True)
class Part:
    """Of a file, the lines that start at `start <= offset < stop` of its decompressed bytes; stop None: to its end."""

    file: InputFile
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Unit:
    """Parts that are tokenized and packed together; `index` orders the units of a corpus."""

    index: int
    parts: tuple[Part, ...]


def input_file(path: str) -> InputFile:
    """What a path's name and size say. Raises ValueError for an unknown kind of file, or a missing one."""
    stem, compression = path, None
    for extension, name in _COMPRESSIONS.items():
        if path.lower().endswith(extension):
            stem, compression = path[: -len(extension)], name
    lower = stem.lower()
    if not lower.endswith(_LINES + _DOCUMENT):
        raise ValueError(f"--input-files {path}: unknown kind of file; known are .jsonl, .json and .txt, each also .zst or .gz")
    if not storage.local_path(path).is_file():
        raise ValueError(f"--input-files {path}: is not a file; name files, or quote a glob such as '{path}/*.jsonl.zst'")
    return InputFile(path, storage.size(path), "lines" if lower.endswith(_LINES) else "document", compression)


def list_inputs(patterns: Iterable[str]) -> list[InputFile]:
    """The files of paths and patterns, in order; one that is named again is left out with a warning.

    Raises:
        ValueError: a pattern that matches nothing; no such file; an unknown kind of file.
    """
    paths: list[str] = []
    for pattern in patterns:
        if storage.is_remote(pattern):
            raise ValueError(f"--input-files {pattern}: remote input is not built yet; copy the files to a local folder")
        found = [pattern] if storage.exists(pattern) else storage.expand(pattern)
        missing = [path for path in found if not storage.exists(path)]
        if missing or not found:
            raise ValueError(f"--input-files {(missing or [pattern])[0]}: no file matches; check the path")
        paths += found
    unique = list(dict.fromkeys(paths))
    if len(unique) < len(paths):
        log.warning("--input-files names %d files more than once; each is read once", len(paths) - len(unique))
    return [input_file(path) for path in unique]


def is_long(file: InputFile, unit_bytes: int = UNIT_BYTES) -> bool:
    """True for a file that is divided into blocks."""
    return file.holds == "lines" and file.size > unit_bytes


def plan_units(files: Sequence[InputFile], measured: Mapping[str, int], unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """The units of a corpus, in the order of its files; every byte is in one of them.

    Args:
        measured: decompressed bytes of the long compressed files, by path.
    """
    groups: list[list[Part]] = []
    room = 0
    for file in files:
        if is_long(file, unit_bytes):
            total = measured[file.path] if file.compression else file.size
            starts = range(0, max(total, 1), unit_bytes)
            groups += [[Part(file, start, start + unit_bytes)] for start in starts]
            room = 0
        elif groups and file.size <= room:
            groups[-1].append(Part(file))
            room -= file.size
        else:
            groups.append([Part(file)])
            room = unit_bytes - file.size
    return [Unit(index, tuple(parts)) for index, parts in enumerate(groups)]


def plan_runs(units: Sequence[Unit], unit_bytes: int = UNIT_BYTES) -> list[tuple[Unit, ...]]:
    """Units that one worker does one after another: alone, but the blocks of a long compressed file in up to 8 stretches."""
    runs: list[tuple[Unit, ...]] = []
    for file, group in itertools.groupby(units, key=lambda unit: unit.parts[0].file):
        same = list(group)
        shared = is_long(file, unit_bytes) and file.compression is not None
        length = -(-len(same) // RUNS_PER_FILE) if shared else 1
        runs += [tuple(same[i : i + length]) for i in range(0, len(same), length)]
    return runs
