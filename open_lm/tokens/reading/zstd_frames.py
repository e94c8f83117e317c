"""Where the frames of zstd data lie, from their headers and their blocks' headers alone (RFC 8878, sections 3.1.1 and 3.1.2).

Used for two things: to know whether the data ends between two frames or in the middle of one, and to find the frame that holds a byte of
the text without decompressing those before it, as far as frames tell their content sizes.
"""

from __future__ import annotations

from typing import IO

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_FRAME, _BLOCK, _SKIPPED = 5, 3, 8  # bytes of a header that must be seen to know what it says, or how long it is
_DICTIONARY_BYTES = (0, 1, 2, 4)
_REPEATED = 1  # a block type whose stored content is one byte, whatever its size says
_READ_OVER = 1 << 20


class FrameScan:
    """Follows the headers of zstd data from the begin of a frame on.

    `position`: stored byte of the next header; `needs`: how many bytes of it to `take`. `frame`: stored and text byte at which the current
    frame begins, or the next one when `between` frames; the text byte is None after a frame without content size. `frame_end`: text
    byte at which it ends, None if unknown. `lost`: this is no zstd data.
    """

    def __init__(self, stored: int = 0, text: int | None = 0):
        self.position, self.needs = stored, _FRAME
        self.frame: tuple[int, int | None] = stored, text
        self.frame_end = text
        self.lost, self.between = False, True
        self._checksum = 0
        self._begun = b""

    def take(self, header: bytes) -> None:
        """Go on by one header, `needs` bytes from `position`."""
        if self.needs == _BLOCK:
            self._take_block(header)
        elif self.needs == _FRAME:
            self._begin_frame(header)
        elif int.from_bytes(header[:4], "little") == _MAGIC:
            self._take_frame(header)
        else:
            self.position += _SKIPPED + int.from_bytes(header[4:8], "little")
            self._end_frame()

    def follow(self, data: bytes, start: int) -> None:
        """Go on over stored bytes that are read in order; `data` begins at byte `start`."""
        data, start = self._begun + data, start - len(self._begun)
        end = start + len(data)
        while not self.lost and self.position + self.needs <= end:
            at = self.position - start
            self.take(data[at : at + self.needs])
        self._begun = data[self.position - start :] if self.position < end and not self.lost else b""

    def ends_at(self, size: int) -> bool:
        """True if data of so many stored bytes ends after a whole frame."""
        return self.between and self.position == size

    def _begin_frame(self, header: bytes) -> None:
        magic = int.from_bytes(header[:4], "little")
        if magic == _MAGIC:
            self.needs = _frame_header_size(header[4])
        elif magic & 0xFFFFFFF0 == _SKIPPABLE:
            self.needs = _SKIPPED
        else:
            self.lost = True

    def _take_frame(self, header: bytes) -> None:
        self.between = False
        size, text = _content_size(header), self.frame[1]
        self.frame_end = None if size is None or text is None else text + size
        self._checksum = 4 if header[4] & 4 else 0
        self.position += len(header)
        self.needs = _BLOCK

    def _take_block(self, header: bytes) -> None:
        value = int.from_bytes(header, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        self.position += _BLOCK + (1 if kind == _REPEATED else size)
        if last:
            self.position += self._checksum
            self._end_frame()

    def _end_frame(self) -> None:
        self.between = True
        self.frame = self.position, self.frame_end
        self.needs = _FRAME


def _frame_header_size(descriptor: int) -> int:
    single = descriptor >> 5 & 1
    return 5 + (0 if single else 1) + _DICTIONARY_BYTES[descriptor & 3] + _size_bytes(descriptor)


def _size_bytes(descriptor: int) -> int:
    return (descriptor >> 5 & 1, 2, 4, 8)[descriptor >> 6]


def _content_size(header: bytes) -> int | None:
    count = _size_bytes(header[4])
    value = int.from_bytes(header[len(header) - count :], "little")
    return None if not count else value + 256 if count == 2 else value


def frame_holding(file: IO[bytes], stored: int, text: int, target: int, by_reading: bool) -> tuple[int, int]:
    """The last frame, as far as frames tell their sizes, that begins at or before byte `target` of the text: its stored and text byte.

    Args:
        stored, text: where a frame begins, at or before `target`.
        by_reading: pass over blocks by reading them (remote files), not by seeking.
    """
    scan = FrameScan(stored, text)
    found = stored, text
    file.seek(stored)
    place = stored
    while not scan.lost:
        gap = scan.position - place
        if by_reading and 0 <= gap <= _READ_OVER:
            file.read(gap)
        else:
            file.seek(scan.position)
        header = file.read(scan.needs)
        place = scan.position + len(header)
        if len(header) < scan.needs:
            break
        scan.take(header)
        if scan.between:
            continue
        start, begin = scan.frame
        if begin is None or begin > target:
            break
        found = start, begin
        if scan.frame_end is None or scan.frame_end > target:
            break
    return found
