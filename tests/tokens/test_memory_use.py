"""Real memory of all processes together stays under the limit, whatever the corpus."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")]


def proportional_bytes(session: int) -> int:
    """Proportional set size of all processes of a session."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total


def peak_of(repo: Path, arguments: list[str]) -> int:
    """Peak memory of a whole make_2048 run in bytes, looked at 20 times a second."""
    command = [sys.executable, str(repo / "datapreprocess/make_2048.py"), *arguments]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional_bytes(process.pid))
        time.sleep(0.05)
    error = process.communicate()[1]
    assert process.returncode == 0, error
    return peak


def words(rng: random.Random, count: int) -> str:
    """Words that a tokenizer's caches have not seen."""
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(count))


def test_one_line_of_100_mb_and_many_small_ones(repo: Path, tmp_path: Path, tokenizer_file: Path) -> None:
    rng = random.Random(0)
    part = words(rng, 20_000)
    with open(tmp_path / "large.jsonl", "w") as file:
        file.write(json.dumps({"text": part * (100_000_000 // len(part))}) + "\n")
    for i in range(4):
        with open(tmp_path / f"small{i}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": words(rng, 300)}) + "\n" for _ in range(1000))
    arguments = ["--input-files", str(tmp_path / "*.jsonl"), "--tokenizer", str(tokenizer_file), "--format", "npy"]
    peak = peak_of(repo, [*arguments, "--num-workers", "2", "--output-dir", str(tmp_path / "out")])
    assert peak < 2 * 10**9
    stats = json.loads((tmp_path / "out/2048-v1/stats.json").read_text())
    assert stats["documents_read"] == 4001 and stats["utf8_bytes"] > 100_000_000 * 0.99


def test_a_corpus_that_expands_a_thousandfold_stays_under_a_small_limit(repo: Path, tmp_path: Path, tokenizer_file: Path) -> None:
    import zstandard

    line = json.dumps({"text": "the quick brown fox jumps over a lazy dog; " * 20}).encode() + b"\n"
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line * 200_000))
    arguments = ["--input-files", str(tmp_path / "a.jsonl.zst"), "--tokenizer", str(tokenizer_file), "--format", "npy"]
    peak = peak_of(repo, [*arguments, "--num-workers", "2", "--memory-limit", "600MB", "--output-dir", str(tmp_path / "out")])
    assert peak < 600 * 10**6


def test_many_tiny_files_and_a_corpus_of_one_document(repo: Path, tmp_path: Path, tokenizer_file: Path) -> None:
    count = int(os.environ.get("OPENLM_TINY_FILES", "5000"))
    for i in range(count):
        folder = tmp_path / f"raw/{i // 1000:04d}"
        if i % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{i}.txt").write_text(f"document {i}, a lazy dog jumps over the quick brown fox")
    arguments = ["--tokenizer", str(tokenizer_file), "--format", "npy", "--seq-len", "64", "--num-workers", "2"]
    assert peak_of(repo, ["--input-files", str(tmp_path / "raw"), "--output-dir", str(tmp_path / "many"), *arguments]) < 2 * 10**9
    assert json.loads((tmp_path / "many/64-v1/stats.json").read_text())["documents_read"] == count
    one = tmp_path / "raw/0000/0.txt"
    peak_of(repo, ["--input-files", str(one), "--output-dir", str(tmp_path / "one"), "--last-sequence", "pad", *arguments])
    assert json.loads((tmp_path / "one/64-v1/stats.json").read_text())["sequences"] == 1
