"""Endings, bad steps and long schedules in one process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from open_lm.train import outliers
from open_lm.train.skipped import SkippedSteps
from open_lm.train.step import Step

Main = Callable[..., int]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, Any], Any]], None]:
    """Have a function change the loss sums of each step's forward pass, by the number of the step in this process, from 1."""

    def arrange(change: Callable[[int, Any], Any]) -> None:
        plain, count = Step._forward, 0

        def forward(self: Step, part: Any) -> Any:
            nonlocal count
            count += 1
            return change(count, plain(self, part))

        monkeypatch.setattr(Step, "_forward", forward)

    return arrange


def scaled(sums: Any, factor: float) -> Any:
    return sums._replace(total=sums.total * factor)


def same_end(bench: Any, a: str, b: str) -> bool:
    first, second = bench.weights(a), bench.weights(b)
    return bench.metrics(a) == bench.metrics(b) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_the_state_at_a_step_and_says_what_to_type(
    bench: Any, main_here: Main, at_step: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert main_here("whole") == 0
    at_step(lambda step, sums: (os.kill(os.getpid(), number) if step == 12 else None, sums)[1])
    handler = signal.getsignal(number)
    assert main_here("a") == 3
    assert signal.getsignal(number) is handler
    last = bench.log("a").splitlines()[-1]
    assert f"({number.name}), state saved. To go on: " in last
    assert last.endswith("--resume latest")
    told = json.loads((bench.folder / "logs/a/ending.json").read_text())
    assert (told["why"], told["exit_code"], told["state_saved"]) == (number.name, 3, True)
    assert (bench.folder / "logs/a/checkpoints/latest").resolve().name == f"step_{told['step']}"
    assert 13 <= told["step"] <= 15
    assert main_here("a", "--resume", "latest") == 0
    assert same_end(bench, "a", "whole")
    assert json.loads((bench.folder / "logs/a/ending.json").read_text())["why"] == "finished"


def test_the_time_limit_saves_and_ends(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--time-limit", "0:00:00") == 4
    assert "Ended at step 2 (time limit), state saved" in bench.log("a")
    assert main_here("a", "--time-limit", "100", "--resume", "latest") == 0
    assert len(bench.metrics("a")) == 30


def test_steps_that_are_not_finite_end_the_run_and_save_nothing(bench: Any, main_here: Main, at_step: Any) -> None:
    """compat.md 6 (20): no step is made with them; the last checkpoint stands."""
    at_step(lambda step, sums: scaled(sums, float("nan")) if step > 12 else sums)
    assert main_here("a", "--max-nonfinite-steps", "4") == 5
    assert {p.name for p in (bench.folder / "logs/a/checkpoints").glob("step_*")} == {"step_10"}
    assert "Ended at step 17" in bench.log("a")
    assert "nothing saved" in bench.log("a").splitlines()[-1]
    lines = [json.loads(line) for line in (bench.folder / "logs/a/skipped_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [13, 14, 15, 16, 17]
    assert lines[0] == {"step": 13, "why": "not finite", "loss": "nan", "grad_norm": "nan", "first_row": 96, "stop_row": 104}


def test_a_bad_step_now_and_then_ends_nothing_and_is_forgotten_when_it_is_made_again(bench: Any, main_here: Main, at_step: Any) -> None:
    at_step(lambda step, sums: scaled(sums, float("inf")) if step in (13, 14, 22) else sums)
    assert main_here("a", "--max-nonfinite-steps", "3", "--log-every-n-steps", "7") == 0
    path = bench.folder / "logs/a/skipped_steps.jsonl"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [13, 14, 22]
    bench.copy_at("a", "again", 20)
    assert main_here("again", "--resume", "latest") == 0
    kept = (bench.folder / "logs/again/skipped_steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [13, 14]


def test_a_spike_updates_nothing_and_a_resumed_run_judges_alike(
    bench: Any, main_here: Main, at_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "WINDOW", 8)
    flags = ("--skip-spikes", "3", "--save-every-steps", "1", "--warmup", "0", "--lr", "1e-4")
    at_step(lambda step, sums: scaled(sums, 50.0) if step in (18, 20, 30 + 2, 30 + 4) else sums)
    assert main_here("a", *flags) == 0
    path = "skipped_steps.jsonl"
    lines = [json.loads(line) for line in (bench.folder / "logs/a" / path).read_text().splitlines()]
    assert {18, 20} <= {line["step"] for line in lines}
    assert all(line["why"] == "spike" for line in lines)
    before, after = ({n: t for n, t in state(bench, "a", step).items() if n.startswith("model.")} for step in (17, 18))
    assert all(torch.equal(before[name], after[name]) for name in before)
    bench.copy_at("a", "again", 16)
    assert main_here("again", *flags, "--resume", "latest") == 0
    assert same_end(bench, "again", "a")
    assert (bench.folder / "logs/again" / path).read_text() == (bench.folder / "logs/a" / path).read_text()


def state(bench: Any, name: str, step: int) -> dict[str, torch.Tensor]:
    """The model's tensors in a run state."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = FileSystemReader(bench.folder / f"logs/{name}/checkpoints/step_{step}")
    found = {n: torch.empty(m.size, dtype=m.properties.dtype) for n, m in reader.read_metadata().state_dict_metadata.items()}
    load(found, storage_reader=reader, no_dist=True)
    return found


def test_an_error_is_told_before_anything_is_closed(bench: Any, main_here: Main, at_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[str] = []

    def fail(step: int, sums: Any) -> Any:
        if step == 3:
            raise RuntimeError("a fault of this step")
        return sums

    monkeypatch.setattr(SkippedSteps, "close", lambda self: logs.append(bench.log("a")))
    at_step(fail)
    with pytest.raises(RuntimeError):
        main_here("a")
    assert "process 0 stopped in or after step 3: a fault of this step" in logs[0]
    assert bench.log("a").count("a fault of this step") == logs[0].count("a fault of this step")


def test_an_error_stands_once_on_the_screen_and_once_in_the_log(
    bench: Any, main_here: Main, at_step: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(step: int, sums: Any) -> Any:
        if step == 3:
            raise ValueError("a fault of the data")
        return sums

    at_step(fail)
    assert main_here("a") == 1
    assert "".join(capfd.readouterr()).count("a fault of the data") == bench.log("a").count("a fault of the data") == 1


def test_with_the_trainer_state_the_measure_of_spikes_is_reset_too(bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = outliers.Outliers.judge
    monkeypatch.setattr(outliers.Outliers, "judge", lambda self, *args: (seen.append(int(self.seen)), plain(self, *args))[1])
    assert main_here("a", "--skip-spikes", "6", "--epochs", "1") == 0
    state = str(bench.folder / "logs/a/checkpoints/step_10")
    assert main_here("b", "--skip-spikes", "6", "--epochs", "1", "--resume", state, "--reset-trainer-state") == 0
    assert seen == [*range(10), *range(10)]


def test_a_finished_constant_run_is_extended_by_more_epochs(bench: Any, main_here: Main) -> None:
    flags = ("--lr-scheduler", "const", "--multiple-data-passes")
    assert main_here("long", *flags, "--epochs", "5") == 0
    assert main_here("a", *flags, "--epochs", "3") == 0
    assert main_here("a", *flags, "--epochs", "5", "--resume", "latest") == 0
    assert bench.metrics("a") == bench.metrics("long")
    assert "before the resume the run had planned" not in bench.log("a")


def test_a_cooldown_branches_from_any_checkpoint_of_a_constant_run(bench: Any, main_here: Main) -> None:
    flags = ("--lr-scheduler", "const", "--save-every-steps", "5")
    assert main_here("trunk", *flags) == 0
    step = bench.folder / "logs/trunk/checkpoints/step_15"
    cooldown = ("--lr-scheduler", "const-cooldown", "--epochs", "2", "--lr-cooldown-power", "2", "--resume", str(step))
    assert main_here("branch", *cooldown, "--epochs-cooldown", "0.5") == 0
    assert bench.metrics("branch", "step") == [16, 17, 18, 19, 20]
    assert bench.metrics("branch", "lr") == pytest.approx([1e-2 * (1 - i / 5) ** 2 for i in range(5)])
    assert bench.metrics("branch")[0] == bench.metrics("trunk")[15]
    assert "before the resume the run had planned" not in bench.log("branch")
    assert main_here("jump", *cooldown, "--epochs-cooldown", "1") == 0
    assert (
        "--epochs-cooldown was None, is 1.0. The learning rate of step 16 is 0.0025; before the resume the run had planned 0.01"
        in bench.log("jump")
    )


def test_a_dry_run_tells_the_plan_and_writes_nothing(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--dry-run", "--save-every-steps", "8", "--lr-scheduler", "const-cooldown", "--epochs-cooldown", "1")
    before = sorted(bench.folder.rglob("*"))
    assert main_here("a", *flags, "--preset-world-size", "4") == 0
    assert sorted(bench.folder.rglob("*")) == before
    page = capsys.readouterr().out
    for words in (
        "4 processes",
        "30 steps, 7,680 tokens (256 a step)",
        "Epochs end after steps 10, 20, 30",
        "Run states: 6, after steps 8, 10, 16, 20, 24, 30",
        "1, 2, 4, 8 processes",
        "0.01 |",
        "█",
    ):
        assert words in page
    passing = ("--dry-run", "--save-most-recent", "--save-frequency", "0", "--save-every-steps", "8", "--save-every-minutes", "5")
    assert main_here("a", *passing, "--save-openlm-optimizer", "--preset-world-size", "4") == 0
    more = capsys.readouterr().out
    assert "after steps 8, 10, 16, 20, 24, 30, and whenever 5 minutes have passed since the last" in more
    assert "4 of these stay" in more  # 10 and 20 go
    assert size_of(more) == pytest.approx(3 * size_of(page), rel=0.01)
    assert main_here("a") == 0
    assert main_here("a", "--dry-run") == 2
    assert "exists; use another name" in capsys.readouterr().err
    assert main_here("a", "--dry-run", "--resume", "latest") == 0
    assert "The run is finished (30 steps)" in capsys.readouterr().out


def test_a_dry_run_prints_every_warning_of_the_run(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a", "--averagers", "ema_0.9_1") == 0
    newest = bench.folder / "logs/a/checkpoints/step_30/state.json"
    newest.write_text("{")
    flags = ("--trace", "--warmup", "40", "--wd", "0.1", "--resume", "latest")
    capsys.readouterr()
    assert main_here("a", *flags, "--dry-run") == 0
    told = [line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    log = bench.log("a")
    assert main_here("a", *flags) == 0
    assert [line.split(" | ")[2] for line in bench.log("a").removeprefix(log).splitlines() if " | WARNING | " in line] == told
    assert [words.split(":")[0].split(" ")[0] for words in told] == ["--trace", "checkpoint", "Changed", "--averagers", "--warmup"]
    assert "--warmup 40: the run has 30 steps and never leaves its warm-up" in told


def test_changed_options_that_act_are_told_in_one_line(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1") == 0
    acting = ("--wd", "0.1", "--beta2", "0.9", "--grad-clip-norm", "None", "--z-loss", "1e-4", "--target-mask-individual", "3")
    assert main_here("a", "--epochs", "2", *acting, "--log-every-n-steps", "2", "--resume", "latest") == 0
    lines = [line.split(" | ")[2] for line in bench.log("a").splitlines() if " | WARNING | " in line]
    assert [line.partition(". The learning rate of step 11 is ")[0] for line in lines] == [
        "Changed after step 10: --target-mask-individual was None, is 3; --epochs was 1, is 2; --beta2 was 0.95, is 0.9; "
        "--wd was 0.2, is 0.1; --grad-clip-norm was 1.0, is None; --z-loss-coefficient was 0.0, is 0.0001"
    ]


def test_the_warmup_that_a_run_began_with_stays(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--warmup", "20", "--save-every-steps", "5") == 0
    flags = [flag for flag in bench.flags("a", "--workers", "0", "--lr", "1e-2") if flag != "--warmup" and flag != "5"]
    bench.copy_at("a", "b", 5)
    from open_lm.main import main

    assert main([*flags, "--name", "b", "--save-every-steps", "7", "--resume", "latest"]) == 0
    assert bench.metrics("b", "lr") == bench.metrics("a", "lr")
    assert "WARNING" not in bench.log("b").partition("step_5: step 5")[2]


def size_of(page: str) -> float:
    """Kilobytes of an epoch's files in a plan."""
    return float(page.split("Weights: ")[1].partition(" kB")[0].rpartition(" ")[2])


def test_the_loss_is_counted_once(bench: Any, main_here: Main) -> None:
    """compat.md 6 (26): what is logged does not depend on how often it is."""
    assert main_here("each") == 0
    assert main_here("fifth", "--log-every-n-steps", "5") == 0
    assert bench.metrics("fifth") == bench.metrics("each")[4::5]
    assert bench.metrics("fifth", "tokens") == [step * 8 * 32 for step in range(5, 31, 5)]
