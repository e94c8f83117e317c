"""Remote files are read as local ones are, whatever the network does meanwhile."""

from __future__ import annotations

import io
import random
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from open_lm import storage

if TYPE_CHECKING:
    from remote.proxy import FaultyProxy
    from remote.server import Bucket
    from remote.web import WebServer

DATA = random.Random(0).randbytes((5 << 20) + 12_345)
FAULTS = [500, 503, 429, "reset", "truncate", "lost"]


def test_an_object_is_read_whole_in_pieces_and_from_any_byte(s3: Bucket) -> None:
    url = s3.put("folder/x.bin", DATA)
    assert storage.read_bytes(url) == DATA
    with storage.open_read(url) as file:
        assert b"".join(iter(lambda: file.read(100_001), b"")) == DATA
        for start, count in ((4_000_000, 10), (0, 3), (len(DATA) - 5, 100), (3_999_990, 2_000_000)):
            file.seek(start)
            assert file.read(count) == DATA[start : start + count]
            assert file.tell() == min(start + count, len(DATA))
        assert file.seek(-7, io.SEEK_END) == len(DATA) - 7
        assert file.read() == DATA[-7:]
        assert file.seek(len(DATA) + 10) and file.read(1) == b""


def test_an_empty_object_and_lines(s3: Bucket) -> None:
    assert storage.read_bytes(s3.put("empty", b"")) == b""
    with storage.open_read(s3.put("lines", b"one\ntwo\nthree")) as file:
        assert list(file) == [b"one\n", b"two\n", b"three"]


def test_a_tar_is_read_in_place(s3: Bucket) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for i in range(5):
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = 700_000
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
    with storage.open_read(s3.put("x.tar", made.getvalue())) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        member = tar.extractfile("3.bin")
        assert member is not None and set(member.read()) == {3}


def test_a_small_object_costs_one_request_and_a_long_one_few(faults: FaultyProxy, s3: Bucket) -> None:
    storage.read_bytes(s3.put("small", b"hello"))
    assert len(faults.requests) == 1
    faults.requests.clear()
    storage.read_bytes(s3.put("long", DATA))
    assert len(faults.requests) == 3  # 1, 2 and 4 MiB


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_survives_faults_and_goes_on_where_it_was(faults: FaultyProxy, s3: Bucket, fault: int | str) -> None:
    url = s3.put("x.bin", DATA)
    faults.add(fault, times=2, method="GET", path="x.bin", skip=1)
    assert storage.read_bytes(url) == DATA
    assert not faults.plan[0].times
    assert sum("bytes=0-" in request for request in faults.requests) == 1, "what was read already is not asked for again"


def test_a_stalled_connection_is_left(faults: FaultyProxy, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_TIMEOUT", "0.3")
    url = s3.put("x.bin", DATA)
    faults.add("stall", times=2, method="GET", seconds=3)
    begin = time.monotonic()
    assert storage.read_bytes(url) == DATA
    assert time.monotonic() - begin < 2.5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_one_line_with_url_cause_and_attempts(faults: FaultyProxy, s3: Bucket, fault: int | str) -> None:
    url = s3.put("x.bin", DATA)
    faults.add(fault, times=1000, method="GET", path="x.bin")
    with pytest.raises(storage.StorageError) as caught:
        storage.read_bytes(url)
    message = str(caught.value)
    assert message.startswith(f"{url}: ") and "after 4 attempts" in message and "\n" not in message
    # aiohttp asks once more, at once, when a connection breaks; beyond that the libraries below don't try again for themselves
    assert len(faults.requests) in ((4, 8) if fault in ("reset", "lost") else (4,))
    if isinstance(fault, int):
        assert str(fault) in message


def test_a_fault_in_the_middle_is_raised_by_read(faults: FaultyProxy, s3: Bucket) -> None:
    url = s3.put("x.bin", DATA)
    faults.add(500, times=1000, method="GET", path="x.bin", skip=1)
    with storage.open_read(url) as file:
        assert file.read(1 << 20) == DATA[: 1 << 20]
        with pytest.raises(storage.StorageError, match="after 4 attempts"):
            file.read(4 << 20)


def test_an_object_that_changes_while_it_is_read_is_an_error(s3: Bucket) -> None:
    url = s3.put("x.bin", DATA)
    with storage.open_read(url) as file:
        file.read(10)
        s3.put("x.bin", DATA[::-1])
        with pytest.raises(storage.StorageError, match=r"x\.bin: changed while it was read"):
            file.read()


def test_closing_ends_the_patience_of_the_read_ahead(faults: FaultyProxy, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_DELAY", "30")
    url = s3.put("x.bin", DATA)
    faults.add(500, times=1000, method="GET", path="x.bin", skip=2)
    with storage.open_read(url) as file:
        file.read(2 << 20)
        (waiting,) = [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
        time.sleep(0.2)
        assert waiting.is_alive()
    waiting.join(2)
    assert not waiting.is_alive()


def test_a_web_server_is_read_by_ranges(web: WebServer) -> None:
    (web.folder / "x.bin").write_bytes(DATA)
    url = web.url("x.bin")
    assert storage.read_bytes(url) == DATA
    assert [request for request in web.requests if "bytes=" not in request] == []
    with storage.open_read(url) as file:
        file.seek(-9, io.SEEK_END)
        assert file.read() == DATA[-9:]
    assert (storage.size(url), storage.exists(url), storage.exists(web.url("none"))) == (len(DATA), True, False)
    (web.folder / "empty").touch()
    assert storage.read_bytes(web.url("empty")) == b""


@pytest.mark.parametrize("sizes", [True, False])
def test_a_web_server_without_ranges_is_read_as_one_stream(web: WebServer, sizes: bool) -> None:
    (web.folder / "x.bin").write_bytes(DATA)
    web.ranges, web.sizes = False, sizes
    with storage.open_read(web.url("x.bin")) as file:
        assert file.read() == DATA
        assert len(web.requests) == 1
        file.seek(5)
        assert file.read(10) == DATA[5:15]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_reading_from_the_web_survives_faults(web: WebServer, fault: int | str, ranges: bool) -> None:
    from remote.proxy import FaultyProxy

    (web.folder / "x.bin").write_bytes(DATA)
    web.ranges = ranges
    with FaultyProxy(web.endpoint) as proxy:
        proxy.add(fault, times=2)
        assert storage.read_bytes(f"{proxy.endpoint}/x.bin") == DATA
        assert not proxy.plan[0].times


def test_threads_share_a_client(s3: Bucket) -> None:
    url = s3.put("x.bin", DATA)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(storage.read_bytes(url) == DATA)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_a_forked_process_reads_too(s3: Bucket) -> None:
    """Also when its parent has read before: clients belong to one process."""
    import multiprocessing

    url = s3.put("x.bin", DATA)
    assert storage.read_bytes(url) == DATA
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(storage.read_bytes, (url,)).get(30) == DATA


def test_importing_starts_nothing(repo: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from open_lm import storage; print([m for m in ('fsspec', 's3fs', 'aiohttp', 'botocore') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
