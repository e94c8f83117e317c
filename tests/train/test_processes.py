"""Real processes: the same data, seed and flags give the same losses on 1, 2 and 4, and a run goes on after any stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
LONG = ("--epochs", "10", "--multiple-data-passes")  # 100 steps


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_losses_agree_on_1_2_and_4_processes_over_100_steps(bench: Any) -> None:
    ok(bench.run(1, "one", *LONG))
    expected = bench.metrics("one")
    assert len(expected) == 100
    for processes, flags in ((2, ()), (2, ("--fsdp",)), (4, ("--fsdp", "--workers", "2")), (4, ("--accum-freq", "2"))):
        name = f"{processes}{''.join(flags)}"
        ok(bench.run(processes, name, *LONG, *flags))
        worst = max(abs(a / b - 1) for a, b in zip(bench.metrics(name), expected, strict=True))
        assert worst < 1e-6, f"{name}: {worst}"
        assert bench.metrics(name, "grad_norm") == pytest.approx(bench.metrics("one", "grad_norm"), rel=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_openlm_defect_21_compiled_and_sharded_gradients_are_clipped_by_their_global_norm(bench: Any) -> None:
    ok(bench.run(1, "one", "--grad-clip-norm", "0.05"))
    ok(bench.run(2, "two", "--grad-clip-norm", "0.05", "--fsdp", "--torchcompile"))
    norms = bench.metrics("one", "grad_norm")
    assert min(norms) > 0.05, "nothing was clipped"
    assert bench.metrics("two", "grad_norm") == pytest.approx(norms, rel=1e-4)
    assert bench.metrics("two") == pytest.approx(bench.metrics("one"), rel=1e-5)


@pytest.mark.parametrize(("processes", "flags"), [(4, ("--accum-freq", "2")), (2, ("--fsdp",)), (4, ("--fsdp", "--accum-freq", "2"))])
def test_resume_on_the_same_processes_is_bit_equal(bench: Any, processes: int, flags: tuple[str, ...]) -> None:
    ok(bench.run(processes, "whole", "--save-every-steps", "13", *flags))
    bench.copy_at("whole", "again", 13)
    ok(bench.run(processes, "again", "--resume", "latest", *flags))
    assert bench.metrics("again") == bench.metrics("whole")
    a, b = bench.weights("whole"), bench.weights("again")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_goes_on_with_the_same_batches_on_other_processes(bench: Any) -> None:
    ok(bench.run(1, "one", *LONG))
    ok(bench.run(2, "moved", *LONG, "--fsdp", "--save-every-steps", "33"))
    for processes, step in ((4, 33), (1, 66)):  # FSDP, then DDP, then one process
        for path in (bench.folder / "logs/moved/checkpoints").glob("step_*"):
            if int(path.name[5:]) > step:
                shutil.rmtree(path)
        ok(bench.run(processes, "moved", *LONG, "--resume", "latest", "--save-every-steps", "33"))
        assert f"step_{step}: step {step}" in bench.log("moved")
    worst = max(abs(a / b - 1) for a, b in zip(bench.metrics("moved"), bench.metrics("one"), strict=True))
    assert worst < 1e-6, worst


def test_processes_workers_and_batch_size_may_all_change_on_the_way(bench: Any) -> None:
    flags = ("--epochs", "6", "--multiple-data-passes", "--save-every-steps", "10", "--global-batch-size")
    ok(bench.run(1, "one", *flags, "12"))
    bench.copy_at("one", "three", 10)
    ok(bench.run(3, "three", *flags, "12", "--workers", "2", "--resume", "latest"))
    assert "This run goes on with 1, 2, 3, 4, 6, 12 processes" in bench.log("three")
    for source, target, processes, workers in (("one", "reference", 1, "0"), ("three", "four", 4, "5")):
        bench.copy_at(source, target, 20)
        ok(bench.run(processes, target, *flags, "24", "--workers", workers, "--resume", "latest"))
    for name, reference, steps in (("three", "one", 40), ("four", "reference", 30)):
        losses, expected = bench.metrics(name), bench.metrics(reference)
        assert len(losses) == len(expected) == steps
        assert max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True)) < 1e-6


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the run ended before it was to be killed"
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


def test_processes_end_when_their_launcher_is_killed_and_the_next_run_waits_for_them(bench: Any) -> None:
    flags = (*LONG, "--save-every-steps", "5")
    process = subprocess.Popen(bench.command(2, "a", *flags), env=bench.env, cwd=bench.folder)
    wait_for(bench.folder / "logs/a/checkpoints/step_10", process)
    os.kill(process.pid, signal.SIGKILL)  # torchrun alone; its processes have sessions of their own
    process.wait()
    ok(bench.run(2, "a", *flags, "--resume", "latest"))
    assert "process 0 stopped" in bench.log("a")  # it saw that the launcher was gone, or that the other process had gone for that reason
    assert bench.metrics("a", "step") == list(range(1, 101))


def test_an_error_on_one_process_ends_all_of_them(bench: Any) -> None:
    shard = bench.folder / "shards/shard-0000002.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"\x93NUMPY") + 128 + 64
    content[place : place + 2] = b"\xff\xff"
    shard.write_bytes(content)
    begin = time.monotonic()
    done = bench.run(2, "a", "--epochs", "3")
    assert done.returncode != 0
    [told] = [line for line in done.stderr.splitlines() if "65535" in line]
    assert "traceback : " in told and "shard-0000002.tar" in told
    assert done.stderr.count("Traceback") == 1  # torchrun's
    assert time.monotonic() - begin < 60


def test_processes_that_do_not_divide_the_batch_are_told(bench: Any) -> None:
    done = bench.run(2, "a", "--global-batch-size", "9")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "open_lm" in line and not line.startswith(("open_lm.main", "W", "E"))]
    assert lines == ["  traceback : open_lm: error: --global-batch-size 9: 2 processes don't divide it; use 1, 3, 9 processes"]
    assert "<NO_OTHER_FAILURES>" in done.stderr


def test_validation_is_the_same_on_any_number_of_processes(bench: Any) -> None:
    flags = ("--val-data", str(bench.folder / "shards/shard-0000001.tar"), "--global-val-batch-size", "7", "--epochs", "1")
    results = []
    for processes, more in ((1, ()), (2, ("--fsdp",)), (4, ())):
        ok(bench.run(processes, f"p{processes}", *flags, *more))
        results.append(json.loads((bench.folder / f"logs/p{processes}/checkpoints/results.jsonl").read_text())[0])
    assert {r["tokens"] for r in results} == {80 * 32}
    assert {r["sequences"] for r in results} == {80}
    assert all(abs(r["loss"] / results[0]["loss"] - 1) < 1e-6 for r in results)


def test_amp_with_fsdp_trains(bench: Any) -> None:
    ok(bench.run(2, "a", "--fsdp", "--fsdp-amp", "--precision", "amp_bfloat16", "--grad-checkpointing"))
    losses = bench.metrics("a")
    assert losses[-1] < 0.7 * losses[0]
    assert all(w.dtype == torch.float32 for w in bench.weights("a").values())
