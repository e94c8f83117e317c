"""A file's text: its decompressed bytes in order, from one of three streams.

A stream reads on from `position`, and can go forward. It never gives more bytes than asked for, so that memory doesn't depend on how well a
text compresses. Damaged data is a ValueError that names the file.
"""

from __future__ import annotations

import zlib
from typing import IO, Protocol

import zstandard

from open_lm import storage
from open_lm.tokens.reading.inputs import InputFile
from open_lm.tokens.reading.stored import check_unchanged, named_error, open_stored
from open_lm.tokens.reading.zstd_frames import FrameScan, frame_holding

READ = 1 << 20
"""Text bytes that are read at a time."""

_STORED_READ = 128 << 10
_MAX_WINDOW = 1 << 31
WORTH_A_JUMP = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS


class TextStream(Protocol):
    """Decompressed bytes in order; `position` is that of the next one."""

    position: int

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end only."""
        ...

    def go_to(self, target: int) -> None:
        """Go forward to byte `target`, or to the end of a text that is shorter."""
        ...


class PlainStream:
    """Text that is stored as it is."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        return data

    def go_to(self, target: int) -> None:
        self.position = min(target, self._file.seek(0, 2))
        self._file.seek(self.position)


class _Followed:
    """Stored bytes on their way to the decompressor, with a scan that follows them."""

    def __init__(self, file: IO[bytes], scan: FrameScan):
        self._file, self._scan = file, scan
        self.position = scan.position

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._scan.follow(data, self.position)
        self.position += len(data)
        return data


class ZstdStream:
    """Text of any number of zstd frames with windows up to 2 GiB. Going forward, it enters frames whose begin it can find out.

    Args:
        file: open at its begin; seekable for `go_to`.
        name: for errors.
        remote: seeking costs more than reading on.
    """

    def __init__(self, file: IO[bytes], name: str, remote: bool = False):
        self._file, self._name, self._remote = file, name, remote
        self._enter(0, 0)

    def _enter(self, stored: int, text: int) -> None:
        """Go on from the frame at byte `stored`, whose text begins at byte `text`."""
        self.position = text
        self._scan = FrameScan(stored, text)
        self._source = _Followed(self._file, self._scan)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._reader = decompressor.stream_reader(self._source, read_size=_STORED_READ, read_across_frames=True, closefd=False)  # type: ignore[arg-type]

    def read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except zstandard.ZstdError as error:
            raise ValueError(self._damage(error)) from None
        if not data and not (self._source.position and self._scan.ends_at(self._source.position)):
            raise ValueError(f"--input-files {self._name}: ends in the middle of its zstd data; fetch it again")
        self.position += len(data)
        return data

    def go_to(self, target: int) -> None:
        stored, text = self._scan.frame
        if target - self.position >= WORTH_A_JUMP and text is not None and text <= target:
            stored, text = frame_holding(self._file, stored, text, target, self._remote)
            if text > self.position:
                self._file.seek(stored)
                self._enter(stored, text)
            else:
                self._file.seek(self._source.position)
        _read_over(self, target)

    def _damage(self, error: Exception) -> str:
        if self._scan.lost and self._scan.frame[0] == 0:
            self._file.seek(0)
            return _not_packed(self._name, "zstd", self._file.read(storage.FIRST_BYTES))
        if self._scan.lost:
            return _behind(self._name, "zstd", self._scan.frame[0])
        what = str(error).removeprefix("zstd decompress error: ")
        return f"--input-files {self._name}: its zstd data is damaged after byte {self.position} of its text ({what}); fetch it again"


class GzipStream:
    """Text of any number of gzip members, with zeros between or after them as tapes leave them.

    Args:
        file: open at its begin.
        name: for errors.
    """

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._name = file, name
        self._member: zlib._Decompress | None = None
        self._stored = b""
        self._stored_end = 0
        self._first = True
        self.position = 0

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        end = self.position + size
        while self.position < end and (piece := self._piece(end - self.position)):
            pieces.append(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def go_to(self, target: int) -> None:
        _read_over(self, target)

    def _piece(self, wanted: int) -> bytes:
        """Some text, at most `wanted` bytes; none at the end."""
        while True:
            ended = not self._stored and not self._refill()
            if self._member is None and not self._first:
                self._stored = self._stored.lstrip(b"\0")
                if not self._stored and not ended:
                    continue
            if ended and self._member is None and not self._first:
                return b""
            self._member = self._member or zlib.decompressobj(_GZIP)
            try:
                text = self._member.decompress(self._stored, wanted)
            except zlib.error as error:
                raise ValueError(self._damage(error)) from None
            if self._member.eof:
                self._stored, self._member, self._first = self._member.unused_data, None, False
            else:
                self._stored = self._member.unconsumed_tail
                if ended and not text:
                    raise ValueError(f"--input-files {self._name}: ends in the middle of its gzip data; fetch it again")
            if text:
                return text

    def _refill(self) -> bool:
        """Get stored bytes; False when there are none left."""
        self._stored = self._file.read(_STORED_READ)
        self._stored_end += len(self._stored)
        return bool(self._stored)

    def _damage(self, error: Exception) -> str:
        if "incorrect header" in str(error):
            if self._first:
                return _not_packed(self._name, "gzip", self._stored[: storage.FIRST_BYTES])
            return _behind(self._name, "gzip", self._stored_end - len(self._stored))
        return f"--input-files {self._name}: its gzip data is damaged after byte {self.position} of its text ({error}); fetch it again"


def _not_packed(name: str, kind: str, begin: bytes) -> str:
    said = storage.stand_in(f"{kind} data", begin) or f"is not {kind} data; name it for what it is"
    return f"--input-files {name}: {said}"


def _behind(name: str, kind: str, stored: int) -> str:
    return f"--input-files {name}: has bytes behind its {kind} data, from byte {stored} of the file on; fetch it again, or cut them off"


def _read_over(stream: TextStream, target: int) -> None:
    while stream.position < target and stream.read(min(READ, target - stream.position)):
        pass


class FileText:
    """The text of an input file, as a stream that is held to what was listed.

    Raises (opening, reading): ValueError for what is wrong with the file, OSError when the storage fails.
    """

    def __init__(self, file: InputFile):
        self.file = file
        self._raw = open_stored(file)
        self._stream: TextStream
        if file.compression == "zst":
            self._stream = ZstdStream(self._raw, file.path, storage.is_remote(file.path))
        else:
            self._stream = GzipStream(self._raw, file.path) if file.compression == "gz" else PlainStream(self._raw)

    @property
    def position(self) -> int:
        return self._stream.position

    def read(self, size: int = READ) -> bytes:
        """Up to so many bytes; none at the end only."""
        try:
            return self._stream.read(size)
        except (OSError, ValueError) as error:
            raise self._explained(error) from None

    def go_to(self, target: int) -> None:
        """Go forward to byte `target`, or to the end of a text that is shorter."""
        try:
            self._stream.go_to(target)
        except (OSError, ValueError) as error:
            raise self._explained(error) from None

    def _explained(self, error: OSError | ValueError) -> Exception:
        if isinstance(error, OSError):
            return named_error(self.file, error)
        self.check_unchanged()  # the likeliest reason for damage, where it is one
        return error

    def check_unchanged(self) -> None:
        """Raises ValueError when the file is no longer what was listed."""
        check_unchanged(self.file, self._raw)

    def close(self) -> None:
        self._raw.close()
