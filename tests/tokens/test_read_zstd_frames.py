"""Frames are found by their headers, and windows, memory and work stay bounded."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import SKIPPABLE, batches, documents, frames, lines, streamed, texts, write

from open_lm.tokens.reading.inputs import Part, input_file
from open_lm.tokens.reading.lines import Lines
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.reading.text_stream import ZstdStream
from open_lm.tokens.reading.zstd_frames import FrameScan, frame_holding


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 255, 256, 300, 65_791, 65_792, 400_000]), max_size=4),
    checksum=st.booleans(),
    cut=st.integers(1, 50),
)
def test_a_scan_knows_every_border_between_frames_however_the_bytes_come(sizes: list[int], checksum: bool, cut: int) -> None:
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=checksum)
    pieces = [SKIPPABLE] + [compressor.compress(bytes(size)) for size in sizes]
    data, borders = b"".join(pieces), set()
    for i in range(len(pieces) + 1):
        borders.add(len(b"".join(pieces[:i])))
    scan = FrameScan()
    for start in range(0, len(data), cut):
        scan.follow(data[start : start + cut], start)
        end = min(start + cut, len(data))
        assert scan.ends_at(end) == (end in borders)
    assert scan.frame == (len(data), sum(sizes)) and not scan.lost


@pytest.mark.parametrize("by_reading", [False, True])
def test_the_frame_that_holds_a_byte_is_found(by_reading: bool) -> None:
    some = [frames(b"a" * 1000, 1000), SKIPPABLE, frames(b"b" * 500, 500), frames(b"c" * 10, 10)]
    starts = [0, len(some[0]) + len(SKIPPABLE), len(b"".join(some[:3]))]
    file = io.BytesIO(b"".join(some))
    for target, frame in [(0, 0), (999, 0), (1000, 1), (1499, 1), (1500, 2), (1509, 2), (1510, 2), (9999, 2)]:
        assert frame_holding(file, 0, 0, target, by_reading) == (starts[frame], (0, 1000, 1500)[frame])


def test_a_frame_without_its_size_is_where_the_search_ends() -> None:
    first, unknown = frames(b"a" * 1000, 1000), streamed(b"b" * 1000)
    file = io.BytesIO(first + unknown + first)
    assert frame_holding(file, 0, 0, 2500, by_reading=False) == (len(first), 1000)


def test_going_forward_decompresses_only_the_frame_that_is_needed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("open_lm.tokens.reading.text_stream.WORTH_A_JUMP", 1)
    raw = lines(*(f"line {i}" for i in range(5000)))
    file = write(tmp_path, frames(raw, 1000), kind=".jsonl.zst")
    read: list[int] = []
    whole = ZstdStream.read
    monkeypatch.setattr(ZstdStream, "read", lambda self, size: read.append(min(size, 1000)) or whole(self, size))
    source = Lines(file)
    source.skip_to(90_001)
    assert source.position >= 90_001 and sum(read) <= 3_000
    assert documents(file, start=90_001, stop=91_000) == [pair for pair in documents(file) if 90_001 <= pair[0] < 91_000]


@pytest.mark.parametrize("window_log", [27, 29])
def test_large_windows_are_read(tmp_path: Path, window_log: int) -> None:
    params = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, enable_ldm=False)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=params).stream_writer(out, closefd=False) as writer:
        writer.write(lines("a"))
    (tmp_path / "a.jsonl.zst").write_bytes(out.getvalue())
    assert texts(tmp_path / "a.jsonl.zst") == ["a"]


@pytest.mark.parametrize("layout", ["zstd", "gzip", "plain"])
def test_memory_is_bounded_however_well_a_text_compresses(tmp_path: Path, layout: str) -> None:
    file = write(tmp_path, lines("x" * 1000) * 60_000, layout)
    with Reader("text") as reader:
        next(iter(reader.batches(Part(file))))
        tracemalloc.start()
        count = sum(len(batch.texts) for batch in reader.batches(Part(file)))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 60_000 and peak < 14 << 20


@pytest.mark.parametrize(("kind", "layout"), [(".jsonl", "plain"), (".jsonl", "zstd"), (".txt", "gzip")])
def test_a_long_line_is_held_no_more_than_twice_before_it_is_parsed(tmp_path: Path, kind: str, layout: str) -> None:
    size = 40 << 20
    file = write(tmp_path, lines("x" * size), layout, kind)
    tracemalloc.start()
    if kind == ".txt":
        length = sum(len(text) for batch in batches(file) for text in batch.texts)
    else:
        length = sum(len(line) for _, some in Lines(file).until(None) for line in some)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length >= size and peak < 2.1 * size + (4 << 20)


def test_what_was_handed_out_is_not_kept(tmp_path: Path) -> None:
    size = 20 << 20
    file = input_file(write(tmp_path, lines("x" * size, "y")).path)
    tracemalloc.start()
    with Reader("text") as reader:
        some = reader.batches(Part(file))
        batch = next(some)
        del batch
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        list(some)
    assert held < 4 << 20
