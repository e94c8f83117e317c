"""Real runs whose folder is copied to an S3 store: killed, on an empty machine, and with a remote that fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.train.remote_folder import RemoteFolder, whole_states

pytestmark = pytest.mark.slow

STATES = ("--save-every-steps", "5", "--remote-sync-frequency", "1")


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_run_killed_while_it_copies_goes_on_from_its_copy_alone_to_the_same_weights(
    bench: Any, main_here: Any, s3: Any, faults: Any
) -> None:
    """Killed as one process, continued by one to the same bits and by two to the same losses."""
    sync = ("--remote-sync", s3.url("runs"), *STATES, "--lr", "1e-2")
    remote = RemoteFolder(s3.url("runs"), "b")
    assert main_here("a", *STATES[:2]) == 0
    bench.copy_at("a", "b", 10)
    faults.add("stall", times=99, method="PUT", path="/b/checkpoints/step_30/", seconds=60)
    command = [sys.executable, "-m", "open_lm.main", *bench.flags("b", *sync, "--resume", "latest")]
    process = subprocess.Popen(command, env=bench.env, cwd=bench.folder, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any("/b/checkpoints/step_30/" in r for r in faults.requests if r.startswith("PUT")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    bench.kill(process)
    faults.clear()
    newest = whole_states(remote.files())[0]
    assert 10 <= newest < 30
    shutil.rmtree(bench.folder / "logs/b")
    assert main_here("b", *sync, "--resume", "latest") == 0
    assert f"checkpoints/step_{newest}: step {newest}," in bench.log("b")
    assert bench.metrics("b") == bench.metrics("a") and bench.metrics("b", "step") == list(range(1, 31))
    a, b = bench.weights("a"), bench.weights("b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    there = s3.get("runs/b/metrics.jsonl").decode()
    assert there == (bench.folder / "logs/b/metrics.jsonl").read_text() and whole_states(remote.files())[0] == 30
    for path in ("step_30", "step_25", "step_20", "step_15"):
        remote.remove(f"checkpoints/{path}/state.json")
    shutil.rmtree(bench.folder / "logs/b")
    ok(bench.run(2, "b", *sync, "--resume", "latest"))
    assert "checkpoints/step_10: step 10," in bench.log("b")
    assert bench.metrics("b") == pytest.approx(bench.metrics("a"), rel=1e-5)
    assert remote.files().keys() >= {"out.log", "params.txt", "checkpoints/epoch_3.pt", "checkpoints/latest"}


def test_a_failing_remote_does_not_stop_the_training_and_the_end_says_what_is_missing(
    bench: Any, main_here: Any, s3: Any, faults: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    faults.add(503, times=9999, method="PUT")
    sync = ("--remote-sync", s3.url("runs"), *STATES)
    assert main_here("a", *sync) == 1
    assert len(bench.metrics("a")) == 30 and "Finished: 30 steps" in bench.log("a")
    error = capsys.readouterr().err
    assert "the copy is not complete" in error and "SlowDown" in error and "--resume latest" in error and len(error.splitlines()) == 1
    assert "the training goes on" in bench.log("a") or "the copy is not complete" in bench.log("a")
    faults.clear()
    assert main_here("a", *sync, "--resume", "latest") == 0
    assert "the run is finished" in bench.log("a")
    assert whole_states(RemoteFolder(s3.url("runs"), "a").files())[0] == 30
    assert s3.get("runs/a/checkpoints/latest") == b"step_30"


def test_a_run_of_this_name_in_the_copy_is_not_written_over(
    bench: Any, main_here: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = ("--remote-sync", str(tmp_path / "there"))
    assert main_here("a", *sync) == 0
    shutil.rmtree(bench.folder / "logs/a")
    assert main_here("a", *sync) == 2
    assert "there/a exists; use another name, --resume latest" in capsys.readouterr().err
    assert not (bench.folder / "logs/a").exists()
    assert main_here("a", *sync, "--overwrite", "--epochs", "1") == 0
    assert whole_states(RemoteFolder(str(tmp_path / "there"), "a").files()) == [10]


def test_delete_previous_checkpoint_holds_for_the_copy(bench: Any, main_here: Any, tmp_path: Path) -> None:
    assert main_here("a", "--remote-sync", f"file://{tmp_path}/there", "--delete-previous-checkpoint", *STATES) == 0
    names = RemoteFolder(str(tmp_path / "there"), "a").files()
    assert whole_states(names) == [30]
    assert {name for name in names if name.endswith(".pt")} == {"checkpoints/epoch_3.pt", "checkpoints/stats_3.pt"}


def test_remotes_that_can_t_work_are_told_before_anything_starts(
    bench: Any, main_here: Any, s3: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, message in (
        ("https://example.org/x", "a web server can't be written to"),
        ("s3://no-such-bucket-here/x", "no such bucket"),
        ("nope://x/y", "nope"),
    ):
        assert main_here("a", "--remote-sync", url) == 2
        error = capsys.readouterr().err
        assert "--remote-sync" in error and message in error, error
    assert not (bench.folder / "logs/a").exists()
