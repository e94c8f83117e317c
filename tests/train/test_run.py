"""One process from flags to files: what a run writes, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from open_lm import load_model
from open_lm.params import UserError, parse_params

Main = Callable[..., int]


def test_a_run_learns_and_leaves_what_it_promises(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--report-to", "tensorboard", "--copy-codebase") == 0
    folder = bench.folder / "logs/a"
    losses = bench.metrics("a")
    assert len(losses) == 30
    assert losses[-1] < 0.6 * losses[0]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[9]).keys() == {
        *("step", "epoch", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "tokens_per_second_per_process"),
        *("samples_per_second", "seconds", "data_wait_seconds", "host_memory_gb", "targets"),
    }
    params = yaml.safe_load((folder / "params.txt").read_text())
    assert (folder / "plans.json").is_file()
    assert params["lr"] == 0.01
    assert params["global_batch_size"] == 8
    assert list(params) == sorted(params)
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    epochs = {f"{kind}_{n}.pt" for n in (1, 2, 3) for kind in ("epoch", "stats")}
    assert names == {*epochs, "step_10", "step_20", "step_30", "latest"}
    assert (folder / "checkpoints/latest").resolve().name == "step_30"
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "code/open_lm/run.py").is_file()
    content = torch.load(folder / "checkpoints/epoch_3.pt", weights_only=True)
    assert {"epoch", "name", "state_dict", "evaluation_metrics", "step", "model_config", "params"} <= set(content)
    assert (content["epoch"], content["step"], content["params"]["lr"]) == (3, 30, 0.01)


def test_the_log_begins_with_what_differs_from_the_defaults_and_counts_in_english(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1", "--global-batch-size", "1", "--train-num-samples", "32", "--data-streams", "1") == 0
    log = bench.log("a")
    told = re.findall(r"INFO \|   (\w+): (.*)", log)
    assert ("lr", "0.01") in told and "seed" not in dict(told) and "beta1" not in dict(told)
    assert len(told) < 20 < len((bench.folder / "logs/a/params.txt").read_text().splitlines())
    for words in (
        "1 process on",
        "1 source read",
        "1 stream,",
        "100 % of every batch",
        "goes on with 1 process (",
        "1 step of 1 sequence of 32",
    ):
        assert words in log, words
    assert not re.search(r"(?<![\d.,:])1 (\w+es|steps|rows|shards|sources|sequences|streams|tokens)\b", log)


def with_qk_norm(bench: Any) -> str:
    """A model.json that says what no flag says."""
    path = bench.folder / "normed.json"
    path.write_text(json.dumps({**json.loads((bench.folder / "tiny.json").read_text()), "qk_norm": True}))
    return str(path)


def test_a_run_folder_tells_what_the_run_is_and_begins_it_again(bench: Any, main_here: Main) -> None:
    from open_lm.main import main

    model = with_qk_norm(bench)
    assert main_here("a", "--model", model, "--epochs", "1", "--warmup", "25%", "--batch-size", "8", "--wd", "0.3", "--overwrite") == 0
    folder = bench.folder / "logs/a"
    told = yaml.safe_load((folder / "params.txt").read_text())
    assert (told["qk_norm"], told["hidden_dim"], told["warmup"], told["global_batch_size"]) == (True, 32, 3, 8)
    stored = torch.load(folder / "checkpoints/epoch_1.pt", weights_only=True)["params"]
    assert (stored["qk_norm"], stored["warmup"]) == (True, 3)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["hidden_dim"], config["model"]["qk_norm"], config["warmup"]) == (32, True, 3)
    assert "overwrite" not in config
    Path(model).unlink()
    assert main(["--config", str(folder / "config.yaml"), "--name", "b"]) == 0
    a, b = bench.weights("a", 1), bench.weights("b", 1)
    assert all(torch.equal(a[name], b[name]) for name in a)
    again = yaml.safe_load((bench.folder / "logs/b/config.yaml").read_text())
    assert again == {**config, "name": "b"}
    assert main(["--config", str(folder / "config.yaml"), "--resume", "latest"]) == 0
    assert "the run is finished" in bench.log("a")


def test_a_resume_whose_model_file_is_gone_uses_the_runs_own(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    model = with_qk_norm(bench)
    assert main_here("a", "--model", model, "--save-every-steps", "10") == 0
    bench.copy_at("a", "b", 10)
    Path(model).unlink()
    assert main_here("b", "--model", model, "--resume", "latest") == 0
    assert f"--model {model}: no such file; the run goes on with the model that it has" in bench.log("b")
    assert bench.metrics("b") == bench.metrics("a")
    assert main_here("c", "--model", model) == 2
    assert f"--model {model}: no such file" in capsys.readouterr().err


def test_load_model_gives_the_trained_model_from_file_and_folder(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    ids = torch.arange(20)[None] % 64
    by_file, tokenizer = load_model(bench.folder / "logs/a/checkpoints/epoch_3.pt")
    by_folder, _ = load_model(bench.folder / "logs/a")
    with torch.no_grad():
        assert torch.equal(by_file(ids), by_folder(ids))
        assert (by_file(ids)[0, 5:-1].argmax(-1) == ids[0, 6:]).float().mean() > 0.5
    assert tokenizer is None


DETERMINISTIC = ("--deterministic", "--precision", "amp_bfloat16", "--grad-checkpointing")


@pytest.mark.parametrize(("step", "more"), [(1, ()), (7, ()), (10, ()), (29, ()), (7, DETERMINISTIC)])
def test_resume_is_bit_equal_at_any_step(bench: Any, main_here: Main, step: int, more: tuple[str, ...]) -> None:
    assert main_here("whole", "--save-every-steps", "1", "--accum-freq", "2", *more) == 0
    bench.copy_at("whole", "again", step)
    assert main_here("again", "--save-every-steps", "1", "--accum-freq", "2", "--resume", "latest", *more) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert bench.metrics("again") == bench.metrics("whole")
    assert bench.metrics("again", "step") == list(range(1, 31))
    a, b = bench.weights("whole"), bench.weights("again")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_resume_takes_a_named_folder(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-every-steps", "4") == 0
    step = bench.folder / "logs/a/checkpoints/step_4"
    assert main_here("b", "--resume", str(step)) == 0
    assert f"Resumed from {step}: step 4" in bench.log("b")


def test_what_there_is_to_resume_is_told_where_there_is_no_such_thing(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    from open_lm.main import main

    assert main_here("a", "--epochs", "1", "--save-every-steps", "6") == 0
    assert main_here("a", "--resume", "lastest") == 2
    only_validated = ["--val-data", str(bench.folder / "shards/shard-0000000.tar"), "--logs-dir", str(bench.folder / "logs"), "--name", "a"]
    assert main([*only_validated, "--resume", "lastest"]) == 2
    told = f"--resume lastest: no such file or folder. Did you mean latest? {bench.folder}/logs/a/checkpoints holds step_10, step_6; "
    assert capsys.readouterr().err.count(told) == 2
    assert main_here("b", "--resume", "step_9") == 2
    assert "logs/b has no checkpoint to resume" in capsys.readouterr().err


def test_resume_latest_of_nothing_starts_from_the_beginning(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--resume", "latest") == 0
    assert len(bench.metrics("a")) == 30


def test_a_finished_run_says_so_and_exits_0(bench: Any, main_here: Main) -> None:
    """compat.md 6 (19)."""
    assert main_here("a") == 0
    before = bench.metrics("a")
    assert main_here("a", "--resume", "latest") == 0
    assert "the run is finished (30 steps)" in bench.log("a")
    assert bench.metrics("a") == before


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state"])
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(bench: Any, main_here: Main, damage: str) -> None:
    """compat.md 6 (14)."""
    assert main_here("a") == 0
    step = bench.folder / "logs/a/checkpoints/step_30"
    data = next(step.glob("*.distcp"))
    content = data.read_bytes()
    if damage == "truncate":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        data.write_bytes(content[:-200] + bytes(255 - b for b in content[-200:]))
    elif damage == "remove":
        data.unlink()
    else:
        (step / "state.json").write_text('{"step": 3')
    assert main_here("a", "--resume", "latest") == 0
    assert "trying the checkpoint before it" in bench.log("a")
    assert "Resumed from" in bench.log("a")
    assert "step_20: step 20" in bench.log("a")


def test_when_every_checkpoint_is_broken_the_run_stops(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a") == 0
    for step in (bench.folder / "logs/a/checkpoints").glob("step_*"):
        (step / ".metadata").write_bytes(b"")
    assert main_here("a", "--resume", "latest") == 2
    assert "no checkpoint of" in capsys.readouterr().err


def test_an_existing_run_is_refused_without_resume_or_overwrite(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a") == 0
    before = bench.weights("a")["norm.weight"]
    assert main_here("a", "--lr", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith("open_lm: error: --name a: ")
    assert "exists; use another name, --resume latest to continue it, or --overwrite" in error
    assert len(error.splitlines()) == 1
    assert torch.equal(bench.weights("a")["norm.weight"], before)
    assert main_here("a", "--overwrite") == 0


def test_another_model_or_data_is_refused_on_resume_with_the_difference(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a") == 0
    config = json.loads((bench.folder / "tiny.json").read_text())
    (bench.folder / "wider.json").write_text(json.dumps({**config, "hidden_dim": 64}))
    for flags, message in (
        (["--model", str(bench.folder / "wider.json")], "--model: hidden_dim was 32, is 64"),
        (["--seed", "1"], "--seed was 0, is 1"),
        (
            ["--train-data", str(bench.folder / "shards/shard-{0000000..0000001}.tar"), "--multiple-data-passes"],
            "1 source before, 2 now",
        ),
    ):
        assert main_here("a", "--epochs", "4", "--multiple-data-passes", "--resume", "latest", *flags) == 2
        assert message in capsys.readouterr().err


def test_weights_of_another_model_are_refused_as_pretrained(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    config = json.loads((bench.folder / "tiny.json").read_text())
    (bench.folder / "wider.json").write_text(json.dumps({**config, "hidden_dim": 64}))
    weights = str(bench.folder / "logs/a/checkpoints/epoch_1.pt")
    assert main_here("b", "--pretrained", weights, "--model", str(bench.folder / "wider.json")) != 0


def test_pretrained_starts_from_the_weights(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    assert main_here("b", "--pretrained", str(bench.folder / "logs/a/checkpoints/epoch_3.pt"), "--warmup", "0") == 0
    assert bench.metrics("b")[0] < 0.7 * bench.metrics("a")[0]


def test_delete_previous_checkpoint_keeps_the_newest(bench: Any, main_here: Main) -> None:
    """compat.md 6 (13)."""
    assert main_here("a", "--delete-previous-checkpoint", "--save-frequency", "2") == 0
    names = {p.name for p in (bench.folder / "logs/a/checkpoints").iterdir()}
    assert names == {"epoch_3.pt", "stats_3.pt", "step_30", "latest"}


def test_save_most_recent_saves_every_epoch_and_keeps_the_regular_ones(bench: Any, main_here: Main) -> None:
    """compat.md 6 (18)."""
    assert main_here("a", "--save-frequency", "2", "--save-most-recent") == 0
    assert {p.name for p in (bench.folder / "logs/a/checkpoints").glob("epoch_*")} == {"epoch_2.pt", "epoch_3.pt"}


def test_accumulation_weighs_tokens_not_sequences(bench: Any, main_here: Main) -> None:
    """compat.md 6 (22): parts of the batch give the same losses as the whole, also where rows are masked."""
    assert main_here("one") == 0
    assert main_here("four", "--accum-freq", "4") == 0
    assert bench.metrics("four") == pytest.approx(bench.metrics("one"), rel=1e-5)


def test_a_gradient_that_is_not_finite_updates_nothing(bench: Any) -> None:
    from open_lm.data.batch import Batch
    from open_lm.model.transformer import Transformer
    from open_lm.model.zoo import get_model_config
    from open_lm.params import OptimizerParams
    from open_lm.train.optimizer import make_optimizer
    from open_lm.train.parallel import World
    from open_lm.train.step import Step, StepConfig

    model = Transformer(get_model_config(str(bench.folder / "tiny.json")))
    model.init_weights()
    step = Step(model, make_optimizer(model, OptimizerParams()), StepConfig(grad_clip_norm=1.0), World(0, 1, torch.device("cpu")))
    step(Batch(torch.randint(0, 64, (2, 33))), 1e-3)
    with torch.no_grad():
        good = {n: p.clone() for n, p in model.named_parameters()}
        model.norm.weight[0] = float("inf")
    result = step(Batch(torch.randint(0, 64, (2, 33))), 1e-3)
    assert bool(result.skipped)
    assert all(torch.equal(p, good[n]) for n, p in model.named_parameters() if n != "norm.weight")


def test_bf16_trains_in_bf16(bench: Any, main_here: Main) -> None:
    """compat.md 6 (24)."""
    assert main_here("a", "--precision", "bf16") == 0
    assert all(w.dtype == torch.bfloat16 for n, w in bench.weights("a").items() if not n.endswith("inv_freq"))
    assert bench.metrics("a")[-1] < 0.8 * bench.metrics("a")[0]


def test_amp_bfloat16_keeps_fp32_weights_and_stays_close_to_fp32(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    assert main_here("b", "--precision", "amp_bfloat16") == 0
    assert all(w.dtype == torch.float32 for w in bench.weights("b").values())
    assert bench.metrics("a") != bench.metrics("b")
    assert bench.metrics("b")[-1] == pytest.approx(bench.metrics("a")[-1], rel=0.1)


def test_validation_goes_to_the_log_results_and_checkpoint(bench: Any, main_here: Main) -> None:
    held_out = str(bench.folder / "shards/shard-0000000.tar")
    assert main_here("a", "--val-data", held_out, "--val-frequency", "2", "--val-num-samples", "700") == 0
    lines = (bench.folder / "logs/a/checkpoints/results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    last = json.loads(lines[-1])[0]
    assert last["tokens"] == 700 // 32 * 32
    assert last["train_tokens"] == 30 * 8 * 32
    assert Path(last["checkpoint_path"]).name == "epoch_3.pt"
    assert last["loss"] < 3
    assert "Validation after epoch 3" in bench.log("a")
    content = torch.load(bench.folder / "logs/a/checkpoints/epoch_3.pt", weights_only=True)
    assert content["evaluation_metrics"][0]["loss"] == last["loss"]


def test_an_id_beyond_the_vocabulary_names_shard_and_member(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """compat.md 6 (10)."""
    config = json.loads((bench.folder / "tiny.json").read_text())
    (bench.folder / "small.json").write_text(json.dumps({**config, "vocab_size": 60}))
    assert main_here("a", "--model", str(bench.folder / "small.json")) == 2
    error = capsys.readouterr().err
    assert "shard-000000" in error
    assert ".npy" in error
    assert "60" in error


def test_all_mistakes_are_told_at_once_before_work(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "open_lm_160", "--train-data", "nowhere/*.tar", "--global-batch-size", "9", "--accum-freq", "2"]
    assert main_here("a", *flags) == 2
    error = capsys.readouterr().err
    assert "Did you mean open_lm_160m?" in error
    assert "--train-data nowhere/*.tar: no file matches" in error
    assert "--accum-freq 2: must divide the 9 sequences" in error
    assert not (bench.folder / "logs").exists()


def test_flags_of_later_features_stop_with_one_line() -> None:
    with pytest.raises(UserError) as caught:
        parse_params(["--train-data", "x", "--hf-model", "gpt2", "--log-logit-mean", "--precision", "amp"])
    assert len(caught.value.problems) == 3


def test_data_that_run_out_are_told_before_training(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """compat.md 6 (8)."""
    assert main_here("a", "--epochs", "4") == 2
    assert "--multiple-data-passes" in capsys.readouterr().err
    assert main_here("a", "--epochs", "4", "--multiple-data-passes") == 0


def test_two_runs_never_write_into_one_folder(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    from open_lm.train.launcher import lock_run_folder

    assert main_here("a") == 0
    with lock_run_folder(bench.folder / "logs/a"):
        assert main_here("a", "--overwrite") == 2
        with pytest.raises(ValueError, match="another process is writing"):
            lock_run_folder(bench.folder / "logs/a", patience=0.1)
    assert "--name a: another process is writing to" in capsys.readouterr().err
    assert main_here("a", "--overwrite") == 0


def test_a_process_whose_launcher_is_gone_stops_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_lm.train.launcher import LauncherWatch
    from open_lm.train.loop import Position
    from open_lm.train.step import StepResult

    watch, zero = LauncherWatch(), torch.zeros(())
    watch.after_step(Position(6, 48, 0, 0), StepResult(zero, zero, zero, zero, zero))
    monkeypatch.setattr("os.getppid", lambda: 1)
    with pytest.raises(ProcessLookupError, match="step 7: the launcher of this run is gone; nothing more is written"):
        watch.after_step(Position(7, 56, 0, 0), StepResult(zero, zero, zero, zero, zero))
