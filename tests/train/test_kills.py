"""Whatever ends a run, at whatever moment: it goes on from its last whole run state to the weights of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("OPENLM_KILLS", "3"))
FLAGS = ("--epochs", "10", "--multiple-data-passes", "--save-every-steps", "2", "--keep-last", "2", "--fsdp")  # 100 steps, always saving


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def newest(folder: Path) -> int:
    return max((int(path.name[5:]) for path in folder.glob("step_*")), default=0)


def workers_of(pid: int) -> list[int]:
    """The processes that torchrun started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()]


def test_kill_9_of_one_or_all_at_random_moments_ends_with_the_same_weights(bench: Any) -> None:
    ok(bench.run(2, "whole", *FLAGS))
    rng, killed, folder = random.Random(KILLS), 0, bench.folder / "logs/killed/checkpoints"
    while killed < KILLS:
        before = newest(folder)
        process = subprocess.Popen(bench.command(2, "killed", *FLAGS, "--resume", "latest"), env=bench.env, cwd=bench.folder)
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))  # in a step, while parts are written, between two renames, ...
        if process.poll() is not None:
            break  # it was quicker
        if killed % 2:
            os.kill(rng.choice(workers_of(process.pid)), signal.SIGKILL)
            assert process.wait(timeout=60) != 0  # torchrun ends the others
        else:
            bench.kill(process)
        killed += 1
    assert killed >= min(KILLS, 2)
    ok(bench.run(2, "killed", *FLAGS, "--resume", "latest"))
    assert bench.metrics("killed") == bench.metrics("whole")
    a, b = bench.weights("whole", 10), bench.weights("killed", 10)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not list(folder.glob(".step_*"))


def test_a_full_disk_ends_all_processes_and_what_was_saved_stands(bench: Any) -> None:
    disk, kept = bench.folder / "disk", bench.folder / "kept"
    disk.mkdir()
    flags = ("--save-every-steps", "3", "--save-frequency", "0", "--fsdp")
    script = (
        'mount -t tmpfs -o size=3500k tmpfs "$1" || exit 77; disk="$1"; kept="$2"; shift 2;'
        ' "$@"; code=$?; cp -a "$disk" "$kept"; exit $code'
    )
    command = bench.command(2, "a", *flags, "--checkpoint-dir", str(disk / "a"))
    line = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), str(kept), *command]
    done = subprocess.run(line, env=bench.env, cwd=bench.folder, capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode != 0
    [told] = [line for line in done.stderr.splitlines() if "not saved" in line]
    assert re.search(r"step_\d+/\d_0-\w+\.distcp: No space left on device: [\d.]+ MB are needed, .* more than .*; make room in", told)
    assert "not saved" not in done.stdout and told.partition("error on process")[2][4:] in bench.log("a")
    assert done.stderr.count("Traceback") == 1  # torchrun's
    steps = sorted(path.name for path in (kept / "a").iterdir())
    assert len(steps) >= 3 and not [name for name in steps if name.startswith(".")]
    ok(bench.run(2, "a", *flags, "--checkpoint-dir", str(kept / "a"), "--resume", "latest"))
    shutil.rmtree(kept)
    ok(bench.run(2, "whole", *flags, "--checkpoint-dir", str(kept / "whole")))
    assert bench.metrics("a") == bench.metrics("whole")


def test_the_clock_of_the_first_process_decides_for_all(bench: Any) -> None:
    ok(bench.run(2, "a", "--save-every-minutes", "1e-6", "--save-frequency", "0"))
    steps = [int(path.name[5:]) for path in (bench.folder / "logs/a/checkpoints").glob("step_*")]
    assert len(steps) >= 8
