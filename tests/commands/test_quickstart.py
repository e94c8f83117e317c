"""The quick start, from text to report, with fewer steps of training than a user gets."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

pytestmark = pytest.mark.slow


def test_the_quick_start_goes_from_text_to_report(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "QUICKSTART_STEPS": "120"}
    done = subprocess.run([repo / "scripts/quickstart.sh", out], env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Killed after step 60, by SIGKILL." in done.stdout
    log = (out / "logs/quickstart/out.log").read_text()
    assert "Resumed from" in log
    steps = [json.loads(line)["step"] for line in (out / "logs/quickstart/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(5, 121, 5))
    [results] = json.loads((out / "results.json").read_text()).values()
    assert results["next_line/0-shot"]["accuracy"] > 0.36, "chance is 0.25"
    assert results["finish_line/0-shot"]["accuracy"] > 0.05, "chance is 0"
    page = (out / "report.html").read_text()
    pictures = [p.name for p in out.glob("*.png")]
    assert len(pictures) == 5
    assert all(name in page for name in pictures)
    last = json.loads((out / "logs/quickstart/checkpoints/results.jsonl").read_text().splitlines()[-1])[0]
    assert 0 < last["bits_per_byte"] < 3
    run_what_is_typed_next(repo, out, done.stdout.partition("What you would type next")[2], tmp_path / "next")


def run_what_is_typed_next(repo: Path, out: Path, printed: str, folder: Path) -> None:
    """The printed commands as they stand, with 400,000 characters of the held-out text as one's own data."""
    for name in ("datapreprocess", "open_lm", "scripts"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(repo / name)
    (folder / "my_data").mkdir()
    with zstandard.open(out / "text/heldout.jsonl.zst", "rt") as text, zstandard.open(folder / "my_data/part.jsonl.zst", "wt") as mine:
        mine.writelines(text.readlines(400_000))
    commands = "".join(line + "\n" for line in printed.splitlines() if line.startswith("  "))
    assert [line.split()[0] for line in commands.splitlines()] == ["python", "python", "torchrun", "--epochs"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "WARNING" not in done.stdout
    losses = [json.loads(line)["loss"] for line in (folder / "logs/my_run/metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 4
    assert sum(losses[-2:]) / 2 < min(losses[0] - 0.3, math.log(8192) - 1.5), "an untrained model has log(8192) = 9"


def test_an_existing_folder_is_not_touched(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run([repo / "scripts/quickstart.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists; give another folder" in done.stderr
