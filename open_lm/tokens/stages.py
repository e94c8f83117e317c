"""The two stages of a job: units to spills, spills to shards. Each does what is not there yet, so a stopped one goes on where it was."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from open_lm.executor import Executor
from open_lm.params.fields import counted
from open_lm.progress import Progress
from open_lm.tokens import shuffle
from open_lm.tokens.gather import Shard, ShardPlan, ShardWork, do_shard, note_path
from open_lm.tokens.lengths import Lengths
from open_lm.tokens.options import LastSequence
from open_lm.tokens.pieces import PIECE, Packer
from open_lm.tokens.plan import Group, Stretch, number_of_blocks, stretches, text_bytes
from open_lm.tokens.spill import OpenFiles, Spill, SpillWriter, is_whole, spill_path, spills_in, unit_of
from open_lm.tokens.unit import UnitCounts, UnitWork, do_stretch

_SHOWN_REFUSALS = 50

log = logging.getLogger(__name__)


class Spills(Protocol):
    """Where the spills of units lie, and how long their sequences are."""

    @property
    def folder(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def unit_bytes(self) -> int: ...
    @property
    def wide(self) -> bool: ...


@dataclass(frozen=True)
class Leftover:
    """What became of the tokens after the corpus's last whole sequence."""

    dropped: int
    padding: int


@dataclass(frozen=True)
class Tokenized:
    """What the first stage came to: counts of all units, sequences of each bucket, and what is left over."""

    counts: UnitCounts
    bucket_sizes: np.ndarray
    leftover: Leftover


def tokenize(
    work: UnitWork, groups: Sequence[Group], executor: Executor, workers: int, tokens_expected: int, last: LastSequence, eot_id: int
) -> Tokenized:
    """Make all spills, that of the tails included, and add up what they say.

    Raises:
        ValueError: damaged input, or not a single sequence.
    """
    tails = spill_path(work.folder, len(groups), 0)
    tails.unlink(missing_ok=True)
    tasks = [(work, stretch) for stretch in stretches_left(work, groups, workers)]
    ratio = sum(text_bytes(file) for group in groups for file in group.files) / max(tokens_expected, 1)
    with Progress("tokenizing", max(tokens_expected, 1), look=lambda: spilled_tokens(work), rates=token_rates(ratio)):
        for _ in executor.map(do_stretch, tasks):
            pass
    counts, unit_tails, sizes = _add_up(work)
    leftover = _spill_tails(work, len(groups), unit_tails, last, eot_id)
    with OpenFiles() as files:
        spill = Spill(tails, work.length, files)
        sizes += spill.bucket_sizes(work.buckets)
        counts.add(UnitCounts.from_json(spill.counts))
    if not sizes.sum():
        for path in spills_in(work.folder):
            path.unlink()  # of no use to any other command, which they would be in the way of
        remedy = "give more text, --last-sequence pad, or a smaller --seq-len"
        raise ValueError(f"--input-files: hold {counts.tokens} tokens, and a sequence needs {work.length}; {remedy}")
    return Tokenized(counts, sizes, leftover)


def stretches_left(work: Spills, groups: Sequence[Group], workers: int) -> list[Stretch]:
    """The tasks of all units without a whole spill, the largest first."""
    blocks: dict[int, dict[int, bool]] = {}
    with OpenFiles() as files:
        for path in spills_in(work.folder):
            number, block = unit_of(path)
            if is_whole(path):
                blocks.setdefault(number, {})[block] = bool(Spill(path, work.length, files).counts["last"])
            else:
                path.unlink()
    if blocks:
        log.info("going on: %s done before", counted(sum(map(len, blocks.values())), "unit"))
    long_files = sum(group.long for group in groups)
    left: list[Stretch] = []
    for group in groups:
        done = blocks.get(group.index, {})
        left += stretches(group, workers, long_files, work.unit_bytes, done, number_of_blocks(done))
    return sorted(left, key=lambda stretch: -sum(map(text_bytes, stretch.group.files)) / stretch.step)


def spilled_tokens(work: Spills) -> int:
    """Tokens in the spills so far, about."""
    with os.scandir(work.folder) as entries:
        size = sum(entry.stat().st_size for entry in entries if entry.name.endswith(".spill"))
    return size // (4 if work.wide else 2)


