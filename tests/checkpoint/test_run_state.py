"""Run states: whole or passed over, never unpickled."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, newest_run_state, read_run_state, state_tensors
from open_lm.checkpoint.state_folder import run_states
from open_lm.checkpoint.state_writer import save_run_state
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params import OptimizerParams
from open_lm.train.optimizer import make_optimizer


def made(hidden: int = 16) -> dict[str, torch.Tensor]:
    model = Transformer(ModelConfig(hidden, 1, 2, seq_len=8, vocab_size=20))
    model.init_weights()
    return state_tensors(model, make_optimizer(model, OptimizerParams()))


def state(step: int) -> RunState:
    return RunState(step, step * 8, step * 64, 8, {"seed": 0}, {}, {"lr": 0.1})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tensors = made()
    for value in tensors.values():
        value.uniform_()
    path = Path(save_run_state(tmp_path, tensors, state(3)))
    again = made()
    load_tensors(path, again)
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert newest_run_state(tmp_path) == (str(path), state(3))
    assert (tmp_path / "latest").resolve() == Path(path)


def test_the_newest_is_by_number_and_half_written_ones_do_not_count(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        save_run_state(tmp_path, made(), state(step))
    (tmp_path / ".step_11.0.tmp").mkdir()
    assert [Path(p).name for p in run_states(tmp_path)] == ["step_10", "step_9", "step_2"]


def test_another_model_is_told(tmp_path: Path) -> None:
    path = Path(save_run_state(tmp_path, made(), state(1)))
    with pytest.raises(ValueError, match="belongs to another model.*check --model"):
        load_tensors(path, made(hidden=32))


@pytest.mark.parametrize("name", ["state.json", ".metadata", "__0_0-0.distcp"])
def test_a_git_lfs_pointer_in_a_run_state_is_named(tmp_path: Path, name: str) -> None:
    path = Path(save_run_state(tmp_path, made(), state(1)))
    target = path / name if name != "__0_0-0.distcp" else next(path.glob("*.distcp"))
    target.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(ValueError, match=rf"checkpoint {path}: {target.name} is .*a Git LFS pointer; fetch the file itself"):
        read_run_state(path)
    with pytest.raises(ValueError, match="Git LFS pointer|is not as it was written"):
        load_tensors(path, made())


def test_a_damaged_entry_is_told_without_torchs_advice(tmp_path: Path) -> None:
    """Run states of version 0.2 have no checksums of entries."""
    path = Path(save_run_state(tmp_path, made(), state(1)))
    about = json.loads((path / "state.json").read_text())
    for file in about["files"].values():
        file.pop("crc32", None)
    (path / "state.json").write_text(json.dumps(about))
    part = next(path.glob("*.distcp"))
    part.write_bytes(b"version https://git-lfs".ljust(part.stat().st_size, b"x"))
    with pytest.raises(ValueError, match=f"checkpoint {part}: is not as it was written; resume from an earlier step$"):
        load_tensors(path, made())


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_a_crafted_metadata_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(save_run_state(tmp_path, made(), state(1)))
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="has no place there"):
        load_tensors(path, made())
    assert not Path("pwned").exists()


def test_byte_entries_and_paths_outside_are_refused(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    path = Path(save_run_state(tmp_path, made(), state(1)))
    dcp.save({"evil": Attack(), "a": torch.zeros(1)}, checkpoint_id=tmp_path / "bytes", no_dist=True)
    good = (path / ".metadata").read_bytes()
    (path / ".metadata").write_bytes((tmp_path / "bytes/.metadata").read_bytes())
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        load_tensors(path, made())
    metadata = pickle.load(io.BytesIO(good))
    index = next(iter(metadata.storage_data))
    metadata.storage_data[index].relative_path = "../../secret"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="points outside its folder"):
        load_tensors(path, made())
