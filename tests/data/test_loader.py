import itertools
import logging
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from open_lm.data.dataset import build_train_data, build_validation_data
from open_lm.data.loader import MASKED, Loader, LoaderShape, check_processes, validation_shape
from open_lm.data.rows import Rows, SyntheticRows
from open_lm.params.data import DataParams, ValidationParams

Write = Callable[..., Path]
many_processes = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:.*max number of worker")


def train_data(*train_data: object, seq_len: int = 4, batch: int = 8, vocab_size: int = 10_000, **options):
    params = DataParams(train_data=tuple(map(str, train_data)), **options)
    return build_train_data(params, seq_len=seq_len, vocab_size=vocab_size, global_batch_size=batch)


def global_batches(rows: Rows, shape: LoaderShape, workers: int = 0) -> torch.Tensor:
    """[batches, B, seq_len + 1], put together from all processes."""
    parts = []
    for rank in range(shape.world_size):
        mine = LoaderShape(rank, shape.world_size, shape.global_batch_size, shape.streams, shape.start, shape.stop)
        with Loader(rows, mine, workers) as loader:
            parts.append(torch.stack([batch.tokens for batch in loader]))
    return torch.stack(parts, dim=2).flatten(1, 2)


def test_a_batch_is_a_tensor_of_whole_rows(write_shards: Write) -> None:
    data = train_data(f"{write_shards([20])}/*.tar")
    with Loader(data.rows, LoaderShape(0, 1, 8, 8), workers=0) as loader:
        batch = next(iter(loader)).tokens
    assert batch.shape == (8, 5) and batch.dtype == torch.int64
    assert (batch == batch[:, :1]).all() and len(set(batch[:, 0].tolist())) == 8


@pytest.mark.parametrize("processes", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("options", [{}, {"dataset_resampled": True}, {"data_streams": 24}, {"data_streams": 36, "disable_buffer": True}])
def test_the_number_of_processes_does_not_change_a_batch(processes: int, options: dict, write_shards: Write) -> None:
    folder, other = write_shards([30, 0, 17, 40]), write_shards([9, 5], key="npy", first=1000, folder="other")
    data = train_data(f"{folder}/*.tar", f"{other}/*.tar", batch=12, **options)
    one = global_batches(data.rows, LoaderShape(0, 1, 12, data.streams, 24, 144))
    assert len(one) == 10
    assert torch.equal(global_batches(data.rows, LoaderShape(0, processes, 12, data.streams, 24, 144)), one)


@many_processes
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_does_not_change_a_batch(workers: int, write_shards: Write) -> None:
    data = train_data(f"{write_shards([30, 17, 40])}/*.tar", data_streams=16)
    none = global_batches(data.rows, LoaderShape(0, 2, 8, 16, 16, 160))
    assert torch.equal(global_batches(data.rows, LoaderShape(0, 2, 8, 16, 16, 160), workers), none)


@pytest.mark.parametrize(("streams", "workers"), [(24, 2), (24, 3), (24, 5), (48, 4)])
def test_workers_share_the_streams_of_a_process_as_evenly_as_they_go(streams: int, workers: int) -> None:
    shape = LoaderShape(1, 2, 24, streams)
    numbers = np.concatenate([shape.numbers(start) for start in range(0, 10 * streams, 24)])
    owners = shape.workers_of(numbers, workers)
    assert all(len(set(owners[numbers % streams == k])) == 1 for k in set(numbers % streams))
    each = [len(set(numbers[owners == w] % streams)) for w in range(workers)]
    assert sum(each) == shape.local_streams and max(each) - min(each) <= 1


@pytest.mark.parametrize(("start", "batch", "processes"), [(40, 4, 2), (42, 6, 3), (41, 12, 4), (7, 12, 12), (1, 36, 6)])
def test_a_run_goes_on_at_any_row_with_another_batch_size(start: int, batch: int, processes: int, write_shards: Write) -> None:
    data = train_data(f"{write_shards([100])}/*.tar", batch=12, data_streams=12)
    whole = global_batches(data.rows, LoaderShape(0, 1, 12, 12, 0, 96)).flatten(0, 1)
    later = global_batches(data.rows, LoaderShape(0, processes, batch, 12, start, 96)).flatten(0, 1)
    assert len(later) > 90 - start - batch and torch.equal(later, whole[start : start + len(later)])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=many_processes)])
