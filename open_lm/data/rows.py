"""The rows of a run by their numbers: `read(numbers)` gives int32 tokens [n, seq_len + 1], whatever was read before.

`PlannedRows` reads shards in the order of a plan, `FileOrderRows` in the order of the files, `SyntheticRows` makes tokens up.
They hold no open file and travel to worker processes; what `reader` returns stays in one process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from open_lm.data import keyed
from open_lm.data.access import DEFAULT_ACCESS, Access
from open_lm.data.cache import CacheConfig, ShardCache, cache_config
from open_lm.data.fetching import Fetcher
from open_lm.data.losses import Losses
from open_lm.data.mixing import BLOCK
from open_lm.data.places import Remote
from open_lm.data.plan import Plan
from open_lm.data.stream import Kept, ShardFile, ShardFiles, ShardReader
from open_lm.shards.members import MASKED

_LOCATED_BYTES = 64 << 20
_LOOK_AHEAD = 128
"""Positions of a stream after which a row's shard is needed that is fetched now."""


class RowReader(Protocol):
    """Reads rows in one process."""

    @property
    def losses(self) -> Losses:
        """Rows that could not be read and were allowed to be lost."""
        ...

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from elsewhere."""
        ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """int32 [n, seq_len + 1] for int64 numbers [n]; masked positions are `MASKED`.

        Raises:
            ValueError, OSError: a row can't be read; names the shard.
        """
        ...

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n]: index of each row's source, among the sources of the run."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Rows(Protocol):
    """Rows of one length that can be read in any process."""

    @property
    def seq_len(self) -> int:
        """Tokens of a row less one."""
        ...

    def reader(self, streams: int, stop: int | None = None) -> RowReader:
        """A reader for so many streams in turns. No number from `stop` on is read."""
        ...


@dataclass(frozen=True, eq=False)
class PlannedRows:
    """Rows of shards in the order of a plan.

    Args:
        plan: numbers to rows.
        files: of each source of the plan.
        vocab_size: ids from here on are an error.
        access: what happens to shards that can't be read, and where those from elsewhere go.
    """

    plan: Plan
    files: tuple[ShardFiles, ...]
    vocab_size: int
    access: Access = DEFAULT_ACCESS

    @property
    def seq_len(self) -> int:
        return self.plan.seq_len

    def reader(self, streams: int, stop: int | None = None) -> RowReader:
        return _PlannedReader(self, streams, stop)


def _positions_ahead(plan: Plan, streams: int) -> int:
    """Positions of a stream that are located at once: many, but few passes over the smallest source, and in bounded memory."""
    smallest = min(source.total for source in plan.sources)
    room = _LOCATED_BYTES // (2 * 12 * max(1, streams))  # two pieces of three int32 for each stream
    return min(BLOCK, max(16, min(1 << (smallest // plan.streams).bit_length(), 1 << room.bit_length() - 1)))


def _fetcher(files: tuple[ShardFiles, ...], cache: CacheConfig | None) -> Fetcher | None:
    """What fetches the shards that lie elsewhere; None where none does."""
    if not any(isinstance(path, Remote) for one in files for path in one.paths):
        return None
    return Fetcher(ShardCache(cache or cache_config(None, None)))


class _ShardRows:
    """What both kinds of readers share: rows of shards, lost ones masked."""

    def __init__(self, shards: ShardReader, fetcher: Fetcher | None, access: Access):
        self._shards, self._fetcher = shards, fetcher
        self.losses = Losses(access.lose_shards, access.lose_members)

    @property
    def fetched_bytes(self) -> int:
        return self._fetcher.cache.fetched_bytes if self._fetcher else 0

    def _read_rows(self, places: Iterable[tuple[ShardFile, int]], out: np.ndarray) -> None:
        """Put the rows of some shards into the first rows of `out`: int32 [n, seq_len + 1]."""
        put_row, losses = self._shards.put_row, self.losses
        places, lost = list(places), set[int]()
        for slot, (shard, row) in enumerate(places):
            if not losses.read(shard.path, put_row, shard, row, out[slot]):
                out[slot] = MASKED
                lost.add(slot)
        if int(out.max(initial=0)) >= self._shards.vocab_size:
            for slot, (shard, row) in enumerate(places):
                if slot not in lost:
                    self._shards.read_row(shard, row, out[slot])  # raises for the one

    def _fetch_ahead(self, shard: ShardFile) -> None:
        if self._fetcher and isinstance(shard.path, Remote) and not self.losses.is_lost(shard.path):
            self._fetcher.ahead([shard.wanted])

    def close(self) -> None:
        self._shards.close()


class _PlannedReader(_ShardRows):
    def __init__(self, rows: PlannedRows, streams: int, stop: int | None):
        fetcher, at_once = _fetcher(rows.files, rows.access.cache), 16 + 2 * streams * sum(rows.plan.shards_in_window())
        super().__init__(ShardReader(rows.plan.seq_len, rows.vocab_size, at_once, fetcher, rows.access.verify), fetcher, rows.access)
        self._plan, self._files = rows.plan, rows.files
        self._ahead = _positions_ahead(rows.plan, streams)
        self._shard_files: Kept[tuple[int, int], ShardFile] = Kept(at_once)
        self._end = None if stop is None else -(-stop // rows.plan.streams)
        self._located: dict[tuple[int, int], tuple[int, np.ndarray]] = {}
        self._fetched_to: dict[int, int] = {}
        self._entered: dict[int, tuple[int, int]] = {}

    def read(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), self._plan.seq_len + 1), dtype=np.int32)
        if self._fetcher:
            for number in numbers.tolist():
                self._look_ahead(*divmod(number, self._plan.streams))
        streams = self._plan.streams
        places = (self._place(number % streams, number // streams) for number in numbers.tolist())
        self._read_rows(((self._shard(source, shard), row) for source, shard, row in places), out)
        return out

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        places = (divmod(number, self._plan.streams) for number in numbers.tolist())
        return np.array([self._place(stream, position)[0] for position, stream in places], dtype=np.int64)

    def _place(self, stream: int, position: int) -> tuple[int, int, int]:
        """Source, shard and row at a position of a stream."""
        source, shard, row = self._locate(stream, position // self._ahead)[position % self._ahead].tolist()
        return source, shard, row

    def _locate(self, stream: int, piece: int) -> np.ndarray:
        """int32 [_ahead, 3], source, shard and row of a piece of a stream's positions; the last even and the last odd piece are kept."""
        kept = self._located.get((stream, piece % 2))
        if kept is None or kept[0] != piece:
            start = piece * self._ahead
            found = self._plan.rows_of_stream(stream, start, start + self._ahead)
            columns = np.stack((found.source, found.shard, found.row), axis=1).astype(np.int32)
            kept = self._located[stream, piece % 2] = piece, columns
        return kept[1]

    def _shard(self, source: int, shard: int) -> ShardFile:
        """A shard, the same object as long as the reader may have it open."""
        found = self._shard_files.find((source, shard))
        return self._shard_files.put((source, shard), self._files[source][shard]) if found is None else found

    def _look_ahead(self, position: int, stream: int) -> None:
        """Begin to fetch the shards of the positions up to `_LOOK_AHEAD` further on."""
        end = position + min(_LOOK_AHEAD, self._ahead)
        end = end if self._end is None else min(end, self._end)
        for at in range(max(position, self._fetched_to.get(stream, 0)), end):
            source, shard, _ = self._place(stream, at)
            if self._entered.get(stream) != (source, shard):
                self._entered[stream] = source, shard
                self._fetch_ahead(self._shard(source, shard))
        self._fetched_to[stream] = end


