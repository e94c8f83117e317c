"""Saves beside training: what was there at the moment of the save is what is read, whole, or an error is told."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from open_lm.checkpoint import state_folder, state_writer
from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, newest_run_state
from open_lm.checkpoint.staging import Staging
from open_lm.checkpoint.state_folder import remove_leftovers, run_states
from open_lm.checkpoint.state_writer import SaveError, StateWriter, save_run_state


def state(step: int) -> RunState:
    return RunState(step, step * 8, step * 64, 8, {"seed": 0}, {}, {})


def tensors(value: float) -> dict[str, torch.Tensor]:
    made = {"model.a": torch.full((3, 50), float(value)), "model.b": torch.full((7,), float(value), dtype=torch.bfloat16)}
    return {**made, "optimizer.a.step": torch.tensor(float(value)), "model.empty": torch.zeros(0, 4)}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Parts end when it is set."""
    opened, part = threading.Event(), state_folder._LocalState.part

    @contextlib.contextmanager
    def slow(self: Any, name: str, size: int = 0) -> Iterator[IO[bytes]]:
        with part(self, name, size) as file:
            yield file
            opened.wait(20)

    monkeypatch.setattr(state_folder._LocalState, "part", slow)
    yield opened
    opened.set()


def test_training_may_go_on_at_once(tmp_path: Path, gate: threading.Event) -> None:
    writer, held = StateWriter(str(tmp_path), asynchronous=True), tensors(1.0)
    for step in (1, 2):
        gate.set()
        writer.wait()
        gate.clear()
        writer.save(held, state(step))
        for value in held.values():
            value += 1
        assert len(run_states(tmp_path)) == step - 1  # it is not there before it is whole
    gate.set()
    writer.wait()
    for number, url in enumerate(reversed(run_states(tmp_path)), 1):
        again = tensors(0.0)
        load_tensors(url, again)
        expected = tensors(float(number))
        assert all(torch.equal(again[name], expected[name]) for name in again)
    assert (tmp_path / "latest").resolve().name == "step_2"


def test_one_save_at_a_time(tmp_path: Path, gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    writer = StateWriter(str(tmp_path), asynchronous=True)
    writer.save(tensors(1), state(1))
    threading.Timer(0.2, gate.set).start()
    writer.save(tensors(2), state(2))
    assert [Path(p).name for p in run_states(tmp_path)][-1] == "step_1"
    writer.wait()
    waits = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Waiting for ")]
    assert waits[0] == f"Waiting for {tmp_path}/step_1 to be whole"
    assert waits[1:] in ([], [f"Waiting for {tmp_path}/step_2 to be whole"])


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    writer = StateWriter(str(tmp_path), asynchronous)
    writer.save(tensors(1), state(1))
    writer.wait()
    assert writer.error is None

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SaveError, match="step_2: not saved: process 0: .*No space left on device"):
        writer.save(tensors(2), state(2))
        writer.wait()
    assert "No space left" in (writer.error or "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_1"]
    with pytest.raises(SaveError):
        writer.save(tensors(3), state(3))


@pytest.mark.parametrize("fits", [100, 600, 1500])
def test_a_disk_that_fills_up_anywhere_in_a_part_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    write = state_writer._Summed.write

    def limited(self: state_writer._Summed, data: Any) -> int:
        if self.bytes + len(data) > fits:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(state_writer._Summed, "write", limited)
    with pytest.raises(SaveError, match="step_1: not saved: process 0: .*No space left on device"):
        StateWriter(str(tmp_path), asynchronous=False).save(tensors(1), state(1))


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        url = save_run_state(str(tmp_path), tensors(value), state(5))
    again = tensors(0)
    load_tensors(url, again)
    assert torch.equal(again["model.a"], tensors(2)["model.a"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_5"]


def test_what_killed_saves_left_is_removed(tmp_path: Path) -> None:
    save_run_state(str(tmp_path), tensors(1), state(5))
    (tmp_path / ".step_6.0a1b2c3d.tmp").mkdir()
    (tmp_path / ".step_6.0a1b2c3d.tmp/0_0-0a1b2c3d.distcp").touch()
    (tmp_path / ".step_6.0a1b2c3d.latest.tmp").symlink_to("step_6")
    remove_leftovers(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_5"]


def test_torch_reads_what_we_write(tmp_path: Path) -> None:
    url = save_run_state(str(tmp_path), tensors(3), state(1))
    again = tensors(0)
    dcp.load(again, checkpoint_id=url, no_dist=True)
    assert all(torch.equal(again[name], value) for name, value in tensors(3).items())


def damaged(url: str, change: Callable[[bytes], bytes]) -> None:
    """Another first entry, with sums that fit, as one who means harm would write it."""
    part = next(Path(url).glob("*.distcp"))
    about = json.loads((Path(url) / "state.json").read_text())
    data = change(part.read_bytes())
    part.write_bytes(data)
    about["files"][part.name].pop("crc32")
    (Path(url) / "state.json").write_text(json.dumps(about))


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_crafted_shards_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = save_run_state(str(tmp_path), {"model.a": torch.zeros(5000)}, state(1))
    crafted = io.BytesIO()
    torch.save(Attack(), crafted)
    damaged(url, lambda data: crafted.getvalue())
    metadata = Path(url) / ".metadata"
    length = len(crafted.getvalue())
    import pickle

    content = pickle.loads(metadata.read_bytes())
    next(iter(content.storage_data.values())).length = length
    metadata.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="is not as it was written"):
        load_tensors(url, {"model.a": torch.zeros(5000)})
    assert not Path("pwned").exists()


def test_a_changed_byte_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    url = save_run_state(str(tmp_path), tensors(1), state(1))
    part = next(Path(url).glob("*.distcp"))
    data = bytearray(part.read_bytes())
    place = data.index(torch.full((3, 50), 1.0).numpy().tobytes())
    data[place] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match="is not as it was written; resume from an earlier step"):
        load_tensors(url, tensors(0))


def test_the_sums_are_those_of_the_entries(tmp_path: Path) -> None:
    url = save_run_state(str(tmp_path), {"model.a": torch.zeros(5000)}, state(1))
    about = json.loads((Path(url) / "state.json").read_text())["files"]
    name, entry = next((name, entry) for name, entry in about.items() if name.endswith(".distcp"))
    assert entry["crc32"] == f"{zlib.crc32((Path(url) / name).read_bytes()):08x}"
    assert newest_run_state(tmp_path) == (url, state(1))


def test_the_buffer_is_made_once_and_copies_are_of_their_own_size() -> None:
    staging = Staging()
    first = staging.copy([torch.ones(3, 5), torch.ones(1000)[::2], torch.zeros(0, 2)])
    second = staging.copy([torch.zeros(3, 5)])
    assert second[0].data_ptr() == first[0].data_ptr()
    assert [copy.untyped_storage().nbytes() for copy in first] == [60, 2000, 0]
    assert torch.equal(first[1], torch.ones(500))
    assert not torch.any(first[0])
