"""Workers and large documents under a memory limit."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokens.large import BYTES_PER_BYTE, LargeDocuments
from open_lm.tokens.memory import MAIN_BYTES, WORKER_BYTES, default_limit, parse_size, plan_memory


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 gb", 15 * 10**8), ("2GiB", 1 << 31), ("512m", 512 * 10**6), ("1000", 1000)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 parsecs", "-1GB", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@given(st.integers(1, 512), st.booleans())
def test_the_default_limit_has_room_for_every_worker_with_narrow_ids(workers: int, wide: bool) -> None:
    plan = plan_memory(default_limit(workers), workers, 1, wide)
    assert plan.workers == workers or wide
    assert MAIN_BYTES + plan.workers * WORKER_BYTES + plan.large_bytes <= default_limit(workers)


@pytest.mark.parametrize("workers", [1, 2, 8, 64])
def test_a_line_of_100_mb_has_room_by_default(workers: int) -> None:
    assert plan_memory(default_limit(workers), workers, 1, wide=False).large_bytes >= (64 << 20) * BYTES_PER_BYTE  # it is told at 64 MiB


def test_too_little_memory_means_fewer_workers_and_then_an_error() -> None:
    assert plan_memory(600 * 10**6, 8, 1, wide=False).workers == 2
    with pytest.raises(ValueError, match=r"--memory-limit 200 MB: one worker with 1 input files needs \d+ MB"):
        plan_memory(200 * 10**6, 8, 1, wide=False)


def test_a_document_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    with LargeDocuments(str(tmp_path), 100 << 20) as large:
        large.grow(10 << 20)
        with pytest.raises(ValueError, match=r"more than 20 MiB, .* larger --memory-limit"):
            large.grow(20 << 20)


def _hold(folder: str) -> None:
    with LargeDocuments(folder, 1 << 40) as large:
        large.grow(1)
        time.sleep(0.5)


def test_one_process_at_a_time_holds_a_large_document(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(str(tmp_path),))
    process.start()
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    time.sleep(0.1)
    started = time.monotonic()
    with LargeDocuments(str(tmp_path), 1 << 40) as large:
        large.grow(1)
        assert time.monotonic() - started > 0.2
    process.join()
