"""Whose folder is it: what --overwrite removes, what it leaves untouched, what a run needs to be able to write, when a name is taken."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm import storage
from open_lm.main import main
from open_lm.params import Params, parse_params
from open_lm.train.parallel import World
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_resume import check_copy, clear_copy, fetch_logs
from open_lm.train.run_folder import RunFolder, check_places, claim_run_folder, keep_warnings, not_written

Main = Callable[..., int]
WORLD = World(0, 1, torch.device("cpu"))
PARAMS = "model: tiny\nname: r\ntrain_data: x\n"


def make(folder: Path, *names: str) -> Path:
    """A folder with files of these names; one that ends in "/" is an empty folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_text(PARAMS if name == "params.txt" else "content")
    return folder


RUN = ("params.txt", "out.log", "metrics.jsonl", "plans.json", "config.yaml", "tensorboard/events.out.tfevents.1", "code/open_lm/run.py")
RUN += ("checkpoints/step_10/state.json", "checkpoints/step_10/.metadata", "checkpoints/step_10/0_0-ab.distcp", "checkpoints/ema_0.9_1.pt")
RUN += ("checkpoints/ema_1.pt", "checkpoints/poly_16_1_2.pt", "wandb/debug-internal.log", "wandb/run-20260101_000000-ab/files/config.yaml")
RUN += ("checkpoints/.step_20.ab.tmp/0_0-ab.distcp", "checkpoints/.epoch_2.pt.abcd_123.tmp", "checkpoints/epoch_1.pt")
FOREIGN = ("thesis.tex", "checkpoints/notes.txt", "checkpoints/step_10/mine.txt", "checkpoints/.step_notes.tmp", "tensorboard/mine.txt")
FOREIGN += ("code/open_lm/thesis.tex", "other/params.txt", "mine/", "checkpoints/.epoch_2.pt.my.tmp", "wandb/mine.txt", "wandb/mine/")
FOREIGN += ("checkpoints/my_llama_7.pt",)
STRANGERS = (
    ("thesis.tex",),
    ("out.log",),
    ("checkpoints/epoch_1.pt",),
    ("wandb/mine.txt", "out.log"),
    (".git/config",),
    ("sub/params.txt",),
)


def options(*flags: str) -> Params:
    return parse_params(["--train-data", "x", *flags])[0]


def claim(folder: Path, *flags: str) -> None:
    params = options(*flags)
    lock = claim_run_folder(RunFolder(folder, folder.name), params.log, params.checkpoint.resume is not None, WORLD)
    assert lock
    lock.close()


def test_a_link_that_goes_round_and_a_copy_inside_the_run_are_mistakes(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.folder / "logs").mkdir()
    (bench.folder / "logs/round").symlink_to(bench.folder / "logs/round")
    for flags in (("round",), ("a", "--pretrained", str(bench.folder / "logs/round"), "--overwrite")):
        assert main_here(*flags) == 2
    assert "--name round: " in capsys.readouterr().err
    for name, copy in (("a", "logs/a/copy"), ("a", "logs"), ("logs", ".")):
        assert main_here(name, "--remote-sync", str(bench.folder / copy)) == 2
        assert f"--remote-sync {bench.folder / copy}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "..", "a/..", "linked", "ABSOLUTE"])
