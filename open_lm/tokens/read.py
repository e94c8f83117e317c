"""Files to documents: decompression, lines, JSON, and the place of everything that is wrong.

Parts in, documents `(text, place)` and refused lines `(place, why)` out. Memory: one read of 4 MiB or the longest line.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Protocol

import orjson
import zstandard

from open_lm import storage
from open_lm.tokens.inputs import InputFile, Part

_READ = 4 << 20
_STORED_READ = 128 << 10
_MAX_WINDOW = 1 << 31
_BOM = b"\xef\xbb\xbf"


class Place(NamedTuple):
    """A line: the `line`-th (from 1) of those from byte `origin` of the file's text on."""

    file: InputFile
    origin: int
    line: int

    def __str__(self) -> str:
        return f"{self.file.path}, line {self.line + _lines_before(self.file, self.origin)}"


class Document(NamedTuple):
    """A text and where it came from."""

    text: str
    place: Place


class Refused(NamedTuple):
    """A line that is no document, and why."""

    place: Place
    why: str


class Stream(Protocol):
    """What is read from: decompressed bytes in order."""

    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class ZstdStream:
    """Decompressed bytes of any number of zstd frames with windows up to 2 GiB; a cut-off frame is an error, not an end.

    `read` returns what one stored read gives, whatever the size asked for.
    """

    def __init__(self, file: IO[bytes], path: str):
        self._file, self._path = file, path
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._frame: Any = None
        self._stored = b""

    def read(self, size: int, /) -> bytes:
        while True:
            self._stored = self._stored or self._file.read(_STORED_READ)
            if not self._stored:
                if self._frame is not None:
                    raise ValueError(f"--input-files {self._path}: ends in the middle of its zstd data; fetch it again")
                return b""
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                text = self._frame.decompress(self._stored)
            except zstandard.ZstdError as error:
                raise ValueError(f"--input-files {self._path}: is not zstd data: {error}") from None
            if self._frame.eof:
                self._stored, self._frame = self._frame.unused_data, None
            else:
                self._stored = b""
            if text:
                return bytes(text)

    def close(self) -> None:
        self._file.close()


