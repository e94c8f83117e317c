"""What is wrong with the texts of a corpus, and what is only odd.

Batches of documents in; counts and a list of findings out. Bad: a line that is no document, a text that a tokenizer does not give back.
Odd, and allowed: texts that are empty, that come back in the tokenizer's normal form, that an earlier document has already, that hold
control characters, U+FFFD, the string of a special token, or a very long line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.reader import Batch
from open_lm.tokens.reading.text_stream import FileText
from open_lm.tokens.tools.round_trip import CHANGED, NORMALISED, Change, RoundTrip
from open_lm.tokens.unit import EncoderWork, encoder_for

REFUSED, NOT_REVERSIBLE = "no document", "comes back changed"
BAD = (REFUSED, NOT_REVERSIBLE)
NORMAL_FORM, EMPTY, DUPLICATE = "comes back in normal form", "empty text", "duplicate"
CONTROL, REPLACEMENT, SPECIAL, LONG_LINE = "control characters", "replacement character U+FFFD", "special token's string", "long line"
ODD = (NORMAL_FORM, EMPTY, DUPLICATE, CONTROL, REPLACEMENT, SPECIAL, LONG_LINE)
EXCERPT = 60

_CONTROLS = bytes(byte for byte in [*range(32), 127] if byte not in b"\t\n\f\r")
_HIGH_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")
_PLACE = np.dtype([("hash", "<u8"), ("file", "<u4"), ("at", "<u8")])


class Finding(NamedTuple):
    """A text and what is to be said about it. Findings sort by place."""

    file: int
    """Number in the list of input files."""
    at: int
    """Byte of the file's text at which the document begins; row of a table."""
    kind: str
    detail: str
    excerpt: str

    @property
    def bad(self) -> bool:
        return self.kind in BAD


@dataclass(frozen=True)
class Checks:
    """What is looked for."""

    encoder: EncoderWork
    long_line: int
    """Characters that a line of a text may have."""
    duplicates: bool
    list_odd: bool
    """Findings that are not bad are listed too, not only counted."""
    most_listed: int


