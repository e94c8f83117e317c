"""Shards to S3, against a real S3 protocol server on loopback with faults in between."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from running import run
from small_corpus import all_files, random_texts, write_jsonl
from test_survival import KILLS, kill_at_random_moments, start

from open_lm.shards.manifest import read_manifest


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    (tmp_path / "raw").mkdir()
    for i in range(4):
        write_jsonl(tmp_path / f"raw/{i}.jsonl", random_texts(120, i))
    return [str(tmp_path / "raw/*.jsonl")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the work for a remote output lies."""
    monkeypatch.setenv("OPENLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def remote_files(s3: Any, prefix: str) -> dict[str, bytes]:
    """Shards, manifests and provenance below a prefix."""
    start = len(prefix) + 1
    return {key[start:]: s3.get(key) for key in list(s3.keys()) if key.startswith(prefix + "/") and "stats" not in key and "png" not in key}


def local_files(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if "stats" not in name and "png" not in name}


def test_a_remote_output_folder_holds_what_a_local_one_would(
    s3: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path, cache: Path
) -> None:
    counts = run(corpus, tokenizer_file, tmp_path / "local", num_consumers=2)
    run(corpus, tokenizer_file, s3.url("data"), num_consumers=2, num_workers=2)
    assert remote_files(s3, "data/32-v1") == local_files(tmp_path / "local/32-v1")
    assert json.loads(s3.get("data/32-v1/stats.json"))["sequences"] == counts.sequences
    assert sum(entry.num_sequences for i in (0, 1) for entry in read_manifest(s3.url(f"data/32-v1/{i}/manifest.jsonl"))) == counts.sequences
    assert not list(cache.glob("open_lm-work-*"))


@pytest.mark.parametrize("scheme", ["s3://", ""])
@pytest.mark.parametrize("slash", ["/", ""])
def test_s3_base_works_as_with_openlm(
    s3: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path, scheme: str, slash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_BASE", s3.url("pre-v1").replace("s3://", scheme) + slash)
    counts = run(corpus, tokenizer_file, None, upload_to_s3=True, shard_size=100)
    assert [key for key in list(s3.keys()) if key.endswith(".tar")] == [f"pre-v1/0/shard-{i:07d}.tar" for i in range(counts.shards)]
    with tarfile.open(fileobj=io.BytesIO(s3.get("pre-v1/0/shard-0000000.tar"))) as tar:
        assert tar.getnames()[0] == "000000000000.txt"


def test_the_local_copy_goes_only_after_the_remote_one_was_checked(
    s3: Any, faults: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path, cache: Path
) -> None:
    # OpenLM uploads a tar before closing it and deletes the original (defect 2)
    faults.add("damage", times=100, method="PUT", path="shard-0000001.tar")
    with pytest.raises(OSError, match=r"shard-0000001\.tar"):
        run(corpus, tokenizer_file, s3.url("data"))
    kept = [path.name for path in cache.rglob("*.tar")]
    assert kept == ["shard-0000001.tar"]
    assert "data/32-v1/0/shard-0000000.tar" in list(s3.keys())


@pytest.mark.parametrize("fault", [500, 503, "reset", "lost", "truncate"])
def test_passing_faults_are_survived(s3: Any, faults: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path, fault: Any) -> None:
    run(corpus, tokenizer_file, tmp_path / "local", shard_size=100)
    faults.add(fault, times=3, path="shard")
    run(corpus, tokenizer_file, s3.url("data"), shard_size=100)
    assert remote_files(s3, "data/32-v1") == local_files(tmp_path / "local/32-v1")


def test_a_failed_upload_goes_on_later(s3: Any, faults: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    run(corpus, tokenizer_file, tmp_path / "local")
    faults.add(500, times=1000, method="PUT", path="shard-0000003.tar")
    with pytest.raises(OSError):
        run(corpus, tokenizer_file, s3.url("data"))
    faults.clear()
    before = len(faults.requests)
    run(corpus, tokenizer_file, s3.url("data"))
    again = [request for request in faults.requests[before:] if "PUT" in str(request) and "shard-0000000.tar" in str(request)]
    assert not again
    assert remote_files(s3, "data/32-v1") == local_files(tmp_path / "local/32-v1")


def test_missing_credentials_are_one_line(repo: Path, tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
        "OPENLM_STORAGE_ATTEMPTS": "2",
        "OPENLM_STORAGE_DELAY": "0.01",
    }
    command = [sys.executable, str(repo / "datapreprocess/make_2048.py"), "--input-files", *corpus, "--tokenizer", str(tokenizer_file)]
    done = subprocess.run([*command, "--output-dir", "s3://nowhere/x"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "s3://nowhere/x" in lines[0] and "credentials" in lines[0]


def test_kill_9_at_random_moments_of_an_upload_ends_with_the_same_bytes(
    s3: Any, repo: Path, tmp_path: Path, corpus: list[str], tokenizer_file: Path
) -> None:
    run(corpus, tokenizer_file, tmp_path / "local")
    options = {"paths": corpus, "tokenizer": str(tokenizer_file), "num_workers": 2}
    started = time.monotonic()
    assert start(repo, {**options, "out": s3.url("timed")}).wait(timeout=120) == 0
    seconds = time.monotonic() - started
    made = kill_at_random_moments(lambda i: start(repo, {**options, "out": s3.url(f"data-{i}")}), seed=KILLS, seconds=seconds)
    for i in range(made):
        assert remote_files(s3, f"data-{i}/32-v1") == local_files(tmp_path / "local/32-v1")


def test_input_is_read_from_s3_and_the_web(s3: Any, web: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    run(corpus, tokenizer_file, tmp_path / "local", shuffle=False)
    for path in sorted((tmp_path / "raw").iterdir()):
        s3.put(f"raw/{path.name}", path.read_bytes())
        (web.folder / path.name).write_bytes(path.read_bytes())
    run([s3.url("raw/*.jsonl")], tokenizer_file, tmp_path / "s3", shuffle=False, num_workers=2)
    run([web.url(f"{i}.jsonl") for i in range(4)], tokenizer_file, tmp_path / "web", shuffle=False)
    shards = {name: data for name, data in all_files(tmp_path / "local/32-v1").items() if name.startswith("0/")}
    assert shards
    for other in ("s3", "web"):
        assert {name: data for name, data in all_files(tmp_path / other / "32-v1").items() if name.startswith("0/")} == shards


def test_a_remote_output_is_claimed_and_replaced_as_a_local_one(s3: Any, tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    first = run(corpus, tokenizer_file, s3.url("data"), shard_size=100)
    assert run(corpus, tokenizer_file, s3.url("data"), shard_size=100) == first
    with pytest.raises(ValueError, match=r"s3://.*data/32-v1 holds the shards of another command .--seed was 0, is 1.*--overwrite"):
        run(corpus, tokenizer_file, s3.url("data"), shard_size=100, seed=1)
    s3.put("data/32-v1/notes.txt", b"mine")
    run(corpus, tokenizer_file, s3.url("data"), shard_size=200, seed=1, overwrite=True)
    run(corpus, tokenizer_file, tmp_path / "local", shard_size=200, seed=1)
    assert s3.get("data/32-v1/notes.txt") == b"mine"
    assert {k: v for k, v in remote_files(s3, "data/32-v1").items() if k != "notes.txt"} == local_files(tmp_path / "local/32-v1")
