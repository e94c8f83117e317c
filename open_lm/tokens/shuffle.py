"""Where each sequence of a corpus goes: buckets, the order inside a bucket, and shard numbers. Pure; seeds and counts in, places out.

Every place is a function of (seed, unit, index) and of the listed input bytes; never of memory, workers or timing. The random
numbers are SplitMix64's (Steele, Lea, Flood 2014, https://doi.org/10.1145/2714064.2660195), which no library's update changes.
"""

from __future__ import annotations

import numpy as np

BUCKET_TEXT_BYTES = 128 << 20
"""Text of a bucket, about; its tokens take half of that as uint16."""

_BUCKETS, _ORDERS = 1, 2  # the two uses of a seed


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function over uint64 values of any shape."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_keys(count: int, *path: int) -> np.ndarray:
    """uint64 [count], a function of the path alone: e.g. seed, use, unit."""
    state = np.zeros(1, np.uint64)
    for step in path:
        state = mix(state ^ mix(np.array([step % (1 << 64)], np.uint64)))
    return mix(state + np.arange(count, dtype=np.uint64))


def bucket_count(text_bytes: int, bucket_bytes: int = BUCKET_TEXT_BYTES) -> int:
    """Buckets for a corpus of so many (estimated) bytes of text."""
    return max(1, -(-text_bytes // bucket_bytes))


def buckets_of_unit(seed: int, unit: int, sequences: int, buckets: int) -> np.ndarray:
    """int64 [sequences]: the bucket of each sequence of a unit."""
    return (random_keys(sequences, seed, _BUCKETS, unit) % np.uint64(buckets)).astype(np.int64)


def bucket_in_order(unit: int, units: int, buckets: int) -> int:
    """The bucket of all sequences of a unit when nothing is shuffled: buckets hold consecutive units, in order."""
    return unit * buckets // units


def order_of_bucket(seed: int, bucket: int, sequences: int) -> np.ndarray:
    """int64 [sequences]: a permutation of a bucket's sequences, which lie in the order of (unit, index)."""
    return np.argsort(random_keys(sequences, seed, _ORDERS, bucket), kind="stable")


def first_shards(bucket_sizes: np.ndarray, shard_size: int) -> np.ndarray:
    """int64 [buckets + 1]: number of each bucket's first shard, and the count of all. Only a bucket's last shard may be short."""
    return np.concatenate([[0], np.cumsum(-(-bucket_sizes // shard_size))]).astype(np.int64)
