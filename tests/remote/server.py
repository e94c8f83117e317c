"""An S3 store on loopback: moto's server as a process of its own, and a bucket in it."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY, SECRET = "loopback", "no-secret"


def settings(endpoint: str) -> dict[str, str]:
    """Environment variables that lead every S3 client to an endpoint, with little patience."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OPENLM_STORAGE_ATTEMPTS": "4",
        "OPENLM_STORAGE_DELAY": "0.01",
        "OPENLM_STORAGE_TIMEOUT": "5",
    }


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def moto() -> Iterator[str]:
    """Runs moto's server; its endpoint."""
    port = free_port()
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1024"}  # so that tests can upload in small parts
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"moto_server did not start: {process.poll()}") from None
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket; `client` speaks to the store directly, past any proxy."""

    name: str
    endpoint: str
    client: Any

    def url(self, key: str = "") -> str:
        """The s3:// url of a key."""
        return f"s3://{self.name}/{key}"

    def put(self, key: str, data: bytes, **options: Any) -> str:
        """Stores an object; its url."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data, **options)
        return self.url(key)

    def get(self, key: str) -> bytes:
        """The content of an object."""
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that are neither completed nor aborted."""
        return [item["Key"] for item in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]


def bucket(endpoint: str, name: str) -> Bucket:
    """Makes a bucket."""
    client = _client(endpoint)
    client.create_bucket(Bucket=name)
    return Bucket(name, endpoint, client)


@functools.cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1")
