"""Where each sequence of a corpus goes: buckets, and the order inside a bucket. Pure; seeds and counts in, places out.

The order of a corpus is that of its buckets, one after another, each permuted; shards cut it every `shard_size` sequences. Every place is a
function of (seed, unit, index) and of the listed input bytes; never of memory, workers or timing. The random numbers are
SplitMix64's (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195), which no library's update changes.
"""

from __future__ import annotations

import numpy as np

BUCKET_TEXT_BYTES = 128 << 20
"""Text of a bucket, about. It bounds what must be in memory to permute one: 8 bytes a sequence."""

_BUCKETS, _ORDERS = 1, 2  # the two uses of a seed


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function over uint64 values of any shape."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_keys(start: int, count: int, *path: int) -> np.ndarray:
    """uint64 [count], numbers start to start + count of the sequence that the path names: e.g. seed, use, unit."""
    state = np.zeros(1, np.uint64)
    for step in path:
        state = mix(state ^ mix(np.array([step % (1 << 64)], np.uint64)))
    return mix(state + np.arange(start, start + count, dtype=np.uint64))


def bucket_count(text_bytes: int, bucket_bytes: int = BUCKET_TEXT_BYTES) -> int:
    """Buckets for a corpus of so many (guessed) bytes of text."""
    return max(1, -(-text_bytes // bucket_bytes))


def buckets_of_unit(seed: int, unit: tuple[int, int], start: int, sequences: int, buckets: int) -> np.ndarray:
    """int64 [sequences]: the buckets of the sequences start, start + 1, ... of the unit (group, block)."""
    keys = random_keys(start, sequences, seed, _BUCKETS, *unit)
    return (keys % np.uint64(buckets)).astype(np.int64)


def bucket_in_order(group: int, groups: int, buckets: int) -> int:
    """The bucket of a group's sequences when nothing is shuffled: buckets hold consecutive groups, in order."""
    return min(group * buckets // groups, buckets - 1)


def order_of_bucket(seed: int, bucket: int, sequences: int) -> np.ndarray:
    """int64 [sequences]: a permutation of a bucket's sequences, which lie in the order of (unit, index)."""
    return np.argsort(random_keys(0, sequences, seed, _ORDERS, bucket), kind="stable")


def rows_of_shard(shard: int, shard_size: int, bucket_ends: np.ndarray) -> list[tuple[int, int, int]]:
    """(bucket, start, stop) places in the permuted buckets that make up one shard, in order.

    Args:
        bucket_ends: int64 [buckets], sequences up to and including each bucket.
    """
    first, last = shard * shard_size, min((shard + 1) * shard_size, int(bucket_ends[-1]))
    pieces = []
    for bucket in range(int(np.searchsorted(bucket_ends, first, side="right")), len(bucket_ends)):
        begin = int(bucket_ends[bucket - 1]) if bucket else 0
        start, stop = max(first, begin), min(last, int(bucket_ends[bucket]))
        if start < stop:
            pieces.append((bucket, start - begin, stop - begin))
        if last <= bucket_ends[bucket]:
            break
    return pieces
