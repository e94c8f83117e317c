"""Fixtures that every test may use."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from remote.proxy import FaultyProxy
    from remote.server import Bucket
    from remote.web import WebServer

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material beside the checkout; tests skip without it, and fail under OPENLM_REQUIRE_SHARED=1."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("OPENLM_REQUIRE_SHARED") == "1":
            pytest.fail(f"OPENLM_REQUIRE_SHARED=1, but {SHARED / 'data'} is absent")
        pytest.skip(f"needs the reference data in {SHARED / 'data'}")
    return SHARED


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 store on loopback, for the whole session. LLM Foundry's environment has none."""
    pytest.importorskip("moto")
    from remote.server import moto

    with moto() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket; the environment leads this process and its children to it: s3.url("key"), s3.put, s3.get, s3.keys, s3.uploads."""
    from remote.server import bucket, settings

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings(s3_server).items():
        monkeypatch.setenv(name, value)
    return bucket(s3_server, f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[FaultyProxy]:
    """The proxy of `faults`; one for all tests, because a client for a new address takes a while to make."""
    from remote.proxy import FaultyProxy

    with FaultyProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def faults(s3: Bucket, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """A proxy before the store of `s3`: faults.add(503, times=2, method="GET", path="/key"); faults.requests."""
    s3_proxy.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint)
    return s3_proxy


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server for the files of its `folder`: web.url("name"); web.ranges = False; web.requests."""
    from remote.web import WebServer

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in {"ATTEMPTS": "4", "DELAY": "0.01", "TIMEOUT": "5"}.items():
        monkeypatch.setenv(f"OPENLM_STORAGE_{name}", value)
    (tmp_path / "web").mkdir()
    with WebServer(tmp_path / "web") as server:
        yield server
