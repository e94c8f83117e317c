"""The loader's benchmark: it runs from end to end on a few rows, and its figures are what its runs say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _importable(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(repo))


def bench(repo: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, repo / "scripts/bench/loader.py", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_all_readers_give_the_tokens_that_were_written(repo: Path, tmp_path: Path) -> None:
    flags = ["--quick", "--repeats", "1", "--parts", "speed", "--work-dir", tmp_path, "--json", tmp_path / "out.json"]
    done = bench(repo, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["problems"] == []
    assert {"ours txt", "ours json.gz", "ours npy", "webdataset txt", "webdataset json.gz", "memory map"} < set(report["runs"])
    assert all(run["tokens"] > 0 for runs in report["runs"].values() for run in runs)
    assert set(report["ratios"]) >= {"npy / memory map", "json.gz / webdataset's json.gz"}
    assert "times as fast" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.slow
def test_bad_options_are_named_with_the_remedy(repo: Path) -> None:
    done = bench(repo, "--parts", "speed,theirs", "--repeats", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "--parts theirs: choose from speed, mds, training, start, memory",
        "--repeats 0: give more than 0",
    ]


def test_waiting_is_a_share_of_the_time_of_the_steps_after_the_first_line() -> None:
    from scripts.bench.loader_figures import wait_share

    waits = enumerate((9.0, 0.02, 0.06), 1)
    lines = [{"step": 4 * n, "tokens": 100 * n, "tokens_per_second": 50.0, "data_wait_seconds": wait} for n, wait in waits]
    assert wait_share(lines) == {"steps": 8, "step_ms": 500.0, "wait_ms": 10.0, "wait_percent": 2.0}


def test_a_checksum_knows_the_tokens_and_their_places_but_not_the_order_of_the_rows() -> None:
    import numpy as np

    from scripts.bench.loader_shards import checksum

    rows = np.array([[1, 2, 3], [7, 8, 9]], dtype=np.uint16)
    assert checksum(rows) == checksum(rows[::-1]) == 1 + 4 + 9 + 7 + 16 + 27
    assert checksum(rows) != checksum(rows[:, ::-1])
