import errno
import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from open_lm.shards.index import list_members
from open_lm.shards.tar import write_shard
from open_lm.shards.tar_stream import Member, TarStream, open_tar, open_unpacked, samples

MEMBERS = [("a.txt", b""), ("b.txt", b"x" * 513), ("c.txt", b"y"), ("d.txt", b"z" * 1024)]


def tar(members: list[tuple[str, bytes]], **options) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes) -> list[Member]:
    return list(TarStream(io.BytesIO(data), "s.tar"))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", ["", "f" * 60 + "/", "f/" * 90, "é" * 70 + "/"])
def test_members_of_every_kind_of_tar(format: int, long: str) -> None:
    if long.startswith("é") and format == tarfile.USTAR_FORMAT:
        long = "é/" * 40
    members = [(long + name if place % 2 else name, data) for place, (name, data) in enumerate(MEMBERS)]
    data = tar(members, format=format)
    stream = TarStream(io.BytesIO(data), "s.tar")
    assert list(stream) == members
    assert (stream.size, stream.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_folders_links_and_labels_are_no_members() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"V"):
            info = tarfile.TarInfo("x" * 120)
            info.type, info.linkname = kind, "y" * 120
            file.addfile(info)
        file.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    assert read(out.getvalue()) == [("a.txt", b"")]


def test_a_large_size_in_base_256_is_understood() -> None:
    data = bytearray(tar([("a.txt", b"hello")], format=tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    assert read(bytes(data)) == [("a.txt", b"hello")]


def test_a_size_below_zero_is_damage_and_no_way_back(tmp_path: Path) -> None:
    data = bytearray(tar([("a.txt", b"hello")]))
    data[124:136] = b"-0000001000\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    with pytest.raises(ValueError, match="no tar header at byte 0; it is damaged"):
        read_both(bytes(data), tmp_path)


def read_both(data: bytes, folder: Path) -> list[Member]:
    """What the stream and the header walk of a local file find, or the error that both give."""
    path = folder / "s.tar"
    path.write_bytes(data)
    try:
        found = read(data)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error).removeprefix("s.tar: "))):
            list(list_members(path))
        raise
    assert [(name, size) for name, _, size in list_members(path)] == [(member.name, len(member.data)) for member in found]
    with open_tar(path) as file:
        plain = file.read()
    assert [plain[at : at + size] for _, at, size in list_members(path)] == [member.data for member in found]
    return found


def test_a_cut_tar_is_an_error_wherever_it_is_cut(tmp_path: Path) -> None:
    data = tar(MEMBERS)
    assert read_both(data[:4609], tmp_path) == read_both(data, tmp_path) == MEMBERS  # the end mark has begun
    for size in range(0, 4609, 128):
        with pytest.raises(ValueError, match=r"s\.tar: .*(is not whole|is not a tar file|ends without the end mark)"):
            read_both(data[:size], tmp_path)
    with pytest.raises(ValueError, match=r"ends without the end mark .* append the mark"):
        read(data[:4608])


def test_tars_that_were_joined_are_read_as_one(tmp_path: Path, shared: Path) -> None:
    other = tar([("e.txt", b"5")])
    empty = tar([])
    whole = read_both(empty + tar(MEMBERS) + empty + other + other, tmp_path)
    assert whole == [*MEMBERS, ("e.txt", b"5"), ("e.txt", b"5")]
    case = (shared / "data/cases/two_tars_joined_12_samples.tar").read_bytes()
    assert len(read_both(case, tmp_path)) == 12
    with pytest.raises(ValueError, match="is not whole"):
        read_both(tar(MEMBERS) + other[:900], tmp_path)


@pytest.mark.parametrize("behind", [b"x", b"garbage" * 200, b"\0" * 2048 + b"y", b"\x1f\x8b" * 300])
def test_bytes_behind_the_end_are_an_error(behind: bytes, tmp_path: Path) -> None:
    data = tar(MEMBERS)
    with pytest.raises(ValueError, match=rf"s\.tar: has bytes behind its end, from byte {len(data) + len(behind) // 2049 * 2048} on"):
        read_both(data + behind, tmp_path)


def test_a_file_of_its_full_size_whose_download_was_cut_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds nothing but zeros from byte 4608 on; it is not whole"):
        read_both(tar(MEMBERS)[:4608] + bytes(2 << 20), tmp_path)


def test_a_gzipped_tar_is_read_and_a_cut_or_damaged_one_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(tar(MEMBERS)) + gzip.compress(tar([("e.txt", b"5")]))
    assert read_both(packed, tmp_path) == [*MEMBERS, ("e.txt", b"5")]
    stream = TarStream(io.BytesIO(packed), "s.tar")
    assert len(list(stream)) == 5 and (stream.size, stream.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    for damaged in (packed[:-20], packed[:60] + b"xyz" + packed[63:], packed + b"garbage"):
        with pytest.raises(ValueError, match=r"s\.tar: is a gzipped tar that is cut or damaged"):
            read_both(damaged, tmp_path)


def test_a_full_disk_while_a_gzipped_tar_is_unpacked_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.tar").write_bytes(gzip.compress(tar(MEMBERS)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match=r"/s\.tar: No space left on device: .*; make room in"):
        open_unpacked(tmp_path / "s.tar")


def test_a_header_with_any_wrong_byte_is_an_error() -> None:
    data = tar(MEMBERS)
    for place in (*range(512, 1024, 7), 640, 650, 769, 773):
        damaged = bytearray(data)
        damaged[place] ^= 0x15
        with pytest.raises(ValueError, match=r"s\.tar: no tar header at byte 512; it is damaged"):
            read(bytes(damaged))


def test_what_is_no_tar_is_an_error() -> None:
    for data in (b"", b"short", b"no tar" * 1000):
        with pytest.raises(ValueError, match=r"s\.tar: is not a tar file"):
            read(data)
    assert read(bytes(1024)) == []


def test_reads_that_give_fewer_bytes_than_asked_for_lose_nothing(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, 777))

    entry = write_shard(tmp_path / "a.tar", "txt", np.arange(900, dtype=np.uint16).reshape(9, 100))
    stream = TarStream(Slow((tmp_path / "a.tar").read_bytes()), "s.tar")
    assert len(list(stream)) == 9 and stream.sha256 == entry.sha256 and stream.size == entry.bytes


def test_samples_are_runs_of_one_base_name_without_repeated_extensions() -> None:
    names = ["__meta__", "a.TXT", "a.json", "a.txt", "b.txt", "b.json.gz", "noext", "b.cls", "a.txt", "a.txt"]
    found = [[member.name for member in sample.values()] for sample in samples(Member(name, b"") for name in names)]
    assert found == [["a.TXT", "a.json"], ["a.txt"], ["b.txt", "b.json.gz", "b.cls"], ["a.txt"], ["a.txt"]]
    assert [list(sample) for sample in samples([Member("a.TXT", b"")])] == [["txt"]]
