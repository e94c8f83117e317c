"""Local and remote paths, patterns, and files that are whole or absent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from open_lm import storage


def test_only_a_scheme_makes_a_path_remote() -> None:
    """compat.md 6 (32): a local folder s3data/ is no S3."""
    for url in ("s3://b/k", "https://h/x.tar", "gs://b", "memory://a"):
        assert storage.is_remote(url)
    for url in ("s3data/x.tar", "/abs/x.tar", "x.tar", "file:///abs/x", "s3:/x"):
        assert not storage.is_remote(url)


def test_join_and_parent_of_a_bare_name_stay_in_the_working_folder() -> None:
    """compat.md 6 (7)."""
    assert storage.join(storage.parent("manifest.jsonl"), "a.tar") == "a.tar"
    assert storage.join(storage.parent("d/manifest.jsonl"), "a.tar") == "d/a.tar"
    assert storage.join(storage.parent("s3://b/m.jsonl"), "a.tar") == "s3://b/a.tar"


def test_braces_keep_their_order_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert storage.expand("x-{0002..0000}.tar") == ["x-0002.tar", "x-0001.tar", "x-0000.tar"]
    assert storage.expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert storage.expand(f"{tmp_path}/*.none") == []
    assert storage.expand("s3://b/{a,b}.tar") == ["s3://b/a.tar", "s3://b/b.tar"]


def test_an_atomic_write_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "sub/file"
    with storage.atomic_write(target) as file:
        file.write(b"one")
        assert not target.exists()
    with pytest.raises(RuntimeError), storage.atomic_write(target) as file:
        file.write(b"two, but")
        raise RuntimeError
    assert target.read_bytes() == b"one"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_remote_file_is_read_like_a_local_one() -> None:
    import fsspec

    with fsspec.open("memory://store/x.txt", "wb") as file:
        file.write(b"hello")
    assert storage.read_bytes("memory://store/x.txt") == b"hello"
    assert storage.size("memory://store/x.txt") == 5
    assert storage.exists("memory://store/x.txt")
    assert not storage.exists("memory://store/y.txt")
    assert len(storage.expand("memory://store/*.txt")) == 1


@pytest.mark.slow
def test_every_writer_names_its_file_the_room_and_the_remedy_of_a_full_disk(repo: Path, tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=600k tmpfs "$1" || exit 77; exec "$2" "$3" "$1"'
    line = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, str(Path(__file__).with_name("full_disk.py"))]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(repo)}, capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    files = [
        "epoch_1.pt",
        "step_1/0_0-",
        "metrics.jsonl",
        "results.jsonl",
        "r.json",
        "r.md",
        "shard-0000000.tar",
        "manifest.jsonl",
        ".openlm-",
    ]
    assert len(lines) == len(files)
    for told, file in zip(lines, files, strict=True):
        assert re.search(rf"{tmp_path}/{re.escape(file)}\S*: No space left on device: .*; make room in {tmp_path}$", told), told
    assert "4.19 MB are needed, 4.19 MB more than there is room for" in lines[0] and "4.19 MB are needed" in lines[1]
    assert done.stderr.count("\n") == 1 and f"the log gets no more lines: {tmp_path}/out.log: No space left" in done.stderr


def test_what_can_t_be_written_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("absent")
    said = [
        storage.unwritable("--out", str(tmp_path / name), folder)
        for name, folder in (("file/x", False), ("file", True), ("nowhere/x", True), (".", False), ("a/b/c", True), ("file", False))
    ]
    assert said == [
        [f"--out {tmp_path}/file/x: {tmp_path}/file is a file; name another file"],
        [f"--out {tmp_path}/file: is a file; name another folder"],
        [f"--out {tmp_path}/nowhere/x: {tmp_path}/nowhere is a link that leads nowhere; name another folder"],
        [f"--out {tmp_path}: is a folder; name a file"],
        [],
        [],
    ]
    assert "can't be written: /proc" in storage.unwritable("--out", "/proc/x/y")[0]
    assert storage.unwritable("--out", "s3://b/x", urls=True) == [] and "must be a local" in storage.unwritable("--out", "s3://b/x")[0]
    assert sorted(storage.contents(tmp_path)) == ["file", "nowhere"]
