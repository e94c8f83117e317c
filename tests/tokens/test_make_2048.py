"""The command, as users of OpenLM type it."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from small_corpus import random_texts, stored_sequences, write_jsonl

from open_lm.shards.manifest import read_manifest


def make_2048(repo: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(repo / "datapreprocess/make_2048.py"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    for i in range(3):
        plain = write_jsonl(tmp_path / f"{i}.tmp", random_texts(300, i)).read_bytes()
        (tmp_path / f"raw/{i}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(plain))
    return tmp_path / "raw"


@pytest.mark.slow
def test_the_readmes_command_makes_shards_from_shell_lists_and_quoted_globs(
    repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path
) -> None:
    common = ["--num-workers", "2", "--num-consumers", "1", "--tokenizer", str(tokenizer_file)]
    lists = sorted(glob.glob("raw/*.jsonl.zst", root_dir=tmp_path))
    done = make_2048(repo, tmp_path, "--input-files", *lists, "--output-dir", "a", *common)
    assert done.returncode == 0, done.stderr
    assert "documents read" in done.stdout and " dropped = " in done.stdout
    assert make_2048(repo, tmp_path, "--input-files", "raw/*.jsonl.zst", "--output-dir", "b", *common).returncode == 0
    a, b = stored_sequences(tmp_path / "a/2048-v1"), stored_sequences(tmp_path / "b/2048-v1")
    assert a == b and all(len(sequence) == 2049 for sequence in a)
    (entry,) = read_manifest(str(tmp_path / "a/2048-v1/0/manifest.jsonl"))
    stats = json.loads((tmp_path / "a/2048-v1/stats.json").read_text())
    assert entry.num_sequences == len(a) == stats["sequences"]
    assert "make_2048.py --input-files raw/0.jsonl.zst" in stats["command"]


@pytest.mark.slow
def test_mistakes_are_lines_on_stderr_and_exit_status_2(repo: Path, tmp_path: Path) -> None:
    done = make_2048(repo, tmp_path, "--input-files", "nothing/*.jsonl", "--output-dir", "out", "--tokenizer", "missing.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["--input-files nothing/*.jsonl: no file matches; check the path"]
    done = make_2048(repo, tmp_path, "--input-file", "x", "--outputdir", "y", "--num-workers", "many", "--upload-to-s3")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown flag --outputdir. Did you mean --output-dir?" in done.stderr


@pytest.mark.slow
def test_help_comes_without_torch(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(repo / "datapreprocess/make_2048.py"), "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "--tokenizer-engine" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "tokenizers", "gigatoken"}
