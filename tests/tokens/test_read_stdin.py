"""Standard input becomes a file that can be divided and read again, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest
import zstandard
from reading import SKIPPABLE, lines, streamed, texts

from open_lm.tokens.reading import stdin
from open_lm.tokens.reading.reader import spool_stdin
from open_lm.tokens.reading.texts import read_texts
from open_lm.tokens.reading.zstd_frames import frame_holding

TEXT = lines(*(f"document {i} " * 20 for i in range(500)))


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.compress, streamed, lambda raw: SKIPPABLE + streamed(raw)])
def test_lines_are_copied_however_they_come_compressed(tmp_path: Path, packed) -> None:
    file = spool_stdin(tmp_path, io.BytesIO(packed(TEXT)))
    assert (file.holds, file.compression, file.stamp) == ("lines", "zst", "sha256:" + hashlib.sha256(TEXT).hexdigest())
    assert Path(file.path).parent == tmp_path and file.size == Path(file.path).stat().st_size
    assert len(texts(file)) == 500


def test_a_slow_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as out:
            for start in range(0, 3000, 3):
                out.write(TEXT[start : start + 3])

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        file = spool_stdin(tmp_path, pipe)
    thread.join()
    assert file.stamp == "sha256:" + hashlib.sha256(TEXT[:3000]).hexdigest()


def test_nothing_on_standard_input_is_an_empty_file(tmp_path: Path) -> None:
    assert texts(spool_stdin(tmp_path, io.BytesIO(b""))) == []


def test_frames_of_the_copy_tell_their_sizes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stdin, "FRAME_BYTES", 1000)
    file = spool_stdin(tmp_path, io.BytesIO(TEXT))
    with open(file.path, "rb") as stored:
        assert frame_holding(stored, 0, 0, 50_500, by_reading=False)[1] == 50_000
    assert len(texts(file)) == 500


@pytest.mark.parametrize(
    ("data", "problem"), [(b"BZh9123456", "is a bzip2 file; send plain lines"), (b"\xfd7zXZ\x00\x00", "is an xz file; send plain lines")]
)
def test_an_unknown_compression_is_an_error(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"--input-files -: standard input {problem}"):
        spool_stdin(tmp_path, io.BytesIO(data))


@pytest.mark.parametrize("packed", [gzip.compress, streamed])
def test_a_cut_off_input_leaves_no_file(tmp_path: Path, packed) -> None:
    with pytest.raises(ValueError, match=r"--input-files -: ends in the middle of its (gzip|zstd) data"):
        spool_stdin(tmp_path, io.BytesIO(packed(TEXT)[:-5]))
    assert list(tmp_path.iterdir()) == []


def test_tools_that_read_texts_know_standard_input(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines("from stdin"))))
    (tmp_path / "a.jsonl").write_bytes(lines("from a file"))
    assert list(read_texts([str(tmp_path / "a.jsonl"), "-"])) == ["from a file", "from stdin"]
