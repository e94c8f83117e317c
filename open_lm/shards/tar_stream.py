"""A tar read once from front to back, local or remote: members and samples in file order, with count and sha256 of all its bytes.

Plain ustar and GNU headers, GNU long names and pax records are understood. A damaged or cut member is an error, never an early
end; only the end mark may be missing.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from open_lm import storage
from open_lm.shards.members import split_name

METADATA = re.compile(r"__[^/]*__($|/)")
"""Names of members that are no part of any sample, as in webdataset."""

_BLOCK = 512
_BUFFER = 1 << 20
_REGULAR, _SKIPPED = b"0\0" + b"7", b"123456"  # links, devices and folders have no content
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


class TarStream:
    """The members of a tar.

    Args:
        file: at its start; left open.
        name: of the tar, for messages.
    """

    def __init__(self, file: IO[bytes], name: str):
        self._counted = _Hashing(file)
        self._file, self._name = io.BufferedReader(self._counted, _BUFFER), name
        self._at = 0
        self._read_to_end = False

    def __iter__(self) -> Iterator[Member]:
        """The regular files, in order; afterwards the rest of the file has been read too.

        Raises:
            ValueError: not a tar, or a damaged or truncated one.
            OSError: can't be read.
        """
        name = None
        while (header := self._header()) is not None:
            kind, size = header[156:157], self._size(header)
            if kind in _REGULAR:
                yield Member(name or _plain_name(header), self._data(size, name or _plain_name(header)))
                name = None
            elif kind in _SKIPPED:
                name = None
            elif kind == _LONG_NAME:
                name = self._data(size, "long name").rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind in (_PAX, _PAX_GLOBAL, _LONG_LINK):
                name = self._pax_name(self._data(size, "pax header")) if kind == _PAX else name
            else:
                raise ValueError(f"{self._name}: holds a member of tar type {kind.decode('latin-1')!r} at byte {self._at - _BLOCK}")
        while self._file.read(_BUFFER):
            pass
        self._read_to_end = True

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

    def _header(self) -> bytes | None:
        """The next header; None at the end mark, or at the end of a file that ends with a member."""
        header = self._file.read(_BLOCK)
        if not header and self._at:
            return None
        if len(header) < _BLOCK:
            raise ValueError(f"{self._name}: {'ends inside a tar header; it is not whole' if self._at else no_tar(header)}")
        if header.count(0) == _BLOCK:
            return None
        if header[257:262] != b"ustar" or not _sum_is_right(header):
            raise ValueError(f"{self._name}: " + (f"no tar header at byte {self._at}; it is damaged" if self._at else no_tar(header)))
        self._at += _BLOCK
        return header

    def _size(self, header: bytes) -> int:
        field = header[124:136]
        try:
            if field[0] == 0x80:
                return int.from_bytes(field[1:], "big")
            return int(field.strip(b" \0") or b"0", 8)
        except ValueError:
            raise ValueError(f"{self._name}: no tar header at byte {self._at - _BLOCK}; it is damaged") from None

    def _data(self, size: int, name: str) -> bytes:
        data = self._file.read(size)
        padding = -size % _BLOCK
        if len(data) < size or len(self._file.read(padding)) < padding:
            raise ValueError(f"{self._name}: ends inside its member {name}; it is not whole")
        self._at += size + padding
        return data

    def _pax_name(self, records: bytes) -> str | None:
        """The path among pax records `<length> <key>=<value>\\n`."""
        name, at = None, 0
        while at < len(records):
            digits, _, _ = records[at : at + 20].partition(b" ")
            if not digits.isdigit() or int(digits) <= len(digits):
                raise ValueError(f"{self._name}: a damaged pax header before byte {self._at}")
            key, _, value = records[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size" or key.startswith(b"GNU.sparse"):
                raise ValueError(f"{self._name}: holds a member with the pax record {key.decode()}, which shards don't have")
            at += int(digits)
        return name


def no_tar(begin: bytes) -> str:
    """What a file is that should be a tar, by its first bytes, with the remedy."""
    return storage.instead_of("a tar file", begin, "give shards made by datapreprocess/make_2048.py or another webdataset writer")


def _sum_is_right(header: bytes) -> bool:
    try:
        told = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False
    return told == sum(header) - sum(header[148:156]) + 8 * ord(" ")


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
