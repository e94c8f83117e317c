"""A run that is killed at any moment and given again ends with the same bytes as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from running import run
from small_corpus import random_texts, write_jsonl

KILLS = int(os.environ.get("OPENLM_KILLS", "3"))
PROGRAM = """
import json, sys
sys.path[:0] = ["tests/tokens"]
from running import run
options = json.loads(sys.argv[1])
run(options.pop("paths"), options.pop("tokenizer"), options.pop("out"), **options)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One long plain file, one long compressed one, some small ones: about 180 units."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = random_texts(6000, 1)
    write_jsonl(folder / "a.jsonl", texts[:2500])
    compressed = zstandard.ZstdCompressor().compress(write_jsonl(folder / "b.tmp", texts[2500:5000]).read_bytes())
    (folder / "b.jsonl.zst").write_bytes(compressed)
    for i in range(10):
        write_jsonl(folder / f"c{i}.jsonl", texts[5000 + 100 * i : 5100 + 100 * i])
    return [f"{folder}/*.jsonl*"]


def output_of(folder: Path) -> dict[str, bytes]:
    """Everything that is the same in every run: all but the seconds and the size of the checked sample in stats.json."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    stats = json.loads(files.pop("stats.json"))
    counted = {name: value for name, value in stats.items() if "seconds" not in name and name not in ("command", "checked_tokens")}
    return {**files, "counted": json.dumps(counted).encode()}


def start(repo: Path, options: dict[str, Any], **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(options)]
    return subprocess.Popen(command, cwd=repo, start_new_session=True, stderr=subprocess.PIPE, env={**os.environ, **environment})


def kill_at_random_moments(launch: Callable[[int], subprocess.Popen[bytes]], seed: int, seconds: float) -> int:
    """Start output 0, kill everything after a while, and again until it is there; then output 1, ... Returns how many were made."""
    rng, killed, made = random.Random(seed), 0, 0
    finished = False
    while killed < KILLS or not finished:
        process = launch(made)
        try:
            process.wait(rng.uniform(0.2, seconds) if killed < KILLS else 300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        error = process.communicate()[1]
        finished = process.returncode != -signal.SIGKILL
        if finished:
            assert process.returncode == 0, error.decode()
            made += 1
    return made


@pytest.mark.parametrize("format", ["txt"])
def test_kill_9_of_everything_at_random_moments_ends_with_the_same_bytes(
    repo: Path, tmp_path: Path, corpus: list[str], tokenizer_file: Path, format: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    run(corpus, tokenizer_file, undisturbed, format=format, num_consumers=2, shard_size=100)
    options = {"paths": corpus, "tokenizer": str(tokenizer_file)}
    options |= {"format": format, "num_workers": 2, "num_consumers": 2, "shard_size": 100}
    started = time.monotonic()
    assert start(repo, {**options, "out": str(tmp_path / "timed")}).wait(timeout=300) == 0
    seconds = time.monotonic() - started
    made = kill_at_random_moments(lambda i: start(repo, {**options, "out": str(tmp_path / f"killed-{i}")}), seed=KILLS, seconds=seconds)
    for i in range(made):
        assert output_of(tmp_path / f"killed-{i}/32-v1") == output_of(undisturbed / "32-v1")
        assert [path.name for path in (tmp_path / f"killed-{i}").iterdir()] == ["32-v1"]


def test_a_killed_worker_is_survived(repo: Path, tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    run(corpus, tokenizer_file, tmp_path / "undisturbed", shard_size=100)
    options = {"paths": corpus, "tokenizer": str(tokenizer_file), "out": str(tmp_path / "out"), "num_workers": 2, "shard_size": 100}
    process = start(repo, options)
    killed, before = 0, set[int]()
    while process.poll() is None and killed < 2:
        spills, workers = len(list(tmp_path.glob("out/.32-v1-work/*.spill"))), workers_of(process.pid)
        if spills > 3 + 40 * killed and workers and not before & set(workers):  # those of the first time have been replaced
            os.kill(random.Random(killed).choice(workers), signal.SIGKILL)
            killed, before = killed + 1, set(workers)
        time.sleep(0.01)
    error = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, error
    assert killed == 2 and error.count("a worker process was killed; its work is done again") == 2
    assert output_of(tmp_path / "out/32-v1") == output_of(tmp_path / "undisturbed/32-v1")


def workers_of(pid: int) -> list[int]:
    """The processes that the fork server of a process has forked."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == pid and int(fields[1]) not in (pid, os.getpid()):
            found.append(int(stat.parent.name))
    return found
