"""Remote files are read as local ones are: listed once, divided into blocks, held to their version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from reading import LAYOUTS, lines

from open_lm.tokens.reading.inputs import Part, list_inputs
from open_lm.tokens.reading.reader import Reader

if TYPE_CHECKING:
    from remote.server import Bucket

pytestmark = pytest.mark.slow


def test_blocks_of_files_on_s3_hold_every_line_once(s3: Bucket, monkeypatch) -> None:
    monkeypatch.setattr("open_lm.tokens.reading.text_stream.WORTH_A_JUMP", 1)
    values = [f"document {i}" for i in range(200)]
    raw = lines(*values)
    for name, (extension, compress) in LAYOUTS.items():
        s3.put(f"corpus/{name.replace(' ', '-')}.jsonl{extension}", compress(raw))
    s3.put("corpus/notes.md", b"no text")
    files = list_inputs([s3.url("corpus/")])
    assert len(files) == len(LAYOUTS) and all(file.stamp and file.size for file in files)
    for file in files:
        found = []
        for first in (0, 1):
            with Reader("text") as reader:
                for start in range(first * 1000, len(raw), 2000):
                    part = Part(file, start, start + 1000)
                    assert reader.holds(part)
                    found += [pair for batch in reader.batches(part) for pair in zip(batch.at, batch.texts)]
                    assert reader.ended(part) == (part.stop >= len(raw))
        assert [text for _, text in sorted(found)] == values


def test_a_remote_table_is_read(s3: Bucket) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), sink, row_group_size=2)
    s3.put("a.parquet", sink.getvalue().to_pybytes())
    (file,) = list_inputs([s3.url("a.parquet")])
    with Reader("text") as reader:
        assert [batch.texts for batch in reader.batches(Part(file, 1, 2))] == [["three"]]
        assert reader.ended(Part(file, 1, 2))


def test_a_remote_file_that_changed_or_went_is_an_error(s3: Bucket) -> None:
    s3.put("a.jsonl", lines("one"))
    (file,) = list_inputs([s3.url("a.jsonl")])
    s3.put("a.jsonl", lines("two"))
    with Reader("text") as reader, pytest.raises(ValueError, match=r"^--input-files s3://.*: changed while it was read"):
        list(reader.batches(Part(file)))
    with pytest.raises(ValueError, match=r"^--input-files s3://.*/none.jsonl: no file matches"):
        list_inputs([s3.url("none.jsonl")])
