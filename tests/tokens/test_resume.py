"""Whose output is it: the same command goes on or is done; another one is told what differs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from running import run
from small_corpus import random_texts, stored_sequences, write_jsonl

from open_lm import storage
from open_lm.tokens import stages


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    (tmp_path / "raw").mkdir()
    for i in range(4):
        write_jsonl(tmp_path / f"raw/{i}.jsonl", random_texts(60, i))
    return [str(tmp_path / "raw/*.jsonl")]


def stop_in(stage: str, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let a stage fail after so many tasks, as a pulled plug would."""
    function, left = getattr(stages, stage), [after]

    def failing(task: Any) -> Any:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return function(task)

    monkeypatch.setattr(stages, stage, failing)


@pytest.mark.parametrize("stage", ["do_stretch", "do_shard"])
def test_a_stopped_run_goes_on_and_does_only_what_is_missing(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(corpus, tokenizer_file, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in(stage, patch, after=3)
        with pytest.raises(OSError, match="No space left"):
            run(corpus, tokenizer_file, tmp_path / "out")
    assert not list((tmp_path / "out").glob("32-v1/stats.json"))
    assert not list(tmp_path.rglob("*.tmp"))
    caplog.set_level("INFO")
    run(corpus, tokenizer_file, tmp_path / "out")
    assert f"{'units' if stage == 'do_stretch' else 'shards'} done before" in caplog.text
    assert stored_sequences(tmp_path / "out/32-v1") == stored_sequences(tmp_path / "whole/32-v1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["32-v1"]


def test_a_damaged_spill_or_a_missing_shard_is_made_again(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tokenizer_file, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in("do_shard", patch, after=3)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "out")
    spill = sorted((tmp_path / "out/.32-v1-work").glob("*.spill"))[1]
    spill.write_bytes(spill.read_bytes()[:-5])
    (tmp_path / "out/32-v1/0/shard-0000001.tar").write_bytes(b"")
    run(corpus, tokenizer_file, tmp_path / "out")
    assert stored_sequences(tmp_path / "out/32-v1") == stored_sequences(tmp_path / "whole/32-v1")


def test_a_finished_command_given_again_changes_nothing(tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    first = run(corpus, tokenizer_file, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run(corpus, tokenizer_file, tmp_path / "out", num_workers=2) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, r"--seed was 0, is 1"),
        ({"shard_size": 8, "bos": False, "format": "npy"}, r"--format was txt, is npy; --shard-size was 16, is 8"),
        ({"text_key": "body"}, r"--text-key was text, is body"),
    ],
)
def test_another_command_is_told_what_differs(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tokenizer_file, tmp_path / "done")
    with pytest.raises(ValueError, match=f"holds the shards of another command .{said}.*--overwrite"):
        run(corpus, tokenizer_file, tmp_path / "done", **change)
    with monkeypatch.context() as patch:
        stop_in("do_stretch", patch, after=2)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "begun")
    with pytest.raises(ValueError, match=f"holds the unfinished work of another command: {said}.*--overwrite"):
        run(corpus, tokenizer_file, tmp_path / "begun", **change)


def test_changed_input_is_named(tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in("do_stretch", patch, after=2)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "begun")
    changed = tmp_path / "raw/1.jsonl"
    os.utime(changed, ns=(1, 1))
    (tmp_path / "raw/9.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"raw/1\.jsonl changed; .*raw/9\.jsonl is new"):
        run(corpus, tokenizer_file, tmp_path / "begun")


def test_overwrite_replaces_what_this_program_wrote_and_nothing_else(tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    out = tmp_path / "out/32-v1"
    run(corpus, tokenizer_file, tmp_path / "out", num_consumers=2)
    (out / "1/notes.txt").write_text("mine")
    (out / "mine").mkdir()
    counts = run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    shards = [f"0/shard-{i:07d}.tar" for i in range(counts.shards)]
    assert files == sorted(
        ["0/manifest.jsonl", *shards, "1/notes.txt", "lengths.png", "provenance/files.jsonl", "stats.json", "tokenizer.json"]
        + [f"provenance/{name.replace('.tar', '.npz')}" for name in shards]
    )
    assert json.loads((out / "stats.json").read_text())["seed"] == 1 and (out / "mine").is_dir()


def test_a_mistake_with_overwrite_keeps_the_old_shards(tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    run(corpus, tokenizer_file, tmp_path / "out")
    before = stored_sequences(tmp_path / "out/32-v1")
    (tmp_path / "raw/3.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match=r"3\.jsonl, line 1: is not JSON"):
        run(corpus, tokenizer_file, tmp_path / "out", overwrite=True)
    assert stored_sequences(tmp_path / "out/32-v1") == before


def test_overwrite_of_a_stopped_overwrite_goes_on(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(corpus, tokenizer_file, tmp_path / "out")
    run(corpus, tokenizer_file, tmp_path / "whole", seed=1)
    with monkeypatch.context() as patch:
        stop_in("do_shard", patch, after=3)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
    caplog.set_level("INFO")
    run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
    assert "3 of" in caplog.text and "shards done before" in caplog.text
    assert stored_sequences(tmp_path / "out/32-v1") == stored_sequences(tmp_path / "whole/32-v1")


def test_no_resume_begins_anew(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stop_in("do_stretch", patch, after=2)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "out")
    caplog.set_level("INFO")
    run(corpus, tokenizer_file, tmp_path / "out", resume=False)
    assert "done before" not in caplog.text


def test_files_of_others_in_the_output_folder_are_an_error(tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    (tmp_path / "out/32-v1").mkdir(parents=True)
    (tmp_path / "out/32-v1/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output-dir: .*32-v1 holds files; give --overwrite"):
        run(corpus, tokenizer_file, tmp_path / "out")


def test_two_runs_at_one_output_are_an_error(tmp_path: Path, corpus: list[str], tokenizer_file: Path) -> None:
    from open_lm.tokens.job import WorkFolder, work_folder

    folder = WorkFolder(work_folder(str(tmp_path / "out/32-v1"), None))
    with folder.locked(), pytest.raises(ValueError, match="another run is at work"):
        run(corpus, tokenizer_file, tmp_path / "out")


def test_what_this_program_did_not_put_into_the_work_folder_stays_there(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "out/.32-v1-work"
    mine = [work / name for name in ("thesis.tex", ".thesis.tmp", "thesis.spill", "shards/thesis.json", "upload/thesis.tex")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with pytest.raises(ValueError, match="--tokenizer|no such"):  # a job that has not begun removes its folder
        run(corpus, tmp_path / "none.json", tmp_path / "out")
    assert all(path.read_text() == "mine" for path in mine)
    with monkeypatch.context() as patch:
        stop_in("do_shard", patch, after=3)
        with pytest.raises(OSError):
            run(corpus, tokenizer_file, tmp_path / "out")
    run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
    run(corpus, tokenizer_file, tmp_path / "whole", seed=1)
    assert stored_sequences(tmp_path / "out/32-v1") == stored_sequences(tmp_path / "whole/32-v1")
    assert sorted(path for path in work.rglob("*") if path.is_file()) == sorted(mine)


def test_shards_of_which_nothing_says_that_this_program_wrote_them_are_not_overwritten(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path
) -> None:
    theirs = tmp_path / "out/32-v1/0/shard-0000000.tar"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    for stats in (None, "{}", '{"job": "mine"}'):
        if stats:
            (tmp_path / "out/32-v1/stats.json").write_text(stats)
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"32-v1 holds 0/shard-0000000.tar and no stats.json .*; nothing is removed: move it away"):
                run(corpus, tokenizer_file, tmp_path / "out", overwrite=overwrite)
    assert theirs.read_text() == "mine" and [path.name for path in (tmp_path / "out").iterdir()] == ["32-v1"]


def test_an_overwrite_that_is_killed_while_it_removes_can_be_given_again(
    tmp_path: Path, corpus: list[str], tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(corpus, tokenizer_file, tmp_path / "out")
    with monkeypatch.context() as patch:
        remove, left = storage.remove, [2]

        def failing(url: str) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            remove(url)

        patch.setattr(storage, "remove", failing)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
    with pytest.raises(ValueError, match="holds the shards of another command"):
        run(corpus, tokenizer_file, tmp_path / "out", seed=1)
    run(corpus, tokenizer_file, tmp_path / "out", seed=1, overwrite=True)
