"""The plan over what runs really have: odd shards, tiny sources, any processes; and its cost."""

import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.data import keyed
from open_lm.data.counts import of_entry
from open_lm.data.loader import LoaderShape, allowed_processes
from open_lm.data.mixing import BLOCK, Mix, whole_shares
from open_lm.data.plan import DRAW, Plan, Source, differences
from open_lm.shards.manifest import read_manifest

BIG = 100_000


def source(rows: np.ndarray | list[int], content: str | None = None) -> Source:
    names = tuple(f"shard-{i:07d}.tar" for i in range(len(rows)))
    return Source("pattern", names, np.array(rows, dtype=np.int64), np.ones(len(rows)), content)


def plan(*sources: Source, streams: int, weights: list[float] | None = None, window: int = 64, **options) -> Plan:
    shares = whole_shares(weights or [s.total for s in sources])
    return Plan(sources, Mix(options.pop("seed", 0), streams, shares), options.pop("replacement", False), window, seq_len=8)


def by_number(p: Plan, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start, 3]: source, shard and row of each number; start and stop are multiples of the streams."""
    each = [p.rows_of_stream(k, start // p.streams, stop // p.streams) for k in range(p.streams)]
    return np.stack([np.stack([e.source, e.shard, e.row], axis=1) for e in each], axis=1).reshape(-1, 3)


def is_everything(one: Source, rows: np.ndarray) -> bool:
    """Whether [n, 2] shards and rows are all of a source, each once."""
    place = np.cumsum(one.rows) - one.rows
    return (np.sort(place[rows[:, 0]] + rows[:, 1]) == np.arange(one.total)).all() and (rows[:, 1] < one.rows[rows[:, 0]]).all()


def some_shards(count: int, seed: int) -> np.ndarray:
    """Rows of so many shards: 0 to 6, every second one empty."""
    random = np.random.default_rng(seed)
    return random.integers(0, 7, count) * random.integers(0, 2, count)


uneven = st.builds(some_shards, st.integers(1, 3000), st.integers(0, 2**32 - 1)).filter(lambda rows: rows.sum() > 0)


@settings(deadline=None, max_examples=25)
@given(uneven, st.integers(1, 700), st.integers(1, 9000), st.integers(0, 3))
def test_one_to_thousands_of_uneven_shards_are_seen_once_a_pass(rows: np.ndarray, streams: int, window: int, seed: int) -> None:
    one = source(rows)
    p = plan(one, streams=streams, window=window, seed=seed)
    seen = by_number(p, 0, -(-2 * one.total // streams) * streams)[:, 1:]
    assert is_everything(one, seen[: one.total]) and is_everything(one, seen[one.total : 2 * one.total])


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 30), st.integers(1, 40), st.sampled_from([0.001, 0.0001, 0.01]))
def test_a_source_of_few_rows_and_a_thousandth_of_the_weight_is_seen_once_a_pass(tiny: int, streams: int, weight: float) -> None:
    p = plan(source([50_000]), source([tiny]), streams=streams, weights=[1 - weight, weight])
    seen = by_number(p, 0, 3 * BLOCK * streams)
    mine = seen[seen[:, 0] == 1][:, 1:]
    assert len(mine) == 3 * streams * p.mix.shares[1] and p.mix.shares[1] >= 1
    assert all(is_everything(p.sources[1], mine[i : i + tiny]) for i in range(0, len(mine) - tiny + 1, tiny))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 400), min_size=2, max_size=5), st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_every_mixing_block_has_the_exact_shares(totals: list[int], streams: int, block: int, replacement: bool) -> None:
    p = plan(*(source([n]) for n in totals), streams=streams, replacement=replacement)
    for stream in range(streams):
        labels = p.rows_of_stream(stream, block * BLOCK, (block + 1) * BLOCK).source
        assert tuple(np.bincount(labels, minlength=len(totals))) == p.mix.shares


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 96), st.integers(1, 96), st.integers(0, 5000), st.integers(1, 20), st.data())
def test_processes_and_workers_share_a_batch_without_gap_or_overlap(
    batch: int, streams: int, start: int, workers: int, data: st.DataObject
) -> None:
    processes = data.draw(st.sampled_from(allowed_processes(batch, streams)))
    slots = np.full(batch, -1)
    readers: dict[int, tuple[int, int]] = {}
    for rank in range(processes):
        shape = LoaderShape(rank, processes, batch, streams, start)
        for step in range(3):
            numbers = shape.numbers(start + step * batch)
            owners = shape.workers_of(numbers, min(workers, shape.local_streams))
            if step == 0:
                slots[rank::processes] = numbers
            for number, owner in zip(numbers.tolist(), owners.tolist()):
                assert readers.setdefault(number % streams, (rank, owner)) == (rank, owner), "a stream belongs to one worker"
    assert (slots == np.arange(start, start + batch)).all()


@given(st.integers(1, 200), st.integers(1, 200))
def test_allowed_processes_divide_batch_and_streams(batch: int, streams: int) -> None:
    expected = [n for n in range(1, 201) if batch % n == 0 and streams % n == 0]
    assert allowed_processes(batch, streams) == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_scattered_is_a_permutation_and_each_index_goes_its_own_way(n: int, seed: int) -> None:
    one = keyed.key(seed, "large")
    whole = keyed.scattered(one, n, np.arange(n))
    assert (np.sort(whole) == np.arange(n)).all()
    some = np.arange(n)[:: max(1, n // 7)]
    assert (keyed.scattered(one, n, some) == whole[some]).all()


def test_scattered_orders_are_spread_evenly() -> None:
    firsts = np.array([keyed.scattered(keyed.key(i, "x"), 5, np.arange(5)) for i in range(500)])
    counts = np.stack([np.bincount(firsts[:, place], minlength=5) for place in range(5)])
    assert (abs(counts - 100) < 45).all()


def test_windows_beyond_65536_rows_are_windows_too() -> None:
    one = source([70_000, 130_000, 50_001])
    p = plan(one, streams=2, window=200_000)
    assert p.window == 100_000
    assert is_everything(one, by_number(p, 0, 250_002)[:250_001, 1:])
    straight = plan(one, streams=2, window=1).rows_of_stream(0, 0, 100_000)
    shuffled = p.rows_of_stream(0, 0, 100_000)
    assert sorted(zip(straight.shard, straight.row)) == sorted(zip(shuffled.shard, shuffled.row))
    assert (straight.row != shuffled.row).mean() > 0.99
    piece = p.rows_of_stream(1, 99_990, 100_010)  # over the border of two windows
    assert [p.locate(2 * t + 1)[1:] for t in range(99_990, 100_010)] == list(zip(piece.shard.tolist(), piece.row.tolist()))
    assert p.describe()["version"] == 2 and plan(one, streams=2, window=100_000).describe()["version"] == 1


def test_a_huge_window_costs_no_more_than_its_batch() -> None:
    one = source(np.full(1000, 8_000_000))
    p = plan(one, streams=4, window=4_000_000_000)
    started = time.process_time()
    for number in (3, 10**9, 10**10):
        p.locate(number)
    p.rows_of_stream(1, 10**8, 10**8 + 4096)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("replacement", [False, True])
def test_a_far_position_costs_what_a_near_one_does(replacement: bool) -> None:
    """Position to rows without walking what lies before: the first batch at step 1,000,000 and at step 10, by fresh plans."""

    def first_batch(step: int) -> float:
        p = plan(source(np.full(5000, 8192)), source([500]), streams=64, weights=[0.99, 0.01], replacement=replacement)
        began = time.process_time()
        for stream in range(64):
            p.rows_of_stream(stream, step, step + 16)
        return time.process_time() - began

    first_batch(10)  # warm
    near, far = (min(first_batch(step) for _ in range(3)) for step in (10, 1_000_000))
    assert far < 3 * near + 0.05


@pytest.fixture
def big_manifest(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"shard": f"shard-{i:07d}", "num_sequences": 8000 + i % 192, "bytes": 1, "sha256": f"{i:064x}"}) for i in range(BIG)
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "manifest.jsonl"


def set_up(manifest: Path) -> None:
    """From the lines of a manifest to the first row. Looking at the files is the storage's."""
    counts = [of_entry(entry) for entry in read_manifest(str(manifest))]
    one = source([c.sequences for c in counts], Source.content_of([c.sha256 for c in counts]))
    p = plan(one, source([9]), streams=512, window=8192)
    p.locate(10**9), p.fingerprint(), p.passes(10**9)


