"""A tar read once from front to back, local or remote: members and samples in file order, with count and sha256 of all its bytes.

Plain ustar and GNU headers, GNU long names and pax records are understood; a gzipped tar is read like one that isn't, and tars that
were joined (`cat a.tar b.tar`) as one. A damaged or cut member, a tar without its end and bytes behind it are errors, never an early end.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import mmap
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from open_lm import storage
from open_lm.shards.members import split_name

METADATA = re.compile(r"__[^/]*__($|/)")
"""Names of members that are no part of any sample, as in webdataset."""

_BLOCK = 512
_BUFFER = 1 << 20
_MOST_ZEROS = 1 << 20
"""Zeros at the end of a tar; writers fill up to 10 KiB. A file of its full size whose download was cut has more, in place of members."""
_GZIP = b"\x1f\x8b"
_TARS = "give shards made by datapreprocess/make_2048.py or another webdataset writer"
_REGULAR, _SKIPPED = b"0\0" + b"7", b"123456V"  # links, devices, folders and labels have no content
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


class Member(NamedTuple):
    """A regular file of a tar."""

    name: str
    data: bytes


class _Hashing(io.RawIOBase):
    """A file read through, with count and sha256 of what was read."""

    def __init__(self, file: IO[bytes]):
        self._file, self.hash, self.count = file, hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.hash.update(data)
        self.count += len(data)
        return len(data)


class _Gunzipped(gzip.GzipFile):
    """What is in a gzipped tar; damage is a ValueError."""

    def __init__(self, file: io.BufferedReader[Any], name: str):
        super().__init__(fileobj=file, mode="rb")
        self._name = name

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{self._name}: is a gzipped tar that is cut or damaged ({error}); fetch it again") from None


def _unpacked(file: io.BufferedReader[Any], name: str) -> IO[bytes]:
    """A tar's own bytes, whether it is gzipped or not."""
    return cast(IO[bytes], _Gunzipped(file, name)) if file.peek(2)[:2] == _GZIP else file


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[IO[bytes]]:
    """A local tar's bytes, seekable; those of a gzipped one as they are unpacked."""
    with path.open("rb") as file:
        yield _unpacked(file, str(path))


def open_unpacked(path: Path) -> int:
    """Descriptor of a local tar's bytes, for reads at any place; of a gzipped one's unpacked copy, which is gone when it is closed."""
    with open_tar(path) as file:
        if not isinstance(file, gzip.GzipFile):
            return os.dup(file.fileno())
        with storage.tell_full_disk(Path(tempfile.gettempdir()) / path.name), tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, _BUFFER)
            copy.flush()
            return os.dup(copy.fileno())


