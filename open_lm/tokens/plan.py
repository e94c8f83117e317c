"""The division of a corpus into units, the pieces of work whose result depends on nothing else. Pure; file names and sizes in.

A *group* is a run of consecutive small files, or one long file. A *unit* is a group of small files, or one block of a long file:
the lines that start in `unit_bytes` of its decompressed text, or one row group of a table. Units are named (group, block) and
ordered so; how many blocks a compressed file has is found out while it is read, and by nobody before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from open_lm.tokens.reading.inputs import InputFile, Part

LARGEST_UNIT = 64 << 20
SMALLEST_UNIT = 1 << 20
_UNITS_WANTED = 32
_FILES_IN_GROUP = 4096
_TASKS_PER_WORKER = 4

_EXPANSION = {"zst": 4, "gz": 4, "table": 2}
"""Text to stored bytes, for the sizes of units and buckets. Wrong guesses make them uneven, never wrong."""


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive files, numbered in the corpus from `first_file` on; `long`: one file that is divided into blocks."""

    index: int
    first_file: int
    files: tuple[InputFile, ...]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Stretch:
    """Units that one worker does one after another: blocks first, first + step, ... of a group, those in `done` left out.

    `stop`: the number of blocks, where it is known.
    """

    group: Group
    first: int = 0
    step: int = 1
    done: frozenset[int] = frozenset()
    stop: int | None = None


def text_bytes(file: InputFile) -> int:
    """Decompressed bytes of a file, guessed from the stored ones."""
    return file.size * _EXPANSION.get(file.compression or file.holds, 1)


def unit_bytes(total_text: int) -> int:
    """Text of a unit for a corpus of so many (guessed) bytes: a power of two, small enough for many workers."""
    size = LARGEST_UNIT
    while size > SMALLEST_UNIT and size * _UNITS_WANTED > total_text:
        size //= 2
    return size


def plan_groups(files: Sequence[InputFile], size: int) -> list[Group]:
    """The groups of a corpus, in the order of its files; every file is in one of them.

    Args:
        size: text bytes of a unit.
    """
    groups: list[Group] = []
    first, room = 0, 0
    for number, file in enumerate(files):
        text = text_bytes(file)
        long = file.holds != "document" and text > size
        fits = number > first and text <= room and number - first < _FILES_IN_GROUP
        if (long or not fits) and number > first:
            groups.append(Group(len(groups), first, tuple(files[first:number])))
            first = number
        if long:
            groups.append(Group(len(groups), number, (file,), long=True))
            first, room = number + 1, 0
        else:
            room = (size if number == first else room) - text
    if first < len(files):
        groups.append(Group(len(groups), first, tuple(files[first:])))
    return groups


def block_part(file: InputFile, block: int, size: int) -> Part:
    """One block of a long file."""
    return Part(file, block, block + 1) if file.holds == "table" else Part(file, block * size, (block + 1) * size)


def parts_of_unit(group: Group, block: int, size: int) -> list[tuple[int, Part]]:
    """Numbers of files in the corpus, and what of them belongs to the unit (group, block)."""
    if group.long:
        return [(group.first_file, block_part(group.files[0], block, size))]
    return [(number, Part(file)) for number, file in enumerate(group.files, group.first_file)]


def stretches(group: Group, workers: int, long_files: int, size: int, done: Iterable[int] = (), stop: int | None = None) -> list[Stretch]:
    """The tasks of a group, so many that all workers have some.

    A compressed text can only be read from its front, so every stretch of it costs one decompression; a plain one is simply entered.

    Args:
        long_files: long files in the corpus.
        done: blocks that are there already.
        stop: the number of blocks where it is known.
    """
    known = frozenset(done)
    if not group.long:
        return [] if known else [Stretch(group)]
    file = group.files[0]
    wanted = -(-_TASKS_PER_WORKER * workers // long_files)
    count = min(wanted, workers) if file.compression else min(wanted, max(1, -(-text_bytes(file) // size)))
    some = [Stretch(group, first, count, known, stop) for first in range(count)]
    return [stretch for stretch in some if stop is None or not known.issuperset(range(stretch.first, stop, count))]


def number_of_blocks(blocks: Mapping[int, bool]) -> int | None:
    """Blocks of a group, from those that are done with whether each is the last; None while the last is not known."""
    return next((block + 1 for block, last in blocks.items() if last), None)