def test_100_000_shards_are_set_up_in_two_seconds(big_manifest: Path) -> None:
    began = time.process_time()
    set_up(big_manifest)
    assert time.process_time() - began < 2


@pytest.mark.slow
def test_100_000_shards_are_set_up_in_200_mb(big_manifest: Path) -> None:
    tracemalloc.start()
    set_up(big_manifest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_draws_are_one_read_of_1024_rows_for_each_stream_and_source() -> None:
    p = plan(source([5000] * 30), source([100] * 3), streams=3, weights=[0.8, 0.2], replacement=True, window=1)
    seen = p.rows_of_stream(2, 0, 8 * BLOCK)
    for one in range(2):
        shards = seen.shard[seen.source == one]
        assert all(len(set(shards[i : i + DRAW])) == 1 for i in range(0, len(shards), DRAW))


def test_other_content_under_the_same_names_and_counts_is_a_difference_where_checksums_tell() -> None:
    sums = ["a" * 64, "b" * 64]
    known, changed, unknown = (plan(source([3, 4], Source.content_of(s)), streams=2) for s in (sums, sums[::-1], [None, sums[0]]))
    assert "another content (sha256 in the manifest)" in differences(known.describe(), changed.describe())[0]
    assert differences(known.describe(), unknown.describe()) == differences(unknown.describe(), known.describe()) == []
    assert by_number(known, 0, 14).tolist() == by_number(changed, 0, 14).tolist()
    assert Source.content_of([]) is None
