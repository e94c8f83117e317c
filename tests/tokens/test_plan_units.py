"""Groups, stretches and shards: pure arithmetic that leaves nothing out and does nothing twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokens import shuffle
from open_lm.tokens.plan import plan_groups, stretches, text_bytes, unit_bytes
from open_lm.tokens.reading.inputs import InputFile

FILES = st.lists(
    st.builds(
        InputFile,
        path=st.text("ab", min_size=1, max_size=3),
        size=st.integers(0, 5000),
        holds=st.sampled_from(["lines", "document", "table"]),
        compression=st.sampled_from([None, "zst"]),
        stamp=st.just(""),
    ),
    max_size=40,
)


@given(FILES, st.integers(1, 4000))
def test_every_file_is_in_one_group_and_groups_are_small_or_one_long_file(files, size):
    groups = plan_groups(files, size)
    assert [file for group in groups for file in group.files] == files
    assert [group.index for group in groups] == list(range(len(groups)))
    first = 0
    for group in groups:
        assert group.first_file == first
        first += len(group.files)
        if group.long:
            assert len(group.files) == 1
        elif len(group.files) > 1:
            assert sum(map(text_bytes, group.files)) <= size


def test_a_million_tiny_files_make_groups_of_a_bounded_number():
    file = InputFile("a.txt", 10, "document", None, "")
    assert max(len(group.files) for group in plan_groups([file] * 10_000, 1 << 26)) == 4096


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 20), st.sets(st.integers(0, 19)), st.booleans(), st.sampled_from([None, "zst"]))
def test_the_stretches_of_a_long_file_do_each_missing_block_once(workers, long_files, blocks, done, known, compression):
    (group,) = plan_groups([InputFile("a.jsonl", 100 * blocks, "lines", compression, "")], 99)
    assert group.long
    done = {block for block in done if block < blocks}
    found = []
    for stretch in stretches(group, workers, long_files, 99, done, blocks if known else None):
        assert len(stretches(group, workers, long_files, 99)) <= max(workers, 4 * workers)
        found += [b for b in range(stretch.first, stretch.stop or blocks, stretch.step) if b not in stretch.done]
    assert sorted(found) == sorted(set(range(blocks)) - done)


@given(st.integers(0, 1 << 50))
def test_units_are_powers_of_two_and_many(total):
    size = unit_bytes(total)
    assert size & (size - 1) == 0 and 1 << 20 <= size <= 64 << 20
    assert size == 1 << 20 or size * 32 <= total


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 25))
def test_shards_cut_the_buckets_into_full_shards_but_the_last(sizes, shard_size):
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    found = []
    for shard in range(-(-total // shard_size)):
        pieces = shuffle.rows_of_shard(shard, shard_size, ends)
        count = sum(stop - start for _, start, stop in pieces)
        assert count == min(shard_size, total - shard * shard_size)
        found += [(bucket, row) for bucket, start, stop in pieces for row in range(start, stop)]
    assert found == [(bucket, row) for bucket, size in enumerate(sizes) for row in range(size)]


def test_keys_do_not_depend_on_where_a_segment_begins():
    whole = shuffle.buckets_of_unit(5, (3, 2), 0, 100, 7)
    assert (
        np.concatenate([shuffle.buckets_of_unit(5, (3, 2), 0, 33, 7), shuffle.buckets_of_unit(5, (3, 2), 33, 67, 7)]).tolist()
        == whole.tolist()
    )
    assert whole.tolist() != shuffle.buckets_of_unit(5, (2, 3), 0, 100, 7).tolist()


def test_without_shuffle_buckets_hold_groups_in_order():
    buckets = [shuffle.bucket_in_order(group, 10, 4) for group in range(11)]
    assert buckets == sorted(buckets) and set(buckets) == {0, 1, 2, 3}
