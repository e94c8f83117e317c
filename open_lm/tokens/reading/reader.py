"""Files to documents: lines, whole files or table rows in, batches of texts with their places out, and a reason for all that is refused.

A batch holds about 2 Mi characters or 20,000 documents. Memory: a batch, one read of 1 MiB, or two to three times the longest document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import itemgetter

import numpy as np
import orjson

from open_lm.storage.yaml_json import parse_line, why_not_utf8
from open_lm.tokens.reading.batch import Batch, Found, Refused, place_of
from open_lm.tokens.reading.inputs import STDIN, InputFile, Part
from open_lm.tokens.reading.lines import Growth, Lines
from open_lm.tokens.reading.stdin import spool_stdin
from open_lm.tokens.reading.text_stream import READ, FileText

__all__ = ["STDIN", "Batch", "Reader", "Refused", "place_of", "spool_stdin"]

_CHARACTERS = 2 << 20
_DOCUMENTS = 20_000
_BOM = b"\xef\xbb\xbf"
_ONE_VALUE = re.compile(rb"\s*(\[\s*(\{|$)|\{\s*$)")
"""The first line of a file that is one array of objects, or one object written over several lines."""


class Reader:
    """Documents of parts. Keeps its place in a file, so that going forward in a compressed one decompresses nothing twice.

    Args:
        text_key: where a line's object holds the text; a dot leads into an inner object. Of a table, the column.
        large: called with the bytes gathered so far when a document passes 8 MiB, and at each doubling after that; a ValueError of it
            gets the name of the file and the line.

    Raises (everywhere): ValueError for what is wrong with a file, OSError when the storage fails.
    """

    def __init__(self, text_key: str, large: Callable[[int], None] | None = None):
        self._key = text_key
        self._steps = [step for step in text_key.split(".") if step]
        self._large = large
        self._lines: Lines | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that is open."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def batches(self, part: Part) -> Iterator[Batch]:
        """What a part holds, in order; empty lines are passed over. No batch that was handed out is kept here.

        How documents are divided into batches depends on what was read before. The end of a part ends a batch.
        """
        gathered = _Gathered(part.file)
        for found in self._found(part):
            gathered.add(found)
            while gathered.full:
                yield gathered.take()
        if gathered.anything:
            yield gathered.take()

    def holds(self, part: Part) -> bool:
        """False for a part that begins at or after the end of the file's text (of a table: of its row groups)."""
        return part.start == 0 or not self._ends_by(part.file, part.start, part.start)

    def ended(self, part: Part) -> bool:
        """True if nothing of the file comes after this part, not even a byte."""
        return part.file.holds == "document" or part.stop is None or self._ends_by(part.file, part.start, part.stop)

    def _ends_by(self, file: InputFile, start: int, stop: int) -> bool:
        if file.holds == "table":
            from open_lm.tokens.reading.table import row_groups

            return stop >= row_groups(file)
        lines = self._lines
        if lines is None or lines.file != file or lines.position < start:
            lines = self._at(Part(file, start))
        return lines.ends_by(stop)

    def _found(self, part: Part) -> Iterator[Found]:
        if part.file.holds == "document":
            yield self._whole(part.file)
        elif part.file.holds == "table":
            from open_lm.tokens.reading.table import read_rows

            yield from read_rows(part, self._key, self._large)
        else:
            yield from self._of_lines(part)

    def lines(self, part: Part) -> Iterator[tuple[Lines, list[int], list[bytes]]]:
        """The lines of a part, some at a time: the file, of which they are the last `len(lines)` counted; where each begins; the lines."""
        source = self._at(part)
        for start, lines in source.until(part.stop):
            starts = _starts(start, lines)
            if start == 0 and lines:
                lines[0] = lines[0].removeprefix(_BOM)
                if _ONE_VALUE.match(lines[0]):
                    what, how = ("array", ".[]") if lines[0].lstrip().startswith(b"[") else ("value", ".")
                    raise ValueError(
                        f"--input-files {part.file.path}: is one JSON {what} over the whole file, where each line is to be an object; "
                        f"make lines of it (jq -c '{how}' gives them) and name these .jsonl"
                    )
            yield source, starts, lines
        source.check_unchanged()

    def _of_lines(self, part: Part) -> Iterator[Found]:
        for source, starts, lines in self.lines(part):
            found = self._parsed(source, starts, lines)
            lines.clear()  # whoever else has the list keeps no line alive
            yield found

    def _at(self, part: Part) -> Lines:
        """The open file at the first line of a part."""
        lines = self._lines
        if lines is None or lines.file != part.file or lines.passed > part.start:
            self.close()
            lines = self._lines = Lines(part.file, self._large)
        lines.skip_to(part.start)
        return lines

    def _parsed(self, source: Lines, starts: list[int], lines: list[bytes]) -> Found:
        """Lines to texts. One that is no document costs a second look at all of them."""
        values: Iterator[object] = map(orjson.loads, lines)
        for step in self._steps:
            values = map(itemgetter(step), values)  # type: ignore[arg-type]
        try:
            texts = list(values)
        except (ValueError, TypeError, LookupError):
            return self._one_by_one(source, starts, lines)
        if not set(map(type, texts)) <= {str}:
            return self._one_by_one(source, starts, lines)
        return texts, starts, []  # type: ignore[return-value]

    def _one_by_one(self, source: Lines, starts: list[int], lines: list[bytes]) -> Found:
        texts: list[str] = []
        at: list[int] = []
        refused: list[Refused] = []
        for number, (start, line) in enumerate(zip(starts, lines), source.count - len(lines) + 1):
            if not line or line.isspace():
                continue
            try:
                texts.append(self._document(line))
                at.append(start)
            except _NoDocument as error:
                refused.append(Refused(source.file, start, str(error), number, source.counted_from))
        return texts, at, refused

    def _document(self, line: bytes) -> str:
        try:
            value = parse_line(line)
        except ValueError as error:
            raise _NoDocument(str(error)) from None
        for step in self._steps:
            if not isinstance(value, dict) or step not in value:
                raise _NoDocument(f"has no {self._key!r}")
            value = value[step]
        if not isinstance(value, str):
            raise _NoDocument(f"has a {self._key!r} of type {type(value).__name__}, not a text")
        return value

    def _whole(self, file: InputFile) -> Found:
        data = self._all_bytes(file)
        try:
            return [data.decode("utf-8")], [0], []
        except UnicodeDecodeError as error:
            return [], [], [Refused(file, 0, why_not_utf8(error), data.count(b"\n", 0, error.start) + 1)]

    def _all_bytes(self, file: InputFile) -> bytes:
        text, growth = FileText(file), Growth(self._large, lambda: file.path)
        step = READ if file.compression else min(READ, file.size + 1)
        try:
            pieces = []
            while piece := text.read(step):
                pieces.append(piece)
                growth.reached(text.position)
            text.check_unchanged()
        finally:
            text.close()
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)).removeprefix(_BOM)


