"""A remote file is whole, equal to what was sent, or absent."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from open_lm import storage
from open_lm.storage import writing

if TYPE_CHECKING:
    from remote.proxy import FaultyProxy
    from remote.server import Bucket
    from remote.web import WebServer

LONG = random.Random(1).randbytes((520 << 10) + 7)  # three parts of the small ones that tests use
FAULTS = [500, 503, 429, "reset", "lost", "truncate"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SINGLE", 512 << 10)
    monkeypatch.setattr(writing, "_PART", 256 << 10)


@pytest.fixture
def long_file(tmp_path: Path) -> Path:
    path = tmp_path / "long.bin"
    path.write_bytes(LONG)
    return path


@pytest.mark.parametrize("size", [0, 1, 512 << 10, (512 << 10) + 1])
def test_a_file_arrives_as_it_is(s3: Bucket, tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(LONG[:size])
    stored = storage.upload(path, s3.url("folder/x.bin"))
    assert s3.get("folder/x.bin") == LONG[:size]
    assert stored == storage.stat(s3.url("folder/x.bin"))
    assert s3.uploads() == []


def test_a_long_file_goes_in_parts_and_is_looked_at_once(faults: FaultyProxy, s3: Bucket, long_file: Path) -> None:
    storage.upload(long_file, s3.url("x"))
    assert s3.get("x") == LONG
    kinds = [(request.split()[0], "partNumber" in request) for request in faults.requests]
    assert kinds.count(("PUT", True)) == 3
    assert kinds[-1] == ("HEAD", False)
    assert not any(request.startswith("GET") for request in faults.requests), "the ETag proves it; nothing is read back"


def test_parts_cover_files_of_any_size_within_the_limits_of_s3() -> None:
    for size in (1, 256 << 10, (256 << 10) + 1, 5 << 30, (5 << 40) - 1, 5 << 40):
        ranges = writing.part_ranges(size)
        assert len(ranges) <= 10_000 and ranges[0][0] == 0 and ranges[-1][1] == size
        assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(ranges))
        assert len({stop - start for start, stop in ranges[:-1]}) <= 1
        assert max(stop - start for start, stop in ranges) <= 5 << 30


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upload_in_parts_survives_faults_of_every_request(faults: FaultyProxy, s3: Bucket, long_file: Path, fault: int | str) -> None:
    for method, path in (("POST", "uploads"), ("PUT", "partNumber=2"), ("POST", "uploadId"), ("HEAD", "")):
        faults.add(fault, method=method, path=path)
    storage.upload(long_file, s3.url("x"))
    assert s3.get("x") == LONG
    assert not any(planned.times for planned in faults.plan if planned.method != "HEAD" or fault != "truncate")


def test_an_upload_whose_last_answer_got_lost_is_done(faults: FaultyProxy, s3: Bucket, long_file: Path) -> None:
    """The store has forgotten the upload when it is asked to complete it again."""
    faults.add("lost", method="POST", path="uploadId")
    faults.add(404, code="NoSuchUpload", method="POST", path="uploadId")
    storage.upload(long_file, s3.url("x"))
    assert s3.get("x") == LONG
    assert not any(fault.times for fault in faults.plan)
    faults.add(404, code="NoSuchUpload", method="POST", path="uploadId")
    with pytest.raises(FileNotFoundError):
        storage.upload(long_file, s3.url("y"))
    assert s3.keys() == ["x"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_small_write_survives_faults(faults: FaultyProxy, s3: Bucket, fault: int | str) -> None:
    faults.add(fault, method="PUT", times=2)
    storage.write_bytes(s3.url("x"), b"hello")
    assert s3.get("x") == b"hello"


def test_a_stalled_upload_is_sent_again(faults: FaultyProxy, s3: Bucket, long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_TIMEOUT", "0.4")
    faults.add("stall", method="PUT", path="partNumber=3", seconds=3)
    begin = time.monotonic()
    storage.upload(long_file, s3.url("x"))
    assert s3.get("x") == LONG
    assert time.monotonic() - begin < 2.5


@pytest.mark.parametrize("fault", [500, 503, "reset"])
def test_an_upload_that_fails_for_good_leaves_nothing(faults: FaultyProxy, s3: Bucket, long_file: Path, fault: int | str) -> None:
    faults.add(fault, method="PUT", path="partNumber=2", times=1000)
    url = s3.url("x")
    with pytest.raises(storage.StorageError, match="after 4 attempts") as caught:
        storage.upload(long_file, url)
    assert str(caught.value).startswith(f"{url}: ") and "\n" not in str(caught.value)
    assert (s3.keys(), s3.uploads()) == ([], [])
    assert sum("partNumber=2" in request for request in faults.requests) in (4, 8)


def test_parts_that_could_not_be_removed_are_named(
    faults: FaultyProxy, s3: Bucket, long_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults.add(500, method="PUT", path="partNumber=2", times=1000)
    faults.add(500, method="DELETE", times=1000)
    with pytest.raises(storage.StorageError):
        storage.upload(long_file, s3.url("x"))
    assert "still holds parts of the upload" in caplog.text


@pytest.mark.parametrize("size", [1000, len(LONG)])
def test_bytes_damaged_on_the_way_are_sent_again(faults: FaultyProxy, s3: Bucket, tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(LONG[:size])
    faults.add("damage", method="PUT")
    storage.upload(path, s3.url("x"))
    assert not faults.plan[0].times
    assert s3.get("x") == LONG[:size]


def test_bytes_damaged_every_time_are_an_error(faults: FaultyProxy, s3: Bucket) -> None:
    faults.add("damage", method="PUT", times=1000)
    with pytest.raises(storage.StorageError, match=r"x: gave up after 4 attempts; the last fault: the checksum"):
        storage.write_bytes(s3.url("x"), b"hello")


def test_an_etag_that_is_no_md5_is_settled_by_reading_back(
    faults: FaultyProxy, s3: Bucket, long_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in buckets encrypted with KMS keys."""
    send = writing._s3_send
    monkeypatch.setattr(writing, "_s3_send", lambda url, payload: send(url, payload) and "another kind of sum")
    storage.upload(long_file, s3.url("x"))
    assert sum(request.startswith("GET") for request in faults.requests) >= 1
    faults.add("damage", method="PUT")
    storage.upload(long_file, s3.url("x"))
    assert not faults.plan[0].times
    assert s3.get("x") == LONG


