"""Standard input as an input file: copied once, so that it can be divided, read again and told from another text."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import IO

import zstandard

from open_lm.storage import FIRST_BYTES, atomic_write, file_kind
from open_lm.tokens.reading.inputs import CONTENT, InputFile
from open_lm.tokens.reading.text_stream import READ, GzipStream, PlainStream, TextStream, ZstdStream

FRAME_BYTES = 4 << 20
"""Text of a zstd frame of the copy. A block of it needs the frame before it too, for one byte, so frames are small beside blocks."""

SPOOLED = "stdin.jsonl.zst"
_LEVEL = 1
_ZSTD, _SKIPPABLE, _GZIP = b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18", b"\x1f\x8b"


def spool_stdin(folder: str | Path, stream: IO[bytes] | None = None) -> InputFile:
    """Copy lines from standard input, plain or zstd or gzip, to `stdin.jsonl.zst` in a folder; the file appears when it is whole.

    The stamp is "sha256:" and the checksum of the text, so it is the same however the text came compressed.

    Raises:
        ValueError: damaged or unknown compression.
    """
    source = _text_of(sys.stdin.buffer if stream is None else stream)
    checksum = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    target = Path(folder) / SPOOLED
    with atomic_write(target) as out:
        frame = _read_whole(source, FRAME_BYTES)
        while frame or not out.tell():  # nothing is one frame as well
            checksum.update(frame)
            out.write(compressor.compress(frame))
            frame = _read_whole(source, FRAME_BYTES)
    return InputFile(str(target), target.stat().st_size, "lines", "zst", CONTENT + checksum.hexdigest())


def _read_whole(source: TextStream, size: int) -> bytes:
    pieces: list[bytes] = []
    while size and (piece := source.read(min(size, READ))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _text_of(stream: IO[bytes]) -> TextStream:
    begin = stream.read(FIRST_BYTES)
    kind = file_kind(begin)
    if kind and not kind.text and not begin.startswith((_ZSTD, _GZIP)):
        raise ValueError(f"--input-files -: standard input is {kind.name}; send plain lines, or lines compressed with zstd or gzip")
    whole: IO[bytes] = _WithBegin(begin, stream)  # type: ignore[assignment]
    if begin.startswith(_ZSTD) or begin[1:4] == _SKIPPABLE:
        return ZstdStream(whole, "-")
    return GzipStream(whole, "-") if begin.startswith(_GZIP) else PlainStream(whole)


class _WithBegin:
    """A stream whose first bytes have been looked at."""

    def __init__(self, begin: bytes, stream: IO[bytes]):
        self._begin, self._stream = begin, stream

    def read(self, size: int) -> bytes:
        data, self._begin = self._begin, b""
        return data or self._stream.read(size)
