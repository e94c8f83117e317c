import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from open_lm.shards.index import list_members, read_index
from open_lm.shards.tar import write_shard


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", ["", "f" * 60 + "/", "f/" * 90])
def test_members_are_those_that_tarfile_finds(format: int, long: str, tmp_path: Path) -> None:
    members = [("a.txt", b""), (f"{long}b.txt", b"x" * 513), ("c.txt", b"y"), (f"{long}d.txt", b""), ("e.txt", b"z" * 1024)]
    path = write_tar(tmp_path / "s.tar", members, format=format)
    found = list(list_members(path))
    with tarfile.open(path) as tar:
        assert found == [(m.name, m.offset_data, m.size) for m in tar]
    data = path.read_bytes()
    assert [(name, data[offset : offset + size]) for name, offset, size in found] == members


def test_folders_and_metadata_are_no_members(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("__info__", "__data__/a.txt", "folder/a.txt", "b__x__.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert [name for name, _, _ in list_members(path)] == ["folder/a.txt", "b__x__.txt"]


def test_a_damaged_header_is_an_error_and_no_early_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"x"), ("b.txt", b"y"), ("c.txt", b"z")])
    data = bytearray(path.read_bytes())
    data[1024 + 257 : 1024 + 262] = b"?????"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: no tar header at byte 1024; it is damaged"):
        list(list_members(path))


@pytest.mark.parametrize("content", [b"", b"short", b"no tar" * 1000, bytes(2000)])
def test_what_is_no_tar_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content)
    if content.strip(b"\0") or not content:
        with pytest.raises(ValueError, match="is not a tar file"):
            list(list_members(path))
    else:  # nothing but the end mark: an empty tar
        assert list(list_members(path)) == []


def test_a_truncated_tar_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.txt", b"x" * 600), ("b.txt", b"y" * 600)])
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(ValueError, match=r"ends inside its member b\.txt; it is not whole"):
        list(list_members(path))


@pytest.mark.parametrize("fmt", ["txt", "json.gz", "npy"])
def test_an_index_of_our_own_shards_finds_every_sequence(fmt: str, tmp_path: Path) -> None:
    rows = np.arange(130 * 4, dtype=np.uint16).reshape(130, 4)
    write_shard(tmp_path / "s.tar", fmt, rows)
    index = read_index(tmp_path / "s.tar", fmt)
    assert index.sequences == 130
    assert index.member_of(129) == ((2, 1) if fmt == "npy" else (129, 0))
    assert index.member_name(2) == f"000000000002.{fmt}"
    if fmt == "npy":
        data = (tmp_path / "s.tar").read_bytes()
        start, size = int(index.offsets[2]), int(index.sizes[2])
        assert (np.frombuffer(data[start : start + size], index.dtypes[2]).reshape(-1, 4) == rows[128:]).all()
        assert index.length == 4


def test_each_member_with_the_key_is_a_sample_whatever_its_case_and_company(tmp_path: Path) -> None:
    members = [("a.json", b"{}"), ("a.TXT", b"1"), ("a.txt", b"2"), ("noext", b""), ("b.txt", b"3")]
    assert read_index(write_tar(tmp_path / "s.tar", members), "txt").sequences == 3


def test_a_sample_without_the_key_is_an_error(tmp_path: Path) -> None:
    for members in ([("a.txt", b""), ("b.json", b"")], [("b.json", b""), ("a.txt", b"")]):
        with pytest.raises(ValueError, match=r"--data-key txt: sample b of .* has only json"):
            read_index(write_tar(tmp_path / "s.tar", members), "txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2]", "is no npy array"),
        (npy(np.zeros((2, 3), dtype=np.float32)), "holds float32"),
        (npy(np.zeros((2, 3, 4), dtype=np.uint16)), "C order"),
        (npy(np.asfortranarray(np.zeros((2, 3), dtype=np.uint16))), "C order"),
        (npy(np.zeros((2, 3), dtype=np.uint16))[:-1], "its npy header says"),
        (npy(np.zeros((2, 4), dtype=np.uint16)), "sequences of 4 tokens, the first member of 3"),
    ],
)
def test_an_npy_member_that_holds_no_sequences_is_an_error(content: bytes, words: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("a.npy", npy(np.zeros((1, 3), dtype=np.uint16))), ("b.npy", content)])
    with pytest.raises(ValueError, match=rf"s\.tar, member 2: .*{words}"):
        read_index(path, "npy")


def test_an_npy_member_of_one_dimension_is_one_sequence(tmp_path: Path) -> None:
    index = read_index(write_tar(tmp_path / "s.tar", [("a.npy", npy(np.arange(3, dtype=np.uint32)))]), "npy")
    assert (index.sequences, index.length) == (1, 3)