@dataclass
class Findings:
    """Of some texts; they add up."""

    documents: int = 0
    characters: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Documents by kind of finding."""
    listed: list[Finding] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)
    """`_PLACE` or uint64 [documents]: 64 bits of each text that is not empty."""

    def add(self, other: Findings, most_listed: int) -> None:
        """Take in the findings of other texts; of more than `most_listed`, the first by place are kept."""
        self.documents += other.documents
        self.characters += other.characters
        self.counts += other.counts
        self.hashes += other.hashes
        self.listed += other.listed
        if len(self.listed) > 2 * most_listed:
            self.listed = sorted(self.listed)[:most_listed]

    @property
    def bad(self) -> int:
        """Documents and lines that are bad."""
        return sum(self.counts[kind] for kind in BAD)

    def finish(self, checks: Checks) -> None:
        """Look for duplicates among all, and sort the list."""
        if self.hashes:
            later = _later_ones(np.concatenate(self.hashes))
            self.counts[DUPLICATE] = len(later)
            if checks.list_odd:
                self.listed += [Finding(int(p["file"]), int(p["at"]), DUPLICATE, "", "") for p in later[: checks.most_listed]]
            self.hashes = []
        self.listed = sorted(self.listed)[: checks.most_listed]


class ValidationVisitor:
    """Looks at texts; `findings` is what it has found."""

    def __init__(self, checks: Checks):
        self._checks = checks
        self.findings = Findings()

    def visit(self, number: int, batch: Batch) -> None:
        """All checks of a batch."""
        self._number, self._batch = number, batch
        for refused in batch.refused:
            self._found(REFUSED, refused.at, refused.why, "")
        texts = batch.texts
        if not texts:
            return
        data = "".join(texts).encode()
        sizes = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        ends = np.cumsum(sizes, dtype=np.int64)
        self.findings.documents += len(texts)
        self.findings.characters += sum(map(len, texts))
        self._reversible(texts, data, ends)
        self._odd(texts, data)
        if self._checks.duplicates:
            self._hash(data, ends)

    def _reversible(self, texts: Sequence[str], data: bytes, ends: np.ndarray) -> None:
        kinds, changes = _round_trip(self._checks.encoder).check(texts, data, ends)
        for change in changes:
            at, text = self._batch.at[change.number], texts[change.number]
            self._found(NOT_REVERSIBLE, at, _in_words(change), text[max(0, change.at - 20) : change.at + EXCERPT - 20])
        assert np.count_nonzero(kinds == CHANGED) == len(changes)
        for index in np.flatnonzero(kinds == NORMALISED).tolist():
            self._found(NORMAL_FORM, self._batch.at[index], "", texts[index])

    def _odd(self, texts: Sequence[str], data: bytes) -> None:
        """Each search of the whole batch first: it is nearly always without a finding."""
        if len(data.translate(None, _CONTROLS)) < len(data) or _HIGH_CONTROLS.search(data):
            self._search(CONTROL, _CONTROL_CHARACTER, texts)
        if "\ufffd".encode() in data:
            self._search(REPLACEMENT, _REPLACEMENT_CHARACTER, texts)
        in_bytes, in_text = _special_strings(self._checks.encoder)
        if in_bytes is not None and in_text is not None and in_bytes.search(data):
            self._search(SPECIAL, in_text, texts)
        for index, text in enumerate(texts):
            if not text:
                self._found(EMPTY, self._batch.at[index], "", "")
            elif len(text) > self._checks.long_line:
                longest = max(text.split("\n"), key=len)
                if len(longest) > self._checks.long_line:
                    self._found(LONG_LINE, self._batch.at[index], f"{len(longest)} characters", longest)

    def _search(self, kind: str, pattern: re.Pattern[str], texts: Sequence[str]) -> None:
        for index, text in enumerate(texts):
            match = pattern.search(text)
            if match:
                excerpt = text[max(0, match.start() - 20) : match.start() + EXCERPT - 20]
                self._found(kind, self._batch.at[index], f"{match.group()!r} at character {match.start()}", excerpt)

    def _hash(self, data: bytes, ends: np.ndarray) -> None:
        view, start, hashes = memoryview(data), 0, []
        for end in ends.tolist():
            hashes.append(hashlib.blake2b(view[start:end], digest_size=8).digest())
            start = end
        values = np.frombuffer(b"".join(hashes), "<u8")
        if self._checks.list_odd:
            places = np.zeros(len(values), _PLACE)
            places["hash"], places["file"], places["at"] = values, self._number, self._batch.at
            values = places
        self.findings.hashes.append(values[np.diff(ends, prepend=0) > 0])

    def _found(self, kind: str, at: int, detail: str, text: str) -> None:
        findings, most = self.findings, self._checks.most_listed
        findings.counts[kind] += 1
        if kind in BAD or self._checks.list_odd:
            findings.listed.append(Finding(self._number, int(at), kind, detail, repr(text[:EXCERPT])[1:-1]))
            if len(findings.listed) > 2 * most:
                findings.listed = sorted(findings.listed)[:most]


_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_REPLACEMENT_CHARACTER = re.compile("\ufffd")
_round_trips: dict[EncoderWork, RoundTrip] = {}


def _round_trip(work: EncoderWork) -> RoundTrip:
    """One for a process."""
    if work not in _round_trips:
        _round_trips[work] = RoundTrip(encoder_for(work))
    return _round_trips[work]


def _special_strings(work: EncoderWork) -> tuple[re.Pattern[bytes] | None, re.Pattern[str] | None]:
    added = encoder_for(work).reference.backend.get_added_tokens_decoder().values()
    strings = sorted((token.content for token in added if token.special and token.content), key=lambda s: (-len(s), s))
    if not strings:
        return None, None
    pattern = "|".join(map(re.escape, strings))
    return re.compile(pattern.encode()), re.compile(pattern)


def _in_words(change: Change) -> str:
    return f"at character {change.at} {change.sent!r} comes back as {change.returned!r}"


def _later_ones(hashes: np.ndarray) -> np.ndarray:
    """Of each hash that is there more than once, all but the first by place (in any order without places)."""
    hashes = np.sort(hashes, order=("hash", "file", "at")) if hashes.dtype.names else np.sort(hashes)
    values = hashes["hash"] if hashes.dtype.names else hashes
    return hashes[1:][values[1:] == values[:-1]]


def csv_lines(listed: Iterable[Finding], files: Sequence[InputFile]) -> Iterator[str]:
    """A CSV file: file, line, reason, excerpt. Files are read again for the numbers of their lines."""
    yield _csv_row("file", "line", "reason", "excerpt")
    by_file: dict[int, list[Finding]] = {}
    for finding in listed:
        by_file.setdefault(finding.file, []).append(finding)
    for number, some in by_file.items():
        lines = line_numbers(files[number], [finding.at for finding in some])
        for finding, line in zip(some, lines):
            reason = f"{finding.kind}: {finding.detail}" if finding.detail else finding.kind
            yield _csv_row(files[number].path, str(line), reason, finding.excerpt)


def line_numbers(file: InputFile, places: Sequence[int]) -> list[int]:
    """The lines, or rows of a table, from 1, that begin at some places of a file, which ascend. Reads the file once."""
    if file.holds != "lines":
        return [place + 1 for place in places]
    text, lines, found = FileText(file), 1, list[int]()
    try:
        while len(found) < len(places):
            before, chunk = text.position, text.read()
            start = 0
            while len(found) < len(places) and (places[len(found)] <= before + len(chunk) or not chunk):
                stop = places[len(found)] - before
                lines += chunk.count(b"\n", start, stop)
                start = stop
                found.append(lines)
            lines += chunk.count(b"\n", start)
    finally:
        text.close()
    return found


def _csv_row(*values: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
