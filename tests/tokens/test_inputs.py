"""Input files become units that cover every byte once; what matches nothing is an error."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_lm.tokens.inputs import RUNS_PER_FILE, InputFile, is_long, list_inputs, plan_runs, plan_units


def test_lists_globs_and_braces_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "d.jsonl.zst"):
        (tmp_path / name).write_bytes(b"x")
    found = list_inputs([f"{tmp_path}/c.txt", f"{tmp_path}/*.jsonl", f"{tmp_path}/{{d.jsonl.zst,b.jsonl}}"])
    assert [Path(f.path).name for f in found] == ["c.txt", "a.jsonl", "b.jsonl", "d.jsonl.zst"]
    assert [(f.holds, f.compression) for f in found] == [("document", None), ("lines", None), ("lines", None), ("lines", "zst")]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "part[1].jsonl").write_bytes(b"x")
    assert [Path(f.path).name for f in list_inputs([f"{tmp_path}/part[1].jsonl"])] == ["part[1].jsonl"]


def test_a_file_named_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x")
    assert len(list_inputs([f"{tmp_path}/a.jsonl", f"{tmp_path}/*.jsonl"])) == 1
    assert "more than once" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("*.jsonl.zst", "no file matches"),
        ("missing.jsonl", "no file matches"),
        ("table.parquet", "unknown kind of file; known are .jsonl"),
        ("", "unknown kind of file"),
    ],
)
def test_bad_inputs_are_one_line_errors(tmp_path: Path, pattern: str, problem: str) -> None:
    (tmp_path / "table.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=problem) as error:
        list_inputs([f"{tmp_path}/{pattern}"])
    assert str(error.value).startswith("--input-files ") and "\n" not in str(error.value)


def test_remote_input_is_refused() -> None:
    with pytest.raises(ValueError, match="not built yet"):
        list_inputs(["s3://bucket/a.jsonl"])


files = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from(["lines", "document"]), st.sampled_from([None, "zst"])).map(
        lambda t: InputFile("", t[0], t[1], t[2])  # type: ignore[arg-type]
    ),
    max_size=15,
)


@given(files, st.integers(1, 100))
def test_units_cover_every_file_once_in_order(some: list[InputFile], unit_bytes: int) -> None:
    corpus = [InputFile(f"{i}.jsonl", f.size, f.holds, f.compression) for i, f in enumerate(some)]
    measured = {f.path: 3 * f.size for f in corpus if f.compression}
    units = plan_units(corpus, measured, unit_bytes)
    assert [unit.index for unit in units] == list(range(len(units)))
    parts = [part for unit in units for part in unit.parts]
    assert list(dict.fromkeys(part.file for part in parts)) == corpus
    for file in corpus:
        own = [part for part in parts if part.file == file]
        if is_long(file, unit_bytes):
            total = measured[file.path] if file.compression else file.size
            assert own[0].start == 0 and own[-1].stop is not None and own[-1].stop >= total
            assert all(a.stop == b.start for a, b in itertools.pairwise(own))
        else:
            assert [(part.start, part.stop) for part in own] == [(0, None)]
    for unit in units:
        stored = sum(part.file.size for part in unit.parts)
        assert len(unit.parts) == 1 or stored <= unit_bytes or is_long(unit.parts[0].file, unit_bytes)


@given(files, st.integers(1, 100))
def test_runs_are_the_units_in_order_and_share_only_long_compressed_files(some: list[InputFile], unit_bytes: int) -> None:
    corpus = [InputFile(f"{i}.jsonl", f.size, f.holds, f.compression) for i, f in enumerate(some)]
    units = plan_units(corpus, {f.path: 3 * f.size for f in corpus}, unit_bytes)
    runs = plan_runs(units, unit_bytes)
    assert [unit for run in runs for unit in run] == units
    for run in runs:
        first = run[0].parts[0].file
        assert len(run) == 1 or (first.compression and all(unit.parts[0].file == first for unit in run))
    for file in corpus:
        assert sum(run[0].parts[0].file == file for run in runs) <= RUNS_PER_FILE or not file.compression
