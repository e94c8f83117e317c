import json
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.data.mixing import BLOCK, Mix, whole_shares
from open_lm.data.plan import Plan, Source, differences, fingerprint


def source(*rows: int, factors: list[float] | None = None) -> Source:
    names = tuple(f"shard-{i}.tar" for i in range(len(rows)))
    return Source("pattern", names, np.array(rows, dtype=np.int64), np.array(factors or [1.0] * len(rows)))


def plan(*sources: Source, streams: int = 4, seed: int = 0, replacement: bool = False, window: int = 8, weights=None) -> Plan:
    shares = whole_shares(weights or [s.total for s in sources])
    return Plan(sources, Mix(seed, streams, shares), replacement, window, seq_len=8)


def in_order(p: Plan, numbers: int) -> list[tuple[int, int, int]]:
    """(source, shard, row) of the first numbers, made from the streams."""
    positions = -(-numbers // p.streams)
    streams = [p.rows_of_stream(k, 0, positions) for k in range(p.streams)]
    rows = [(s.source[t], s.shard[t], s.row[t]) for t in range(positions) for s in streams]
    return [tuple(map(int, row)) for row in rows[:numbers]]


def everything(s: Source) -> set[tuple[int, int]]:
    return {(shard, row) for shard, count in enumerate(s.rows) for row in range(count)}


shard_rows = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda rows: sum(rows) > 2)
any_plan = st.builds(
    lambda rows, streams, seed, window, weights: plan(
        *(source(*r) for r in rows), streams=streams, seed=seed, window=window, weights=weights[: len(rows)]
    ),
    st.lists(shard_rows, min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 100),
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
)


@settings(deadline=None, max_examples=25)
@given(any_plan)
def test_openlm_defects_3_and_5_every_pass_sees_every_row_once_and_another_order(p: Plan) -> None:
    rows = in_order(p, 3 * max(s.total for s in p.sources) * len(p.sources))
    for index, one in enumerate(p.sources):
        mine = [(shard, row) for s, shard, row in rows if s == index]
        for first in range(0, len(mine) - one.total + 1, one.total):
            assert set(mine[first : first + one.total]) == everything(one)