class GzipStream:
    """Decompressed bytes of a gzip file; a damaged one is a ValueError with its path."""

    def __init__(self, file: IO[bytes], path: str):
        self._file, self._path = file, path
        self._gzip = gzip.GzipFile(fileobj=file)

    def read(self, size: int, /) -> bytes:
        try:
            return self._gzip.read(size)
        except EOFError:
            raise ValueError(f"--input-files {self._path}: ends in the middle of its gzip data; fetch it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"--input-files {self._path}: is not gzip data: {error}") from None

    def close(self) -> None:
        self._gzip.close()
        self._file.close()


def open_text(file: InputFile) -> Stream:
    """The decompressed bytes of a file."""
    raw = storage.open_read(file.path)
    if file.compression == "zst":
        return ZstdStream(raw, file.path)
    return GzipStream(raw, file.path) if file.compression == "gz" else raw


def text_bytes(file: InputFile) -> int:
    """Decompressed bytes of a file, counted by reading it."""
    return sum(len(chunk) for chunk in _chunks(file))


def _chunks(file: InputFile) -> Iterator[bytes]:
    stream = open_text(file)
    try:
        while chunk := stream.read(_READ):
            yield chunk
    finally:
        stream.close()


def _lines_before(file: InputFile, offset: int) -> int:
    """Lines that end before byte `offset` of the text; reads the file, so only for messages."""
    lines, position = 0, 0
    if offset:
        for chunk in _chunks(file):
            lines += chunk[: max(0, offset - position)].count(b"\n")
            position += len(chunk)
            if position >= offset:
                break
    return lines


class Lines:
    """The lines of a file in order. A compressed file is read from its front; a plain one from near `start`.

    `position` is the byte at which the next line starts, `origin` the one from which lines are counted; all lines that start before
    `passed` have been handed out or passed over, none after it.
    """

    def __init__(self, file: InputFile, start: int = 0):
        self.file = file
        self._stream = open_text(file)
        self._buffer, self._ended = b"", False
        self.position = self.origin = self.line = self.passed = 0
        if start and file.compression is None:
            self._stream.seek(start - 1)  # type: ignore[attr-defined]
            self.position = start - 1
            self.skip_to(start)
            self.origin, self.line = self.position, 0

    def close(self) -> None:
        self._stream.close()

    def skip_to(self, start: int) -> None:
        """Pass over the lines that start before byte `start`."""
        for piece in self._pieces(start):
            self.line += piece.count(b"\n")

    def until(self, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
        """The lines that start before byte `stop`, some at a time, with the number (from 1, from `origin`) of the first of them."""
        for piece in self._pieces(stop):
            lines = piece.split(b"\n")
            if not lines[-1]:
                lines.pop()
            first = self.line + 1
            self.line += len(lines)
            yield first, lines

    def _pieces(self, stop: int | None) -> Iterator[bytes]:
        """Whole lines that start before byte `stop`, many at a time."""
        while stop is None or self.position < stop:
            cut = self._cut(stop)
            if cut:
                piece, self._buffer = self._buffer[:cut], self._buffer[cut:]
                self.position += cut
                yield piece
            elif self._ended:
                break
            else:
                self._fill()
        self.passed = self.position if stop is None else stop

    def _cut(self, stop: int | None) -> int:
        """Bytes of the buffer that are whole lines starting before `stop`; 0 when more must be read to know."""
        room = len(self._buffer) if stop is None else stop - self.position
        if room < len(self._buffer):
            end = self._buffer.find(b"\n", room - 1) + 1
        else:
            end = self._buffer.rfind(b"\n") + 1
        return end or (len(self._buffer) if self._ended else 0)

    def _fill(self) -> None:
        chunks, wanted = [self._buffer], max(_READ, len(self._buffer))  # doubling, so that a very long line is copied few times
        while wanted > 0 and not self._ended:
            chunk = self._stream.read(wanted)
            self._ended = not chunk
            chunks.append(chunk)
            wanted -= len(chunk)
        self._buffer = b"".join(chunks)


class Reader:
    """Documents of parts; keeps its place in a file, so that consecutive blocks of a compressed file are decompressed once."""

    def __init__(self, text_key: str):
        self._path = [step for step in text_key.split(".") if step]
        self._key = text_key
        self._lines: Lines | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def documents(self, part: Part) -> Iterator[Document | Refused]:
        """What a part holds, in order; empty lines are passed over."""
        if part.file.holds == "document":
            yield _whole_document(part.file)
            return
        source = self._at(part)
        for first, lines in source.until(part.stop):
            for number, line in enumerate(lines, first):
                if part.start == 0 and number == 1:
                    line = line.removeprefix(_BOM)
                if line and not line.isspace():
                    yield self._document(line, Place(part.file, source.origin, number))

    def _at(self, part: Part) -> Lines:
        old = self._lines
        if old is None or old.file != part.file or old.passed > part.start or part.file.compression is None:
            self.__exit__()
            self._lines = Lines(part.file, part.start)
        assert self._lines is not None
        self._lines.skip_to(part.start)
        return self._lines

    def _document(self, line: bytes, place: Place) -> Document | Refused:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Refused(place, f"is not JSON: {error}")
        for step in self._path:
            if not isinstance(value, dict) or step not in value:
                return Refused(place, f"has no {self._key!r}")
            value = value[step]
        if not isinstance(value, str):
            return Refused(place, f"has a {self._key!r} of type {type(value).__name__}, not a text")
        return Document(value, place)


def _whole_document(file: InputFile) -> Document | Refused:
    data = b"".join(_chunks(file)).removeprefix(_BOM)
    try:
        return Document(data.decode("utf-8"), Place(file, 0, 1))
    except UnicodeDecodeError as error:
        return Refused(Place(file, 0, data.count(b"\n", 0, error.start) + 1), f"is not UTF-8: {error.reason}")
