"""Run states straight to and from an S3 store, which fails, resets, stalls and cuts short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from open_lm import storage
from open_lm.checkpoint import state_folder
from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, newest_run_state, read_run_state
from open_lm.checkpoint.state_folder import remove_leftovers, remove_run_state, run_states
from open_lm.checkpoint.state_writer import SaveError, StateWriter, save_run_state

if TYPE_CHECKING:
    from remote.proxy import FaultyProxy
    from remote.server import Bucket


def state(step: int) -> RunState:
    return RunState(step, step * 8, step * 64, 8, {"seed": 0}, {}, {})


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {f"model.{i}": torch.full((100, 10), float(value + i)) for i in range(5)}


def assert_reads(url: str, value: float) -> None:
    again = tensors(0)
    load_tensors(url, again)
    assert all(torch.equal(again[name], expected) for name, expected in tensors(value).items())


def test_a_url_is_a_folder(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_folder._RemoteState, "part_bytes", 10_000)  # two tensors each
    for step in (9, 10):
        save_run_state(s3.url("run"), tensors(step), state(step))
    assert len([key for key in sorted(s3.keys()) if key.startswith("run/step_10/0_")]) == 3
    assert s3.get("run/latest") == b"step_10\n"
    assert run_states(s3.url("run")) == [s3.url("run/step_10"), s3.url("run/step_9")]
    assert newest_run_state(s3.url("run")) == (s3.url("run/step_10"), state(10))
    assert_reads(s3.url("run/step_10"), 10)
    remove_run_state(s3.url("run/step_10"))
    assert not [key for key in sorted(s3.keys()) if "step_10/" in key]


def test_faults_that_pass_are_survived_in_saving_and_loading(faults: FaultyProxy, s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLM_STORAGE_TIMEOUT", "0.5")
    for what in (500, "reset", "stall", "lost", "damage"):
        faults.add(what, method="PUT", seconds=1.0)
        faults.add(what, method="PUT", path="state.json", seconds=1.0)
    url = save_run_state(s3.url("run"), tensors(4), state(4))
    assert sum(fault.times for fault in faults.plan) == 0
    for what in (500, "reset", "stall", "truncate"):
        faults.add(what, method="GET", path="distcp", seconds=1.0)
    assert newest_run_state(s3.url("run")) == (url, state(4))
    assert_reads(url, 4)
    assert sum(fault.times for fault in faults.plan) == 0


def test_a_store_that_stays_away_fails_the_save_and_the_one_before_stands(faults: FaultyProxy, s3: Bucket) -> None:
    writer = StateWriter(s3.url("run"), asynchronous=True)
    writer.save(tensors(1), state(1))
    writer.wait()
    for path in ("step_2/0_0", "step_3/state.json"):
        faults.clear()
        faults.add(503, times=1000, method="PUT", path=path)
        with pytest.raises(SaveError, match="not saved.*gave up after 4 attempts"):
            StateWriter(s3.url("run")).save(tensors(2), state(int(path[5])))
    faults.clear()
    assert newest_run_state(s3.url("run")) == (s3.url("run/step_1"), state(1))
    assert not [key for key in sorted(s3.keys()) if key.endswith("distcp") and "step_1/" not in key]


def test_a_state_that_is_cut_damaged_or_unfinished_is_not_taken(s3: Bucket, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_run_state(s3.url("run"), tensors(step), state(step))
    key = next(key for key in sorted(s3.keys()) if key.startswith("run/step_4/0_0"))
    s3.client.delete_object(Bucket=s3.name, Key="run/step_4/state.json")  # killed before its end
    short = next(key for key in sorted(s3.keys()) if key.startswith("run/step_3/0_0"))
    s3.put(short, s3.get(short)[:-10])
    changed = next(key for key in sorted(s3.keys()) if key.startswith("run/step_2/0_0"))
    data = s3.get(changed)
    place = data.index(tensors(2)["model.3"].numpy().tobytes())
    s3.put(changed, data[:place] + b"\xff" + data[place + 1 :])
    with pytest.raises(ValueError, match="no whole run state"):
        read_run_state(s3.url("run/step_4"))
    found = newest_run_state(s3.url("run"))
    assert found is not None and found[0] == s3.url("run/step_2")  # by sizes; the byte is noticed when it is read
    with pytest.raises(ValueError, match="is not as it was written"):
        load_tensors(found[0], tensors(0))
    remove_leftovers(s3.url("run"))
    assert key not in sorted(s3.keys()) and short in sorted(s3.keys())


def test_a_step_that_is_saved_again_replaces_the_old_one(s3: Bucket) -> None:
    for value in (1.0, 2.0):
        url = save_run_state(s3.url("run"), tensors(value), state(5))
    assert_reads(url, 2)
    assert len([key for key in sorted(s3.keys()) if key.endswith(".distcp")]) == 1


def test_any_file_system_of_fsspec_will_do() -> None:
    url = save_run_state("memory://states/run", tensors(7), state(7))
    assert newest_run_state("memory://states/run") == (url, state(7))
    assert_reads(url, 7)
    remove_run_state(url)
    assert newest_run_state("memory://states/run") is None


def test_a_foreign_file_in_a_run_state_is_never_removed(tmp_path: Path, s3: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (str(tmp_path / "run"), s3.url("run")):
        url = save_run_state(folder, tensors(1), state(5))
        mine = storage.join(url, "mine.txt")
        storage.write_bytes(mine, b"mine")
        save_run_state(folder, tensors(2), state(5))  # the same step again
        assert_reads(url, 2)
        before = [stored.url for stored in storage.list_files(url + "/")]
        assert remove_run_state(url) == ["mine.txt"]
        assert [stored.url for stored in storage.list_files(url + "/")] == before and mine in before
        storage.write_bytes(storage.join(folder, "latest"), b"my latest thoughts") if storage.is_remote(folder) else None
    assert s3.get("run/latest") == b"my latest thoughts"
    save_run_state(s3.url("run"), tensors(3), state(6))
    assert s3.get("run/latest") == b"my latest thoughts" and "latest: is not what a run makes, and stays" in caplog.text
    latest, left = tmp_path / "run/latest", tmp_path / "run/.step_6.ab.tmp"
    latest.unlink()
    latest.write_text("mine")
    left.mkdir()
    for name in ("0_0-ab.distcp", "mine.txt"):
        (left / name).touch()
    (tmp_path / "run/.step_notes.tmp").touch()
    save_run_state(str(tmp_path / "run"), tensors(3), state(7))
    remove_leftovers(str(tmp_path / "run"))
    assert latest.read_text() == "mine" and (left / "mine.txt").exists() and (tmp_path / "run/.step_notes.tmp").exists()
    (tmp_path / "run/step_8").write_text("mine")
    with pytest.raises(SaveError, match="step_8: is not what a run makes; move it away"):
        save_run_state(str(tmp_path / "run"), tensors(3), state(8))
    assert (tmp_path / "run/step_8").read_text() == "mine"
