"""Runs without training data validate a checkpoint (OpenLM's defect 27), every process in every batch (28)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_lm.params import UserError, parse_params

Main = Callable[..., int]


def flags(bench: Any, name: str, *more: str) -> list[str]:
    """Two validation sets, of 50 and 20 rows, and no training data."""
    data = [str(bench.folder / f"shards/shard-{number:07d}.tar") for number in (0, 2)]
    logs = str(bench.folder / "logs")
    return ["--val-data", *data, "--precision", "fp32", "--workers", "0", "--logs-dir", logs, "--name", name, *more]


def results(bench: Any, name: str) -> list[list[dict[str, Any]]]:
    path = bench.folder / "logs" / name / "checkpoints/results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def trained(bench: Any, main_here: Main) -> Path:
    """A run of one epoch that validated at its end."""
    data = [str(bench.folder / f"shards/shard-{number:07d}.tar") for number in (0, 2)]
    assert main_here("a", "--epochs", "1", "--val-data", *data) == 0
    return Path(bench.folder / "logs/a")


def losses(lists: list[list[dict[str, Any]]]) -> list[float]:
    return [one["loss"] for one in lists[-1]]


@pytest.mark.slow
def test_openlm_defect_27_runs_without_training_data_validate_weights_however_they_are_named(bench: Any, trained: Path) -> None:
    from open_lm.main import main

    expected = pytest.approx(losses(results(bench, "a")), rel=1e-6)
    weights = str(trained / "checkpoints/epoch_1.pt")
    more = ("--global-val-batch-size", "7")
    for name, named in {
        "pretrained": ["--pretrained", weights],
        "file": ["--resume", weights],
        "state": ["--resume", str(trained / "checkpoints/step_10")],
        "folder": ["--resume", str(trained)],
        "average": ["--average", weights, weights],
    }.items():
        assert main(flags(bench, name, *more, *named)) == 0
        assert losses(results(bench, name)) == expected
    assert main(["--config", str(bench.folder / "logs/file/config.yaml"), "--name", "again"]) == 0
    assert losses(results(bench, "again")) == expected
    assert "\nhidden_dim: 32\n" in (bench.folder / "logs/again/params.txt").read_text()
    one = results(bench, "file")[0][0]
    assert (one["step"], one["checkpoint_path"], one["train_tokens"]) == (10, weights, 10 * 8 * 32)
    assert "Validating" in bench.log("file") and "token accuracy" in bench.log("file")


def test_latest_adds_to_the_results_of_the_run_and_leaves_the_rest(bench: Any, trained: Path) -> None:
    from open_lm.main import main

    def state() -> dict[str, bytes]:
        passing = {"out.log", "results.jsonl", ".lock"}
        return {str(path): path.read_bytes() for path in sorted(trained.rglob("*")) if path.is_file() and path.name not in passing}

    before = state()
    assert main(flags(bench, "a", "--resume", "latest", "--global-val-batch-size", "8", "--val-seq-ci", "--val-iter-ci", "200")) == 0
    first, second = results(bench, "a")
    assert [one["loss"] for one in second] == pytest.approx([one["loss"] for one in first], rel=1e-6)
    assert all(one["loss_sequences_lower_95"] < one["loss"] < one["loss_sequences_upper_95"] for one in second)
    assert state() == before


def test_latest_is_the_newest_of_epochs_and_run_states_also_of_those_elsewhere(bench: Any, main_here: Main) -> None:
    import shutil

    from open_lm.main import main

    more = ["--checkpoint-dir", str(bench.folder / "states"), "--save-every-steps", "6"]
    assert main_here("a", "--epochs", "2", *more) == 0
    logs = bench.folder / "logs/a/checkpoints"
    for expected, step in ((logs / "epoch_2.pt", 20), (bench.folder / "states/step_18", 18), (logs / "epoch_1.pt", 10)):
        assert main(flags(bench, "a", "--resume", "latest", *more[:2])) == 0
        one = results(bench, "a")[-1][0]
        assert (one["checkpoint_path"], one["step"], one["train_tokens"]) == (str(expected), step, step * 8 * 32)
        assert f"Validating {expected} (step {step})" in bench.log("a")
        expected.unlink() if expected.is_file() else shutil.rmtree(expected)
        for later in ("step_20", "step_12") if step == 20 else ("step_12",):
            shutil.rmtree(bench.folder / "states" / later, ignore_errors=True)


def test_what_is_said_of_the_model_agrees_with_the_weights_or_is_refused(
    bench: Any, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from open_lm.main import main

    assert main(flags(bench, "b", "--pretrained", str(trained), "--model", "open_lm_11m", "--qk-norm")) == 2
    error = capsys.readouterr().err
    assert "--model open_lm_11m: says hidden_dim 96" in error and "carries 32" in error
    assert "--qk-norm: checkpoint" in error
    assert not (bench.folder / "logs/b").exists()
    assert main(flags(bench, "b", "--pretrained", str(trained), "--model", str(bench.folder / "tiny.json"), "--trace")) == 0
    assert "--trace has no effect" in bench.log("b")


def test_wandb_is_left_out_where_it_would_take_nothing(bench: Any, trained: Path) -> None:
    from open_lm.main import main

    assert main(flags(bench, "a", "--resume", "latest", "--report-to", "wandb")) == 0
    assert "--report-to wandb: W&B takes nothing more for steps" in bench.log("a")


def test_mistakes_are_told_before_anything_is_made(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from open_lm.main import main

    assert main(flags(bench, "new", "--global-val-batch-size", "8", "--resume", "latest")) == 2
    assert "--resume latest: there is no run" in capsys.readouterr().err
    assert main(flags(bench, "new", "--global-val-batch-size", "8", "--pretrained", str(bench.folder / "none.pt"))) == 2
    assert "--pretrained" in capsys.readouterr().err
    assert not (bench.folder / "logs").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", "give --resume, --pretrained or --average"),
        ("--pretrained a.pt --resume b.pt", "--resume and --pretrained: without training data one checkpoint"),
        ("--pretrained a.pt --dry-run", "--dry-run: there is nothing to train"),
        ("--pretrained a.pt --averagers ema_0.9_1", "--averagers: there is nothing to train"),
        ("--resume latest", "give its --name"),
    ],
)
def test_options_that_make_no_sense_without_training_are_refused(more: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_params(["--val-data", "v.tar", *more.split()])
    assert any(words in problem for problem in caught.value.problems)


@pytest.mark.slow
def test_openlm_defect_28_three_sharded_processes_validate_rows_that_they_do_not_divide(bench: Any, trained: Path) -> None:
    """50 and 20 rows, 8 to a batch on 3 processes: rounded to 9, and the last batch filled up with masked rows."""
    import subprocess

    more = flags(
        bench, "three", "--pretrained", str(trained), "--global-val-batch-size", "8", "--fsdp", "--val-tok-ci", "--val-iter-ci", "50"
    )
    torchrun = bench.command(3, "x")[:8]
    done = subprocess.run([*torchrun, *more], env=bench.env, cwd=bench.folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert losses(results(bench, "three")) == pytest.approx(losses(results(bench, "a")), rel=1e-6)
    assert all(one["loss_tokens_lower_95"] < one["loss"] for one in results(bench, "three")[0])
