"""Every line of every kind of file is a document or a named refusal; blocks divide a file without loss."""

from __future__ import annotations

import gzip
import io
import json
import random
import string
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from open_lm.tokens.inputs import Part, input_file
from open_lm.tokens.read import Document, Reader, Refused, text_bytes


def read(path: Path, text_key: str = "text", **block: int) -> list[Document | Refused]:
    with Reader(text_key) as reader:
        return list(reader.documents(Part(input_file(str(path)), **block)))


def texts(path: Path, **block: int) -> list[str]:
    found = read(path, **block)
    assert all(isinstance(f, Document) for f in found)
    return [f.text for f in found]


def refusals(path: Path, text_key: str = "text", **block: int) -> list[str]:
    return [f"{f.place.file.path and f.place}: {f.why}" for f in read(path, text_key, **block) if isinstance(f, Refused)]


def lines(*values: str) -> bytes:
    return b"".join(json.dumps({"text": v}).encode() + b"\n" for v in values)


COMPRESSORS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("extension", COMPRESSORS)
@pytest.mark.parametrize("kind", [".jsonl", ".json"])
def test_lines_of_all_compressions_are_documents(tmp_path: Path, kind: str, extension: str) -> None:
    path = tmp_path / f"a{kind}{extension}"
    path.write_bytes(COMPRESSORS[extension](lines("one", "zwei é", "")))
    assert texts(path) == ["one", "zwei é", ""]


@pytest.mark.parametrize("extension", COMPRESSORS)
def test_a_txt_file_is_one_document(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"A.TXT{extension}"
    path.write_bytes(COMPRESSORS[extension](b"line one\n\nline two\n"))
    assert texts(path) == ["line one\n\nline two\n"]


def test_several_frames_skippable_frames_and_members_are_read_through(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(frame(lines("a")) + skippable + frame(b"") + frame(lines("b")) + skippable)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines("a")) + gzip.compress(lines("b")))
    assert texts(tmp_path / "a.jsonl.zst") == texts(tmp_path / "a.jsonl.gz") == ["a", "b"]


def test_a_zstd_window_of_512_mib_is_read(tmp_path: Path) -> None:
    params = zstandard.ZstdCompressionParameters.from_level(1, window_log=29, enable_ldm=False)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=params).stream_writer(out, closefd=False) as writer:
        writer.write(lines("a"))
    (tmp_path / "a.jsonl.zst").write_bytes(out.getvalue())
    assert texts(tmp_path / "a.jsonl.zst") == ["a"]


@pytest.mark.parametrize(("extension", "cut"), [(".zst", 3), (".zst", 2000), (".gz", 3), (".gz", 2000)])
def test_a_cut_off_file_is_an_error_that_names_it(tmp_path: Path, extension: str, cut: int) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    noise = "".join(random.Random(0).choices(string.ascii_letters, k=20000))
    path.write_bytes(COMPRESSORS[extension](lines(noise))[:-cut])
    with pytest.raises(ValueError, match=r"--input-files .*a\.jsonl.*ends in the middle.*fetch it again"):
        read(path)


@pytest.mark.parametrize("extension", [".zst", ".gz"])
def test_a_file_that_is_not_compressed_as_named_is_an_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    path.write_bytes(b"plain text, not compressed at all")
    with pytest.raises(ValueError, match=r"a\.jsonl.* is not (zstd|gzip) data"):
        read(path)


@pytest.mark.parametrize("extension", ["", ".zst", ".gz"])
def test_an_empty_file_has_no_documents(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    path.write_bytes(b"")
    assert texts(path) == []


def test_empty_lines_carriage_returns_a_byte_order_mark_and_no_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{broken", "is not JSON"),
        (b'{"other": "x"}', "has no 'text'"),
        (b'["text"]', "has no 'text'"),
        (b'{"text": 5}', "of type int, not a text"),
        (b'{"text": null}', "of type NoneType, not a text"),
        (b'{"text": "\xff\xfe"}', "is not JSON: str is not valid UTF-8"),
        (b'{"text": "\\ud800"}', "is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line_number(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b"\n" + line + b"\n" + lines("four"))
    (refusal,) = refusals(path)
    assert f"{path}, line 3: " in refusal
    assert why in refusal
    assert [f.text for f in read(path) if isinstance(f, Document)] == ["one", "four"]


def test_a_text_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nfine\nbad \xff\n")
    assert "line 3: is not UTF-8" in refusals(path)[0]


def test_a_dotted_key_leads_into_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"data": {"body": "deep"}}\n{"data": "flat"}\n')
    first, second = read(path, "data.body")
    assert isinstance(first, Document) and first.text == "deep"
    assert isinstance(second, Refused) and "has no 'data.body'" in second.why


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=20),
    block=st.integers(1, 80),
    extension=st.sampled_from(sorted(COMPRESSORS)),
    last_newline=st.booleans(),
)
def test_blocks_of_any_size_hold_every_line_once_in_order(
    tmp_path_factory, values: list[str], block: int, extension: str, last_newline: bool
) -> None:
    path = tmp_path_factory.mktemp("blocks") / f"a.jsonl{extension}"
    raw = lines(*values) if last_newline else lines(*values).removesuffix(b"\n")
    path.write_bytes(COMPRESSORS[extension](raw))
    assert text_bytes(input_file(str(path))) == len(raw)
    blocks = [{"start": start, "stop": start + block} for start in range(0, max(len(raw), 1), block)]
    alone = [text for b in blocks for text in texts(path, **b)]
    with Reader("text") as reader:  # one reader for all, as a worker does that has several blocks of a file
        together = [d.text for b in blocks for d in reader.documents(Part(input_file(str(path)), **b))]
    assert alone == together == values


@pytest.mark.parametrize("extension", ["", ".zst"])
def test_a_bad_line_in_a_later_block_has_the_number_of_its_line_in_the_file(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    raw = lines(*(["x" * 20] * 50)) + b"broken\n" + lines("y")
    path.write_bytes(COMPRESSORS[extension](raw))
    start = len(raw) // 2
    assert refusals(path, start=start, stop=len(raw))[0].startswith(f"{path}, line 51: is not JSON")


def test_a_line_longer_than_a_read_is_whole(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(COMPRESSORS[".zst"](lines("a", long, "b")))
    assert texts(path) == ["a", long, "b"]
    assert texts(path, start=100, stop=9_000_000) == []


def test_a_reader_can_go_back_in_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(COMPRESSORS[".zst"](lines("a", "b")))
    part = Part(input_file(str(path)))
    with Reader("text") as reader:
        assert [d.text for _ in range(2) for d in reader.documents(part)] == ["a", "b", "a", "b"]
