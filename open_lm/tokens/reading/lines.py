"""The lines of a file's text, in order and many at a time. A line belongs to the stretch of the text in which it starts.

Memory: one read, or twice the longest line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from open_lm.tokens.reading.batch import named
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.text_stream import READ, FileText

LARGE = 8 << 20
"""Bytes from which on a line or document is reported while it is gathered."""


class Growth:
    """Tells a listener how large a line has become: when it passes 8 MiB, and at each doubling after that."""

    def __init__(self, listener: Callable[[int], None] | None, place: Callable[[], str]):
        self._listener, self._place, self._next = listener, place, LARGE

    def reached(self, size: int) -> None:
        """The line has `size` bytes so far. A ValueError of the listener is raised with the place."""
        if self._listener is not None and size >= self._next:
            self._next = 1 << size.bit_length()
            try:
                self._listener(size)
            except ValueError as error:
                raise ValueError(f"--input-files {self._place()}: {error}") from None

    def begin(self) -> None:
        """Another line."""
        self._next = LARGE


class Lines:
    """The lines of a file. `position` is the byte of the text at which the next one starts.

    No line that starts at or after `passed` has been handed out, and all before it have been handed out or passed over. Lines are counted
    from byte `counted_from` on: `count` have been handed out since.

    Raises (everywhere): ValueError for what is wrong with the file, OSError when the storage fails.
    """

    def __init__(self, file: InputFile, large: Callable[[int], None] | None = None):
        self.file = file
        self.position = self.passed = self.counted_from = self.count = 0
        self._text = FileText(file)
        self._chunk = b""  # what was read last, as far as nobody has it yet
        self._begun: list[bytes] = []  # before that, the begin of a line whose end has not been read
        self._begun_bytes = 0
        self._length: int | None = None  # of the text, once its end was seen
        self._growth = Growth(large, lambda: named(file, self.counted_from, self.count + 1))

    def close(self) -> None:
        self._text.close()

    def check_unchanged(self) -> None:
        """Raises ValueError when the file is no longer what was listed."""
        self._text.check_unchanged()

    def until(self, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """The lines that start before byte `stop`, without their newlines: (byte at which the first starts, lines).

        Some lists are empty. Nothing that was handed out is kept here.
        """
        passed = max(stop or 0, self.passed)
        while self._begun or stop is None or self.position < stop:
            if self._chunk or self._pull():
                yield self._take(self._cut(stop))
            elif self._begun:
                self._chunk = b"\n"  # stands for the one that is missing
                yield self._take(1)
            else:
                break
        self.passed = self.position if stop is None else passed

    def skip_to(self, start: int) -> None:
        """Pass over the lines that start before byte `start`."""
        if self.position >= start:
            return
        if self._text.position < start:
            self._text.go_to(start - 1)
            self._chunk = b""
            self._pull()
        self._begun, self._begun_bytes = [], 0
        begin = self._text.position - len(self._chunk)
        cut = self._chunk.find(b"\n", max(0, start - 1 - begin)) + 1
        while not cut:
            self._chunk = b""
            if not self._pull():
                break
            cut = self._chunk.find(b"\n") + 1
        self._chunk = self._chunk[cut:]
        self.position = self.counted_from = self._text.position - len(self._chunk)
        self.passed, self.count = start, 0

    def ends_by(self, stop: int) -> bool:
        """True if the text has no byte at or after `stop`. Reads on as far as that takes."""
        while self._text.position <= stop and self._pull():
            pass
        return self._length is not None and self._length <= stop

    def _pull(self) -> bool:
        """Read on; False at the end."""
        data = self._text.read(READ)
        if not data:
            self._length = self._text.position
        self._chunk += data
        return bool(data)

    def _cut(self, stop: int | None) -> int:
        """Bytes of the chunk that belong to lines which start before `stop`."""
        size = len(self._chunk)
        first = 0 if stop is None else stop - 1 - (self._text.position - size)  # a newline from here on ends the last of them
        if stop is None or first >= size:
            return size
        return self._chunk.find(b"\n", max(0, first)) + 1 or size

    def _take(self, cut: int) -> tuple[int, list[bytes]]:
        """The lines that end in the first `cut` bytes of the chunk; what follows the last of them there is begun."""
        taken, self._chunk = self._chunk[:cut], self._chunk[cut:]
        lines = taken.split(b"\n")
        rest = lines.pop()
        at = self.position
        if lines:
            if self._begun:
                self._begun.append(lines[0])
                lines[0] = b"".join(self._begun)
            self._begun, self._begun_bytes = [], 0
            self._growth.begin()
            self.position = self._text.position - len(self._chunk) - len(rest)
            self.passed = self.position
            self.count += len(lines)
        if rest:
            self._begun.append(rest)
            self._begun_bytes += len(rest)
            self._growth.reached(self._begun_bytes)
        return at, lines
