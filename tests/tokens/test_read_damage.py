"""What is wrong with a file or a line is said in one line, with the file, the line and the remedy."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path
from typing import IO

import pytest
import zstandard
from reading import LAYOUTS, batches, frames, lines, refusals, streamed, texts, write

from open_lm import storage
from open_lm.tokens.reading.inputs import Part, input_file
from open_lm.tokens.reading.reader import Reader
from open_lm.tokens.reading.text_stream import FileText


def noise(size: int = 20_000, seed: int = 0) -> str:
    return random.Random(seed).randbytes(size // 2).hex()


def problem(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        batches(path)
    message = str(error.value)
    assert message.startswith(f"--input-files {path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
@pytest.mark.parametrize("layout", [name for name, (extension, _) in LAYOUTS.items() if extension])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_cut_off_file_is_an_error_that_says_so(tmp_path: Path, kind: str, layout: str, share: float) -> None:
    extension, compress = LAYOUTS[layout]
    whole = compress(lines(noise(3_000))).rstrip(b"\0") if "gzip" in layout else compress(lines(noise(3_000)))
    path = tmp_path / f"a{kind}{extension}"
    cut = 1 + int(share * (len(whole) - 2))
    while ends_between_frames(whole, cut):  # a text that stops between two frames can't be told from a whole one
        cut -= 1
    path.write_bytes(whole[:cut])
    assert f"ends in the middle of its {'gzip' if 'gzip' in layout else 'zstd'} data; fetch it again" in problem(path)


def ends_between_frames(whole: bytes, cut: int) -> bool:
    from open_lm.tokens.reading.zstd_frames import FrameScan

    scan = FrameScan()
    scan.follow(whole[:cut], 0)
    return scan.ends_at(cut)


@pytest.mark.parametrize("layout", ["zstd frames", "zstd"])
def test_a_file_cut_off_behind_a_later_block_is_found_by_the_reader_of_that_block(tmp_path: Path, layout: str, monkeypatch) -> None:
    monkeypatch.setattr("open_lm.tokens.reading.text_stream.WORTH_A_JUMP", 1)
    raw = lines(*(noise(50, seed) for seed in range(100)))
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(LAYOUTS[layout][1](raw)[:-2])
    for start in (0, len(raw) // 2, len(raw) - 10, len(raw), len(raw) + 500):
        with pytest.raises(ValueError, match="ends in the middle"), Reader("text") as reader:
            reader.holds(Part(input_file(str(path)), start, len(raw) + 500))
            list(reader.batches(Part(input_file(str(path)), start, len(raw) + 500)))


@pytest.mark.parametrize(("extension", "name"), [(".zst", "zstd"), (".gz", "gzip")])
def test_a_file_that_is_not_compressed_as_named_is_an_error(tmp_path: Path, extension: str, name: str) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    path.write_bytes(b"plain text, not compressed at all")
    assert f"is not {name} data; name it for what it is" in problem(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert f"is not {name} data but a Git LFS pointer; fetch the file itself" in problem(path)
    path.write_bytes(b"<!DOCTYPE html>\n<html>404</html>")
    assert f"is not {name} data but an HTML or XML page" in problem(path)


@pytest.mark.parametrize(
    ("extension", "whole"),
    [
        (".zst", frames(lines(noise()), 1 << 20, checksum=True)),
        (".zst", frames(lines(*(noise(500, seed) for seed in range(40))), 5_000, checksum=True)),
        (".gz", gzip.compress(lines(noise()), mtime=0)),
    ],
)
def test_damaged_data_is_an_error_that_says_where(tmp_path: Path, extension: str, whole: bytes) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x55
    damaged[len(whole) // 2 + 9] ^= 0x55
    path.write_bytes(damaged)
    assert "data is damaged after byte " in problem(path)


@pytest.mark.parametrize(
    ("extension", "name", "whole"), [(".zst", "zstd", streamed(lines("a"))), (".gz", "gzip", gzip.compress(lines("a"), mtime=0) + bytes(9))]
)
def test_bytes_behind_the_data_are_an_error_that_says_where_they_begin(tmp_path: Path, extension: str, name: str, whole: bytes) -> None:
    path = tmp_path / f"a.jsonl{extension}"
    path.write_bytes(whole + b"garbage")
    assert f"has bytes behind its {name} data, from byte {len(whole)} of the file on; fetch it again, or cut them off" in problem(path)


@pytest.mark.parametrize("extension", [".gz", ".zst", ".parquet"])
def test_a_compressed_file_of_no_bytes_is_an_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension if extension == '.parquet' else '.jsonl' + extension}"
    path.write_bytes(b"")
    assert "fetch it again" in problem(path)
    with pytest.raises(ValueError, match="fetch it again"), Reader("text") as reader:
        reader.ended(Part(input_file(str(path)), 0, 1))


def test_damage_is_told_after_what_was_read_of_the_text(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.jsonl.gz", gzip.compress(lines(noise(3_000, 1)))
    path.write_bytes(gzip.compress(lines(noise())) + whole[:20] + b"xyz" + whole[23:])
    assert f"is damaged after byte {len(lines(noise()))} of its text" in problem(path)


@pytest.mark.parametrize("whole", [b'[{"text": "a"},\n{"text": "b"}]', b'\xef\xbb\xbf[\r\n  {"text": "a"}\n]', b' [ {"text": "a"}]'])
def test_a_file_that_is_one_array_is_an_error_that_says_so(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "a.json").write_bytes(whole)
    assert "is one JSON array over the whole file, where each line is to be an object; make lines of it (jq -c '.[]'" in problem(
        tmp_path / "a.json"
    )
    (tmp_path / "b.json").write_bytes(b'{\n  "text": "a"\n}\n')
    assert "is one JSON value over the whole file" in problem(tmp_path / "b.json")


def test_zstd_that_needs_a_dictionary_is_an_error(tmp_path: Path) -> None:
    dictionary = zstandard.ZstdCompressionDict(bytes(range(256)) * 8, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    trained = zstandard.train_dictionary(1000, [f"sample {i} of {i * i} texts".encode() * 4 for i in range(200)])
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(dict_data=trained).compress(lines("sample 5 of 25 texts")))
    assert "ictionary" in problem(path)
    assert len(dictionary) == 2048


BAD_LINES = [
    (b"{broken", "is not JSON: "),
    (b'{"text": NaN}', "has a 'text' of type float, not a text"),
    (b'{"text": "a", "score": nan}', "is not JSON: "),
    (b'{"text": "\\udfff", "score": NaN}', r"has half a surrogate pair (\ud800 to \udfff) at character 10"),
    (b'{"text": "a"} {"text": "b"}', "is not JSON: unexpected content"),
    (b"\xef\xbb\xbf{}", "is not JSON: "),
    (b'{"other": "x"}', "has no 'text'"),
    (b'["text"]', "has no 'text'"),
    (b'"text"', "has no 'text'"),
    (b'{"text": 5}', "has a 'text' of type int, not a text"),
    (b'{"text": null}', "has a 'text' of type NoneType, not a text"),
    (b'{"text": {"text": "x"}}', "has a 'text' of type dict, not a text"),
    (b'{"text": "\xff\xfe"}', "is not UTF-8: invalid start byte, byte 0xff"),
    (b'{"text": "\xed\xa0\x80"}', "is not UTF-8: "),
    (b'{"text": "\\ud800"}', r"has half a surrogate pair (\ud800 to \udfff) at character 10"),
    (b'{"text": "\\udc00 x"}', r"has half a surrogate pair (\ud800 to \udfff) at character 10"),
    (b"[" * 5000, "is not JSON: "),
]


@pytest.mark.parametrize(("line", "why"), BAD_LINES)
def test_a_bad_line_is_named_with_file_and_line_number_and_the_others_are_read(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b"\n" + line + b"\r\n" + lines("four"))
    (refusal,) = refusals(path)
    assert refusal.startswith(f"{path}, line 3: {why}") and "\n" not in refusal
    (batch,) = batches(path)
    assert batch.texts == ["one", "four"] and batch.at == [0, 16 + 1 + len(line) + 2]


def test_a_text_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nfine\nbad \xff\n")
    assert refusals(path) == [f"{path}, line 3: is not UTF-8: invalid start byte, byte 0xff"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_line_in_a_later_block_has_the_number_of_its_line_in_the_file(tmp_path: Path, layout: str) -> None:
    raw = lines(*(["x" * 20] * 50)) + b"broken\n" + lines("y")
    file = write(tmp_path, raw, layout)
    assert refusals(file, start=len(raw) // 2, stop=len(raw))[0].startswith(f"{file.path}, line 51: is not JSON")


def test_a_refusal_of_a_file_that_is_gone_by_then_still_has_a_place(tmp_path: Path) -> None:
    raw = lines("a", "b") + b"broken\n"
    file = write(tmp_path, raw)
    (batch,) = batches(file, start=20, stop=50)
    Path(file.path).unlink()
    assert str(batch.refused[0]).startswith(f"{file.path}, line 1 from byte 28 of its text on: is not JSON")


def test_a_file_that_changed_since_it_was_listed_is_not_read(tmp_path: Path) -> None:
    file = write(tmp_path, lines("a"))
    os.utime(file.path, ns=(0, 12345))
    with pytest.raises(ValueError, match=r"^--input-files .*a\.jsonl: changed while it was read; start again when nothing writes to it$"):
        Reader("text").holds(Part(file, 5))


def test_a_document_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path, b"text", kind=".txt")
    read = FileText.read

    def read_and_touch(text: FileText, size: int) -> bytes:
        os.utime(file.path, ns=(0, 12345))
        return read(text, size)

    monkeypatch.setattr(FileText, "read", read_and_touch)
    with pytest.raises(ValueError, match="changed while it was read"):
        batches(file)


@pytest.mark.parametrize("layout", ["plain", "zstd", "gzip"])
@pytest.mark.parametrize("what", ["longer", "shorter", "other"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, layout: str, what: str) -> None:
    raw = lines(*(noise(5_000, seed) for seed in range(2_000)))
    file = write(tmp_path, raw, layout)
    with Reader("text") as reader, pytest.raises(ValueError, match="changed while it was read"):
        for number, _ in enumerate(reader.batches(Part(file))):
            if number == 0:
                with open(file.path, "r+b") as out:
                    if what == "shorter":
                        out.truncate(file.size // 2)
                    else:
                        out.seek(0, 2 if what == "longer" else 0)
                        out.write(b"other bytes")
                os.utime(file.path, ns=(0, 12345))


def test_a_file_that_vanished_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, lines("a"))
    Path(file.path).unlink()
    with pytest.raises(ValueError, match=r"^--input-files .*a\.jsonl: is gone since the files were listed; put it back or leave it out$"):
        batches(file)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path, lines("a"))
    Path(file.path).chmod(0)
    if os.access(file.path, os.R_OK):  # root reads everything
        monkeypatch.setattr("open_lm.storage.open_read", lambda url: os_error(PermissionError(13, "Permission denied", url)))
    with pytest.raises(ValueError, match=r"^--input-files .*a\.jsonl: may not be read by this user; allow it"):
        batches(file)


def test_a_failing_disk_is_an_os_error_with_the_file(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path, lines("a"))
    monkeypatch.setattr("open_lm.storage.open_read", lambda url: os_error(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match=r"^--input-files .*a\.jsonl: can't be read: Input/output error$"):
        batches(file)


def os_error(error: OSError) -> None:
    raise error


def test_a_file_is_closed_when_the_reader_is(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path, lines("a"), "zstd")
    opened: list[IO[bytes]] = []
    really = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda url: opened.append(really(url)) or opened[-1])
    assert texts(tmp_path / "a.jsonl.zst") == ["a"]
    assert [file.closed for file in opened] == [True]
