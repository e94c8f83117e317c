"""A bucket's task: its sequences from all spills, permuted, to shards. The result depends on the spills and `BucketWork` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from open_lm.shards.manifest import ShardEntry
from open_lm.shards.members import Format
from open_lm.shards.tar import write_shard
from open_lm.tokens import shuffle
from open_lm.tokens.spill import read_bucket, spill_path


@dataclass(frozen=True)
class BucketWork:
    """What all buckets of a corpus share."""

    folder: str
    """Where the spills are."""
    out: str
    """Folder of the consumers' folders."""
    units: int
    """Spills, that of the tails included."""
    buckets: int
    length: int
    """Tokens of a stored sequence, seq_len + 1."""
    wide: bool
    """Ids are uint32, else uint16."""
    shuffle: bool
    seed: int
    format: Format
    shard_size: int
    consumers: int


@dataclass(frozen=True)
class Bucket:
    """One bucket: how many sequences it holds, and the number of its first shard."""

    index: int
    sequences: int
    first_shard: int


@dataclass(frozen=True)
class Shard:
    """A written shard: its number in the corpus and its manifest entry."""

    number: int
    entry: ShardEntry


def shard_path(out: str, number: int, consumers: int) -> Path:
    """Shards are dealt to the consumers in turn; each consumer numbers its own from 0."""
    return Path(out) / str(number % consumers) / f"shard-{number // consumers:07d}.tar"


def do_bucket(task: tuple[BucketWork, Bucket]) -> list[Shard]:
    """Write the shards of one bucket."""
    work, bucket = task
    rows = np.empty((bucket.sequences, work.length), np.uint32 if work.wide else np.uint16)
    read_bucket([spill_path(work.folder, unit) for unit in range(work.units)], bucket.index, work.buckets, rows)
    order = np.arange(bucket.sequences)
    if work.shuffle:
        order = shuffle.order_of_bucket(work.seed, bucket.index, bucket.sequences)
    shards = []
    for number, start in enumerate(range(0, len(order), work.shard_size), bucket.first_shard):
        path = shard_path(work.out, number, work.consumers)
        shards.append(Shard(number, write_shard(path, work.format, rows[order[start : start + work.shard_size]])))
    return shards
