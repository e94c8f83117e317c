import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_lm.shards.members import encode_member
from open_lm.shards.tar import ustar_header, write_shard


@settings(derandomize=True, deadline=None)
@given(st.text("abc-_./0123456789é", min_size=1, max_size=50), st.integers(0, 8**11 - 1))
def test_a_header_is_the_one_that_tarfile_makes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    expected = info.tobuf(tarfile.USTAR_FORMAT)
    header = ustar_header(name, size)
    assert len(header) == 512 and tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size
    # some releases of Python fill in the device numbers of files that are no devices
    assert header == (expected if not expected[329:345].strip(b"\0") else header)
    assert header[:148] == expected[:148] and header[156:329] == expected[156:329]


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 1), ("é" * 51, 1), ("a.txt", 8**11)])
def test_what_does_not_fit_into_a_header_is_an_error(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="don't fit into a tar header"):
        ustar_header(name, size)


def by_tarfile(fmt: str, rows: np.ndarray) -> bytes:
    """The shard as a plain writer makes it."""
    step, out = (64 if fmt == "npy" else 1), io.BytesIO()
    for number, start in enumerate(range(0, len(rows), step)):
        data = b"".join(bytes(piece) for piece in encode_member(fmt, rows[start : start + step]))
        out.write(ustar_header(f"{number:012d}.{fmt}", len(data)) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fmt=st.sampled_from(["txt", "json.gz", "npy"]),
    sizes=st.lists(st.one_of(st.integers(0, 5), st.integers(55, 150)), max_size=5),
    length=st.integers(0, 5),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_the_borders_of_chunks_leave_no_trace(fmt: str, sizes: list[int], length: int, dtype: type, tmp_path: Path) -> None:
    rows = np.random.default_rng(sum(sizes)).integers(0, 2**16, (sum(sizes), length)).astype(dtype)

    def chunks() -> Iterator[np.ndarray]:
        """Each chunk in the same memory."""
        memory, start = np.empty((max(sizes, default=0), length), dtype), 0
        for size in sizes:
            memory[:size] = rows[start : start + size]
            start += size
            yield memory[:size]
            memory[:] = 9

    entry = write_shard(tmp_path / "a.tar", fmt, chunks(), length)
    data = (tmp_path / "a.tar").read_bytes()
    assert data == by_tarfile(fmt, rows)
    assert entry == write_shard(tmp_path / "b" / "a.tar", fmt, rows)
    assert (entry.shard, entry.num_sequences, entry.bytes, entry.tokens_per_sequence) == ("a", len(rows), len(data), length)
    assert entry.sha256 == hashlib.sha256(data).hexdigest()


def test_tarfile_reads_a_shard(tmp_path: Path) -> None:
    rows = np.arange(130 * 9, dtype=np.uint16).reshape(130, 9)
    write_shard(tmp_path / "a.tar", "txt", rows)
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{i:012d}.txt" for i in range(130)]
        assert {(m.mode, m.uid, m.gid, m.mtime, m.uname) for m in members} == {(0o644, 0, 0, 0, "")}
        assert all(tar.extractfile(m).read() == str(row.tolist()).encode() for m, row in zip(members, rows, strict=True))


@pytest.mark.parametrize("other", [np.zeros((1, 3), np.uint16), np.zeros((1, 4), np.uint32)])
def test_chunks_of_another_length_or_dtype_are_an_error_and_leave_nothing(other: np.ndarray, tmp_path: Path) -> None:
    for fmt in ("txt", "npy"):
        with pytest.raises(ValueError, match=r"a chunk of uint\d+ \[1, \d\] follows one of uint16 \[\.\., 4\]"):
            write_shard(tmp_path / "a.tar", fmt, iter([np.zeros((2, 4), np.uint16), other]))
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_chunks_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[np.ndarray]:
        yield np.zeros((100, 4), np.uint16)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_shard(tmp_path / "a.tar", "npy", chunks())
    assert list(tmp_path.iterdir()) == []
