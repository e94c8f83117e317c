"""The order of a run: from a number to a row of a shard, without I/O and without looking at what came before.

The rows of a run have numbers g = 0, 1, ...; position t of stream k of L is g = t * L + k. `mixing` says which source a number
belongs to. The numbers of one source, counted in their order, are its places v = 0, 1, ...

Without replacement, pass p of a source of T rows is its places [pT, (p+1)T). A seeded permutation of the shards of (source, pass)
lays its rows end to end; stream 0 reads as many of them as it has places in the pass, then stream 1, and so on. So a
pass sees each row once, and ends before the next begins, whatever T, L and the shares are.

With replacement, draw j of (source, stream) is 1024 consecutive rows of one shard, wrapping, for its positions [1024 j, 1024 (j+1)).

Inside windows of a stream's positions of one source the rows are permuted. A window ends at its pass. Windows of up to 65,536 rows
are sorted by random keys; larger ones are permuted by a function of the position, so that none of their other rows is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from open_lm.data import keyed
from open_lm.data.mixing import BLOCK, Mix
from open_lm.params.fields import counted

DRAW = 1024
"""Consecutive rows of one draw with replacement."""
_VERSION = 1
"""Changes whenever the same inputs would give another order."""
_LARGE_WINDOW = 1 << 16
_LARGE_WINDOW_VERSION = 2
"""Version of the order of plans with larger windows, which version 1 sorted as well."""
_PASS_CACHE_ITEMS = 4_000_000


@dataclass(frozen=True, eq=False)
class Source:
    """Shards that are read as one.

    Args:
        name: for messages.
        shard_names: file names without folder, so that moved data keep their order.
        rows: int64 [shards], rows in each.
        factors: float64 [shards], upsampling of each in draws with replacement.
        content: digest of the shards' checksums; None where no manifest tells them.
    """

    name: str
    shard_names: tuple[str, ...]
    rows: np.ndarray
    factors: np.ndarray
    content: str | None = None

    @staticmethod
    def content_of(checksums: Sequence[str | None]) -> str | None:
        """sha256, in hex, of the shards' checksums in their order; None unless all are known."""
        known = [checksum for checksum in checksums if checksum is not None]
        return hashlib.sha256("\n".join(known).encode()).hexdigest() if known and len(known) == len(checksums) else None

    @property
    def total(self) -> int:
        """Rows of all shards."""
        return int(self.rows.sum())


