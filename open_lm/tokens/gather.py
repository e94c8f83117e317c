"""A shard's task: its sequences from all spills, in the corpus's order, to a tar with its provenance. A pure function of the spills."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from open_lm import storage
from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import Format
from open_lm.shards.provenance import Provenance, to_bytes
from open_lm.shards.tar import write_shard
from open_lm.tokens import shuffle
from open_lm.tokens.destination import Destination, provenance_name, shard_name
from open_lm.tokens.pieces import PIECE
from open_lm.tokens.spill import OpenFiles, Segment, Spill, spills_in

_TOKENS_AT_ONCE = 8 << 20
_ROWS_AT_ONCE = 512
_SPARSE = 8
"""Sequences between two wanted ones that are rather read than passed over."""


@dataclass(frozen=True)
class ShardWork:
    """What all shards of a corpus share."""

    folder: str
    """Where the spills are, and where it is noted that a shard is done."""
    destination: Destination
    buckets: int
    length: int
    """Tokens of a stored sequence, seq_len + 1."""
    wide: bool
    """Ids are uint32, else uint16."""
    shuffle: bool
    seed: int
    format: Format
    consumers: int
    signed: bool = False
    """The sequences have a loss mask: what the spills hold as uint32 is int32."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its number, and the (bucket, start, stop) places in the permuted buckets that make it up."""

    number: int
    pieces: tuple[tuple[int, int, int], ...]

    @property
    def sequences(self) -> int:
        return sum(stop - start for _, start, stop in self.pieces)