@pytest.mark.slow
def test_a_killed_upload_leaves_no_object(faults: FaultyProxy, s3: Bucket, tmp_path: Path, repo: Path) -> None:
    long_file = tmp_path / "real.bin"  # three parts of the real size
    long_file.write_bytes(LONG * 33)
    faults.add("stall", method="PUT", path="partNumber=3", seconds=10)
    code = f"from open_lm import storage; storage.upload({str(long_file)!r}, {s3.url('x')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=repo)
    deadline = time.monotonic() + 10
    while not any("partNumber=3" in request for request in faults.requests):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert s3.keys() == []
    storage.upload(long_file, s3.url("x"))
    assert s3.get("x") == LONG * 33


def test_a_local_file_that_changes_meanwhile_is_an_error(s3: Bucket, long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = writing._compare

    def touched(*arguments):
        os.utime(long_file, ns=(1, 1))
        return compare(*arguments)

    monkeypatch.setattr(writing, "_compare", touched)
    with pytest.raises(ValueError, match=r"long\.bin: changed while it was uploaded to s3://"):
        storage.upload(long_file, s3.url("x"))


def test_a_missing_local_file_and_targets_that_cannot_be_written(s3: Bucket, web: WebServer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.upload(tmp_path / "none", s3.url("x"))
    for url, words in ((web.url("x"), "a web server can't be written to"), (f"s3://{s3.name}", "names a bucket only")):
        with pytest.raises(ValueError, match=words):
            storage.write_bytes(url, b"x")
    with pytest.raises(ValueError, match="make a local file and upload it"), storage.atomic_write("s3://b/x"):
        pass


def test_local_targets_are_whole_or_absent(long_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "sub/copy"
    assert storage.upload(long_file, str(target)).size == len(LONG)
    assert target.read_bytes() == LONG
    storage.write_bytes(str(target), b"new")
    assert storage.read_bytes(f"file://{target}") == b"new"


def test_removing_twice_is_no_error(s3: Bucket, tmp_path: Path) -> None:
    for url in (s3.url("x"), str(tmp_path / "x"), "memory://removing/x"):
        storage.write_bytes(url, b"x")
        storage.remove(url)
        assert not storage.exists(url)
        storage.remove(url)


def test_any_other_file_system_gets_whole_files_that_are_compared(long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    storage.upload(long_file, "memory://writing/x")
    assert storage.read_bytes("memory://writing/x") == LONG
    storage.write_bytes("memory://writing/x", b"small")

    def half(self, path, data, **options):
        pipe(self, path, data[: len(data) // 2], **options)
        raise BrokenPipeError("gone")

    pipe = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", half)
    monkeypatch.setenv("OPENLM_STORAGE_ATTEMPTS", "1")
    with pytest.raises(storage.StorageError, match="gone"):
        storage.write_bytes("memory://writing/x", b"another")
    assert storage.read_bytes("memory://writing/x") == b"small"
    assert [stored.url for stored in storage.list_files("memory://writing/")] == ["memory://writing/x"]


def test_an_upload_that_is_stopped_ends_without_further_parts_or_attempts(faults: FaultyProxy, s3: Bucket, tmp_path: Path) -> None:
    path, stop = tmp_path / "many.bin", threading.Event()
    path.write_bytes(LONG * 8)  # 17 parts
    faults.add(503, times=99, method="PUT", path="partNumber=1&")
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(storage.StorageError):
        storage.upload(path, s3.url("x"), stop)
    assert stop.wait(5) and s3.keys() == [] and s3.uploads() == []
    faults.requests.clear()
    with pytest.raises(storage.StorageError, match="the upload was stopped"):
        storage.upload(path, s3.url("x"), stop)
    assert not any("partNumber" in request for request in faults.requests)