def token_rates(text_per_token: float) -> Callable[[int, float], str]:
    """Words for tokens done and their rate, given the bytes of text for each."""
    return lambda done, rate: f"{done / 1e6:.1f} Mtok, {rate / 1e6:.2f} Mtok/s, {rate / 1e6 * text_per_token:.1f} MB/s"


@dataclass
class _Tails:
    tokens: list[np.ndarray]
    pieces: list[np.ndarray]


def _add_up(work: UnitWork) -> tuple[UnitCounts, _Tails, np.ndarray]:
    """The counts, the tails and the bucket sizes of all units, in their order."""
    total, tails, sizes = UnitCounts(), _Tails([], []), np.zeros(work.buckets, np.int64)
    with OpenFiles() as files:
        for path in spills_in(work.folder):
            spill = Spill(path, work.length, files)
            total.add(UnitCounts.from_json(spill.counts))
            sizes += spill.bucket_sizes(work.buckets)
            tokens, pieces = spill.tail()
            tails.tokens.append(tokens)
            tails.pieces.append(pieces)
    say_refused(total)
    return total, tails, sizes


def say_refused(counts: UnitCounts) -> None:
    """Name the first of the refused documents in the log."""
    for refusal in counts.refusals[:_SHOWN_REFUSALS]:
        log.warning("refused: --input-files %s", refusal)
    if counts.refused > _SHOWN_REFUSALS:
        log.warning("refused: %d documents in all; stats.json names the first %d", counts.refused, len(counts.refusals))


def _spill_tails(work: UnitWork, group: int, tails: _Tails, last: LastSequence, eot_id: int) -> Leftover:
    """The tails of all units, in their order, as the unit of one more group."""
    tokens = np.concatenate([np.empty(0, work.dtype), *tails.tokens])
    packer = Packer(work.length, work.dtype, len(tokens) // work.length + 1)
    assert not list(packer.add(tokens, np.concatenate([np.empty(0, PIECE), *tails.pieces])))
    rows, rest, _ = packer.finish()
    leftover = Leftover(len(rest), 0)
    if len(rest) and last == "pad":
        rows = packer.padded(eot_id, rows)
        leftover = Leftover(0, work.length - len(rest))
    writer = SpillWriter(spill_path(work.folder, group, 0), work.buckets)
    if work.shuffle:
        bucket_of = shuffle.buckets_of_unit(work.seed, (group, 0), 0, len(rows.tokens), work.buckets)
    else:
        bucket_of = np.full(len(rows.tokens), work.buckets - 1)
    if len(rows.tokens):
        writer.add(rows, bucket_of)
    counts = UnitCounts(documents_of_sequences=Lengths.of(np.diff(rows.ends, prepend=0)))
    writer.close(np.empty(0, work.dtype), np.empty(0, PIECE), counts.to_json())
    return leftover


def write(work: ShardWork, bucket_sizes: np.ndarray, shard_size: int, executor: Executor, text_per_token: float) -> list[Shard]:
    """Make all shards and their provenance; returns them in the order of their numbers."""
    ends = np.cumsum(bucket_sizes)
    count = -(-int(ends[-1]) // shard_size)
    note_path(work.folder, 0).parent.mkdir(exist_ok=True)
    shards = {shard.number: shard for shard in _shards_done(work)}
    if shards:
        log.info("going on: %d of %s done before", len(shards), counted(count, "shard"))
    tasks = [
        (work, ShardPlan(number, tuple(shuffle.rows_of_shard(number, shard_size, ends)))) for number in range(count) if number not in shards
    ]
    tokens = {number: shard.entry.num_sequences * work.length for number, shard in shards.items()}
    total, rates = int(ends[-1]) * work.length, token_rates(text_per_token)
    with Progress("writing", total, look=lambda: sum(list(tokens.values())), rates=rates):
        for _, shard in executor.map(do_shard, tasks):
            shards[shard.number] = shard
            tokens[shard.number] = shard.entry.num_sequences * work.length
    assert sorted(shards) == list(range(count)), "a shard is missing"
    return [shards[number] for number in range(count)]


def _shards_done(work: ShardWork) -> list[Shard]:
    """Shards that a stopped run noted and that are where they belong."""
    found = []
    for path in sorted(note_path(work.folder, 0).parent.glob("*.json")):
        try:
            shard = Shard.from_json(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, KeyError):  # lost in a crash of the machine
            continue
        if shard.is_there(work):
            found.append(shard)
    return found