@dataclass(frozen=True)
class Shard:
    """A shard that is where it belongs: its number in the corpus and its manifest entry."""

    number: int
    entry: ShardEntry
    provenance_bytes: int

    def is_there(self, work: ShardWork) -> bool:
        """True when the shard and its provenance are where they belong."""
        size = self.entry.bytes or 0
        return work.destination.has(shard_name(self.number, work.consumers), size) and work.destination.has(
            provenance_name(self.number, work.consumers), self.provenance_bytes
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Shard:
        values = json.loads(text)
        return Shard(**{**values, "entry": ShardEntry(**values["entry"])})


def note_path(folder: str, number: int) -> Path:
    """Says that a shard is done; written when it is where it belongs."""
    return Path(folder) / "shards" / f"{number:09d}.json"


def do_shard(task: tuple[ShardWork, ShardPlan]) -> Shard:
    """Write one shard and its provenance, deliver both, and note it."""
    work, plan = task
    name, source_name = shard_name(plan.number, work.consumers), provenance_name(plan.number, work.consumers)
    places = work.destination
    rows = _Rows(work)
    entry = write_shard(places.local(name), work.format, rows.of(plan))
    with storage.atomic_write(places.local(source_name)) as file:
        size = file.write(rows.provenance())
    places.deliver(source_name)
    places.deliver(name)
    shard = Shard(plan.number, entry, size)
    with storage.atomic_write(note_path(work.folder, plan.number), "w", durable=False) as file:
        file.write(shard.to_json())
    return shard


@functools.lru_cache(maxsize=1)
def _open_spills(folder: str, length: int, changed: int) -> list[Spill]:
    """The spills of a folder, kept for the process's next shards. `changed`: the folder's mtime, which tells another job's."""
    files = OpenFiles()
    return [Spill(path, length, files) for path in spills_in(folder)]


class _Rows:
    """Sequences from the spills, with their pieces gathered on the way."""

    def __init__(self, work: ShardWork):
        self._work = work
        self._spills = _open_spills(work.folder, work.length, Path(work.folder).stat().st_mtime_ns)
        self._ends = [np.zeros(1, np.int64)]
        self._pieces = [np.empty(0, PIECE)]

    def of(self, plan: ShardPlan) -> Iterator[np.ndarray]:
        """The shard's sequences, [some, length] at a time."""
        at_once = max(1, _TOKENS_AT_ONCE // self._work.length)
        for number, start, stop in plan.pieces:
            bucket = _Bucket(self._spills, number)
            order = np.arange(start, stop)
            if self._work.shuffle:
                order = shuffle.order_of_bucket(self._work.seed, number, bucket.size)[start:stop]
            for first in range(0, len(order), at_once):
                rows = self._read(bucket, order[first : first + at_once])
                yield rows.view(np.int32) if self._work.signed else rows

    def provenance(self) -> bytes:
        """The provenance file of the sequences handed over so far."""
        pieces, ends = np.concatenate(self._pieces), np.cumsum(np.concatenate(self._ends))[1:]
        return to_bytes(Provenance(ends, *(np.ascontiguousarray(pieces[name]) for name in PIECE.names or ())))

    def _read(self, bucket: _Bucket, places: np.ndarray) -> np.ndarray:
        """The sequences at some places of a bucket, read in the order in which they lie in the files."""
        rows = np.empty((len(places), self._work.length), np.uint32 if self._work.wide else np.uint16)
        order = np.argsort(places)
        stretches, inside = bucket.find(places[order])
        counts = np.empty(len(places), np.int64)
        borders = np.searchsorted(stretches, np.arange(len(bucket.stretches) + 1))
        for stretch, first, stop in zip(bucket.stretches, borders[:-1], borders[1:], strict=True):
            counts[order[first:stop]] = stretch.counts[inside[first:stop]]
        ends = np.cumsum(counts)
        pieces = np.empty(int(ends[-1]), PIECE)
        for stretch, first, stop in zip(bucket.stretches, borders[:-1], borders[1:], strict=True):
            for some in _runs(inside[first:stop]):
                target = order[first + some.start : first + some.stop]
                wanted = inside[first + some.start : first + some.stop]
                rows[target] = stretch.rows(wanted, rows)
                pieces[_ragged(ends[target] - counts[target], counts[target])] = stretch.pieces(wanted)
        self._pieces.append(pieces)
        self._ends.append(counts)
        return rows


def _ragged(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers starts[i], starts[i] + 1, ... counts[i] of them, for each i."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)


def _runs(wanted: np.ndarray) -> Iterator[slice]:
    """Divide ascending sequence numbers into stretches that are read at one go: dense ones, of a bounded length."""
    start = 0
    for stop in range(1, len(wanted) + 1):
        full = stop == len(wanted) or wanted[stop] - wanted[start] >= _ROWS_AT_ONCE
        if full or wanted[stop] - wanted[stop - 1] > _SPARSE:
            yield slice(start, stop)
            start = stop


@dataclass(frozen=True)
class _Stretch:
    """The sequences of one bucket in one segment: the first of them, and int64 [n + 1], the borders of their pieces."""

    spill: Spill
    segment: Segment
    first: int
    ends: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64 [n]: pieces of each sequence."""
        return np.diff(self.ends)

    def rows(self, wanted: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Sequences of some ascending numbers, with the length and type of `like`; all between the first and the last are read."""
        low, high = int(wanted[0]), int(wanted[-1]) + 1
        rows = np.empty((high - low, like.shape[1]), like.dtype)
        self.spill.read_rows(self.segment, self.first + low, rows)
        return rows if len(wanted) == high - low else rows[wanted - low]

    def pieces(self, wanted: np.ndarray) -> np.ndarray:
        """The pieces of some ascending sequences, one after another."""
        low, high = int(self.ends[wanted[0]]), int(self.ends[wanted[-1] + 1])
        pieces = self.spill.read_pieces(self.segment, low, high)
        if len(wanted) == wanted[-1] - wanted[0] + 1:
            return pieces
        return pieces[_ragged(self.ends[wanted] - low, self.ends[wanted + 1] - self.ends[wanted])]


class _Bucket:
    """Where the sequences of one bucket lie, in the order of (unit, index)."""

    def __init__(self, spills: list[Spill], bucket: int):
        self.stretches: list[_Stretch] = []
        for spill in spills:
            for segment in spill.segments:
                start, stop = spill.bucket(segment, bucket)
                if stop > start:
                    self.stretches.append(_Stretch(spill, segment, start, spill.piece_ends(segment, start, stop)))
        self._starts = np.cumsum([0, *(len(stretch.ends) - 1 for stretch in self.stretches)])
        self.size = int(self._starts[-1])

    def find(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the stretch of each place, and its sequence there."""
        stretches = np.searchsorted(self._starts, places, side="right") - 1
        return stretches, places - self._starts[stretches]
