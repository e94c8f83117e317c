"""Parquet tables: every row is a document with its number or a named refusal; row groups divide a table without loss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reading import batches, documents, refusals, texts

from open_lm.tokens.reading.inputs import Part, input_file
from open_lm.tokens.reading.reader import Reader, place_of

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(path: Path, values: list, kind: object = None, rows: int = 3, **others: list) -> Path:
    pq.write_table(pa.table({"n": list(range(len(values))), "text": pa.array(values, kind), **others}), path, row_group_size=rows)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_rows_are_documents_with_their_numbers(tmp_path: Path, kind: object) -> None:
    values = ["one", "zwei é", "", "x" * 100, "one"]
    assert documents(table(tmp_path / "a.parquet", values, kind)) == list(enumerate(values))


def test_row_groups_divide_a_table(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", [str(i) for i in range(8)], rows=3)
    assert documents(path, start=1, stop=2) == [(3, "3"), (4, "4"), (5, "5")]
    assert documents(path, start=1) == [(i, str(i)) for i in range(3, 8)]
    file = input_file(str(path))
    with Reader("text") as reader:
        assert [reader.holds(Part(file, i, i + 1)) for i in range(5)] == [True, True, True, False, False]
        assert [reader.ended(Part(file, i, i + 1)) for i in range(3)] == [False, False, True]


def test_an_inner_column_is_reached_with_a_dot(tmp_path: Path) -> None:
    inner = pa.array([{"body": "deep", "n": 1}, {"body": None, "n": 2}, None, {"body": "er", "n": 3}])
    pq.write_table(pa.table({"data": inner}), tmp_path / "a.parquet")
    (batch,) = batches(tmp_path / "a.parquet", "data.body")
    assert (batch.texts, batch.at) == (["deep", "er"], [0, 3])
    assert [str(r) for r in batch.refused] == [f"{tmp_path}/a.parquet, row {row}: has no 'data.body'" for row in (2, 3)]


def test_a_git_lfs_pointer_in_the_place_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=r"a\.parquet: is not a Parquet file but a Git LFS pointer; fetch the file itself"):
        batches(tmp_path / "a.parquet")


def test_missing_and_damaged_texts_are_refused_with_their_rows(tmp_path: Path) -> None:
    damaged = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    texts_ = pa.chunked_array([pa.array(["a", None]), damaged, pa.array(["b"])])
    pq.write_table(pa.table({"text": texts_}), tmp_path / "a.parquet")
    assert refusals(tmp_path / "a.parquet") == [
        f"{tmp_path}/a.parquet, row 2: has no 'text'",
        f"{tmp_path}/a.parquet, row 3: is not UTF-8: invalid start byte",
    ]
    (batch,) = batches(tmp_path / "a.parquet")
    assert (batch.texts, batch.at) == (["a", "b"], [0, 3])
    assert place_of(batch.file, 3) == f"{tmp_path}/a.parquet, row 4"


@pytest.mark.parametrize(("key", "problem"), [("body", "has no such column; it has n, text"), ("n", "is a column of int64, not of texts")])
def test_a_wrong_column_is_an_error_that_names_the_others(tmp_path: Path, key: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        texts(table(tmp_path / "a.parquet", ["a"]), key)
    assert str(error.value).startswith(f"--text-key {key}: ")


@pytest.mark.parametrize("damage", ["cut off", "not a table", "empty"])
def test_a_damaged_table_is_an_error(tmp_path: Path, damage: str) -> None:
    path = table(tmp_path / "a.parquet", ["a" * 1000, "b"])
    path.write_bytes({"cut off": path.read_bytes()[:-20], "not a table": b"plain text, longer than a footer", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"^--input-files .*a\.parquet: is no Parquet file or a damaged one \(.*\); fetch it again$"):
        texts(path)


def test_large_texts_are_told_and_large_tables_come_in_pieces(tmp_path: Path) -> None:
    heard: list[int] = []
    path = table(tmp_path / "a.parquet", ["x" * 1000] * 5000 + ["y" * (9 << 20)], rows=10_000)
    with Reader("text", heard.append) as reader:
        found = list(reader.batches(Part(input_file(str(path)))))
    assert [size >> 20 for size in heard] == [9] and sum(len(batch.texts) for batch in found) == 5001 and len(found) > 1


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    path = table(tmp_path / "a.parquet", ["a"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r'a\.parquet: Parquet needs pyarrow; pip install "open_lm\[parquet\]"'):
        texts(path)
