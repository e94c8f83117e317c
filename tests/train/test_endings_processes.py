"""Endings of several real processes under torchrun."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
LONG = ("--epochs", "10", "--multiple-data-passes")  # 100 steps
LEAST = ("--workers", "0", "--global-batch-size", "16", "--epochs", "2", "--multiple-data-passes")  # 10 steps


def faulty(bench: Any, processes: int, fault: str, name: str, *flags: str, torchrun: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """A run with a fault; see faulty_run.py."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", *torchrun]
    command += [str(Path(__file__).with_name("faulty_run.py")), *bench.flags(name, *LEAST, *flags)]
    environment = {**bench.env, "FAULT": fault}
    return subprocess.run(command, env=environment, cwd=bench.folder, capture_output=True, text=True, timeout=300)


def checkpoints(bench: Any, name: str) -> set[str]:
    return {p.name for p in (bench.folder / "logs" / name / "checkpoints").glob("step_*")}


def test_sigterm_to_torchrun_saves_and_the_run_goes_on_to_the_same_end(bench: Any) -> None:
    flags = (*LONG, "--fsdp")
    done = bench.run(2, "whole", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    process = subprocess.Popen(bench.command(2, "a", *flags), env=bench.env, cwd=bench.folder, start_new_session=True)
    metrics = bench.folder / "logs/a/metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 7:
        assert time.monotonic() < end
        time.sleep(0.02)
    for pid in everyone(process.pid):  # as a batch system does it: to the launcher, the processes and their data workers
        os.kill(pid, signal.SIGTERM)
    assert process.wait(60) != 0
    assert time.time() - (bench.folder / "logs/a/ending.json").stat().st_mtime < 15, "torchrun had to kill a process"
    told = json.loads((bench.folder / "logs/a/ending.json").read_text())
    assert (told["why"], told["state_saved"]) == ("SIGTERM", True)
    assert f"step_{told['step']}" in checkpoints(bench, "a")
    assert "torch.distributed.run" in told["next"]
    assert told["next"].endswith("--resume latest")
    done = subprocess.run(shlex.split(told["next"]), env=bench.env, cwd=bench.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = bench.weights("a", 10), bench.weights("whole", 10)
    assert all(torch.equal(a[name], b[name]) for name in a)


def everyone(pid: int) -> list[int]:
    """A process and all that it started."""
    parents = {int(p.name): int((p / "stat").read_text().rsplit(")", 1)[1].split()[1]) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def test_an_exception_on_one_of_four_ends_all_and_saves_nothing(bench: Any) -> None:
    done = faulty(bench, 4, "raise:1:8", "a")
    assert done.returncode != 0
    log = bench.log("a")
    assert "process 1 stopped in or after step 8: a fault of this process alone" in log
    assert checkpoints(bench, "a") == {"step_5"}
    failed = time.mktime(time.strptime(log.split("process 1 stopped")[0].rsplit("\n", 1)[-1][:19], "%Y-%m-%d,%H:%M:%S"))
    assert time.time() - failed < 20
    done = bench.run(2, "a", *LEAST, "--resume", "latest")
    assert done.returncode == 0, done.stderr[-3000:]
    assert bench.metrics("a", "step") == list(range(1, 11))


def test_nan_on_one_of_four_ends_all_of_them_together(bench: Any) -> None:
    """compat.md 6 (20)."""
    done = faulty(bench, 4, "nan:1:6", "a", "--max-nonfinite-steps", "2", "--fsdp")
    assert done.returncode != 0
    told = json.loads((bench.folder / "logs/a/ending.json").read_text())
    assert (told["exit_code"], told["state_saved"], told["step"]) == (5, False, 8)
    assert done.stderr.count("traceback : Ended at step 8 (--max-nonfinite-steps 2: ") == 1 and "<NO_OTHER_FAILURES>" in done.stderr
    assert checkpoints(bench, "a") == {"step_5"}
    assert bench.metrics("a", "step")[-1] == 8


def test_torchrun_restarts_a_run_that_lost_a_process(bench: Any) -> None:
    done = bench.run(2, "whole", *LEAST)
    assert done.returncode == 0
    done = faulty(bench, 2, "kill:1:8", "a", "--overwrite", torchrun=("--max-restarts", "1"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step_5: step 5" in bench.log("a")
    a, b = bench.weights("a", 2), bench.weights("whole", 2)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_restart_never_goes_on_with_another_run_of_the_same_name_nor_after_an_ending(bench: Any) -> None:
    torchrun = ("--max-restarts", "1")
    done = faulty(bench, 2, "none:9:9", "a", "--time-limit", "0", torchrun=torchrun)
    assert done.returncode != 0
    assert "restart by torchrun does nothing" in bench.log("a")
    assert checkpoints(bench, "a") == {"step_2"}
    done = faulty(bench, 2, "none:9:9", "a", torchrun=torchrun)
    assert done.returncode != 0
    assert done.stderr.count("exists; use another name") == 2
    assert checkpoints(bench, "a") == {"step_2"}


def test_the_watchdog_writes_the_stacks_of_all_processes(bench: Any) -> None:
    done = faulty(bench, 2, "hang:1:6", "a", "--watchdog-minutes", "0.1")
    assert done.returncode != 0
    log = bench.log("a")
    assert log.count("--watchdog-minutes 0.1: no step for") == 2
    assert "time.sleep" in log or "faulty_run.py" in log
    assert "all_reduce" in log


def test_no_process_leaves_before_the_first_has_written_and_copied_all(bench: Any) -> None:
    """torchrun ends the others when one leaves with a code of its own."""
    done = faulty(bench, 2, "copies:0:1", "a", "--time-limit", "0", "--remote-sync", str(bench.folder / "there"))
    assert done.returncode != 0
    there = bench.folder / "there/a"
    assert (there / "checkpoints/step_2/state.json").is_file()
    assert json.loads((there / "ending.json").read_text())["exit_code"] == 4
    before, copied, _ = done.stderr.rpartition("copied")
    assert copied and "closing signal" not in before, done.stderr[-3000:]


def test_a_signal_while_one_process_writes_the_weights_alone_saves_the_state(bench: Any) -> None:
    done = faulty(bench, 2, "weights:0:1", "a")
    assert done.returncode != 0
    assert "no step ended" not in bench.log("a")
    told = json.loads((bench.folder / "logs/a/ending.json").read_text())
    assert (told["why"], told["state_saved"]) == ("SIGTERM", True)
