"""What a user is told, and how long is waited."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from open_lm import storage
from open_lm.storage import faults as patience

if TYPE_CHECKING:
    from pathlib import Path

    from remote.proxy import FaultyProxy
    from remote.server import Bucket


def message(url: str, kind: type[Exception]) -> str:
    """The one line that reading and writing say; both the same kind."""
    with pytest.raises(kind) as caught:
        storage.read_bytes(url)
    text = str(caught.value)
    assert text.startswith(f"{url}: ") and "\n" not in text
    return text


def test_no_credentials(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.put("x", b"x")
    assert storage.read_bytes(url) == b"x"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or run 'aws configure'" in message(url, PermissionError)
    for ask in (storage.exists, storage.list_files, storage.size, lambda u: storage.write_bytes(u, b"x")):
        with pytest.raises(PermissionError, match="no AWS credentials"):
            ask(url)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "access denied; the credentials need s3:GetObject"),
        ("InvalidAccessKeyId", r"refused \(InvalidAccessKeyId\); check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", r"refused \(SignatureDoesNotMatch\)"),
        ("ExpiredToken", "have expired; get new ones"),
        ("RequestTimeTooSkewed", "clock"),
    ],
)
def test_refusals_are_final_at_once(faults: FaultyProxy, s3: Bucket, code: str, words: str) -> None:
    url = s3.put("x", b"x")
    faults.add(403, code=code, times=1000)
    with pytest.raises(PermissionError, match=words):
        storage.read_bytes(url)
    assert len(faults.requests) == 1
    with pytest.raises(PermissionError, match=words):
        storage.write_bytes(url, b"y")
    with pytest.raises(PermissionError):
        storage.exists(url)


def test_no_such_bucket_and_no_such_file(s3: Bucket, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    assert "no such file" in message(s3.url("none"), FileNotFoundError)
    assert "no such bucket; check the name" in message("s3://no-such-bucket-here/x", FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        storage.upload(tmp_path / "x", "s3://no-such-bucket-here/x")
    with pytest.raises(FileNotFoundError, match="no such bucket"):
        storage.list_files("s3://no-such-bucket-here/x/")
    assert not storage.exists("s3://no-such-bucket-here/x")


def test_nobody_answers(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from remote.server import free_port

    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    text = message(s3.url("x"), OSError)
    assert "can't be reached after 4 attempts" in text and "check the network and AWS_ENDPOINT_URL" in text
    assert "can't be reached after 4 attempts" in message(f"http://127.0.0.1:{port}/x", OSError)


def test_unknown_schemes_and_missing_packages() -> None:
    assert "gs:// needs the package gcsfs; pip install gcsfs" in message("gs://b/x", ValueError)
    assert "unknown scheme nope://" in message("nope://b/x", ValueError)
    assert "names no bucket" in message("s3:///x", ValueError)


def test_a_public_bucket_needs_no_credentials(s3: Bucket, monkeypatch: pytest.MonkeyPatch, repo: Path) -> None:
    """What the message about credentials advises. fsspec reads its variables when it is imported."""
    url = s3.put("x", b"x", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("FSSPEC_S3_ANON", "1")
    code = f"from open_lm import storage; print(storage.read_bytes({url!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b'x'\n", "")


def test_the_endpoint_of_every_usual_variable_is_used(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.put("x", b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    assert storage.read_bytes(url) == b"x"


def test_delays_double_with_jitter_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATTEMPTS", "DELAY", "TIMEOUT"):
        monkeypatch.delenv(f"OPENLM_STORAGE_{name}", raising=False)
    for failures, longest in ((1, 0.5), (2, 1), (3, 2), (6, 15), (20, 15)):
        waits = {patience.delay(failures) for _ in range(50)}
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(waits) > 1
    assert 25 < sum(min(0.5 * 2**i, 15) for i in range(patience.ATTEMPTS - 1)) < 60


def test_time_alone_ends_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that each run into their time limit don't add up to minutes."""
    clock = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def slow() -> None:
        clock[0] += 15
        raise TimeoutError("no byte came")

    with pytest.raises(storage.StorageError, match="after 4 attempts; the last fault: no byte came"):
        patience.retry("s3://b/x", slow)
    assert 60 <= clock[0] < 90


def test_what_passes_and_what_does_not() -> None:
    for passing in (ConnectionResetError(), TimeoutError(), BrokenPipeError(), patience.CutShortError("x")):
        assert patience.is_passing(passing), passing
    for final in (FileNotFoundError(), PermissionError(), ValueError(), OSError(28, "No space left"), IsADirectoryError(), KeyError("x")):
        assert not patience.is_passing(final), final


def test_defects_of_the_program_keep_their_names() -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(OSError, match="s3://b/x: 'x'") as caught:
        patience.retry("s3://b/x", broken)
    assert isinstance(caught.value.__cause__, KeyError)