@pytest.mark.parametrize("streams", [1, 7, 40])
def test_openlm_defects_3_and_5_golden_shards_of_dclm_are_seen_once_a_pass(streams: int, workers: int, shared: Path) -> None:
    pattern = shared / "data/golden/shards_json_gz/shard_{00000000..00000004}.tar"
    data = train_data(pattern, seq_len=96, vocab_size=384, data_streams=streams)
    for start in (0, 160, 320):
        rows = global_batches(data.rows, LoaderShape(0, 1, 8, streams, start, start + 160), workers).flatten(0, 1)
        assert {tuple(r) for r in rows.tolist()} == golden_json_rows(shared) and len(rows) == 160


def golden_json_rows(shared: Path) -> set[tuple[int, ...]]:
    import gzip
    import json
    import tarfile

    rows = set()
    for shard in sorted((shared / "data/golden/shards_json_gz").glob("*.tar")):
        with tarfile.open(shard) as tar:
            rows |= {tuple(json.loads(gzip.decompress(tar.extractfile(m).read()))) for m in tar.getmembers()}
    assert len(rows) == 160
    return rows


@pytest.mark.parametrize("streams", [8, 100])
def test_golden_shards_of_openlm_are_seen_once_a_pass(streams: int, shared: Path) -> None:
    import ast
    import tarfile

    folder = shared / "data/golden/reference_run/data"
    expected = set()
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            lists = (ast.literal_eval(tar.extractfile(m).read().decode()) for m in tar.getmembers())
            expected |= {tuple(0 if t == "<|endoftext|>" else t for t in one) for one in lists}
    data = train_data(f"{folder}/*.tar", seq_len=96, vocab_size=384, data_streams=streams)
    rows = global_batches(data.rows, LoaderShape(0, 1, 4, streams, 0, 120)).flatten(0, 1)
    assert {tuple(r) for r in rows.tolist()} == expected and len(rows) == len(expected) == 120


def test_openlm_defect_8_a_run_never_runs_out_of_shards(write_shards: Write) -> None:
    data = train_data(f"{write_shards([3, 2])}/*.tar", multiple_data_passes=True)
    with Loader(data.rows, LoaderShape(0, 1, 8, 8), workers=0) as loader:
        rows = torch.cat([batch.tokens for batch, _ in zip(loader, range(10), strict=False)])[:, 0]
    assert all(sorted(rows[i : i + 5].tolist()) == [0, 1, 2, 3, 4] for i in range(0, 80, 5))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=many_processes)])
