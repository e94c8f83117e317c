"""What was named is found, in order, with what each file holds; what can't be read is an error that says why."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from reading import lines

from open_lm import storage
from open_lm.storage import Stored
from open_lm.tokens.reading.inputs import InputFile, Part, input_file, list_inputs
from open_lm.tokens.reading.reader import Reader


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(files: list[InputFile], folder: Path) -> list[str]:
    return [str(Path(file.path).relative_to(folder)) for file in files]


def test_lists_globs_and_braces_are_expanded_in_order(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "c.txt", "d.jsonl.zst")
    found = list_inputs([f"{tmp_path}/c.txt", f"{tmp_path}/*.jsonl", f"{tmp_path}/{{d.jsonl.zst,c.txt}}"])
    assert names(found, tmp_path) == ["c.txt", "a.jsonl", "b.jsonl", "d.jsonl.zst"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ("lines", None)),
        ("a.b.JSON", ("lines", None)),
        ("a.txt", ("document", None)),
        ("a.jsonl.zst", ("lines", "zst")),
        ("a.json.gz", ("lines", "gz")),
        ("a.x.txt.GZ", ("document", "gz")),
        ("a.parquet", ("table", None)),
    ],
)
def test_a_name_says_what_a_file_holds(tmp_path: Path, name: str, kind: tuple[str, str | None]) -> None:
    make(tmp_path, name)
    file = input_file(str(tmp_path / name))
    assert (file.holds, file.compression) == kind
    assert (file.size, file.stamp) == (1, str((tmp_path / name).stat().st_mtime_ns))
    assert list_inputs([str(tmp_path / name)]) == list_inputs([str(tmp_path)]) == [file]


def test_a_folder_gives_its_known_files_at_any_depth_sorted_and_says_what_it_leaves_out(tmp_path: Path, caplog) -> None:
    make(tmp_path, "b/2.jsonl", "b/1.txt", "a.jsonl", "b-c/3.txt", "README.md", "b/pictures.tar", "jsonl", ".hidden.jsonl", ".git/x.txt")
    with caplog.at_level(logging.WARNING):
        assert names(list_inputs([str(tmp_path)]), tmp_path) == ["a.jsonl", "b-c/3.txt", "b/1.txt", "b/2.jsonl"]
    (record,) = caplog.records
    assert "3 files in folders are of an unknown kind and are left out" in record.message and "README.md" in record.message


def test_a_hidden_file_is_read_when_it_is_named(tmp_path: Path) -> None:
    make(tmp_path, ".hidden.jsonl")
    assert len(list_inputs([f"{tmp_path}/.hidden.jsonl"])) == 1


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "part[1].jsonl", "{a,b}.txt")
    assert names(list_inputs([f"{tmp_path}/part[1].jsonl", f"{tmp_path}/{{a,b}}.txt"]), tmp_path) == ["part[1].jsonl", "{a,b}.txt"]


def test_a_file_named_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.jsonl")
    assert len(list_inputs([f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"])) == 1
    assert "more than once" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("*.jsonl.zst", "no file matches"),
        ("missing.jsonl", "no file matches; check"),
        ("{a,missing}.jsonl", r"no file matches .*/missing\.jsonl; check"),
        ("a.jsonl::b.jsonl", "no file matches"),
        ("table.csv", "unknown kind of file; known are .jsonl"),
        ("*.csv", "unknown kind of file; known are .jsonl"),
        ("{table,table2}.csv", "unknown kind of file; known are .jsonl"),
        ("other", r"holds no file of a known kind \(.jsonl"),
        ("empty", "no file matches"),
    ],
)
def test_bad_inputs_are_one_line_errors(tmp_path: Path, pattern: str, problem: str) -> None:
    make(tmp_path, "table.csv", "table2.csv", "other/notes.md", "a.jsonl", "b.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=problem) as error:
        list_inputs([f"{tmp_path}/{pattern}"])
    assert str(error.value).startswith("--input-files ") and "\n" not in str(error.value)


@pytest.mark.parametrize("target", ["nothing", "b.jsonl"])
def test_a_link_that_leads_nowhere_is_an_error_in_a_folder_and_a_glob(tmp_path: Path, target: str) -> None:
    make(tmp_path, "in/a.jsonl")
    (tmp_path / "in/b.jsonl").symlink_to(target)
    for pattern in ("in", "in/*.jsonl", "**/*.jsonl", "in/{a,b}.jsonl"):
        with pytest.raises(
            ValueError, match=r"^--input-files .*b\.jsonl: is a link to [\w.]+, which can't be opened; mend or remove the link$"
        ):
            list_inputs([f"{tmp_path}/{pattern}"])


def test_an_empty_name_and_unannounced_standard_input_are_errors() -> None:
    with pytest.raises(ValueError, match="no file matches"):
        list_inputs([""])
    with pytest.raises(ValueError, match="standard input can't be read here"):
        list_inputs(["-"])


def test_standard_input_stands_where_it_was_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl")
    stdin = InputFile("spooled", 5, "lines", "zst", "sha256:0")
    found = list_inputs([f"{tmp_path}/b.jsonl", "-", f"{tmp_path}/a.jsonl"], stdin)
    assert found[1] == stdin and names([found[0], found[2]], tmp_path) == ["b.jsonl", "a.jsonl"]


def test_sizes_and_versions_of_remote_files_come_from_one_listing(monkeypatch) -> None:
    listed = [Stored("s3://b/p/a.jsonl.zst", 7, "etag1"), Stored("s3://b/p/notes.md", 3, ""), Stored("s3://b/p/z.parquet", 9, "etag2")]
    asked = []
    monkeypatch.setattr(storage, "list_files", lambda pattern: asked.append(pattern) or listed)
    assert list_inputs(["s3://b/p/"]) == [
        InputFile("s3://b/p/a.jsonl.zst", 7, "lines", "zst", "etag1"),
        InputFile("s3://b/p/z.parquet", 9, "table", None, "etag2"),
    ]
    assert asked == ["s3://b/p/"]


def test_a_web_address_may_have_a_query(monkeypatch) -> None:
    url = "https://host/data/a.jsonl.gz?download=true"
    monkeypatch.setattr(storage, "list_files", lambda pattern: [Stored(pattern, 7, "")])
    assert list_inputs([url]) == [InputFile(url, 7, "lines", "gz", "")]


def test_files_on_another_storage_are_found_and_read() -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines("one", "two"))
    memory.pipe("/corpus/b/c.txt", b"three")
    try:
        files = list_inputs(["memory://corpus/"])
        with Reader("text") as reader:
            assert [text for file in files for batch in reader.batches(Part(file)) for text in batch.texts] == ["one", "two", "three"]
        memory.pipe("/corpus/a.jsonl", lines("other text"))
        with Reader("text") as reader, pytest.raises(ValueError, match="changed while it was read"):
            list(reader.batches(Part(files[0])))
        memory.rm("/corpus/a.jsonl")
        with Reader("text") as reader, pytest.raises(ValueError, match="is gone since the files were listed"):
            list(reader.batches(Part(files[0])))
    finally:
        memory.rm("/corpus", recursive=True)


def test_hugging_face_addresses_are_known_to_the_storage() -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("huggingface_hub")
    assert fsspec.get_filesystem_class("hf").__name__ == "HfFileSystem"


def test_listing_imports_nothing_heavy(repo: Path) -> None:
    import subprocess

    reader = "open_lm.tokens.reading.reader"
    code = f"import sys, {reader}; print([m for m in ('pyarrow', 'fsspec', 's3fs', 'torch', 'aiohttp') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True).stdout.strip() == "[]"
