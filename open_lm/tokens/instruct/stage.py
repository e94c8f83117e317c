"""Units to spills, for conversations: what is not there yet, and then the tails of all units as one more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from open_lm.executor import Executor
from open_lm.progress import Progress
from open_lm.tokens import shuffle
from open_lm.tokens.instruct.packing import ConversationPacker
from open_lm.tokens.instruct.unit import InstructCounts, InstructWork, do_stretch
from open_lm.tokens.pieces import PIECE, Rows
from open_lm.tokens.plan import Group, text_bytes
from open_lm.tokens.spill import OpenFiles, Spill, SpillWriter, spill_path, spills_in
from open_lm.tokens.stages import say_refused, spilled_tokens, stretches_left, token_rates

_TEXT_PER_TOKEN = 4
"""For the progress bar alone."""


@dataclass(frozen=True)
class Packed:
    """What the first stage came to: counts of all units, and rows of each bucket."""

    counts: InstructCounts
    bucket_sizes: np.ndarray


def pack(work: InstructWork, groups: Sequence[Group], executor: Executor, workers: int) -> Packed:
    """Make all spills, that of the tails included, and add up what they say.

    Raises:
        ValueError: damaged input, or not a single conversation.
    """
    spill_path(work.folder, len(groups), 0).unlink(missing_ok=True)
    tasks = [(work, stretch) for stretch in stretches_left(work, groups, workers)]
    expected = sum(text_bytes(file) for group in groups for file in group.files) // _TEXT_PER_TOKEN
    with Progress("packing", max(expected, 1), look=lambda: spilled_tokens(work), rates=token_rates(_TEXT_PER_TOKEN)):
        for _ in executor.map(do_stretch, tasks):
            pass
    packed = _add_up(work, len(groups))
    say_refused(packed.counts)
    if not packed.bucket_sizes.sum() and not packed.counts.refused:
        for path in spills_in(work.folder):
            path.unlink()
        raise ValueError("--input-files: hold no conversation that is kept; give others, or another --long")
    return packed


def _add_up(work: InstructWork, groups: int) -> Packed:
    total, sizes = InstructCounts(), np.zeros(work.buckets, np.int64)
    packer = ConversationPacker(work.length)
    tails: list[Rows] = []
    with OpenFiles() as files:
        for path in spills_in(work.folder):
            spill = Spill(path, work.length, files)
            total.add(InstructCounts.from_json(spill.counts))
            sizes += spill.bucket_sizes(work.buckets)
            tokens, pieces = spill.tail()
            tails += packer.add(tokens.view(np.int32), pieces)
        tails.append(packer.finish(tail_rows=0)[0])
        counts, of_tails = _spill_tails(work, groups, tails)
    total.add(counts)
    return Packed(total, sizes + of_tails)


def _spill_tails(work: InstructWork, group: int, tails: Sequence[Rows]) -> tuple[InstructCounts, np.ndarray]:
    """The rows of the tails as the unit of one more group; its counts, and its rows in each bucket."""
    writer, counts, first = SpillWriter(spill_path(work.folder, group, 0), work.buckets), InstructCounts(), 0
    sizes = np.zeros(work.buckets, np.int64)
    for rows in tails:
        count = len(rows.tokens)
        bucket_of = np.full(count, work.buckets - 1)
        if work.shuffle:
            bucket_of = shuffle.buckets_of_unit(work.seed, (group, 0), first, count, work.buckets)
        first += count
        counts.take_rows(rows)
        sizes += np.bincount(bucket_of, minlength=work.buckets)
        if count:
            writer.add(rows, bucket_of)
    writer.close(np.empty(0, np.int32), np.empty(0, PIECE), counts.to_json())
    return counts, sizes
