"""Small real runs: shards of a learnable sequence, a tiny model, and commands that train it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_lm.shards.manifest import write_manifest
from open_lm.shards.tar import write_shard

SEQ_LEN, VOCAB = 32, 64


@dataclass(frozen=True)
class Bench:
    """A folder with shards, a model and runs."""

    folder: Path
    repo: Path

    def flags(self, name: str, *more: str) -> list[str]:
        """The command line of a run of 30 steps; later flags win."""
        data = self.folder / "shards/shard-{0000000..0000003}.tar"
        flags = f"--model {self.folder / 'tiny.json'} --train-data {data} --train-num-samples {80 * SEQ_LEN} --epochs 3"
        flags += " --global-batch-size 8 --precision fp32 --lr 3e-3 --warmup 5 --log-every-n-steps 1 --grad-clip-norm 1 --workers 1"
        return [*flags.split(), "--logs-dir", str(self.folder / "logs"), "--name", name, *more]

    def command(self, processes: int, name: str, *more: str) -> list[str]:
        """The same through torchrun."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        return [*torchrun, "-m", "open_lm.main", *self.flags(name, *more)]

    def run(self, processes: int, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; the caller looks at the exit code."""
        return subprocess.run(
            self.command(processes, name, *more), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=300
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment of a run."""
        return {**os.environ, "PYTHONPATH": str(self.repo), "OMP_NUM_THREADS": "1"}

    def metrics(self, name: str, key: str = "loss") -> list[float]:
        """One number of each log step."""
        lines = (self.folder / "logs" / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)[key] for line in lines]

    def weights(self, name: str, epoch: int = 3) -> dict[str, torch.Tensor]:
        """The state dict of an epoch."""
        path = self.folder / "logs" / name / f"checkpoints/epoch_{epoch}.pt"
        return torch.load(path, weights_only=True)["state_dict"]

    def copy_at(self, source: str, target: str, step: int) -> None:
        """A copy of a run as it was after one step, as if it had been killed there."""
        shutil.copytree(self.folder / "logs" / source, self.folder / "logs" / target, symlinks=True)
        for path in (self.folder / "logs" / target / "checkpoints").iterdir():
            if path.is_file() or path.is_symlink():
                path.unlink()
            elif path.name != f"step_{step}":
                shutil.rmtree(path)

    def kill(self, process: subprocess.Popen[Any]) -> None:
        """SIGKILL for a run and all of its processes."""
        kill_9(process.pid)
        process.wait()

    def log(self, name: str) -> str:
        """out.log."""
        return (self.folder / "logs" / name / "out.log").read_text()


def kill_9(pid: int) -> None:
    """SIGKILL for a process and all that it started, in whatever session they are."""
    parents = {int(p.name): int((p / "stat").read_text().rsplit(")", 1)[1].split()[1]) for p in Path("/proc").iterdir() if p.name.isdigit()}
    doomed = [pid]
    for one in doomed:
        doomed += [child for child, parent in parents.items() if parent == one]
    for one in doomed:
        os.kill(one, signal.SIGKILL)


@pytest.fixture
def bench(tmp_path: Path, repo: Path) -> Bench:
    """Four shards of 240 rows in all: each token is the one before plus a step that the row fixes."""
    rng = np.random.default_rng(0)
    start, step = rng.integers(0, VOCAB, (240, 1)), rng.integers(1, 4, (240, 1))
    rows = ((start + step * np.arange(SEQ_LEN + 1)) % VOCAB).astype(np.uint16)
    entries = [write_shard(tmp_path / f"shards/shard-{i:07d}.tar", "npy", part) for i, part in enumerate(np.split(rows, [50, 130, 150]))]
    write_manifest(tmp_path / "shards/manifest.jsonl", entries)
    config: dict[str, Any] = {"hidden_dim": 32, "n_layers": 2, "n_heads": 4, "seq_len": SEQ_LEN, "vocab_size": VOCAB}
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    return Bench(tmp_path, repo)


@pytest.fixture
def main_here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`open_lm.main` in this process: quick, for what one process can show."""
    from open_lm.main import main

    monkeypatch.chdir(bench.folder)
    torch.set_num_threads(1)
    return lambda name, *more: main(bench.flags(name, "--workers", "0", "--lr", "1e-2", *more))