@dataclass(frozen=True, eq=False)
class FileOrderRows:
    """The first `count` rows of some shards as they lie there; the numbers from `count` on are fully masked rows.

    Args:
        ends: int64 [shards], rows up to and including each shard.
        access: where shards from elsewhere go. Nothing may be lost here, whatever it says.
    """

    files: ShardFiles
    ends: np.ndarray
    count: int
    seq_len: int
    vocab_size: int
    access: Access = DEFAULT_ACCESS

    def reader(self, streams: int, stop: int | None = None) -> RowReader:
        return _FileOrderReader(self)


class _FileOrderReader(_ShardRows):
    def __init__(self, rows: FileOrderRows):
        access, fetcher = rows.access, _fetcher((rows.files,), rows.access.cache)
        nothing_lost = replace(access, lose_shards=False, lose_members=False)
        super().__init__(ShardReader(rows.seq_len, rows.vocab_size, 4, fetcher, access.verify), fetcher, nothing_lost)
        self._rows, self._entered = rows, -1
        self._shard_file: ShardFile | None = None

    def read(self, numbers: np.ndarray) -> np.ndarray:
        out = np.full((len(numbers), self._rows.seq_len + 1), MASKED, dtype=np.int32)
        there = numbers < self._rows.count
        found = out[: int(there.sum())]  # they ascend, so those beyond the end are the last
        self._read_rows((self._place(number) for number in numbers[there].tolist()), found)
        return out

    def _place(self, number: int) -> tuple[ShardFile, int]:
        rows = self._rows
        shard = int(rows.ends.searchsorted(number, "right"))
        if self._shard_file is None or shard != self._entered:
            self._entered, self._shard_file = shard, rows.files[shard]
            self._fetch_next(shard)
        return self._shard_file, number - (int(rows.ends[shard - 1]) if shard else 0)

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        return np.zeros(len(numbers), dtype=np.int64)

    def _fetch_next(self, shard: int) -> None:
        """Begin to fetch the shard after one, where rows of it are read."""
        if shard + 1 < len(self._rows.ends) and int(self._rows.ends[shard]) < self._rows.count:
            self._fetch_ahead(self._rows.files[shard + 1])


@dataclass(frozen=True)
class SyntheticRows:
    """Uniform random tokens, a function of seed and number."""

    seed: int
    seq_len: int
    vocab_size: int

    def reader(self, streams: int, stop: int | None = None) -> RowReader:
        return self

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """int32 [n, seq_len + 1] for int64 numbers [n]."""
        keys = keyed.key(self.seed, "synthetic", numbers)[:, None]
        return (keyed.bits(keys, np.arange(self.seq_len + 1)) % np.uint64(self.vocab_size)).astype(np.int32)

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        """Zeros: there is one source."""
        return np.zeros(len(numbers), dtype=np.int64)

    @property
    def losses(self) -> Losses:
        """None: there is nothing to be lost."""
        return Losses()

    @property
    def fetched_bytes(self) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """Nothing is open."""
