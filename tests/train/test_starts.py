"""Which state a run goes on from, where it has several, in several places; and what a start leaves as it is."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train.test_remote_sync import save_state

from open_lm.checkpoint.find import newest_state
from open_lm.checkpoint.run_state import read_run_state
from open_lm.checkpoint.state_folder import remove_leftovers, remove_run_state, run_states
from open_lm.params import parse_params
from open_lm.train.launcher import lock_run_folder
from open_lm.train.parallel import World
from open_lm.train.remote_folder import RemoteFolder
from open_lm.train.remote_sync import RemoteSync
from open_lm.train.run_folder import RunFolder
from open_lm.train.start import find_start

Main = Callable[..., int]


def start(folder: Path, *flags: str, claim: bool = True) -> tuple[int | None, str | None]:
    """The step that a run goes on at, and from which state."""
    import torch

    params, _ = parse_params(["--train-data", "x", *flags])
    there = params.checkpoint.remote_sync
    remote = RemoteFolder(there, folder.name) if there else None
    resumed, restored = find_start(params, RunFolder(folder, folder.name), World(0, 1, torch.device("cpu")), remote, claim)
    return (resumed[1].step if resumed else None), restored


def copy(folder: Path, base: Path) -> None:
    RemoteSync(folder, RemoteFolder(str(base), folder.name), 300).sync()


def test_a_run_is_taken_back_only_when_its_later_checkpoints_are_out_of_the_way(tmp_path: Path) -> None:
    run = tmp_path / "logs/r"
    for step in (10, 20):
        save_state(run, step)
    ten = str(run / "checkpoints/step_10")
    with pytest.raises(ValueError, match=r"later checkpoints \(step_20\), .* give another --name, or move them out of"):
        start(run, "--resume", ten)
    assert start(run, "--resume", str(run / "checkpoints/step_20"))[0] == 20
    assert start(tmp_path / "logs/other", "--resume", ten)[0] == 10
    copy(run, tmp_path / "there")
    (run / "checkpoints/step_20").rename(tmp_path / "step_20")
    with pytest.raises(ValueError, match=r"\(step_20\).*there/r/checkpoints"):
        start(run, "--resume", ten, "--remote-sync", str(tmp_path / "there"))
    save_state(tmp_path / "states", 30)
    with pytest.raises(ValueError, match=r"\(step_30\)"):
        start(run, "--resume", ten, "--checkpoint-dir", str(tmp_path / "states/checkpoints"))
    assert start(run, "--resume", ten)[0] == 10


def test_weights_of_later_epochs_stand_in_the_way_too(tmp_path: Path) -> None:
    state = save_state(tmp_path / "r", 10) / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "epoch": 1}))
    for name in ("epoch_1.pt", "ema_0.9_1_1.pt", "epoch_2.pt", "stats_2.pt"):
        (tmp_path / "r/checkpoints" / name).touch()
    with pytest.raises(ValueError, match=r"\(epoch_2.pt, stats_2.pt\)"):
        start(tmp_path / "r", "--resume", str(state.parent))


def test_latest_is_the_latest_of_checkpoint_dir_and_run_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, states = tmp_path / "r", tmp_path / "states/checkpoints"
    flags = ("--resume", "latest", "--checkpoint-dir", str(states))
    assert start(run, *flags) == (None, None)
    save_state(run, 20)
    assert start(run, *flags)[0] == 20
    save_state(tmp_path / "states", 30)
    assert start(run, *flags) == (30, str(states / "step_30"))
    (run / "checkpoints/epoch_1.pt").write_bytes(b"weights, which alone are not what a run goes on from")
    (run / "checkpoints/step_20/__0_0.distcp").write_bytes(b"broken")
    assert start(run, *flags)[0] == 30


def test_latest_is_the_latest_of_checkpoint_dir_and_copy_and_the_logs_are_fetched(tmp_path: Path) -> None:
    run, there = tmp_path / "logs/r", str(tmp_path / "there")
    save_state(run, 20)
    (run / "out.log").write_text("before\n")
    copy(run, tmp_path / "there")
    save_state(tmp_path / "states", 30)
    flags = ("--resume", "latest", "--remote-sync", there, "--checkpoint-dir")
    empty = tmp_path / "empty/r"
    assert start(empty, *flags, str(tmp_path / "states/checkpoints")) == (30, str(tmp_path / "states/checkpoints/step_30"))
    assert (empty / "out.log").read_text() == "before\n" and not (empty / "checkpoints").exists()
    assert start(tmp_path / "empty2/r", *flags, str(tmp_path / "none")) == (20, str(tmp_path / "empty2/r/checkpoints/step_20"))


def test_a_copy_with_weights_and_no_run_state_is_not_begun_anew(tmp_path: Path) -> None:
    run = tmp_path / "logs/r"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    copy(run, tmp_path / "there")
    flags = ("--resume", "latest", "--remote-sync", str(tmp_path / "there"))
    assert start(tmp_path / "empty/r", *flags) == (None, None)  # it had not come to a checkpoint
    assert (tmp_path / "empty/r/metrics.jsonl").exists()
    for name in ("epoch_2.pt", "optimizer_2.pt"):
        (run / "checkpoints" / name).write_bytes(b"weights")
    copy(run, tmp_path / "there")
    with pytest.raises(ValueError, match=r"holds epoch_2.pt, later than what is here, and no run state; copy its checkpoints/"):
        start(tmp_path / "empty2/r", *flags)
    assert not (tmp_path / "empty2").exists()


def test_a_look_fetches_nothing(tmp_path: Path) -> None:
    run = tmp_path / "logs/r"
    save_state(run, 20)
    copy(run, tmp_path / "there")
    flags = ("--resume", "latest", "--remote-sync", str(tmp_path / "there"))
    assert start(tmp_path / "empty/r", *flags, claim=False) == (20, str(tmp_path / "there/r/checkpoints/step_20"))
    assert not (tmp_path / "empty").exists()


def test_a_run_state_on_a_web_server_is_whole(tmp_path: Path, web: Any) -> None:
    state = save_state(web.folder / "r", 20)
    assert read_run_state(web.url("r/checkpoints/step_20")).step == 20
    (state / "__0_0.distcp").write_bytes(b"short")
    with pytest.raises(ValueError, match="__0_0.distcp is not as it was written"):
        read_run_state(web.url("r/checkpoints/step_20"))
    with pytest.raises(ValueError, match="can't list a folder; give the URL of its step_"):
        start(tmp_path / "other", "--resume", web.url("r"))
    (state / ".metadata").unlink()
    with pytest.raises(ValueError, match="is not as it was written"):
        read_run_state(web.url("r/checkpoints/step_20"))


def test_a_state_that_was_being_replaced_is_put_back_and_one_that_was_being_removed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        save_state(tmp_path, step)
    os.replace(folder / "step_20", folder / ".step_20.0a1b.old.tmp")  # killed between the two renames
    shutil.copytree(folder / ".step_20.0a1b.old.tmp", folder / ".step_20.0a1b.tmp")
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    remove_run_state(str(folder / "step_10"))  # killed after the rename
    monkeypatch.undo()
    assert start(tmp_path, "--resume", "latest") == (20, str(folder / "step_20"))
    remove_leftovers(str(folder))
    assert run_states(folder) == [str(folder / "step_20")] and not list(folder.glob(".step_*"))
    assert newest_state(folder) is not None


def test_the_states_are_looked_for_when_nobody_writes_there_any_more(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-every-steps", "20", "--save-frequency", "0") == 0
    checkpoints = bench.folder / "logs/a/checkpoints"
    (checkpoints / "step_30").rename(bench.folder / "step_30")
    lock = lock_run_folder(checkpoints.parent)

    def orphan() -> None:
        time.sleep(0.5)
        shutil.rmtree(checkpoints / "step_20")
        (bench.folder / "step_30").rename(checkpoints / "step_30")
        lock.close()

    threading.Thread(target=orphan).start()
    assert main_here("a", "--resume", "latest") == 0
    assert "the run is finished (30 steps)" in bench.log("a")


def test_wrong_weights_are_told_with_the_other_mistakes_before_the_folder_is_made(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from open_lm.checkpoint.weights import write_weights

    write_weights(bench.folder / "other.pt", {"x": torch.zeros(3)}, {})
    other = str(bench.folder / "other.pt")
    assert main_here("a", "--pretrained", "no.pt", "--val-data", "none.tar") == 2
    error = capsys.readouterr().err
    assert "--pretrained: checkpoint no.pt: no such file" in error and "none.tar" in error
    assert main_here("a", "--average", other, "no.pt") == 2
    error = capsys.readouterr().err
    assert "other.pt: belongs to another model" in error and "--average: checkpoint no.pt: no such file" in error
    assert not (bench.folder / "logs/a").exists()


def test_validations_that_are_made_again_are_there_once(bench: Any, main_here: Main) -> None:
    data = ("--val-data", str(bench.folder / "shards/shard-0000000.tar"))
    assert main_here("a", *data) == 0
    checkpoints = bench.folder / "logs/a/checkpoints"
    for path in [*checkpoints.glob("step_[23]0"), *checkpoints.glob("*_[23].pt")]:
        path.rename(bench.folder / path.name)
    assert main_here("a", *data, "--resume", str(checkpoints / "step_10")) == 0
    lines = [json.loads(line) for line in (checkpoints / "results.jsonl").read_text().splitlines()]
    assert [one[0]["step"] for one in lines] == [10, 20, 30]
