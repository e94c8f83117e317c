"""Metrics over a resume: no step twice, in metrics.jsonl, TensorBoard and W&B; and the start of the log."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_lm.params import LogParams
from open_lm.train.run_folder import RunFolder
from open_lm.train.sinks import JsonLines, Wandb

Main = Callable[..., int]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a tag as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize("step", [None, 10])
def test_tensorboard_and_metrics_go_on_without_a_step_twice(bench: Any, main_here: Main, step: int | None) -> None:
    """Stopped after step 30, resumed from 10, or (None) before there was a state."""
    assert main_here("a", "--report-to", "tensorboard") == 0
    whole = scalars(bench.folder / "logs/a/tensorboard", "train/loss")
    assert [number for number, _ in whole] == list(range(1, 31))
    bench.copy_at("a", "b", step or 0)
    assert main_here("b", "--report-to", "tensorboard", "--resume", "latest") == 0
    folder = bench.folder / "logs/b/tensorboard"
    assert len(list(folder.iterdir())) == 2
    assert scalars(folder, "train/loss") == whole
    assert [value for _, value in scalars(folder, "train/tokens")] == [8 * 32 * n for n in range(1, 31)]
    assert bench.metrics("b", "step") == list(range(1, 31)) and bench.metrics("b") == bench.metrics("a")


def test_a_half_line_and_later_steps_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"a": 1}\n[]\n3\n{"step": "x"}\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLines(path, 2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_loss_of_a_log_step_is_that_step_s_and_counts_once(bench: Any, main_here: Main) -> None:
    """compat.md 6 (26)."""
    assert main_here("each") == 0
    assert main_here("fifth", "--log-every-n-steps", "5") == 0
    assert bench.metrics("fifth") == bench.metrics("each")[4::5]
    assert bench.metrics("fifth", "tokens") == [8 * 32 * n for n in range(5, 31, 5)]
    assert bench.metrics("fifth", "targets") == [5 * 8 * 32] * 6


def test_targets_are_the_positions_that_are_not_masked(bench: Any, main_here: Main) -> None:
    assert main_here("all", "--epochs", "1") == 0
    assert main_here("a", "--epochs", "1", "--target-mask-individual", "5", "--log-every-n-steps", "5") == 0
    assert bench.metrics("a", "tokens") == [5 * 8 * 32, 10 * 8 * 32]
    assert all(0 < count < 5 * 8 * 32 for count in bench.metrics("a", "targets"))


def test_the_start_of_the_log_says_what_runs(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1", "--peak-tflops", "0.5") == 0
    log = bench.log("a")
    width, vocab, ffn = 32, 64, 256
    n = 2 * (4 * width**2 + 3 * width * ffn + 4 * width) + vocab * width + 2 * width
    assert f"tiny.json: {n + vocab * width:,} parameters\n" in log
    flops = 6 * n + 12 * 2 * 32 * 32
    assert f"Of them {n:,} without the input embedding (N); {flops:,} FLOPs per token" in log
    assert "Peak of the arithmetic: 0.5 TFLOP/s a device (--peak-tflops)" in log
    assert "1 process on cpu, open_lm 0." in log and ", torch 2." in log and "MFU: " in log
    for mfu, speed in zip(bench.metrics("a", "mfu"), bench.metrics("a", "tokens_per_second"), strict=True):
        assert mfu == pytest.approx(speed * flops / 0.5e12)


def test_without_a_peak_there_is_no_mfu(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1") == 0
    assert "unknown, so no mfu; give --peak-tflops" in bench.log("a")
    assert "mfu" not in (bench.folder / "logs/a/metrics.jsonl").read_text()


def test_validation_sets_are_told_apart(bench: Any, main_here: Main) -> None:
    shards = [str(bench.folder / f"shards/shard-000000{n}.tar") for n in (0, 1)]
    assert main_here("one", "--epochs", "1", "--report-to", "tensorboard", "--val-data", shards[0]) == 0
    assert main_here("two", "--epochs", "1", "--report-to", "tensorboard", "--val-data", *shards) == 0
    one = scalars(bench.folder / "logs/one/tensorboard", "valid/loss")
    assert [step for step, _ in one] == [10]
    two = [scalars(bench.folder / "logs/two/tensorboard", f"valid/shard-000000{n}/loss") for n in (0, 1)]
    assert two[0] == one and two[1] != one


class FakeWandb(types.ModuleType):
    """W&B's part that is used: keeps what was logged by id, as its server does."""

    class errors:
        class Error(Exception): ...

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, dict[int, dict[str, float]]] = {}

    def init(self, **about: Any) -> Any:
        assert about["resume"] == "allow"
        resumed = about["id"] in self.runs
        kept = self.runs.setdefault(about["id"], {})
        step = max(kept, default=-1) + 1

        def log(values: dict[str, float], step: int) -> None:
            assert step >= max(kept, default=0), "W&B refuses steps that go back"
            kept.setdefault(step, {}).update(values)

        return types.SimpleNamespace(resumed=resumed, step=step, log=log, finish=lambda: None)


def test_wandb_goes_on_with_the_same_run_and_no_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    folder = RunFolder(tmp_path, "r")
    first = Wandb(LogParams(), folder, {}, 0)
    for step in (10, 20, 30):
        first.write({"step": step, "loss": step / 10}, step, "train")
    first.write({"loss": 5.0}, 30, "valid")
    first.close()
    again = Wandb(LogParams(), folder, {}, 20)
    for step in (30, 40):
        again.write({"step": step, "loss": 7.0}, step, "train")
    assert list(fake.runs.values()) == [
        {10: {"train/loss": 1.0}, 20: {"train/loss": 2.0}, 30: {"train/loss": 3.0, "valid/loss": 5.0}, 40: {"train/loss": 7.0}}
    ]
    (tmp_path / "other").mkdir()
    Wandb(LogParams(), RunFolder(tmp_path / "other", "other"), {}, 0)
    assert len(fake.runs) == 2


@pytest.mark.slow
def test_wandb_offline_keeps_its_id_over_a_resume(bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main_here("a", "--epochs", "1", "--report-to", "wandb") == 0
    assert main_here("a", "--epochs", "2", "--report-to", "wandb", "--resume", "latest") == 0
    one = (bench.folder / "logs/a/wandb_id.txt").read_text().strip()
    names = [p.name for p in (bench.folder / "logs/a/wandb").glob("offline-run-*")]
    assert names and all(name.endswith(f"-{one}") for name in names)
    assert bench.metrics("a", "step") == list(range(1, 21))
