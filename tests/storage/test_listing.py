"""What is there, asked for with few requests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from open_lm import storage

if TYPE_CHECKING:
    from remote.proxy import FaultyProxy
    from remote.server import Bucket
    from remote.web import WebServer

TREE = [
    "a/1.txt",
    "a/10.txt",
    "a/2.txt",
    "a/deep/x.txt",
    "a/deep/y.bin",
    "a/.hidden.txt",
    "a/.git/z.txt",
    "b/1.txt",
    "top.txt",
    "abc/q.txt",
]
PATTERNS = [
    ("a/", ["a/1.txt", "a/10.txt", "a/2.txt", "a/deep/x.txt", "a/deep/y.bin"]),
    ("a", ["a/1.txt", "a/10.txt", "a/2.txt", "a/deep/x.txt", "a/deep/y.bin"]),
    ("a/*.txt", ["a/1.txt", "a/10.txt", "a/2.txt"]),
    ("a/?.txt", ["a/1.txt", "a/2.txt"]),
    ("a/[!1]*.txt", ["a/2.txt"]),
    ("*/1.txt", ["a/1.txt", "b/1.txt"]),
    ("a*/*.txt", ["a/1.txt", "a/10.txt", "a/2.txt", "abc/q.txt"]),
    ("**/*.txt", ["a/1.txt", "a/10.txt", "a/2.txt", "a/deep/x.txt", "abc/q.txt", "b/1.txt", "top.txt"]),
    ("a/**", ["a/1.txt", "a/10.txt", "a/2.txt", "a/deep/x.txt", "a/deep/y.bin"]),
    ("a/**/x.txt", ["a/deep/x.txt"]),
    ("a/.h*", ["a/.hidden.txt"]),
    ("{b,a}/1.txt", ["b/1.txt", "a/1.txt"]),
    ("a/{2,10,1}.txt", ["a/2.txt", "a/10.txt", "a/1.txt"]),
    ("{b,a}/*.txt", ["b/1.txt", "a/1.txt", "a/10.txt", "a/2.txt"]),
    ("top.txt", ["top.txt"]),
    ("a/.hidden.txt", ["a/.hidden.txt"]),
    ("a/*.none", []),
    ("none/", []),
]


@pytest.mark.parametrize("where", ["local", "s3", "memory"])
def test_patterns_mean_the_same_everywhere(s3: Bucket, tmp_path: Path, where: str) -> None:
    root = {"local": str(tmp_path), "s3": s3.url("root"), "memory": f"memory://{s3.name}"}[where]
    for name in TREE:
        storage.write_bytes(f"{root}/{name}", name.encode())
    for pattern, expected in PATTERNS:
        found = storage.list_files(f"{root}/{pattern}")
        assert [stored.url.removeprefix(f"{root}/") for stored in found] == expected, pattern
        assert [stored.size for stored in found] == [len(name) for name in expected]
        assert all(stored == storage.stat(stored.url) for stored in found)
    with pytest.raises(FileNotFoundError, match="none"):
        storage.list_files(f"{root}/none")
    assert storage.exists(f"{root}/a") and storage.exists(f"{root}/top.txt") and not storage.exists(f"{root}/no")
    with pytest.raises(OSError):
        storage.size(f"{root}/a")


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_stamp_changes_with_the_content(s3: Bucket, tmp_path: Path, where: str) -> None:
    url = str(tmp_path / "x") if where == "local" else s3.url("x")
    storage.write_bytes(url, b"one")
    before = storage.stat(url)
    assert before.stamp and before == storage.stat(url)
    time.sleep(0.01)
    storage.write_bytes(url, b"two")
    assert storage.stat(url).stamp != before.stamp
    assert storage.stat(url).size == before.size


def test_a_local_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].{x,y}").write_bytes(b"!")
    (tmp_path / "[d]").mkdir()
    (tmp_path / "[d]/f").write_bytes(b"!!")
    for name in ("a[1].{x,y}", "[d]", "[d]/", "[d]/f"):
        assert len(storage.list_files(f"{tmp_path}/{name}")) == 1, name


def test_listing_costs_no_request_a_file(faults: FaultyProxy, s3: Bucket) -> None:
    for i in range(30):
        s3.put(f"d/{i:03d}.tar", b"x")
    for pattern in ("d/", "d/*.tar", "d/{000..029}.tar"):
        faults.requests.clear()
        assert len(storage.list_files(s3.url(pattern))) == 30
        assert len(faults.requests) == 1, pattern
    with pytest.raises(FileNotFoundError, match=r"d/030\.tar: no such file"):
        storage.list_files(s3.url("d/{000..030}.tar"))


def test_a_listing_of_several_pages_survives_a_fault_in_each(faults: FaultyProxy, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_lm.storage import s3 as requests

    page = requests.Bucket.page

    def of_three(self, prefix, token, delimiter=""):
        call = self.call
        self.call = lambda method, **options: call(method, MaxKeys=3, **options)
        try:
            return page(self, prefix, token, delimiter)
        finally:
            self.call = call

    monkeypatch.setattr(requests.Bucket, "page", of_three)
    for i in range(10):
        s3.put(f"d/{i}.tar", b"x")
    for skip in (0, 0, 1, 1):
        faults.add(503, method="GET", skip=skip)
    assert [stored.url[-5:] for stored in storage.list_files(s3.url("d/"))] == [f"{i}.tar" for i in range(10)]
    assert len(faults.requests) == 4 + 4


def test_names_with_spaces_signs_and_letters_of_any_kind(s3: Bucket) -> None:
    urls = sorted(
        storage.write_bytes(s3.url(f"d/{name}"), b"x").url for name in ("a b.txt", "a+b.txt", "a%20b.txt", "ü&=#.txt", "☃'\".txt")
    )
    found = storage.list_files(s3.url("d/*.txt"))
    assert [stored.url for stored in found] == urls
    for url in urls:
        assert storage.read_bytes(url) == b"x" and storage.size(url) == 1


def test_a_folder_object_of_a_console_is_no_file(s3: Bucket) -> None:
    s3.put("d/", b"")
    s3.put("d/x", b"x")
    assert [stored.url for stored in storage.list_files(s3.url("d/"))] == [s3.url("d/x")]


def test_a_whole_bucket_is_a_folder(s3: Bucket) -> None:
    s3.put("x", b"x")
    for url in (f"s3://{s3.name}", f"s3://{s3.name}/"):
        assert [stored.url for stored in storage.list_files(url)] == [s3.url("x")]


def test_the_web_has_single_files_only(web: WebServer) -> None:
    (web.folder / "x.jsonl").write_bytes(b"{}")
    (stored,) = storage.list_files(web.url("x.jsonl"))
    assert (stored.url, stored.size) == (web.url("x.jsonl"), 2) and stored.stamp
    (stored,) = storage.list_files(web.url("x.jsonl?download=true"))
    assert stored.size == 2
    with pytest.raises(FileNotFoundError, match="no such file"):
        storage.list_files(web.url("y.jsonl"))
    (web.folder / "empty").touch()
    web.ranges = False
    assert [storage.size(web.url(name)) for name in ("x.jsonl", "empty")] == [2, 0]
    web.sizes = False
    assert storage.exists(web.url("x.jsonl"))
    with pytest.raises(ValueError, match="doesn't tell its size"):
        storage.size(web.url("x.jsonl"))


def test_a_fault_of_a_web_server_is_no_missing_file(web: WebServer) -> None:
    from remote.proxy import FaultyProxy

    (web.folder / "x").write_bytes(b"x")
    with FaultyProxy(web.endpoint) as proxy:
        proxy.add(503, times=2)
        assert storage.exists(f"{proxy.endpoint}/x")
        proxy.add(503, times=1000)
        with pytest.raises(storage.StorageError, match="gave up after 4 attempts"):
            storage.size(f"{proxy.endpoint}/x")