class _NoDocument(Exception):
    """Why a line is refused."""


class _Gathered:
    """Documents on their way into batches."""

    def __init__(self, file: InputFile):
        self._file = file
        self._texts: list[str] = []
        self._at: list[int] = []
        self._refused: list[Refused] = []
        self._characters = 0

    def add(self, found: Found) -> None:
        """Take what was found out of its lists, so that whoever still has them keeps no document alive."""
        texts, at, refused = found
        self._texts += texts
        self._at += at
        self._refused += refused
        self._characters += sum(map(len, texts))
        texts.clear()

    @property
    def full(self) -> bool:
        return self._characters >= _CHARACTERS or len(self._texts) + len(self._refused) >= _DOCUMENTS

    @property
    def anything(self) -> bool:
        return bool(self._texts or self._refused)

    def take(self) -> Batch:
        """The first of them, all or a batch full."""
        batch = Batch(self._texts[:_DOCUMENTS], self._at[:_DOCUMENTS], self._file, self._refused)
        self._texts, self._at, self._refused = self._texts[_DOCUMENTS:], self._at[_DOCUMENTS:], []
        self._characters = sum(map(len, self._texts))
        return batch


def _starts(first: int, lines: list[bytes]) -> list[int]:
    """Where lines begin, the first of them at byte `first`, each followed by one newline."""
    sizes = np.fromiter(map(len, lines), np.int64, len(lines)) + 1
    return (np.cumsum(sizes) - sizes + first).tolist()
