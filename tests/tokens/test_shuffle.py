"""The arithmetic between ids and shards: the random numbers, the ends of text."""

from __future__ import annotations

import numpy as np

from open_lm.tokens import shuffle


def test_the_random_numbers_are_splitmix64_and_never_change() -> None:
    # published outputs for the seed 1234567: state advances by the golden gamma, each output is mix(state before it)
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(state + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert shuffle.mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert shuffle.order_of_bucket(1, 2, 8).tolist() == [1, 2, 7, 5, 0, 6, 4, 3]


def test_buckets_are_even_and_units_and_seeds_differ() -> None:
    chosen = shuffle.buckets_of_unit(0, (0, 0), 0, 100_000, 10)
    assert np.bincount(chosen).min() > 9_500
    assert (chosen != shuffle.buckets_of_unit(0, (1, 0), 0, 100_000, 10)).mean() > 0.85
    assert (chosen != shuffle.buckets_of_unit(0, (0, 1), 0, 100_000, 10)).mean() > 0.85
    assert (chosen != shuffle.buckets_of_unit(1, (0, 0), 0, 100_000, 10)).mean() > 0.85


def test_the_number_of_buckets_follows_the_bytes_alone() -> None:
    assert [shuffle.bucket_count(n, 100) for n in (0, 1, 100, 101, 1000)] == [1, 1, 1, 2, 10]
