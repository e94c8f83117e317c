"""The cache of whole shards: bounded, shared, verified, and gone when it is private."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from open_lm.data.cache import CacheConfig, ShardCache, Wanted, _remove_abandoned, cache_config
from open_lm.data.fetching import Fetcher
from open_lm.data.places import Remote


def wanted(web, name: str, data: bytes, **told: object) -> Wanted:
    (web.folder / name).write_bytes(data)
    known = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **told}
    return Wanted(Remote(web.url(name)), **known)  # type: ignore[arg-type]


def asked(web, name: str) -> int:
    return sum(name in request for request in web.requests)


def test_the_shards_used_longest_ago_make_room(web, tmp_path: Path) -> None:
    cache = ShardCache(CacheConfig(tmp_path / "c", 2500))
    one, two, three = (wanted(web, f"{i}.tar", bytes([i]) * 1000) for i in range(3))
    first, second = cache.enter(one), cache.enter(two)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert cache.has(one)  # used now
    cache.enter(three)
    assert cache.has(one) and cache.has(three) and not cache.has(two)
    assert cache.enter(two).read_bytes() == bytes([1]) * 1000 and asked(web, "1.tar") == 2
    assert (cache.fetched_shards, cache.fetched_bytes) == (4, 4000)


def test_a_file_that_is_open_is_read_to_its_end_when_it_has_made_room(web, tmp_path: Path) -> None:
    cache = ShardCache(CacheConfig(tmp_path / "c", 1000))
    with cache.enter(wanted(web, "a.tar", b"a" * 1000)).open("rb") as file:
        cache.enter(wanted(web, "b.tar", b"b" * 1000))
        assert file.read() == b"a" * 1000


def test_what_is_not_as_its_manifest_says_is_fetched_once_more_and_never_entered(web, tmp_path: Path) -> None:
    cache = ShardCache(CacheConfig(tmp_path / "c", 10_000))
    with pytest.raises(OSError, match=r"a\.tar: has sha256 .*, its manifest says 00; copy the shard again"):
        cache.enter(wanted(web, "a.tar", b"a" * 1000, sha256="00"))
    assert asked(web, "a.tar") == 2
    with pytest.raises(OSError, match=r"b\.tar: has 1000 bytes, its manifest says 999"):
        cache.enter(wanted(web, "b.tar", b"b" * 1000, bytes=999))
    assert [p.name for p in (tmp_path / "c").iterdir() if p.suffix in (".tar", ".part")] == []


def test_another_content_under_the_same_url_is_another_shard(web, tmp_path: Path) -> None:
    config = CacheConfig(tmp_path / "c", 10_000)
    ShardCache(config).enter(wanted(web, "a.tar", b"old"))
    assert ShardCache(config).enter(wanted(web, "a.tar", b"new")).read_bytes() == b"new"
    unknown = wanted(web, "b.tar", b"one", bytes=None, sha256=None)
    ShardCache(config).enter(unknown)
    wanted(web, "b.tar", b"two")
    assert ShardCache(config).enter(unknown).read_bytes() == b"two"


def test_many_threads_and_caches_fetch_a_shard_once(web, tmp_path: Path) -> None:
    config = CacheConfig(tmp_path / "c", 10_000)
    shard = wanted(web, "a.tar", b"a" * 1000)
    threads = [threading.Thread(target=ShardCache(config).enter, args=(shard,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(web, "a.tar") == 1


def test_an_unfinished_file_of_a_dead_process_is_removed(web, tmp_path: Path) -> None:
    cache = ShardCache(CacheConfig(tmp_path / "c", 10_000))
    dead, alive = tmp_path / f"c/{0:032x}.part", tmp_path / f"c/{1:032x}.part"
    for part in (dead, alive):
        part.write_bytes(b"x")
    os.utime(dead, (1, 1))
    cache.enter(wanted(web, "a.tar", b"a"))
    assert not dead.exists() and alive.exists()


def test_fetching_ahead_is_not_done_twice_and_its_errors_come_where_the_shard_is_needed(web, tmp_path: Path) -> None:
    fetcher = Fetcher(ShardCache(CacheConfig(tmp_path / "c", 10_000)))
    shards = [wanted(web, f"{i}.tar", bytes(100)) for i in range(9)]
    missing = Wanted(Remote(web.url("none.tar")), 3, "00")
    fetcher.ahead([*shards, missing])
    fetcher.ahead(shards)
    assert all(fetcher.path(shard).read_bytes() == bytes(100) for shard in reversed(shards))
    assert [asked(web, f"/{i}.tar") for i in range(9)] == [1] * 9
    with pytest.raises(FileNotFoundError, match=r"none\.tar: no such file"):
        fetcher.path(missing)
    fetcher.close()


def test_closing_ends_a_slow_fetch(tmp_path: Path) -> None:
    command = Remote(f"pipe:{sys.executable} -c 'import time\nwhile True: print(\"x\" * 5_000_000); time.sleep(0.1)'")
    fetcher = Fetcher(ShardCache(CacheConfig(tmp_path / "c", 10_000)))
    fetcher.ahead([Wanted(command, None, None)])
    time.sleep(0.3)
    fetcher.close()
    for thread in fetcher._threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("folder", "size", "words"),
    [("s3://b/c", None, "--data-cache s3://b/c: must be a local folder"), (None, "many", "--data-cache-size 'many' is no size")],
)
def test_impossible_caches_are_refused(folder: str | None, size: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cache_config(folder, size)


def test_a_cache_may_take_half_of_what_is_free_unless_told(tmp_path: Path) -> None:
    assert cache_config(str(tmp_path), "1.5 GB").limit == 1_500_000_000
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    assert cache_config(str(tmp_path / "new"), None).limit == pytest.approx(free / 2, rel=0.1)


def test_asking_for_a_cache_makes_nothing_and_finds_out_whether_it_can_be_made(tmp_path: Path) -> None:
    assert cache_config(str(tmp_path / "new/deep"), "1 GB").folder == tmp_path / "new/deep"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--data-cache .*/file/c: .*/file is a file; name another folder"):
        cache_config(str(tmp_path / "file/c"), None)


def test_files_of_others_in_the_folder_are_left_alone(web, tmp_path: Path) -> None:
    mine = tmp_path / "c/shard-0000000.tar"
    mine.parent.mkdir()
    mine.write_bytes(bytes(1000))
    cache = ShardCache(CacheConfig(tmp_path / "c", 100))
    for name in ("a.tar", "b.tar"):
        cache.enter(wanted(web, name, bytes(90)))
    assert mine.exists() and len(list((tmp_path / "c").glob("*.tar"))) == 2


def test_a_fifo_in_the_temporary_folder_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    trap = tmp_path / "open_lm-shards-x"
    trap.mkdir()
    os.mkfifo(trap / "owner")
    os.utime(trap / "owner", (1, 1))
    thread = threading.Thread(target=_remove_abandoned, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive() and trap.exists()


PRIVATE = """
import os, sys, time
from open_lm.data.cache import private_folder
folder = private_folder()
(folder / ("0" * 32 + ".tar")).write_bytes(b"x")
if os.fork() == 0:
    sys.exit()
os.wait()
assert (folder / ("0" * 32 + ".tar")).exists()
print(folder, flush=True)
if "killed" in sys.argv:
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_private_folder_goes_with_its_process_or_with_the_next_one(repo: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Path:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", PRIVATE, *words], cwd=repo, env=environment, capture_output=True, text=True)
        assert done.returncode == (-9 if words else 0), done.stderr
        return Path(done.stdout.strip())

    assert not run().exists()
    left = run("killed")
    assert left.exists()
    os.utime(left / "owner", (1, 1))
    (left / "thesis.tex").write_text("mine")
    run()
    assert [path.name for path in left.iterdir()] == ["thesis.tex"]