@settings(deadline=None, max_examples=20)
@given(any_plan, st.booleans(), st.integers(0, 5000))
def test_a_number_alone_gives_its_row(p: Plan, replacement: bool, number: int) -> None:
    p = Plan(p.sources, p.mix, replacement, p.shuffle_window, p.seq_len)
    position, stream = divmod(number, p.streams)
    streamed = p.rows_of_stream(stream, position // 2, position + 3)
    at = position - position // 2
    again = Plan(p.sources, p.mix, replacement, p.shuffle_window, p.seq_len)
    assert again.locate(number) == (int(streamed.source[at]), int(streamed.shard[at]), int(streamed.row[at]))


@settings(deadline=None, max_examples=20)
@given(any_plan, st.integers(1, 1000))
def test_passes_are_counted_exactly(p: Plan, numbers: int) -> None:
    taken = np.bincount([s for s, _, _ in in_order(p, numbers)], minlength=len(p.sources))
    assert p.rows_before(numbers) == tuple(taken)
    assert p.passes(numbers) == tuple(-(-int(n) // s.total) for n, s in zip(taken, p.sources))


@settings(deadline=None, max_examples=20)
@given(any_plan)
def test_one_pass_is_the_longest_run_that_reads_no_row_twice(p: Plan) -> None:
    assert max(p.passes(p.one_pass())) == 1
    assert max(p.passes(p.one_pass() + 1)) == 2


def test_one_pass_over_one_source_is_all_its_rows() -> None:
    assert plan(source(7, 0, 5, 11), streams=5).one_pass() == 23


def test_fewer_rows_than_streams_are_seen_once_a_pass() -> None:
    rows = in_order(plan(source(2, 1), streams=16), 9)
    assert [{r[1:] for r in rows[i : i + 3]} for i in (0, 3, 6)] == [everything(source(2, 1))] * 3


def test_the_order_depends_on_seed_and_pass() -> None:
    one, other = in_order(plan(source(40, 40), seed=0), 160), in_order(plan(source(40, 40), seed=1), 160)
    assert one[:80] != other[:80] and one[:80] != one[80:]


def test_without_a_window_a_stream_reads_consecutive_rows() -> None:
    rows = plan(source(100, 100), streams=2, window=1).rows_of_stream(1, 0, 100)
    assert len(set(rows.shard)) == 1 and (np.diff(rows.row) == 1).all()


def test_rows_stay_inside_their_window() -> None:
    p = plan(source(1000), streams=2, window=20)
    shuffled = p.rows_of_stream(0, 0, 500).row.reshape(-1, p.window)
    straight = plan(source(1000), streams=2, window=1).rows_of_stream(0, 0, 500).row.reshape(-1, p.window)
    assert p.window == 10 and (np.sort(shuffled, axis=1) == straight).all()
    assert not (shuffled == straight).all(axis=1).any()
    assert len({tuple(w - w.min()) for w in shuffled}) > 40


def test_draws_are_1024_consecutive_rows_of_one_shard_wrapping() -> None:
    rows = plan(source(3000, 1500), streams=2, replacement=True, window=1).rows_of_stream(1, 0, 20 * 1024)
    for first in range(0, len(rows.row), 1024):
        shard, row = rows.shard[first : first + 1024], rows.row[first : first + 1024]
        assert len(set(shard)) == 1
        assert (np.diff(row) % (3000, 1500)[shard[0]] == 1).all()


def test_draws_are_in_proportion_to_rows_times_factor() -> None:
    p = plan(source(100, 0, 300, 200, factors=[1, 1, 1, 4.0]), streams=1, replacement=True, window=1)
    shards = p.rows_of_stream(0, 0, 800 * 1024).shard[::1024]
    share = np.bincount(shards, minlength=4) / len(shards)
    assert share[1] == 0 and abs(share - np.array([100, 0, 300, 800]) / 1200).max() < 0.05


def test_weights_decide_the_mix_of_a_batch() -> None:
    p = plan(source(500), source(5000), weights=[3, 1], streams=16)
    by_batch = np.stack([p.rows_of_stream(k, 0, BLOCK).source for k in range(16)], axis=1)
    assert np.bincount(by_batch.ravel()).tolist() == [16 * 768, 16 * 256]
    assert 0.15 < by_batch.mean(axis=1).std() ** 2 * 16 < 0.22  # binomial, as 16 single draws: no batch is of one source


def test_100_000_shards_are_planned_in_two_seconds() -> None:
    big = Source("big", tuple(f"shard-{i:07d}.tar" for i in range(100_000)), np.full(100_000, 8192), np.ones(100_000))
    started = time.perf_counter()
    p = plan(big, source(9), streams=512, window=8192)
    p.locate(10**9), p.fingerprint(), p.passes(10**9)
    assert time.perf_counter() - started < 2


def test_the_order_of_version_1_does_not_change() -> None:
    """A run must go on with the same rows after an upgrade; whoever changes the order raises `_VERSION` and these numbers."""
    p = plan(source(50, 30, 20), source(40), streams=4, window=32, weights=[3, 1])
    assert [p.locate(n) for n in (0, 1, 2, 77, 5000)] == PINNED
    r = plan(source(5000, 3000, factors=[1, 2]), streams=4, window=32, replacement=True)
    assert [r.locate(n) for n in (0, 1, 2, 77, 500_000)] == PINNED_DRAWN


PINNED = [(0, 0, 2), (0, 0, 27), (0, 2, 1), (1, 0, 18), (0, 1, 15)]
PINNED_DRAWN = [(0, 0, 3377), (0, 1, 2329), (0, 0, 845), (0, 1, 2343), (0, 0, 4364)]


def test_equal_descriptions_have_no_differences_and_one_fingerprint() -> None:
    p, same = plan(source(5, 6), source(7)), plan(source(5, 6), source(7))
    saved = json.loads(json.dumps(p.describe()))
    assert differences(saved, same.describe()) == [] and fingerprint(saved) == same.fingerprint()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (plan(source(5, 6), source(7), seed=3), "--seed was 0, is 3"),
        (plan(source(5, 6), source(7), streams=2), "--data-streams was 4, is 2"),
        (plan(source(5, 6), source(7), replacement=True), "--dataset-resampled was False, is True"),
        (plan(source(5, 6), source(7), weights=[1, 1]), "the shares of the sources"),
        (plan(source(5, 6)), "2 sources before, 1 now"),
        (plan(source(5, 6), source(8), weights=[11, 7]), "source 1 had 7 rows in 1 shards, has 8 in 1"),
        (plan(source(6, 5), source(7)), "the shards of source 0 have other names"),
    ],
)
def test_every_difference_is_told_in_words(other: Plan, words: str) -> None:
    p = plan(source(5, 6), source(7))
    assert any(words in line for line in differences(p.describe(), other.describe()))
    assert p.fingerprint() != other.fingerprint()


def test_a_plan_travels_to_another_process() -> None:
    p = plan(source(5, 6), source(7))
    before = in_order(p, 30)
    assert in_order(pickle.loads(pickle.dumps(p)), 30) == before