class TarStream:
    """The members of a tar.

    Args:
        file: at its start; left open. A map of a file is looked at by `places` only.
        name: of the tar, for messages.
    """

    def __init__(self, file: IO[bytes] | mmap.mmap, name: str):
        self._name, self._at, self._file = name, 0, file
        self._read_to_end = False
        self._total = len(file) if isinstance(file, mmap.mmap) else 0
        if not isinstance(file, mmap.mmap):
            self._counted = _Hashing(file)
            raw = io.BufferedReader(self._counted, _BUFFER)
            self._file = _unpacked(raw, name)
        self._read = self._file.read

    def __iter__(self) -> Iterator[Member]:
        """The regular files, in order; afterwards the whole file has been read.

        Raises:
            ValueError: not a tar, or a damaged or truncated one.
            OSError: can't be read.
        """
        for name, size in self._members():
            yield Member(name, self._data(size, name))
        self._read_to_end = True

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Name, first byte and size of each regular file, in order. Raises as `__iter__` does."""
        seek = self._file.seek if isinstance(self._file, mmap.mmap) else None
        for name, size in self._members():
            at = self._at
            after = at + size + -size % _BLOCK
            if seek is None:
                self._data(size, name)
            elif after > self._total:
                raise ValueError(f"{self._name}: ends inside its member {name}; it is not whole")
            else:
                seek(after)
                self._at = after
            yield name, at, size

    @property
    def size(self) -> int:
        """Bytes of the whole file, once all members have been read."""
        assert self._read_to_end
        return self._counted.count

    @property
    def sha256(self) -> str:
        """Of the whole file, once all members have been read."""
        assert self._read_to_end
        return self._counted.hash.hexdigest()

    def _members(self) -> Iterator[tuple[str, int]]:
        """Name and size of each regular file, whose data are to be read or skipped before the next one is asked for."""
        name = told = None
        while (header := self._header()) is not None:
            kind, size = header[156:157], self._size(header)
            if kind in _REGULAR:
                yield name or _plain_name(header), size if told is None else told
                name = told = None
            elif kind in _SKIPPED:
                name = told = None
            elif kind == _LONG_NAME:
                name = self._data(size, "long name").rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind in (_PAX, _PAX_GLOBAL, _LONG_LINK):
                data = self._data(size, "pax header")
                name, told = self._pax(data) if kind == _PAX else (name, told)
            else:
                raise ValueError(f"{self._name}: holds a member of tar type {kind.decode('latin-1')!r} at byte {self._at - _BLOCK}")

    def _header(self) -> bytes | None:
        """The next header, also that of a tar that follows the end mark of the one before; None at the end of the file."""
        header, zeros = self._read(_BLOCK), 0
        if self._total and header[257:262] == b"ustar" and len(header) == _BLOCK:  # a sum for each takes as long as all the rest
            self._at += _BLOCK
            return header
        while header and not header[0] and header.count(0) == len(header):
            zeros += len(header)
            header = self._read(_BLOCK) if zeros <= _MOST_ZEROS else b""
        at, self._at = self._at + zeros, self._at + zeros + _BLOCK
        if zeros > _MOST_ZEROS:
            raise ValueError(f"{self._name}: holds nothing but zeros from byte {at - zeros} on; it is not whole, fetch it again")
        if zeros and not header:
            return None
        if at and not header:
            raise ValueError(
                f"{self._name}: ends without the end mark of a tar, so members may be missing; fetch it again, or if it is whole "
                "append the mark (head -c 1024 /dev/zero)"
            )
        if len(header) < _BLOCK or not _sum_is_right(header):
            wrong = "ends inside a tar header; it is not whole" if len(header) < _BLOCK else f"no tar header at byte {at}; it is damaged"
            wrong = f"has bytes behind its end, from byte {at} on, which are no tar; fetch it again, or cut them off" if zeros else wrong
            raise ValueError(f"{self._name}: {wrong if at else _no_tar(header)}")
        return header

    def _size(self, header: bytes) -> int:
        field = header[124:136]
        try:
            size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
            if size < 0:
                raise ValueError
            return size
        except ValueError:
            raise ValueError(f"{self._name}: no tar header at byte {self._at - _BLOCK}; it is damaged") from None

    def _data(self, size: int, name: str) -> bytes:
        data = self._read(size)
        padding = -size % _BLOCK
        if len(data) < size or len(self._read(padding)) < padding:
            raise ValueError(f"{self._name}: ends inside its member {name}; it is not whole")
        self._at += size + padding
        return data

    def _pax(self, records: bytes) -> tuple[str | None, int | None]:
        """The path and the size among pax records `<length> <key>=<value>\\n`."""
        name, size, at = None, None, 0
        while at < len(records):
            digits, _, _ = records[at : at + 20].partition(b" ")
            if not digits.isdigit() or int(digits) <= len(digits):
                raise ValueError(f"{self._name}: a damaged pax header before byte {self._at}")
            key, _, value = records[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size" and value.isdigit():
                size = int(value)
            elif key == b"size" or key.startswith(b"GNU.sparse"):
                raise ValueError(f"{self._name}: holds a member with the pax record {key.decode()}, which shards don't have")
            at += int(digits)
        return name, size


def _no_tar(begin: bytes) -> str:
    """What a file is that should be a tar, by its first bytes, with the remedy."""
    return f"is not a tar file but JSON; {_TARS}" if storage.is_json(begin) else storage.instead_of("a tar file", begin, _TARS)


def _sum_is_right(header: bytes) -> bool:
    """Adler-32 has the sum of the bytes, modulo 65,521, in its lower half, and is 20 times as fast as `sum`."""
    try:
        told = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    found = (zlib.adler32(header) & 0xFFFF) - (zlib.adler32(header[148:156]) & 0xFFFF) + 8 * ord(" ")
    return (found - told) % 65_521 == 0


def _plain_name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def samples(members: Iterable[Member]) -> Iterator[dict[str, Member]]:
    """Runs of members with one base name, by extension; a repeated extension starts a new one. Metadata is left out."""
    base, sample = None, dict[str, Member]()
    for member in members:
        split = None if METADATA.match(member.name) else split_name(member.name)
        if split is None:
            continue
        if sample and (split[0] != base or split[1] in sample):
            yield sample
            sample = {}
        base, sample[split[1]] = split[0], member
    if sample:
        yield sample
