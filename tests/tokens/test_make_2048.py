"""The command, as users of OpenLM type it."""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard
from small_corpus import all_files, random_texts, stored_sequences, write_jsonl

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
    assert done.stderr.splitlines() == ["--input-files nothing/*.jsonl: no file matches; check the path"], done.stderr
    done = make_2048(repo, tmp_path, "--input-file", "x", "--outputdir", "y", "--num-workers", "many", "--upload-to-s3")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown flag --outputdir. Did you mean --output-dir?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_same_command_goes_on(
    repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path, number: signal.Signals
) -> None:
    for i in range(12):
        (raw / f"more{i}.jsonl").write_bytes((tmp_path / "0.tmp").read_bytes() * 10)
    common = ["--input-files", "raw", "--num-workers", "2", "--tokenizer", str(tokenizer_file), "--seq-len", "64"]
    command = [sys.executable, str(repo / "datapreprocess/make_2048.py"), *common, "--output-dir", "out", "--tokenizer-engine", "hf"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.64-v1-work/*.spill")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert error.splitlines()[-1] == f"stopped by {number.name}; the same command goes on from here"
    assert "Traceback" not in error and not list(tmp_path.rglob("*.tmp.*"))
    assert not list(tmp_path.glob("out/64-v1/*"))
    again = make_2048(repo, tmp_path, *common, "--output-dir", "out")
    assert again.returncode == 0 and " done before" in again.stderr
    whole = make_2048(repo, tmp_path, *common, "--output-dir", "whole")
    assert whole.returncode == 0
    assert all_files(tmp_path / "out/64-v1") == all_files(tmp_path / "whole/64-v1")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_half_written(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["--input-files", str(raw), "--output-dir", str(disk), "--tokenizer", str(tokenizer_file), "--num-workers", "2"]
    script = (
        'mount -t tmpfs -o size=340k tmpfs "$1" || exit 77; shift; out="$1"; shift; "$@"; code=$?;'
        ' find "$out" -type f -printf "%s %P\\n"; exit $code'
    )
    make = [sys.executable, str(repo / "datapreprocess/make_2048.py"), *command]
    line = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), str(disk), *make]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1] and "the same command goes on" in done.stderr.splitlines()[-1]
    assert ".tmp" not in done.stdout and "stats.json" not in done.stdout


@pytest.mark.slow
def test_too_small_a_disk_is_noticed_before_the_start(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=100k tmpfs "$1" || exit 77; shift; "$@"'
    command = ["--input-files", str(raw), "--output-dir", str(disk), "--tokenizer", str(tokenizer_file)]
    make = [sys.executable, str(repo / "datapreprocess/make_2048.py"), *command]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", str(disk), *make], capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode == 2
    assert re.search(r"--temp-dir .* and --output-dir .*: about \d+\.\d+ GB are needed, \d+\.\d+ GB are free", done.stderr)


@pytest.mark.slow
def test_standard_input_is_read_as_a_file_is(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    plain = (tmp_path / "1.tmp").read_bytes()
    (tmp_path / "one.jsonl").write_bytes(plain)
    common = ["--tokenizer", str(tokenizer_file), "--seq-len", "64", "--num-workers", "1"]
    command = [sys.executable, str(repo / "datapreprocess/make_2048.py"), "--input-files", "-", "--output-dir", "piped", *common]
    done = subprocess.run(command, cwd=tmp_path, input=zstandard.compress(plain), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert make_2048(repo, tmp_path, "--input-files", "one.jsonl", "--output-dir", "named", *common).returncode == 0
    piped, named = stored_sequences(tmp_path / "piped/64-v1"), stored_sequences(tmp_path / "named/64-v1")
    assert sorted(piped) == sorted(named) and piped


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_come_to_and_writes_nothing(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    common = ["--input-files", "raw", "--output-dir", "out", "--tokenizer", str(tokenizer_file), "--seq-len", "64"]
    done = make_2048(repo, tmp_path, *common, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    said = {line[:32].strip(): line[32:].strip().replace(",", "") for line in done.stdout.splitlines() if len(line) > 40}
    assert make_2048(repo, tmp_path, *common).returncode == 0
    stats = json.loads((tmp_path / "out/64-v1/stats.json").read_text())
    assert int(said["tokens, about"]) == pytest.approx(stats["tokens"], rel=0.5)
    assert int(said["bytes of txt shards, about"]) == pytest.approx(stats["shard_bytes"], rel=1.0)
    assert "seconds, about" in said and said["input files"] == "3"


@pytest.mark.slow
def test_too_little_memory_starts_fewer_workers_and_writes_the_same(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    common = ["--input-files", "raw", "--tokenizer", str(tokenizer_file), "--seq-len", "64", "--num-workers", "4"]
    done = make_2048(repo, tmp_path, *common, "--output-dir", "little", "--memory-limit", "600MB")
    assert done.returncode == 0 and "--memory-limit 0.6 GB: room for 2 of 4 workers" in done.stderr
    assert make_2048(repo, tmp_path, *common, "--output-dir", "much").returncode == 0
    assert all_files(tmp_path / "little/64-v1") == all_files(tmp_path / "much/64-v1")


@pytest.mark.slow
def test_help_comes_without_torch(repo: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(repo / "datapreprocess/make_2048.py"), "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "--tokenizer-engine" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "tokenizers", "gigatoken"}


@pytest.mark.slow
def test_input_comes_from_the_hugging_face_hub(repo: Path, tmp_path: Path, raw: Path, tokenizer_file: Path) -> None:
    from loopback_hub import hub

    common = ["--tokenizer", str(tokenizer_file), "--seq-len", "64", "--num-workers", "2"]
    with hub(raw, "me/words") as (endpoint, requests):
        command = [sys.executable, str(repo / "datapreprocess/make_2048.py"), "--input-files", "hf://datasets/me/words/*.jsonl.zst"]
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run([*command, *common, "--output-dir", "hub"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any("resolve" in request for request in requests)
    assert make_2048(repo, tmp_path, *common, "--input-files", "raw/*.zst", "--output-dir", "local").returncode == 0
    shards = [
        {name: data for name, data in all_files(tmp_path / where / "64-v1").items() if name.startswith("0/")} for where in ("hub", "local")
    ]
    assert shards[0] == shards[1] and shards[0]