@dataclass(frozen=True, eq=False)
class Located:
    """Where some rows lie: source, shard of the source, row of the shard; int64 [n] each."""

    source: np.ndarray
    shard: np.ndarray
    row: np.ndarray


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over a source: for each stream its first position, its count and where its rows begin; and the shards' order."""

    starts: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    shard_order: np.ndarray
    row_ends: np.ndarray

    def shard_and_row(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the pass, counted from its first, as shards and rows of these."""
        place = np.searchsorted(self.row_ends, index, side="right")
        before = np.where(place > 0, self.row_ends[place - 1], 0)
        return self.shard_order[place], index - before


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of a run.

    Args:
        sources: each with at least one row.
        mix: streams, shares and seed.
        replacement: draw with replacement instead of in passes.
        shuffle_window: rows, over all streams and sources.
        seq_len: tokens of a row less one; part of the plan's identity only.
    """

    sources: tuple[Source, ...]
    mix: Mix
    replacement: bool
    shuffle_window: int
    seq_len: int
    _passes: OrderedDict[tuple[int, int], _Pass] = field(default_factory=OrderedDict, repr=False)
    _draw_weights: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def streams(self) -> int:
        """L."""
        return self.mix.streams

    @property
    def window(self) -> int:
        """Rows of a window of one stream and source."""
        return max(1, self.shuffle_window // (self.streams * len(self.sources)))

    def locate(self, number: int) -> tuple[int, int, int]:
        """Source, shard of the source and row of the shard of one number."""
        position, stream = divmod(number, self.streams)
        rows = self.rows_of_stream(stream, position, position + 1)
        return int(rows.source[0]), int(rows.shard[0]), int(rows.row[0])

    def rows_of_stream(self, stream: int, start: int, stop: int) -> Located:
        """The rows at positions [start, stop) of a stream."""
        source, position = self.mix.split(stream, start, stop)
        shard, row = np.empty_like(position), np.empty_like(position)
        for one in np.unique(source):
            mine = source == one
            first, last = int(position[mine][0]), int(position[mine][-1]) + 1
            if self.replacement:
                shard[mine], row[mine] = self._drawn(int(one), stream, first, last)
            else:
                total, at = self.sources[one].total, start + np.flatnonzero(mine)
                passes = (self.mix.place(int(t) * self.streams + stream) // total for t in (at[0], at[-1]))
                shard[mine], row[mine] = self._passed(int(one), stream, first, last, *passes)
        return Located(source, shard, row)

    def _windowed(self, source: int, stream: int, pass_index: int, start: int, stop: int, end: int | None) -> np.ndarray:
        """Positions [start, stop) of (source, stream, pass), permuted inside their windows; `end`: where the pass ends."""
        window = self.window
        if window == 1 or end == 1:
            return np.arange(start, stop)
        if window > _LARGE_WINDOW:
            return self._scattered(source, stream, pass_index, start, stop, end)
        first, last = start // window * window, -(-stop // window) * window
        positions = np.arange(first, last if end is None else min(last, end))
        random = keyed.bits(keyed.key(self.mix.seed, "window", source, stream, pass_index), positions)
        return positions[np.lexsort((random, positions // window))][start - first : stop - first]

    def _scattered(self, source: int, stream: int, pass_index: int, start: int, stop: int, end: int | None) -> np.ndarray:
        """As `_windowed`, for large windows: each has its own key, and its positions are permuted one by one."""
        parts = []
        for window in range(start // self.window, -(-stop // self.window)):
            first, last = window * self.window, (window + 1) * self.window
            size = (last if end is None else min(last, end)) - first
            positions = np.arange(max(start, first), min(stop, last))
            one_key = keyed.key(self.mix.seed, "large window", source, stream, pass_index, window)
            parts.append(first + keyed.scattered(one_key, size, positions - first))
        return np.concatenate(parts)

    def _passed(self, source: int, stream: int, start: int, stop: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards and rows at positions [start, stop) of (source, stream), which lie in the passes low to high."""
        parts = []
        for index in range(low, high + 1):
            one = self._pass(source, index)
            begin, count = int(one.starts[stream]), int(one.counts[stream])
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                order = self._windowed(source, stream, index, first, last, count)
                parts.append(one.shard_and_row(int(one.offsets[stream]) + order))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _pass(self, source: int, index: int) -> _Pass:
        """A pass, kept for the next stream that asks for it."""
        found = self._passes.get((source, index))
        if found is None:
            found = self._passes[source, index] = self._make_pass(source, index)
            largest = self.streams + max(len(s.shard_names) for s in self.sources)
            while len(self._passes) > max(2 * len(self.sources), min(4096, _PASS_CACHE_ITEMS // largest)):
                self._passes.popitem(last=False)
        return found

    def _make_pass(self, source: int, index: int) -> _Pass:
        rows, total, mix = self.sources[source].rows, self.sources[source].total, self.mix
        starts, ends = (mix.counts_before(source, mix.number_of(source, p * total)) for p in (index, index + 1))
        counts = ends - starts
        order = keyed.permutation(keyed.key(mix.seed, "pass", source, index), len(rows))[0]
        return _Pass(starts, counts, np.cumsum(counts) - counts, order, np.cumsum(rows[order]))

    def _drawn(self, source: int, stream: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        positions = self._windowed(source, stream, 0, start, stop, None)
        if source not in self._draw_weights:
            self._draw_weights[source] = np.cumsum(self.sources[source].rows * self.sources[source].factors)
        cumulative, rows = self._draw_weights[source], self.sources[source].rows
        keys = keyed.key(self.mix.seed, "draw", source, stream, positions // DRAW)
        pick = np.searchsorted(cumulative, keyed.fractions(keyed.bits(keys, 0)) * cumulative[-1], side="right")
        shard = np.minimum(pick, np.searchsorted(cumulative, cumulative[-1]))
        first = (keyed.bits(keys, 1) % rows[shard].astype(np.uint64)).astype(np.int64)
        return shard, (first + positions % DRAW) % rows[shard]

    def shards_in_window(self) -> tuple[int, ...]:
        """Of each source, the shards that a window of one stream lies in, at most, where they are of about one size."""
        found = []
        for source in self.sources:
            if self.replacement:
                most, each = self.window, DRAW  # every draw may be of another shard
            else:
                most, each = min(self.window, -(-source.total // self.streams)), max(1, int(np.median(source.rows[source.rows > 0])))
            found.append(min(len(source.rows), 1 + -(-(most - 1) // each)))
        return tuple(found)

    def rows_before(self, number: int) -> tuple[int, ...]:
        """How many of the numbers below `number` each source has."""
        return tuple(int(self.mix.counts_before(s, number).sum()) for s in range(len(self.sources)))

    def passes(self, numbers: int) -> tuple[int, ...]:
        """Passes of each source, begun ones included, in a run of so many numbers; none with replacement."""
        if self.replacement:
            return (0,) * len(self.sources)
        return tuple(-(-rows // source.total) for rows, source in zip(self.rows_before(numbers), self.sources))

    def one_pass(self) -> int:
        """The most numbers of a run in which no source begins a second pass; with replacement the number of rows."""
        if self.replacement:
            return sum(source.total for source in self.sources)
        return min(self.mix.number_of(s, source.total) for s, source in enumerate(self.sources))

    def describe(self) -> dict[str, Any]:
        """All that decides the order, as JSON values, for a checkpoint."""
        return {
            "version": _VERSION if self.window <= _LARGE_WINDOW else _LARGE_WINDOW_VERSION,
            "seed": self.mix.seed,
            "streams": self.streams,
            "seq_len": self.seq_len,
            "replacement": self.replacement,
            "window": self.window,
            "shares": list(self.mix.shares),
            "sources": [self._describe_source(source) for source in self.sources],
        }

    def _describe_source(self, source: Source) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(source.shard_names).encode())
        digest.update(source.rows.astype("<i8").tobytes())
        if self.replacement:
            digest.update(source.factors.astype("<f8").tobytes())
        about = {"shards": len(source.shard_names), "rows": source.total, "sha256": digest.hexdigest()}
        return {**about, "content": source.content} if source.content else about

    def fingerprint(self) -> str:
        """sha256, in hex, of `describe`."""
        return fingerprint(self.describe())


def fingerprint(description: dict[str, Any]) -> str:
    """sha256, in hex, of a description; the same for equal descriptions."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


_WORDS = {
    "version": "the version of the data order",
    "seed": "--seed",
    "streams": "--data-streams",
    "seq_len": "the sequence length",
    "replacement": "--dataset-resampled",
    "window": "--shuffle-window (rows of each stream and source)",
    "shares": "the shares of the sources",
    "vocab_size": "the vocabulary size",
    "tokenizer_sha256": "the tokenizer",
}


def differences(saved: dict[str, Any], current: dict[str, Any], tokenizer_compared: bool = False) -> list[str]:
    """What differs between two descriptions, in words; empty when the order is the same.

    Args:
        tokenizer_compared: by its content, so that its hash need not be.
    """
    key = "tokenizer_sha256"
    if tokenizer_compared or None in (saved.get(key), current.get(key)):
        current = {**current, key: saved.get(key)}
    return list(_differences(saved, current))


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> Iterator[str]:
    for name, words in _WORDS.items():
        if saved.get(name) != current.get(name):
            yield f"{words} was {saved.get(name)}, is {current.get(name)}"
    old, new = saved.get("sources", []), current.get("sources", [])
    if len(old) != len(new):
        yield f"{counted(len(old), 'source')} before, {len(new)} now"
        return
    for index, (a, b) in enumerate(zip(old, new)):
        if (a["shards"], a["rows"]) != (b["shards"], b["rows"]):
            yield f"source {index} had {a['rows']} rows in {a['shards']} shards, has {b['rows']} in {b['shards']}"
        elif a["sha256"] != b["sha256"]:
            yield f"the shards of source {index} have other names, another order, other row counts or other factors"
        elif None not in (a.get("content"), b.get("content")) and a["content"] != b["content"]:
            yield f"the shards of source {index} have the same names and row counts, but another content (sha256 in the manifest)"


__all__ = ["BLOCK", "DRAW", "Located", "Plan", "Source", "differences", "fingerprint"]