def test_a_name_lies_below_the_logs_folder(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make(bench.folder / "logs/a", *RUN)
    make(bench.folder / "elsewhere", *RUN)
    (bench.folder / "logs/linked").symlink_to(bench.folder / "elsewhere")
    before, given = storage.contents(bench.folder), name if name != "ABSOLUTE" else str(bench.folder / "elsewhere")
    for flags in ((), ("--overwrite",), ("--resume", "latest")):
        assert main_here(given, *flags) == 2
        error = capsys.readouterr().err
        assert f"--name {given}: " in error and "does not lie below" in error
        assert "or --overwrite" not in error
    assert storage.contents(bench.folder) == before


def test_runs_of_one_last_name_in_two_folders_are_two(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    copy = ("--remote-sync", str(bench.folder / "there"))
    assert main_here("x/a", *copy) == 0 and main_here("y/a", *copy) == 0
    assert {one.parent.parent.name for one in (bench.folder / "there").glob("*/a/params.txt")} == {"x", "y"}
    assert main_here("y/a", *copy) == 2 and "--name y/a: " in capsys.readouterr().err
    assert main(["--config", str(bench.folder / "logs/y/a/config.yaml"), "--resume", "latest"]) == 0
    assert not (bench.folder / "logs/a").exists()


@pytest.mark.parametrize("names", STRANGERS)
def test_a_folder_that_is_no_run_is_not_touched(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = make(tmp_path / "r", *names)
    for flags in ((), ("--overwrite",), *((("--resume", "latest"),) if "checkpoints/epoch_1.pt" not in names else ())):
        with pytest.raises(ValueError, match=r"--name r: .* holds .*; use another name$"):
            claim(folder, *flags)
    with pytest.raises(ValueError, match="is not the folder of a run; use another name$"):
        check_copy(RemoteFolder(str(tmp_path), "r"), True)
    assert storage.contents(folder).keys() == set(names)


@pytest.mark.parametrize("foreign", FOREIGN)
def test_overwrite_touches_nothing_where_anything_lies_in_a_run_that_no_run_wrote(tmp_path: Path, foreign: str) -> None:
    folder = make(tmp_path / "r", *RUN, foreign)
    with pytest.raises(ValueError, match=f"holds {foreign}, which no run wrote; nothing is removed"):
        claim(folder, "--overwrite")
    with pytest.raises(ValueError, match="exists; use another name or --resume latest to continue it$"):
        claim(folder)
    with pytest.raises(ValueError, match=f"--remote-sync: .* holds {foreign}, which no run wrote"):
        check_copy(RemoteFolder(str(tmp_path), "r"), True)
    assert storage.contents(folder).keys() == {*RUN, foreign}


def test_overwrite_removes_what_a_run_wrote_and_links_are_not_followed(tmp_path: Path) -> None:
    folder, copy = make(tmp_path / "r", *RUN), make(tmp_path / "there/r", *RUN)
    make(tmp_path / "elsewhere", "thesis.tex")
    (folder / "wandb/latest-run").symlink_to(tmp_path / "elsewhere")
    claim(folder, "--overwrite")
    assert storage.contents(folder).keys() == {".lock", "checkpoints/"}
    clear_copy(RemoteFolder(str(copy.parent), "r"))
    assert not storage.contents(copy) and (tmp_path / "elsewhere/thesis.tex").exists()


def test_a_remote_copy_is_overwritten_as_a_local_one(tmp_path: Path, s3: Any) -> None:
    remote = RemoteFolder(s3.url("runs"), "r")
    for name in (*(name for name in RUN if "/." not in name), "checkpoints/step_10/.metadata", "thesis.tex"):
        s3.put(f"runs/r/{name}", PARAMS.encode())
    with pytest.raises(ValueError, match=r"holds thesis.tex, which no run wrote; nothing is removed"):
        check_copy(remote, True)
    clear_copy(remote)  # whatever comes between
    assert sorted(s3.keys()) == ["runs/r/thesis.tex"]
    s3.put("runs/r/params.txt", b"mine")
    with pytest.raises(ValueError, match="is not the folder of a run"):
        check_copy(remote, True)


def test_what_a_run_reads_is_not_overwritten_by_it(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a", "--epochs", "1") == 0
    weights = str(bench.folder / "logs/a/checkpoints/epoch_1.pt")
    for flags in (("--pretrained", weights), ("--average", weights)):
        assert main_here("a", "--overwrite", *flags) == 2
        assert f"--overwrite: would remove {bench.folder}/logs/a, where {flags[0]} {weights} is" in capsys.readouterr().err
    copy = str(make(bench.folder / "copy/a", *RUN))
    for url, there in ((copy, copy), ("s3://bucket/a/checkpoints/epoch_1.pt", "s3://bucket/a")):
        with pytest.raises(ValueError, match=f"--overwrite: would remove {there}, where --average {url} is"):
            check_places(
                RunFolder(bench.folder / "logs/a", "a"),
                options("--overwrite", "--average", url, "--remote-sync", there[:-2], "--logs", str(bench.folder / "logs")),
            )
    assert Path(weights).exists()


def test_the_first_process_tells_the_warnings_of_a_start_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    for first in (True, False):
        with pytest.raises(ValueError), keep_warnings(first):
            logging.warning("mind the gap")
            raise ValueError
    assert capsys.readouterr().err == "open_lm: warning: mind the gap\n"


def test_the_logs_of_a_copy_replace_logs_only(tmp_path: Path) -> None:
    make(tmp_path / "there/r", "out.log", "thesis.tex")
    folder = make(tmp_path / "r", "params.txt")
    (folder / "thesis.tex").write_text("my own, and longer")
    remote = RemoteFolder(str(tmp_path / "there"), "r")
    fetch_logs(folder, remote, remote.files())
    assert (folder / "thesis.tex").read_text() == "my own, and longer" and (folder / "out.log").exists()


def test_all_that_runs_write_is_known_as_theirs(bench: Any, main_here: Main) -> None:
    data = ("--val-data", str(bench.folder / "shards/shard-0000000.tar"), "--remote-sync", str(bench.folder / "there"))
    flags = ("--save-openlm-optimizer", "--averagers", "ema_0.9_1", "--copy-codebase", "--report-to", "tensorboard", "--log-local")
    assert main_here("a", *flags, *data, "--epochs", "1") == 0
    assert len(files := storage.contents(bench.folder / "logs/a")) > 20 and not not_written(files)
    assert main_here("a", *data, "--overwrite", "--epochs", "1") == 0
    copy = storage.contents(bench.folder / "there/a")
    assert "checkpoints/optimizer_1.pt" not in copy and "checkpoints/epoch_1.pt" in copy and not not_written(copy)


@pytest.mark.parametrize("failure", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_a_run_that_fails_before_its_first_step_takes_no_name(
    bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    import open_lm.run

    def fail(*given: Any) -> None:
        raise failure

    sync = ("--remote-sync", str(bench.folder / "there"), "--remote-sync-frequency", "1", "--epochs", "1")
    with monkeypatch.context() as patch:
        patch.setattr(open_lm.run, "build", fail)
        with pytest.raises(type(failure)):
            main_here("a", *sync)
    (bench.folder / "logs/a/notes.txt").write_text("mine")
    said = bench.log("a")
    assert main_here("a", *sync) == 0
    assert bench.log("a").startswith(said) and (bench.folder / "logs/a/notes.txt").exists()
    assert main_here("a", *sync) == 2


def test_a_validation_that_fails_takes_no_name(bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_lm.validation_run
    from open_lm.main import main

    assert main_here("a", "--epochs", "1") == 0
    flags = ["--pretrained", str(bench.folder / "logs/a"), "--val-data", str(bench.folder / "shards/shard-0000000.tar"), "--workers", "0"]
    flags += ["--precision", "fp32", "--logs-dir", str(bench.folder / "logs"), "--name", "v"]
    with monkeypatch.context() as patch:
        patch.setattr(open_lm.validation_run, "parallelize", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(flags)
    assert main(flags) == 0
    assert main(flags) == 2


def test_folders_that_can_t_be_written_are_told_with_the_other_mistakes(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    make(bench.folder, "file", "logs/a")
    mistakes = ("--checkpoint-dir", "file/states", "--remote-sync", "/proc/there", "--data-cache", "file", "--val-data", "none.tar")
    assert main_here("b", *mistakes, "--logs-dir", "file") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 5 and "none.tar" in error, error
    for line in (
        "--logs-dir file: is a file",
        "--checkpoint-dir file/states: ",
        "--remote-sync /proc/there: can't be",
        "--data-cache file: is",
    ):
        assert line in error, error
    assert main_here("a") == 2 and main_here("a", "--overwrite") == 2 and main_here("b", "--logs-dir", "s3://b/logs") == 2
    error = capsys.readouterr().err
    assert error.count("--name a: ") == 2 and error.count("logs/a: is a file") == 2 and "--logs-dir s3://b/logs: must be a local" in error


def test_a_copy_is_not_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the copy would be in the run folder"):
        check_places(
            RunFolder(tmp_path / "logs/r", "r"), options("--logs", str(tmp_path / "logs"), "--remote-sync", f"file://{tmp_path}/logs")
        )


def test_a_folder_that_becomes_read_only_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match="--logs-dir .*: can't be written: .*: Read-only file system; name a folder in a folder of yours"):
        check_places(RunFolder(tmp_path / "logs/r", "r"), options("--logs", str(tmp_path / "logs")))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="--logs-dir ./logs: .*Read-only file system"):
        claim(tmp_path / "r")


def test_save_most_recent_and_averages_delete_their_own_files_only(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1", "--averagers", "ema_0.9_1") == 0
    mine = [bench.folder / "logs/a/checkpoints" / name for name in ("epoch_best.pt", "epoch_1.pt.bak", "stats_1.txt", "ema_0.9_1_1.pt.bak")]
    for path in mine:
        shutil.copy(bench.folder / "tiny.json", path)
    more = ("--resume", "latest", "--save-frequency", "0", "--save-most-recent", "--delete-previous-checkpoint", "--averagers", "ema_0.9_1")
    (bench.folder / "logs/a/checkpoints/step_10/mine").mkdir()
    assert main_here("a", *more) == 0
    assert all(path.exists() for path in mine)
    there = {path.name for path in mine[0].parent.iterdir()}
    assert "epoch_1.pt" not in there and {"epoch_3.pt", "step_30", "step_10"} <= there and "step_20" not in there
    assert bench.log("a").count("step_10: stays, since mine/ in it was not written by a run") == 1


def test_what_a_copy_holds_that_is_no_run_is_not_written_over_by_a_run_that_goes_on(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1") == 0
    mine = make(bench.folder / "there/a", "thesis.tex", "sub/params.txt")
    make(bench.folder / "logs/a/.remote_sync.held", "thesis.tex")
    assert main_here("a", "--resume", "latest", "--remote-sync", str(bench.folder / "there")) == 2
    assert storage.contents(mine).keys() == {"thesis.tex", "sub/params.txt"}
    shutil.rmtree(mine)
    assert main_here("a", "--resume", "latest", "--remote-sync", str(bench.folder / "there")) == 0
    assert (mine / "checkpoints/step_30/state.json").exists() and (bench.folder / "logs/a/.remote_sync.held/thesis.tex").exists()
