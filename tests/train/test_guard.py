"""What the guard's thread does while the training thread hangs, in processes of their own; commands and times."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.params.ending import seconds_of
from open_lm.train.launcher import _resuming
from open_lm.train.outliers import WINDOW, Outliers

HANGS = """
import sys, time
from pathlib import Path
from open_lm.train import guard
guard._GRACE = 0.5
with guard.Guard("process 1", Path("out.log"), several=True, watchdog={watchdog}) as g:
    print("ready", flush=True)
    {body}
"""


def start(repo: Path, folder: Path, watchdog: float = 0.0, body: str = "time.sleep(60)") -> subprocess.Popen[str]:
    code = HANGS.format(watchdog=watchdog, body=body)
    environment = {"PYTHONPATH": str(repo), "PATH": ""}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_a_second_sigint_ends_at_once_and_the_first_does_not(repo: Path, tmp_path: Path) -> None:
    process = start(repo, tmp_path, body="with g.beside_the_step(1): time.sleep(60)")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_sigterm_ends_a_step_that_hangs_but_not_a_save(repo: Path, tmp_path: Path) -> None:
    process = start(repo, tmp_path)
    process.terminate()
    assert process.wait(10) == 1
    log = (tmp_path / "out.log").read_text()
    assert "process 1: SIGTERM, and no step ended" in log
    assert 'File "<string>", line 8' in log
    saving = start(repo, tmp_path, body="with g.beside_the_step(1): time.sleep(2.5)")
    saving.terminate()
    assert saving.wait(10) == 0
    leaving = start(repo, tmp_path, watchdog=0.5, body="g.steps_ended(); time.sleep(2.5)")
    leaving.terminate()
    assert leaving.wait(10) == 0


def test_the_watchdog_writes_the_stacks_and_ends_the_process(repo: Path, tmp_path: Path) -> None:
    process = start(repo, tmp_path, watchdog=0.5)
    assert process.wait(15) == 6
    assert 'File "<string>", line 8' in (tmp_path / "out.log").read_text()


def test_progress_beside_a_step_keeps_the_watchdog_still(repo: Path, tmp_path: Path) -> None:
    process = start(repo, tmp_path, watchdog=1.2, body="with g.beside_the_step(1): [(time.sleep(0.1), g.progress()) for _ in range(30)]")
    assert process.wait(15) == 0


def test_a_child_has_no_part_in_the_signals(repo: Path, tmp_path: Path) -> None:
    fork = "import os; pid = os.fork() or time.sleep(60); time.sleep(0.5); os.kill(pid, 2); os.kill(pid, 15)"
    body = f"{fork}; status = os.waitpid(pid, 0)[1]; time.sleep(0.7); sys.exit(50 if g.asked else status)"
    assert start(repo, tmp_path, body=body).wait(10) == signal.SIGTERM


def test_time_limits_are_hours_or_clock_times() -> None:
    assert [seconds_of(t) for t in ("2", "0.5", "1:30", "00:00:20", "1-02:00:00")] == [7200, 1800, 5400, 20, 93600]
    for wrong in ("", "abc", "1:99", "-1", "1:2:3:4"):
        with pytest.raises(ValueError, match="--time-limit"):
            seconds_of(wrong)


def test_the_next_command_is_the_one_given_with_resume_latest() -> None:
    words = ["python", "-m", "open_lm.main", "--resume", "a/step_3", "--lr", "1", "--overwrite"]
    assert _resuming(words, "n") == ["python", "-m", "open_lm.main", "--lr", "1", "--name", "n", "--resume", "latest"]
    assert _resuming(["m", "--name=x", "--resume=latest"], "x") == ["m", "--name=x", "--resume", "latest"]
    assert _resuming(["m", "--resum", "a", "--reset-trainer-state", "--overw"], "x") == ["m", "--name", "x", "--resume", "latest"]
    loaded = ["m", "--name", "x", "--pretrained", "a", "--load-pretrained-state", "--reset-trainer-state"]
    assert _resuming(loaded, "x") == [*loaded, "--resume", "latest"]
    assert _resuming(["run", "--re", "3", "m", "--lr", "--", "1"], "x")[:6] == ["run", "--re", "3", "m", "--lr", "--"]
    for words in (["--resu", "a/step_3", "--overw"], ["--resume=a", "--reset-trainer-state"], ["--reset-tr", "--resume", "--reset"]):
        assert _resuming(["m", "--name", "x", *words], "x") == ["m", "--name", "x", "--resume", "latest"]
    pretrained = ["m", "--name", "x", "--pretrained", "a", "--load-pretrained-state", "--reset-trainer-state"]
    assert _resuming(pretrained, "x") == [*pretrained, "--resume", "latest"]


def judged(watch: Outliers, values: Any) -> list[bool]:
    return [bool(watch.judge(torch.tensor(float(v)), torch.tensor(1.0))) for v in values]


def test_a_spike_is_judged_by_the_steps_before_it_and_can_not_hide_the_next() -> None:
    watch, noise = Outliers(6.0), torch.randn(400, generator=torch.Generator().manual_seed(1))
    assert not any(judged(watch, [3 + 0.1 * float(n) for n in noise[: WINDOW // 2]]))
    assert judged(watch, [1e6, 5.0, 3.1, 2.0]) == [True, True, False, False]
    assert judged(watch, [float("nan"), 3.0]) == [True, False]
    assert not any(judged(watch, [3 + 0.1 * float(n) for n in noise[WINDOW // 2 :]]))


def test_nothing_is_a_spike_at_the_beginning_and_a_new_level_is_followed() -> None:
    assert judged(Outliers(3.0), [1.0, 100.0, 2.0]) == [False] * 3
    watch, noise = Outliers(6.0), torch.randn(100, generator=torch.Generator().manual_seed(1))
    judged(watch, [3 + 0.1 * float(n) for n in noise])
    followed = judged(watch, [30.0] * 60)
    assert followed[0]
    assert not any(followed[40:])


def test_only_steps_in_a_row_count_as_not_finite() -> None:
    watch = Outliers(None)
    assert judged(watch, [1, float("inf"), float("nan")]) == [False, True, True]
    assert int(watch.nonfinite) == 2
    judged(watch, [1])
    assert int(watch.nonfinite) == 0
