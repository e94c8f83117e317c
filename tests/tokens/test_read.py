"""Every line of every kind of file is a document with its place or a named refusal; blocks divide a text without loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import reading
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import COMPRESSORS, LAYOUTS, documents, lines, refusals, texts, write

from open_lm import storage
from open_lm.tokens.reading.inputs import Part, input_file
from open_lm.tokens.reading.reader import Reader, place_of


@pytest.mark.parametrize("extension", COMPRESSORS)
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_lines_of_all_compressions_are_documents(tmp_path: Path, kind: str, extension: str) -> None:
    path = tmp_path / f"a{kind}{extension}"
    path.write_bytes(COMPRESSORS[extension](lines("one", "zwei é", "")))
    assert texts(path) == ["one", "zwei é", ""]


@pytest.mark.parametrize("extension", COMPRESSORS)
def test_a_txt_file_is_one_document(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"A.TXT{extension}"
    path.write_bytes(COMPRESSORS[extension](b"\xef\xbb\xbfline one\n\nline two\n"))
    assert documents(path) == [(0, "line one\n\nline two\n")]


@pytest.mark.parametrize("extension", COMPRESSORS)
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_an_empty_file_is_fine(tmp_path: Path, kind: str, extension: str) -> None:
    path = tmp_path / f"a{kind}{extension}"
    path.write_bytes(COMPRESSORS[extension](b""))
    assert "".join(texts(path)) == "" and refusals(path) == []


def test_empty_lines_carriage_returns_a_byte_order_mark_and_no_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert documents(path) == [(0, "a"), (22, "b")]


def test_numbers_that_are_not_finite_beside_the_text_are_taken(tmp_path: Path, shared: Path) -> None:
    case = shared / "data/cases/nan_beside_the_text.jsonl"
    assert texts(case) == ["a line like any other"]
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a"}\n' + json.dumps({"scores": [float("-inf"), float("inf")], "text": "NaN \ud83d\ude00"}) + '\n{"text": "c"}'
    )
    assert documents(path) == [(0, "a"), (14, "NaN \U0001f600"), (76, "c")]


def test_a_dotted_key_leads_into_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"data": {"body": "deep"}}\n')
    assert texts(path, "data.body") == ["deep"]
    path.write_bytes(b'{"data": {"body": "deep"}}\n{"data": "flat"}\n')
    assert refusals(path, "data.body") == [f"{path}, line 2: has no 'data.body'"]


def blocks_of(length: int, size: int) -> list[dict[str, int]]:
    return [{"start": start, "stop": start + size} for start in range(0, max(length, 1), size)]


def expected(raw: bytes) -> list[tuple[int, str]]:
    """(at, text) of lines, the slow and simple way."""
    starts = itertools.accumulate((len(line) + 1 for line in raw.split(b"\n")), initial=0)
    return [(at, json.loads(line)["text"]) for at, line in zip(starts, raw.split(b"\n")) if line.strip()]


@settings(max_examples=70, deadline=None)
@given(
    values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(["x" * 300, "\n"]), max_size=12),
    size=st.integers(10, 120),
    layout=st.sampled_from(sorted(LAYOUTS)),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    last=st.booleans(),
    read=st.integers(1, 200),
    step=st.integers(1, 4),
)
def test_blocks_of_any_size_hold_every_line_once_in_order_with_its_place(
    tmp_path_factory, values: list[str], size: int, layout: str, end: bytes, last: bool, read: int, step: int
) -> None:
    raw = lines(*values).replace(b"\n", end)
    raw = raw if last else raw.rstrip(b"\r\n")
    wanted = expected(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_lm.tokens.reading.lines.READ", read)
        patch.setattr("open_lm.tokens.reading.text_stream.READ", read)
        patch.setattr("open_lm.tokens.reading.text_stream.WORTH_A_JUMP", 1)
        file = write(tmp_path_factory.mktemp("blocks"), raw, layout)
        blocks = blocks_of(len(raw), size)
        assert [found for block in blocks for found in documents(file, **block)] == wanted
        by_worker = []
        for first in range(step):  # as workers share a file: each has every step-th block
            with Reader("text") as reader:
                for number in itertools.count(first, step):
                    part = Part(file, number * size, (number + 1) * size)
                    if not reader.holds(part):
                        break
                    assert number < len(blocks)
                    by_worker += [pair for batch in reader.batches(part) for pair in zip(batch.at, batch.texts)]
                    assert reader.ended(part) == (number == len(blocks) - 1)
                    if reader.ended(part):
                        break
        assert sorted(by_worker) == wanted


@settings(max_examples=60, deadline=None)
@given(
    raw=st.lists(st.sampled_from([b'{"text":"a"}', b"", b"]", b'{"text":"' + b"b" * 50 + b'"}', b'{"n":1}']), max_size=30).map(b"\n".join),
    borders=st.lists(st.integers(0, 400), max_size=6).map(sorted),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_any_parts_of_a_text_hold_its_documents_and_refusals_once(tmp_path_factory, raw: bytes, borders: list[int], layout: str) -> None:
    file = write(tmp_path_factory.mktemp("parts"), raw, layout)
    whole_documents = [(at, text) for batch in reading.batches(file) for at, text in zip(batch.at, batch.texts)]
    parts = [Part(file, a, b) for a, b in itertools.pairwise([0, *borders])] + [Part(file, (borders or [0])[-1], None)]
    with Reader("text") as reader:
        found = [batch for part in parts for batch in reader.batches(part)]
    assert [pair for batch in found for pair in zip(batch.at, batch.texts)] == whole_documents
    assert [str(refused) for batch in found for refused in batch.refused] == refusals(file)
    assert len(whole_documents) + len(refusals(file)) == sum(bool(line) for line in raw.split(b"\n"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_of_whole_blocks_ends_with_its_last_block(tmp_path: Path, layout: str) -> None:
    raw = lines("x" * 20) * 8
    size = len(raw) // 4
    file = write(tmp_path, raw, layout)
    for number in (3, 2, 1, 0):  # whatever was read before
        with Reader("text") as reader:
            part = Part(file, number * size, (number + 1) * size)
            assert reader.holds(part) and sum(len(batch.texts) for batch in reader.batches(part)) == 2
            assert reader.ended(part) == (number == 3)
            assert reader.holds(Part(file, part.stop)) == (number < 3)


def test_a_long_line_is_in_the_block_where_it_starts_and_the_blocks_it_fills_are_empty(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(COMPRESSORS[".zst"](lines("a", long, "b")))
    assert texts(path) == ["a", long, "b"]
    assert texts(path, start=100, stop=9_000_000) == []
    with Reader("text") as reader:
        part = Part(input_file(str(path)), 100, 9_000_000)
        assert reader.holds(part) and list(reader.batches(part)) == [] and not reader.ended(part)


def test_blocks_one_after_another_are_read_in_one_go(tmp_path: Path, monkeypatch) -> None:
    raw = lines(*(f"document {i}" for i in range(100)))
    file = write(tmp_path, raw, "zstd")
    opened: list[str] = []
    really = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda url: opened.append(url) or really(url))
    with Reader("text") as reader:
        for start in range(0, len(raw), 55):  # borders within lines
            part = Part(file, start, start + 55)
            assert reader.holds(part)
            list(reader.batches(part))
            reader.ended(part)
    assert len(opened) == 1


def test_a_reader_can_go_back_in_a_compressed_file(tmp_path: Path) -> None:
    part = Part(write(tmp_path, lines("a", "b"), "zstd"))
    with Reader("text") as reader:
        assert [text for _ in range(2) for batch in reader.batches(part) for text in batch.texts] == ["a", "b", "a", "b"]


def test_a_batch_that_is_left_early_does_not_spoil_the_next_part(tmp_path: Path) -> None:
    file = write(tmp_path, lines(*(str(i) for i in range(50_000))), "zstd")
    with Reader("text") as reader:
        assert next(iter(reader.batches(Part(file)))).texts[0] == "0"
        assert sum(len(batch.texts) for batch in reader.batches(Part(file))) == 50_000


def test_batches_are_of_one_file_and_of_a_bounded_size(tmp_path: Path) -> None:
    tiny = [str(i) for i in range(50_000)]
    found = reading.batches(write(tmp_path, lines(*tiny)))
    assert [text for batch in found for text in batch.texts] == tiny
    assert all(len(batch.texts) <= 20_000 for batch in found) and len(found) <= 5
    pages = ["x" * 5_000] * 2_000
    found = reading.batches(write(tmp_path, lines(*pages)))
    sizes = [sum(map(len, batch.texts)) for batch in found]
    assert sum(sizes) == 10_000_000 and all(2 << 20 <= size < 4 << 20 for size in sizes[:-1])


def test_the_place_of_a_document_is_its_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path, b"\n\n" + lines("a", "b"), "zstd")
    (batch,) = reading.batches(file)
    assert [place_of(file, at) for at in batch.at] == [f"{file.path}, line 3", f"{file.path}, line 4"]


def test_a_listener_hears_of_large_documents_as_they_grow(tmp_path: Path) -> None:
    heard: list[int] = []
    (tmp_path / "a.txt").write_bytes(b"x" * (40 << 20))
    for file in (input_file(str(tmp_path / "a.txt")), write(tmp_path, lines("a", "x" * (40 << 20), "b", "y" * (9 << 20)), "zstd")):
        with Reader("text", heard.append) as reader:
            assert sum(len(text) for batch in reader.batches(Part(file)) for text in batch.texts) >= 40 << 20
    assert [size >> 20 for size in heard] == [8, 16, 32, 8, 16, 32, 8]


def test_what_a_listener_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    def refuse(size: int) -> None:
        raise ValueError("holds too much")

    file = write(tmp_path, lines("a", "x" * (9 << 20)))
    with Reader("text", refuse) as reader, pytest.raises(ValueError, match=rf"^--input-files {file.path}, line 2: holds too much$"):
        list(reader.batches(Part(file)))
