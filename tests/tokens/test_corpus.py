"""The standard library as a corpus: what is kept, what is left out, and that it is always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import zstandard

from open_lm.tokens.tools.corpus import build_corpus, is_data_table, is_heldout, standard_library


def documents(path: Path) -> dict[str, str]:
    with zstandard.open(path, "rb") as file:
        rows = [orjson.loads(line) for line in file.read().splitlines()]
    assert [sorted(row) for row in rows] == [["id", "text"]] * len(rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    return {row["id"]: row["text"] for row in rows}


TABLE = "TABLE = (\n" + "".join(f"    '\\x{i % 256:02x}'     #  0x{i:02x} -> SOMETHING\n" for i in range(400)) + ")\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "lib"
    for i in range(60):
        (folder / f"package{i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"package{i % 3}" / f"module{i}.py").write_text(f"# module {i}\nimport os\n\n\ndef f():\n    return {i}\n")
    odd = {
        "site-packages/other.py": b"other = 1\n",
        "test/tokenizedata/coding.py": b"kaputt = 1\n",
        "test/badsyntax_nocaret.py": b"def f(\n",
        "test/latin.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "_sysconfigdata__linux_.py": b"build_time_vars = {'prefix': '/somewhere'}\n",
        "empty/__init__.py": b"\n",
        "copy.py": (folder / "package0" / "module0.py").read_bytes(),
        "encodings/cp037.py": TABLE.encode(),
        "notes.txt": b"no Python\n",
        "windows.py": b"a = 1\r\nb = '\xc3\xa9'\r\n",
    }
    for name, data in odd.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_every_good_file_is_in_one_part_and_the_others_are_counted_by_reason(library: Path, tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path / "out", source_dir=library, heldout_fraction=0.2)
    train, heldout = documents(corpus.train.path), documents(corpus.heldout.path)
    assert not set(train) & set(heldout)
    both = train | heldout
    expected = {f"package{i % 3}/module{i}.py" for i in range(1, 60)} | {"copy.py", "windows.py"}
    assert set(both) == expected
    assert both["windows.py"] == "a = 1\nb = 'é'\n"
    assert corpus.skipped == {
        "a data table": 1, "broken on purpose": 2, "empty": 1, "generated data": 1, "not UTF-8": 1, "the same text as an earlier file": 1,
    }  # fmt: skip
    assert corpus.train.documents == len(train) and corpus.heldout.documents == len(heldout)
    assert corpus.train.bytes == sum(len(t.encode()) for t in train.values())


def test_the_same_library_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    one, two = (build_corpus(tmp_path / name, source_dir=library, heldout_fraction=0.2) for name in ("a", "b"))
    assert one.train.path.read_bytes() == two.train.path.read_bytes()
    assert one.heldout.path.read_bytes() == two.heldout.path.read_bytes()


def test_a_file_keeps_its_side_whatever_else_is_there(library: Path, tmp_path: Path) -> None:
    before = documents(build_corpus(tmp_path / "a", source_dir=library, heldout_fraction=0.2).heldout.path)
    for i in range(0, 60, 2):
        (library / f"package{i % 3}" / f"module{i}.py").unlink()
    after = documents(build_corpus(tmp_path / "b", source_dir=library, heldout_fraction=0.2).heldout.path)
    assert set(after) <= set(before) and after


def test_about_the_share_that_was_asked_for_is_held_out() -> None:
    held = sum(is_heldout(f"package/module{i}.py", 0.05) for i in range(10_000))
    assert 430 < held < 570


def test_data_tables_are_told_from_code_and_prose() -> None:
    assert is_data_table(TABLE)
    assert not is_data_table(TABLE[:4000])
    assert not is_data_table("def f(x):\n    return 'a' + x\n" * 500)
    assert not is_data_table('"""Prose.\n' + "Some words of a long documentation.\n" * 500 + '"""\n')


def test_existing_output_bad_fractions_and_empty_sources_are_refused(library: Path, tmp_path: Path) -> None:
    build_corpus(tmp_path / "out", source_dir=library, heldout_fraction=0.2)
    with pytest.raises(ValueError, match=r"--output-dir .*out: train.jsonl.zst exists already; .*--overwrite"):
        build_corpus(tmp_path / "out", source_dir=library)
    build_corpus(tmp_path / "out", source_dir=library, heldout_fraction=0.2, overwrite=True)
    with pytest.raises(ValueError, match=r"--heldout-fraction 1.5"):
        build_corpus(tmp_path / "new", source_dir=library, heldout_fraction=1.5)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"--source-dir .*nothing: 0 files to train on"):
        build_corpus(tmp_path / "new", source_dir=tmp_path / "nothing")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_command_makes_a_corpus_of_the_running_python(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, repo / "datapreprocess/stdlib_corpus.py", "--output-dir", tmp_path / "text"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, heldout = documents(tmp_path / "text/train.jsonl.zst"), documents(tmp_path / "text/heldout.jsonl.zst")
    assert sum(map(len, train.values())) > 5_000_000 and len(heldout) > 10
    assert (standard_library() / next(iter(train))).is_file()
    assert not any("site-packages" in name or name.startswith("encodings/cp12") for name in train | heldout)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