def test_openlm_defects_9_and_12_a_shard_that_cannot_be_read_stops_the_run_with_its_name(workers: int, write_shards: Write) -> None:
    folder = write_shards([20, 20])
    data = train_data(f"{folder}/*.tar")
    bad = folder / "shard-0001.tar"
    bad.write_bytes(bad.read_bytes().replace(b"[21, 21", b"[21, xx"))
    with Loader(data.rows, LoaderShape(0, 1, 8, 8, stop=40), workers) as loader, pytest.raises(ValueError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{bad}, member 000000000001.txt: ") and "\n" not in str(caught.value)
    bad.unlink()
    with (
        Loader(data.rows, LoaderShape(0, 1, 8, 8, stop=40), workers) as loader,
        pytest.raises(ValueError, match=r"No such file.*shard-0001\.tar"),
    ):
        list(loader)


@many_processes
def test_closing_ends_the_workers_wherever_the_loader_stands(write_shards: Write) -> None:
    data = train_data(f"{write_shards([50])}/*.tar")
    for taken in (0, 1, 3):
        loader = Loader(data.rows, LoaderShape(0, 1, 8, 8), workers=2)
        batches = iter(loader)
        for _ in range(taken):
            next(batches)
        loader.close()
        assert multiprocessing.active_children() == []
        with pytest.raises(ValueError, match="closed"):
            next(batches)


KILLED_WORKER = """
import multiprocessing, os, signal
from open_lm.data.loader import Loader, LoaderShape
from open_lm.data.rows import SyntheticRows
with Loader(SyntheticRows(0, 4, 100), LoaderShape(0, 1, 8, 8), workers=1) as loader:
    batches = iter(loader)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    for _ in range(100_000):
        next(batches)
"""


@many_processes
def test_a_killed_worker_is_an_error_and_no_hang(repo: Path) -> None:
    # a process of its own: torch raises the error from a signal handler, which may be anywhere in the program
    done = subprocess.run([sys.executable, "-c", KILLED_WORKER], cwd=repo, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "RuntimeError" in done.stderr
    assert "worker" in done.stderr.splitlines()[-1]


def test_memory_is_asked_for_what_a_worker_reads_and_not_much_more() -> None:
    for streams, batch, workers in itertools.product((1, 2, 5, 8, 24), (3, 8, 20), (1, 2, 3, 5)):
        shape, workers = LoaderShape(0, 1, batch, streams), min(workers, streams)
        counts = [np.bincount(shape.workers_of(shape.numbers(start), workers)).max() for start in range(2 * streams)]
        assert max(counts) <= shape.most_of_a_worker(workers) <= max(counts) + 1


@many_processes
def test_surplus_workers_are_not_started_and_the_log_says_so(write_shards: Write, caplog: pytest.LogCaptureFixture) -> None:
    data = train_data(f"{write_shards([50])}/*.tar", data_streams=4)
    with caplog.at_level(logging.INFO), Loader(data.rows, LoaderShape(1, 2, 8, 4), workers=5) as loader:
        next(iter(loader))
        assert len(multiprocessing.active_children()) == 2
    assert "this process has 2 streams, so 3 workers too many" in caplog.text


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=many_processes)])
def test_reading_leaves_the_random_state_of_training_alone(workers: int) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Loader(SyntheticRows(0, 4, 100), LoaderShape(0, 1, 8, 8), workers) as loader:
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loader_knows_where_it_stands_and_how_long_training_waited() -> None:
    class Slow(SyntheticRows):
        def read(self, numbers: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return super().read(numbers)

    loader = Loader(Slow(0, 4, 100), LoaderShape(0, 1, 8, 8, start=16, stop=40), workers=0)
    assert (loader.next_number, loader.wait_seconds) == (16, 0.0)
    for i, _ in enumerate(loader):
        assert loader.next_number == 24 + 8 * i
        time.sleep(0.05)
    assert i == 2 and 0.05 < loader.wait_seconds < 0.14


def test_a_last_batch_that_is_not_whole_is_not_given() -> None:
    assert len(list(Loader(SyntheticRows(0, 4, 100), LoaderShape(0, 1, 8, 8, stop=23), workers=0))) == 2


def test_synthetic_tokens_are_a_function_of_seed_and_number() -> None:
    params = DataParams(dataset_type="synthetic", seed=3)
    data = build_train_data(params, seq_len=16, vocab_size=50, global_batch_size=8)
    rows = global_batches(data.rows, LoaderShape(0, 1, 8, 8, 0, 80)).flatten(0, 1)
    assert torch.equal(global_batches(data.rows, LoaderShape(0, 4, 8, 8, 40, 80)).flatten(0, 1), rows[40:])
    assert rows.min() == 0 and rows.max() == 49 and len(rows.unique(dim=0)) == 80
    assert data.one_pass() is None
    data.check_length(10**9, multiple_data_passes=False)


def test_processes_that_do_not_divide_the_batch_are_told_which_do() -> None:
    check_processes(4, 8, 24)
    with pytest.raises(ValueError, match=r"^--global-batch-size 12: 8 processes don't divide it; run 1, 2, 3, 4, 6, 12 processes$"):
        check_processes(8, 12, 12)
    with pytest.raises(ValueError, match="--global-batch-size 12 and --data-streams 8: 3 processes don't divide it; run 1, 2, 4 processes"):
        Loader(SyntheticRows(0, 4, 9), LoaderShape(0, 3, 12, 8), workers=0)


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="--workers -1"):
        Loader(SyntheticRows(0, 4, 9), LoaderShape(0, 1, 4, 4), workers=-1)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("limit", [None, 4 * 13, 4 * 13 + 3, 10**6])
def test_validation_reads_the_rows_in_file_order_once_on_any_number_of_processes(
    processes: int, limit: int | None, write_shards: Write
) -> None:
    params = ValidationParams(val_data=(f"{write_shards([7, 0, 12])}/*.tar",), val_num_samples=limit)
    (one,) = build_validation_data(params, seq_len=4, vocab_size=100)
    shape = validation_shape(one.rows.count, rank=0, world_size=processes, global_batch_size=8)
    rows = global_batches(one.rows, shape).flatten(0, 1)
    count = 13 if limit in (52, 55) else 19
    assert rows[:count, 0].tolist() == list(range(count))
    assert (rows[count:] == MASKED).all()
    assert len(rows) == -(-count // shape.global_batch_size) * shape.global_batch_size
