"""One shard in one format to one shard in another, as a stream in bounded memory; a pure task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import MASKED, Format
from open_lm.shards.scan import decode, token_members
from open_lm.shards.tar import write_shard
from open_lm.shards.tar_stream import TarStream


@dataclass(frozen=True)
class ShardTask:
    """A shard to be converted."""

    url: str
    told: ShardEntry | None
    """What its manifest says."""
    path: str
    """Where to."""
    format: Format
    key: str | None
    eot_id: int | None
    wide: bool
    """npy: begin with uint32; else uint16 is tried."""
    made: ShardEntry | None = None
    """What an earlier, interrupted conversion made of it."""
    made_others: int = 0


@dataclass(frozen=True)
class ShardDone:
    """A converted shard."""

    entry: ShardEntry
    others: int
    """Members of its samples beside those that hold tokens."""
    kept: bool
    """It was there already."""


class _OtherTypeError(Exception):
    """The ids need this type."""

    def __init__(self, dtype: type[np.uint32] | type[np.int32]):
        super().__init__(dtype)
        self.dtype = np.dtype(dtype)


def convert_shard(task: ShardTask) -> ShardDone:
    """Convert one shard, or keep it where it is whole already.

    Raises:
        ValueError: a damaged shard, another one than its manifest says, or tokens that the format can't hold, with shard and member.
        OSError: can't be read or written.
    """
    if task.made is not None and _is_whole(Path(task.path), task.made):
        return ShardDone(task.made, task.made_others, kept=True)
    dtype = np.dtype(np.int64) if task.format != "npy" else np.dtype(np.uint32 if task.wide else np.uint16)
    while True:
        try:
            return _convert(task, dtype)
        except _OtherTypeError as error:
            dtype = error.dtype


def _is_whole(path: Path, entry: ShardEntry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256


def _convert(task: ShardTask, dtype: np.dtype) -> ShardDone:
    with storage.open_read(task.url) as file:
        source = _Source(task, TarStream(file, task.url), dtype)
        entry = write_shard(Path(task.path), task.format, source.rows())
    return ShardDone(entry, source.others, kept=False)


class _Source:
    """The sequences of the shard that is read."""

    def __init__(self, task: ShardTask, stream: TarStream, dtype: np.dtype):
        self._task, self._stream, self._dtype = task, stream, dtype
        self.others = 0

    def rows(self) -> Iterator[np.ndarray]:
        """[n, length] a member. Ends with an error where the shard is not what its manifest says, so that nothing is written."""
        sequences, length = 0, None
        for member in token_members(self._stream, self._task.key, self._task.url):
            rows = decode(member, self._task.url, self._task.eot_id, length)
            yield self._fitted(rows, member.name)
            sequences, length = sequences + len(rows), rows.shape[1]
            self.others += member.others
        self._check_told(sequences)

    def _fitted(self, rows: np.ndarray, member: str) -> np.ndarray:
        """The ids in the dtype that is written."""
        low, high = int(rows.min(initial=0)), int(rows.max(initial=0))
        place = f"{self._task.url}, member {member}"
        if low < MASKED and not member.endswith(".npy"):
            raise ValueError(f"{place}: holds {low}, which is no token id")
        if low < MASKED and self._dtype == np.int64:
            raise ValueError(f"{place}: has a loss mask, which {self._task.format} can't hold; give --format npy")
        if high >= 1 << 32:
            raise ValueError(f"{place}: holds the id {high}, beyond 32 bits")
        if low < 0 and self._dtype.kind == "u":
            raise _OtherTypeError(np.int32)
        if self._dtype == np.int32 and (high >= 1 << 31 or low < -(1 << 31)):
            raise ValueError(f"{place}: holds {high if high >= 1 << 31 else low}, beyond 31 bits, in a shard with masked positions")
        if self._dtype == np.uint16 and high >= 1 << 16:
            raise _OtherTypeError(np.uint32)
        return rows.astype(self._dtype, copy=False)

    def _check_told(self, sequences: int) -> None:
        told = self._task.told
        if told is None:
            return
        found = {"sequences": sequences, "bytes": self._stream.size, "sha256": self._stream.sha256}
        for words, value in (("sequences", told.num_sequences), ("bytes", told.bytes), ("sha256", told.sha256)):
            if value not in (None, found[words]):
                raise ValueError(
                    f"{self._task.url}: has {found[words]} {words}, its manifest says {value}; copy it again, or mend its manifest"
                )
