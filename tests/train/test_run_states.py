"""When run states are saved, which of them stay, and where they lie, seen from a run of one process."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_lm.params import UserError, parse_params
from open_lm.train.saving import SavePlan

if TYPE_CHECKING:
    from remote.server import Bucket

Main = Callable[..., int]


def steps(bench: Any, name: str) -> list[int]:
    return sorted(int(path.name[5:]) for path in (bench.folder / f"logs/{name}/checkpoints").glob("step_*"))


def plan(keep_last: int, keep_every: int) -> SavePlan:
    return SavePlan(1, 1, False, False, 3, keep_last=keep_last, keep_every=keep_every)


@given(st.sets(st.integers(1, 60)), st.integers(1, 60), st.integers(0, 4), st.integers(0, 10))
def test_the_last_stay_and_the_multiples_and_always_the_newest(there: set[int], newest: int, last: int, every: int) -> None:
    there = there | {newest}
    stays = there - set(plan(last, every).superseded(there, newest))
    assert newest in stays
    assert {s for s in there if every and s % every == 0} <= stays
    before = sorted(s for s in stays if s < newest and not (every and s % every == 0))
    if last:
        assert len(before) <= last - 1
        assert set(sorted(s for s in there if s < newest)[::-1][: last - 1]) <= stays
    else:
        assert stays == there


def test_keep_last_and_keep_every(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-every-steps", "4", "--keep-last", "2", "--keep-every", "12") == 0
    assert steps(bench, "a") == [12, 24, 28, 30]
    assert (bench.folder / "logs/a/checkpoints/latest").resolve().name == "step_30"


def test_the_clock_saves_too(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-every-minutes", "1e-6", "--save-frequency", "0") == 0
    assert len(steps(bench, "a")) >= 10
    assert main_here("b", "--save-every-minutes", "60", "--save-frequency", "0") == 0
    assert steps(bench, "b") == [30]


def test_most_recent_run_states_go_when_the_next_is_whole(bench: Any, main_here: Main) -> None:
    """compat.md 6 (18)."""
    assert main_here("a", "--save-frequency", "2", "--save-most-recent") == 0
    assert steps(bench, "a") == [20, 30]


def test_saving_before_training_goes_on_gives_the_same_run(bench: Any, main_here: Main) -> None:
    for name, flags in (("async", ()), ("sync", ("--sync-save",))):
        assert main_here(name, "--save-every-steps", "3", *flags) == 0
        bench.copy_at(name, f"{name}-again", 9)
        assert main_here(f"{name}-again", "--resume", "latest", *flags) == 0
    whole = bench.weights("async")
    for name in ("sync", "async-again", "sync-again"):
        assert all(torch.equal(whole[key], value) for key, value in bench.weights(name).items())


def test_a_save_that_fails_ends_the_run_and_the_one_before_stands(
    bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """compat.md 6 (13): --delete-previous-checkpoint deletes nothing for a save that fails."""
    from open_lm.checkpoint import state_folder

    publish = state_folder._LocalState.publish

    def full(self: Any, *data: bytes) -> None:
        if self.url.endswith("step_12"):
            raise OSError(28, "No space left on device")
        publish(self, *data)

    monkeypatch.setattr(state_folder._LocalState, "publish", full)
    assert main_here("a", "--save-every-steps", "3", "--delete-previous-checkpoint") == 1
    [told] = capsys.readouterr().err.splitlines()
    assert re.search(r"step_12: not saved: .*No space left on device", told) and "step_12: not saved" in bench.log("a")
    assert steps(bench, "a") in ([9], [10])
    monkeypatch.undo()
    assert main_here("a", "--resume", "latest") == 0


def test_run_states_go_to_a_url_and_a_run_continues_from_there_alone(
    bench: Any, main_here: Main, s3: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ("--checkpoint-dir", s3.url("runs/a"), "--save-every-steps", "7", "--keep-last", "2")
    assert main_here("whole") == 0
    assert main_here("a", *there) == 0
    assert {key.split("/")[2] for key in sorted(s3.keys())} == {"latest", "step_28", "step_30"}
    assert steps(bench, "a") == []
    for key in sorted(s3.keys()):
        if "step_30" in key:
            s3.client.delete_object(Bucket=s3.name, Key=key)
    shutil.rmtree(bench.folder / "logs/a")  # an empty machine
    assert main_here("a", *there) == 2
    assert "holds run states; give --resume latest" in capsys.readouterr().err
    assert main_here("a", *there, "--resume", "latest") == 0
    assert f"Resumed from {s3.url('runs/a/step_28')}: step 28" in bench.log("a")
    assert main_here("b", "--resume", s3.url("runs/a/step_28")) == 0
    whole = bench.weights("whole")
    for name in ("a", "b"):
        assert all(torch.equal(whole[key], value) for key, value in bench.weights(name).items())


def test_a_checkpoint_url_that_is_not_there_is_told_before_training(
    bench: Any, main_here: Main, s3: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a", "--checkpoint-dir", "s3://no-such-bucket-here/a", "--resume", "latest") == 2
    assert "no such bucket" in capsys.readouterr().err


def test_what_contradicts_itself_is_refused() -> None:
    for flags in (
        ("--keep-last", "2", "--delete-previous-checkpoint"),
        ("--keep-every", "5"),
        ("--keep-last", "-1"),
        ("--checkpoint-dir", "https://x/y"),
    ):
        with pytest.raises(UserError, match=flags[0]):
            parse_params(["--train-data", "x", *flags])


def test_what_killed_saves_left_goes_at_the_next_start(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    left = bench.folder / "logs/a/checkpoints/.step_31.01234567.tmp"
    left.mkdir()
    assert main_here("a", "--resume", "latest", "--epochs", "4", "--multiple-data-passes") == 0
    assert not left.exists()
