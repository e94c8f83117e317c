"""What reading gives: texts with their places, and what had to be refused."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.text_stream import FileText


@dataclass(frozen=True, slots=True)
class Refused:
    """A line, row or file that is no document, and why.

    at: the byte of the text at which the line starts, or the number of the row.
    number: of the line or row, from 1, among those from `counted_from` on.
    """

    file: InputFile
    at: int
    why: str
    number: int
    counted_from: int = 0

    @property
    def place(self) -> str:
        """File and line, for people. Reads the file up to `counted_from` to count its lines."""
        return named(self.file, self.counted_from, self.number)

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


class Batch(NamedTuple):
    """Documents of one file, in order.

    at: where each begins: the byte of the text at which its line starts, 0 for a file that is one document, the row of a table.
    """

    texts: list[str]
    at: list[int]
    file: InputFile
    refused: list[Refused]


Found = tuple[list[str], list[int], list[Refused]]
"""Texts, where they begin, and what was refused."""


def place_of(file: InputFile, at: int) -> str:
    """The file and line of a document, for people. Reads the file up to there."""
    return named(file, 0, at + 1) if file.holds == "table" else named(file, at, 1)


def named(file: InputFile, counted_from: int, number: int) -> str:
    """The `number`-th (from 1) line of those from byte `counted_from` on, or row, for people."""
    if file.holds == "table":
        return f"{file.path}, row {number}"
    try:
        return f"{file.path}, line {number + _lines_before(file, counted_from)}"
    except (OSError, ValueError):  # the message matters more than the number
        return f"{file.path}, line {number} from byte {counted_from} of its text on"


@functools.lru_cache(maxsize=64)
def _lines_before(file: InputFile, offset: int) -> int:
    """Lines that end before byte `offset` of the text."""
    if not offset:
        return 0
    text, lines = FileText(file), 0
    try:
        while chunk := text.read():
            lines += chunk[: max(0, offset - text.position + len(chunk))].count(b"\n")
            if text.position >= offset:
                break
    finally:
        text.close()
    return lines
