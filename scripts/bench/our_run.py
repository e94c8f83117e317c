"""One run of datapreprocess/make_2048.py as a user starts it: its own figures from stats.json, the wall clock from outside."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.bench.process_watch import ProcessWatch

STAGES = ("tokenizing", "writing")
_KEPT_LINES = 30


@dataclass(frozen=True)
class Job:
    """What make_2048 is asked for."""

    inputs: tuple[str, ...]
    tokenizer: str
    format: str
    engine: str
    workers: int
    memory_limit: str | None = None


@dataclass(frozen=True)
class Finished:
    """What became of it. `wall` is from outside; `ended` says when (monotonic) each stage was done; `shards` is a hash of all manifests."""

    wall: float
    ended: dict[str, float]
    stats: dict[str, Any]
    shards: str
    watch: ProcessWatch | None = None

    @property
    def work(self) -> float:
        """Seconds, start-up and reports not included."""
        return float(self.stats["seconds"])

    @property
    def writing(self) -> float:
        """Seconds of the second stage."""
        return self.ended["writing"] - self.ended["tokenizing"]

    def figures(self) -> dict[str, float]:
        """For the JSON."""
        return {
            "wall_seconds": round(self.wall, 3),
            "startup_seconds": self.stats["startup_seconds"],
            "work_seconds": self.work,
            "writing_seconds": round(self.writing, 3),
            "worker_seconds": self.stats["worker_seconds"],
            "checking_seconds": self.stats["checking_seconds"],
        }


def run(repository: Path, job: Job, output: Path, watched: bool = False) -> Finished:
    """Run it into a new folder, which is removed afterwards.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen(
        _command(repository, job, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        with ExitStack() as stack:
            watch = stack.enter_context(ProcessWatch(process.pid)) if watched else None
            said = _Said(process)
            code = process.wait()
        wall = time.monotonic() - started
        said.join()
        if code:
            raise RuntimeError(f"make_2048.py ended with {code}:\n" + "\n".join(said.lines[-_KEPT_LINES:]))
        return replace(_read(output, said.ended, wall), watch=watch)
    finally:
        process.terminate()  # its workers end with it
        process.wait()
        shutil.rmtree(output, ignore_errors=True)


def _command(repository: Path, job: Job, output: Path) -> Sequence[str]:
    command = [sys.executable, str(repository / "datapreprocess/make_2048.py"), "--input-files", *job.inputs]
    command += ["--output-dir", str(output), "--tokenizer", job.tokenizer, "--format", job.format, "--tokenizer-engine", job.engine]
    limit = ["--memory-limit", job.memory_limit] if job.memory_limit else []
    return [*command, "--num-workers", str(job.workers), *limit]


class _Said:
    """The lines of a process's stderr as they come, and when it said that a stage was done."""

    def __init__(self, process: subprocess.Popen[str]):
        self.lines: list[str] = []
        self.ended: dict[str, float] = {}
        self._process = process
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(timeout=10)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip())
            for stage in STAGES:
                if f"{stage}: done" in line:
                    self.ended[stage] = time.monotonic()


def _read(output: Path, ended: dict[str, float], wall: float) -> Finished:
    missing = set(STAGES) - set(ended)
    if missing:
        raise RuntimeError(f"make_2048.py didn't say in its log that it was done with {', '.join(sorted(missing))}")
    [stats] = output.glob("*/stats.json")
    digest = hashlib.sha256()
    for manifest in sorted(output.glob("*/*/manifest.jsonl")):
        digest.update(manifest.read_bytes())
    return Finished(wall, ended, json.loads(stats.read_text()), digest.hexdigest())
