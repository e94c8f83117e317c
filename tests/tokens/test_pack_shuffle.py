"""The arithmetic between ids and shards loses nothing and doubles nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.tokens import shuffle
from open_lm.tokens.pack import cut, end_documents, pad
from open_lm.tokens.spill import read_bucket, spill_path, write_spill

documents = st.lists(st.lists(st.integers(1, 60000), max_size=12), max_size=12)


def stream_of(docs: list[list[int]]) -> np.ndarray:
    ids = np.array([i for d in docs for i in d], np.uint32)
    offsets = np.cumsum([0, *(len(d) for d in docs)]).astype(np.int64)
    return end_documents(ids, offsets, 0, np.uint16)


@given(documents)
def test_every_document_is_followed_by_one_end_of_text(docs: list[list[int]]) -> None:
    assert stream_of(docs).tolist() == [i for d in docs for i in [*d, 0]]


@given(documents, st.integers(1, 9))
def test_sequences_and_tail_are_the_stream(docs: list[list[int]], length: int) -> None:
    stream = stream_of(docs)
    rows, tail = cut(stream, length)
    assert rows.shape == (len(stream) // length, length)
    assert [*rows.ravel().tolist(), *tail.tolist()] == stream.tolist()
    assert len(tail) < length


def test_a_padded_tail_keeps_its_tokens() -> None:
    assert pad(np.array([5, 6], np.uint16), 4, 9).tolist() == [[5, 6, 9, 9]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**63))
def test_buckets_hold_every_sequence_once_in_the_order_of_unit_and_index(
    tmp_path_factory, sequences: list[int], buckets: int, shard_size: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("spills")
    all_rows, sizes = [], np.zeros(buckets, np.int64)
    for unit, count in enumerate(sequences):
        rows = np.array([[unit, index, 7] for index in range(count)], np.uint16).reshape(count, 3)
        bucket_of = shuffle.buckets_of_unit(seed, unit, count, buckets)
        sizes += write_spill(spill_path(str(folder), unit), rows, bucket_of, buckets)
        all_rows += [tuple(row) for row in rows.tolist()]
    firsts = shuffle.first_shards(sizes, shard_size)
    read: list[tuple[int, ...]] = []
    for bucket in range(buckets):
        got = np.empty((sizes[bucket], 3), np.uint16)
        read_bucket([spill_path(str(folder), u) for u in range(len(sequences))], bucket, buckets, got)
        assert [tuple(r) for r in got.tolist()] == sorted(tuple(r) for r in got.tolist())
        order = shuffle.order_of_bucket(seed, bucket, len(got))
        assert sorted(order.tolist()) == list(range(len(got)))
        assert firsts[bucket + 1] - firsts[bucket] == -(-len(got) // shard_size)
        read += [tuple(r) for r in got[order].tolist()]
    assert Counter(read) == Counter(all_rows)


@given(st.integers(1, 50), st.integers(1, 20))
def test_without_a_shuffle_buckets_are_consecutive_units(units: int, buckets: int) -> None:
    chosen = [shuffle.bucket_in_order(unit, units, buckets) for unit in range(units)]
    assert chosen == sorted(chosen)
    assert chosen[0] >= 0 and chosen[-1] < buckets


def test_the_random_numbers_are_splitmix64_and_never_change() -> None:
    # published outputs for the seed 1234567: state advances by the golden gamma, each output is mix(state before it)
    gamma, state = 0x9E3779B97F4A7C15, 1234567
    states = np.array([(state + i * gamma) % 2**64 for i in range(3)], np.uint64)
    assert shuffle.mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert shuffle.buckets_of_unit(1, 2, 8, 5).tolist() == [2, 1, 4, 2, 3, 4, 0, 3]
    assert shuffle.order_of_bucket(1, 2, 8).tolist() == [1, 2, 7, 5, 0, 6, 4, 3]


def test_buckets_are_even_and_units_and_seeds_differ() -> None:
    chosen = shuffle.buckets_of_unit(0, 0, 100_000, 10)
    assert np.bincount(chosen).min() > 9_500
    assert (chosen != shuffle.buckets_of_unit(0, 1, 100_000, 10)).mean() > 0.85
    assert (chosen != shuffle.buckets_of_unit(1, 0, 100_000, 10)).mean() > 0.85


def test_the_number_of_buckets_follows_the_bytes_alone() -> None:
    assert [shuffle.bucket_count(n, 100) for n in (0, 1, 100, 101, 1000)] == [1, 1, 1, 2, 10]
