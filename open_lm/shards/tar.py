"""Tar files of members: a writer whose bytes depend on the content alone, and a walk over the headers of a local file."""

from __future__ import annotations

import functools
import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from open_lm import storage
from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import SEQUENCES_PER_MEMBER, Format, encode_member
from open_lm.shards.tar_stream import no_tar

_BLOCK = 512
_AT_ONCE = 1 << 20
_LARGEST = 8**11 - 1


def ustar_header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file of mode 644: no owner, no time.

    Raises:
        ValueError: a name over 100 bytes, or a file of 8 GiB and more.
    """
    encoded = name.encode()
    if len(encoded) > 100 or size > _LARGEST:
        raise ValueError(f"{name}: {size} bytes under this name don't fit into a tar header")
    digits = b"%011o" % size
    # the sum of all bytes, those of the checksum as spaces
    check = b"%06o" % (_fixed_sum() + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _BEFORE_SIZE, digits, _BEFORE_CHECK, check, _AFTER_CHECK))


_BEFORE_SIZE = b"0000644\x000000000\x000000000\x00"
_BEFORE_CHECK = b"\x0000000000000\0"
_AFTER_CHECK = b"\x00 0" + bytes(100) + b"ustar\x0000" + bytes(247)


@functools.cache
def _fixed_sum() -> int:
    return sum(_BEFORE_SIZE) + sum(_BEFORE_CHECK) + sum(b" " * 8) + sum(_AFTER_CHECK[2:])


class TarWriter:
    """Members one after another; count and checksum of the bytes written.

    Args:
        file: where to; written in large pieces.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._hash = file, hashlib.sha256()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.bytes = 0

    def add(self, name: str, pieces: Iterable[bytes | np.ndarray]) -> None:
        """Write one member. `pieces`: its content, bytes or uint8 arrays; arrays may change afterwards."""
        pieces = tuple(pieces)
        size = sum(len(piece) for piece in pieces)
        self._put(ustar_header(name, size))
        for piece in pieces:
            self._put(piece)
        self._put(bytes(-size % _BLOCK))

    def close(self) -> None:
        """Write the end mark. The file stays open."""
        self._put(bytes(2 * _BLOCK))
        self._flush()

    @property
    def sha256(self) -> str:
        """Of what was written, once closed."""
        return self._hash.hexdigest()

    def _put(self, piece: bytes | np.ndarray) -> None:
        if isinstance(piece, bytes):
            self._pending.append(piece)
            self._pending_bytes += len(piece)
            if self._pending_bytes >= _AT_ONCE:
                self._flush()
        else:
            self._flush()
            self._write(piece.data)

    def _flush(self) -> None:
        self._write(b"".join(self._pending))
        self._pending, self._pending_bytes = [], 0

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)


def write_shard(path: Path, fmt: Format, rows: np.ndarray | Iterable[np.ndarray], length: int | None = None) -> ShardEntry:
    """Write one shard, whole or not at all.

    Args:
        path: the tar file; missing folders are made.
        rows: [sequences, length], as `encode_member` takes them; or chunks of them, each of any number of sequences. A chunk may be
            overwritten once the next one is asked for.
        length: tokens of a sequence, for the entry of a shard without chunks.

    Returns:
        Its manifest entry.

    Raises:
        ValueError: chunks of different lengths or dtypes.
    """
    chunks, sequences = [rows] if isinstance(rows, np.ndarray) else rows, 0
    with storage.atomic_write(path) as file:
        out = TarWriter(file)
        for number, member in enumerate(_regroup(chunks, SEQUENCES_PER_MEMBER[fmt])):
            if len(member):
                out.add(f"{number:012d}.{fmt}", encode_member(fmt, member))
                sequences += len(member)
            length = int(member.shape[1])
        out.close()
    return ShardEntry(path.name.removesuffix(".tar"), sequences, out.bytes, out.sha256, length)


def _regroup(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The rows of all chunks, `size` at a time, views where a chunk holds a whole group; and a last array of fewer, maybe of none."""
    rest: list[np.ndarray] = []
    held = 0
    for chunk in chunks:
        if rest and (chunk.dtype != rest[0].dtype or chunk.shape[1:] != rest[0].shape[1:]):
            raise ValueError(f"a chunk of {chunk.dtype} {list(chunk.shape)} follows one of {rest[0].dtype} [.., {rest[0].shape[1]}]")
        start = 0
        if held:
            start = min(size - held, len(chunk))
            rest.append(chunk[:start].copy())
            held += start
            if held < size:
                continue
            yield np.concatenate(rest)
        stop = start + (len(chunk) - start) // size * size
        for first in range(start, stop, size):
            yield chunk[first : first + size]
        rest, held = [chunk[stop:].copy()], len(chunk) - stop
    if rest:
        yield np.concatenate(rest)


@dataclass(frozen=True)
class Member:
    """A regular file inside a tar: its name, and where its data lie in bytes from the start."""

    name: str
    offset: int
    size: int


def walk_headers(path: Path) -> Iterator[Member]:
    """The members of a local tar, reading headers only.

    Raises:
        ValueError: not a tar, or a truncated one.
    """
    total = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isreg():
                    if info.offset_data + info.size > total:
                        raise ValueError(f"{path}: ends inside its member {info.name}; the file is not whole")
                    yield Member(info.name, info.offset_data, info.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except tarfile.TarError as error:
        with path.open("rb") as file:
            begin = file.read(storage.FIRST_BYTES)
        raise ValueError(f"{path}: {no_tar(begin) if begin[257:262] != b'ustar' else f'is damaged: {error}'}") from None
