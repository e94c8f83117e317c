"""The rows of a run by their numbers: `read(numbers)` gives int32 tokens [n, seq_len + 1], whatever was read before.

`PlannedRows` reads shards in the order of a plan, `FileOrderRows` in the order of the files, `SyntheticRows` makes tokens up.
They hold no open file and travel to worker processes; what `reader` returns stays in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from open_lm.data import keyed
from open_lm.data.mixing import BLOCK
from open_lm.data.plan import Located, Plan
from open_lm.data.stream import ShardFiles, ShardReader
from open_lm.shards.members import MASKED


class RowReader(Protocol):
    """Reads rows in one process."""

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

    def reader(self, streams: int) -> RowReader:
        """A reader for so many streams in turns."""
        ...


@dataclass(frozen=True, eq=False)
class PlannedRows:
    """Rows of shards in the order of a plan.

    Args:
        plan: numbers to rows.
        files: of each source of the plan.
        vocab_size: ids from here on are an error.
    """

    plan: Plan
    files: tuple[ShardFiles, ...]
    vocab_size: int

    @property
    def seq_len(self) -> int:
        return self.plan.seq_len

    def reader(self, streams: int) -> RowReader:
        return _PlannedReader(self, streams)


def _positions_ahead(plan: Plan) -> int:
    """Positions of a stream that are located at once: many, but few passes over the smallest source."""
    smallest = min(source.total for source in plan.sources)
    return min(BLOCK, max(16, 1 << (smallest // plan.streams).bit_length()))


class _PlannedReader:
    def __init__(self, rows: PlannedRows, streams: int):
        self._plan, self._files = rows.plan, rows.files
        self._shards = ShardReader(rows.plan.seq_len, rows.vocab_size, shards_at_once=16 + 2 * streams * len(rows.files))
        self._ahead = _positions_ahead(rows.plan)
        self._located: dict[int, tuple[int, Located]] = {}

    def read(self, numbers: np.ndarray) -> np.ndarray:
        out = np.empty((len(numbers), self._plan.seq_len + 1), dtype=np.int32)
        for slot, number in enumerate(numbers.tolist()):
            position, stream = divmod(number, self._plan.streams)
            located, place = self._locate(stream, position // self._ahead), position % self._ahead
            source, shard, row = int(located.source[place]), int(located.shard[place]), int(located.row[place])
            self._shards.read_row(self._files[source][shard], row, out[slot])
        return out

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        ahead = self._ahead
        places = (divmod(number, self._plan.streams) for number in numbers.tolist())
        return np.array([self._locate(stream, at // ahead).source[at % ahead] for at, stream in places], dtype=np.int64)

    def _locate(self, stream: int, piece: int) -> Located:
        """Where a stream's rows of a piece of `_ahead` positions lie; its last piece is kept."""
        kept = self._located.get(stream)
        if kept is None or kept[0] != piece:
            start = piece * self._ahead
            kept = self._located[stream] = piece, self._plan.rows_of_stream(stream, start, start + self._ahead)
        return kept[1]

    def close(self) -> None:
        self._shards.close()


@dataclass(frozen=True, eq=False)
class FileOrderRows:
    """The first `count` rows of some shards as they lie there; the numbers from `count` on are fully masked rows.

    Args:
        ends: int64 [shards], rows up to and including each shard.
    """

    files: ShardFiles
    ends: np.ndarray
    count: int
    seq_len: int
    vocab_size: int

    def reader(self, streams: int) -> RowReader:
        return _FileOrderReader(self)


class _FileOrderReader:
    def __init__(self, rows: FileOrderRows):
        self._rows = rows
        self._shards = ShardReader(rows.seq_len, rows.vocab_size, shards_at_once=4)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        rows = self._rows
        out = np.full((len(numbers), rows.seq_len + 1), MASKED, dtype=np.int32)
        for slot, number in enumerate(numbers.tolist()):
            if number < rows.count:
                shard = int(np.searchsorted(rows.ends, number, side="right"))
                before = int(rows.ends[shard - 1]) if shard else 0
                self._shards.read_row(rows.files[shard], number - before, out[slot])
        return out

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        return np.zeros(len(numbers), dtype=np.int64)

    def close(self) -> None:
        self._shards.close()


@dataclass(frozen=True)
class SyntheticRows:
    """Uniform random tokens, a function of seed and number."""

    seed: int
    seq_len: int
    vocab_size: int

    def reader(self, streams: int) -> RowReader:
        return self

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """int32 [n, seq_len + 1] for int64 numbers [n]."""
        keys = keyed.key(self.seed, "synthetic", numbers)[:, None]
        return (keyed.bits(keys, np.arange(self.seq_len + 1)) % np.uint64(self.vocab_size)).astype(np.int32)

    def sources(self, numbers: np.ndarray) -> np.ndarray:
        """Zeros: there is one source."""
        return np.zeros(len(numbers), dtype=np.int64)

    def close(self) -> None:
        """Nothing is open."""
