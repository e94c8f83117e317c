"""Real torchrun processes over an S3 store whose network fails: the losses of local files, or a clear end."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def put(bucket: Any, bench: Any) -> str:
    for path in (bench.folder / "shards").iterdir():
        bucket.put(f"d/{path.name}", path.read_bytes())
    return bucket.url("d/shard-{0000000..0000003}.tar")


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def run_on(bench: Any, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """A run of one epoch on two processes, with other data than the bench's."""
    command = bench.command(2, name, "--epochs", "1", *flags)
    at = command.index("--train-data")
    del command[at : at + 2]
    return subprocess.run(command, env=bench.env, cwd=bench.folder, capture_output=True, text=True, timeout=120)


def test_a_run_over_a_failing_network_has_the_losses_of_local_files(
    bench: Any, s3: Any, faults: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    url = put(s3, bench)
    ok(bench.run(2, "local", "--epochs", "1"))
    for what, shard in ((500, "0000000"), ("reset", "0000001"), ("truncate", "0000002"), ("slow", "0000003")):
        faults.add(what, times=2, method="GET", path=f"shard-{shard}.tar")
    ok(run_on(bench, "remote", "--train-data", url, "--val-data", url))
    assert bench.metrics("remote") == bench.metrics("local")
    assert "4 shards (0.00 GB) come from elsewhere" in bench.log("remote") and "MB from elsewhere for 40 rows" in bench.log("remote")
    assert not any(fault.times for fault in faults.plan)
    assert list((tmp_path / "t").glob("open_lm-shards-*")) == []


def test_a_run_whose_shard_is_gone_ends_with_its_name_or_goes_on_and_counts(bench: Any, s3: Any) -> None:
    put(s3, bench)
    s3.client.delete_object(Bucket=s3.name, Key="d/shard-0000002.tar")
    there = ("--dataset-manifest", s3.url("d/manifest.jsonl"), "--train-num-samples", str(240 * 32), "--workers", "2")
    done = run_on(bench, "gone", *there)
    assert done.returncode != 0 and "d/shard-0000002.tar: no such file" in done.stderr
    ok(run_on(bench, "lost", *there, "--data-tolerate-error-p", "0.15"))
    assert bench.metrics("lost", "lost_rows")[-1] == 20
    named = [line for line in bench.log("lost").splitlines() if "d/shard-0000002.tar: no such file; its rows are masked" in line]
    assert len(named) == 2 and sum("| WARNING | process 1: " in line for line in named) == 1
    assert "data: lost and masked in this run, on all processes together: 20 rows" in bench.log("lost")


def test_an_error_of_a_worker_ends_every_process_with_its_shard_and_leaves_none(bench: Any, s3: Any, faults: Any) -> None:
    url = put(s3, bench)
    faults.add(500, times=10_000, method="GET", path="shard-0000002.tar")
    mark = f"OPENLM_TEST_MARK={bench.folder.name}"
    command = bench.command(2, "a", "--train-data", url, "--train-num-samples", str(240 * 32), "--epochs", "1", "--workers", "2")
    at = command.index("--train-data")
    del command[at : at + 2]
    done = subprocess.run(
        command, env={**bench.env, **dict([mark.split("=")])}, cwd=bench.folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "open_lm: error" in line]
    assert told and all("d/shard-0000002.tar: gave up after 4 attempts" in line for line in told), done.stderr[-3000:]
    assert processes_with(mark) == []


def processes_with(mark: str) -> list[str]:
    """The processes that have a variable in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it is gone, or not ours
                continue
    return found
