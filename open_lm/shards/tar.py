"""Tar files of members: a writer whose bytes depend on the content alone, and a walk over the headers of a local file."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import SEQUENCES_PER_MEMBER, Format, encode_member

_BLOCK = 512


class _HashingFile:
    """Passes bytes on and keeps their count and sha256."""

    def __init__(self, file: object):
        self._file, self._hash, self.count = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)  # type: ignore[attr-defined]
        self._hash.update(data)
        self.count += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def write_shard(path: Path, fmt: Format, rows: np.ndarray) -> ShardEntry:
    """Write one shard, whole or not at all.

    Args:
        path: the tar file; missing folders are made.
        rows: [sequences, length], unsigned.

    Returns:
        Its manifest entry.
    """
    per_member = SEQUENCES_PER_MEMBER[fmt]
    members = (
        (f"{index:012d}.{fmt}", encode_member(fmt, rows[start : start + per_member]))
        for index, start in enumerate(range(0, len(rows), per_member))
    )
    with storage.atomic_write(path) as file:
        out = _HashingFile(file)
        _write_members(out, members)
    return ShardEntry(path.name.removesuffix(".tar"), len(rows), out.count, out.sha256, int(rows.shape[1]))


def _write_members(out: _HashingFile, members: Iterable[tuple[str, bytes]]) -> None:
    for name, data in members:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        out.write(header.tobuf(tarfile.USTAR_FORMAT))
        out.write(data)
        out.write(bytes(-len(data) % _BLOCK))
    out.write(bytes(2 * _BLOCK))


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
        raise ValueError(f"{path}: is not a tar file: {error}") from None
