"""Runs that OpenLM left go on here, and ours leave what OpenLM goes on from; what a run may start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_lm.checkpoint.epoch_pair import load_pair
from open_lm.checkpoint.weights import read_pt
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.params import OptimizerParams, UserError, parse_params
from open_lm.train.optimizer import make_optimizer

Main = Callable[..., int]


@pytest.fixture
def left(tmp_path: Path, shared: Path) -> Path:
    """A copy of the run folder that OpenLM left: 2 epochs of 12 steps of 8 rows of 96 tokens."""
    shutil.copytree(shared / "data/golden/reference_run", tmp_path / "logs/my_epoch_run")
    return tmp_path / "logs/my_epoch_run"


def go_on(left: Path, *more: str, resume: str | None = "latest", name: str = "my_epoch_run") -> int:
    """OpenLM's command line with two epochs more."""
    from open_lm.main import main

    torch.set_num_threads(1)
    flags = f"--model {left / 'model_config.json'} --ffn-type swiglu_torch --train-data {left}/data/shard-{{0000000..0000002}}.tar"
    flags += " --dataset-resampled --train-num-samples 9216 --epochs 4 --batch-size 8 --precision fp32 --lr 3e-3 --warmup 4 --wd 0.1"
    flags += " --wd-on all --grad-clip-norm 1 --log-every-n-steps 1 --workers 0"
    flags += f" --name {name} --logs-dir {left.parent}"
    return main([*flags.split(), *(["--resume", resume] if resume else []), *more])


def metrics(folder: Path, key: str = "loss") -> list[float]:
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("resume", ["latest", "file", "folder"])
def test_openlm_defect_16_a_run_that_openlm_left_goes_on_with_its_moments_step_and_schedule(left: Path, resume: str) -> None:
    where = {"latest": "latest", "file": str(left / "checkpoints/epoch_2.pt"), "folder": str(left)}[resume]
    assert go_on(left, resume=where) == 0
    assert metrics(left, "step") == list(range(25, 49))
    assert metrics(left, "tokens")[0] == 25 * 8 * 96
    cosine = 0.5 * (1 + np.cos(np.pi * (24 - 4) / (48 - 4))) * 3e-3
    assert metrics(left, "lr")[0] == pytest.approx(cosine)
    assert metrics(left)[0] < 6.0  # OpenLM's run began at 6.4
    log = (left / "out.log").read_text()
    assert "epoch_2.pt: step 24, 192 sequences, 18432 tokens" in log
    assert "OpenLM's own order of the data can't be continued: the run goes on at row 192" in log
    assert sorted(p.name for p in (left / "checkpoints").glob("epoch_*")) == [f"epoch_{n}.pt" for n in (1, 2, 3, 4)]


def test_the_moments_that_openlm_left_are_those_of_each_parameter(left: Path) -> None:
    model = Transformer(get_model_config(str(left / "model_config.json")))
    model.init_weights()
    optimizer = make_optimizer(model, OptimizerParams())
    load_pair(left / "checkpoints/epoch_2.pt", model, optimizer)
    weights = torch.load(left / "checkpoints/epoch_2.pt", weights_only=True)["state_dict"]
    moments = read_pt(str(left / "checkpoints/optimizer_2.pt"))["optimizer"]["state"]
    names = [name for name in weights if "inv_freq" not in name]
    for number, name in enumerate(names):
        parameter = model.get_parameter(name)
        assert torch.equal(parameter, weights[name])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[parameter][key], moments[number][key]), name


@pytest.mark.slow
def test_a_run_of_openlm_continued_twice_is_one_run(left: Path) -> None:
    shutil.copytree(left, left.parent / "again")
    assert go_on(left) == 0
    again = left.parent / "again"
    assert go_on(again, "--save-every-steps", "5", name="again") == 0
    for path in [*(again / "checkpoints").glob("*_3.pt"), *(again / "checkpoints").glob("*_4.pt"), again / "metrics.jsonl"]:
        path.unlink()
    for step in (30, 35, 36, 40, 45, 48):
        shutil.rmtree(again / f"checkpoints/step_{step}")
    assert go_on(again, name="again") == 0
    assert metrics(again) == metrics(left)[1:]
    assert "step_25: step 25" in (again / "out.log").read_text()


def test_openlm_defect_19_its_finished_run_says_so(left: Path) -> None:
    assert go_on(left, "--epochs", "2") == 0
    assert "the run is finished (24 steps)" in (left / "out.log").read_text()


def test_openlm_defect_15_a_missing_optimizer_is_an_error(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (left / "checkpoints/optimizer_2.pt").unlink()
    for resume in ("latest", str(left / "checkpoints/epoch_2.pt")):
        assert go_on(left, resume=resume) == 2
        assert "optimizer_2.pt is missing, and fresh moments would be another run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["epoch_2.pt", "optimizer_2.pt"])
def test_openlm_defect_14_a_truncated_file_gives_way_to_the_epoch_before(left: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = left / "checkpoints"
    torch.save({**read_pt(str(checkpoints / "optimizer_2.pt")), "epoch": 1}, checkpoints / "optimizer_1.pt")
    whole = (checkpoints / name).read_bytes()
    (checkpoints / name).write_bytes(whole[: len(whole) // 2])
    with caplog.at_level("WARNING"):
        assert go_on(left) == 0
    assert "epoch_1.pt: step 12, 96 sequences" in (left / "out.log").read_text()


def test_a_checkpoint_without_step_starts_a_run_but_is_not_resumed(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(left / "checkpoints/epoch_2.pt", weights_only=True)
    first_generation = {"epoch": 2, "name": "x", "evaluation_loss": np.float64(1.5)}
    torch.save(
        {**first_generation, "state_dict": {f"module.{n}": v for n, v in content["state_dict"].items()}}, left / "checkpoints/epoch_2.pt"
    )
    assert go_on(left) == 2
    assert "tells no step, so it can't be resumed; use it as --pretrained" in capsys.readouterr().err
    assert go_on(left, "--pretrained", str(left / "checkpoints/epoch_2.pt"), "--epochs", "1", resume=None, name="b") == 0
    assert metrics(left.parent / "b")[0] < 6.0
    assert metrics(left.parent / "b", "step")[0] == 1


def test_openlm_batch_may_change_and_rows_of_another_length_are_a_new_plan(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((left / "model_config.json").read_text())
    (left / "model_config.json").write_text(json.dumps({**config, "seq_len": 48}))
    assert go_on(left) == 2
    assert "the sequence length was 96, is 48" in capsys.readouterr().err
    (left / "model_config.json").write_text(json.dumps(config))
    assert go_on(left, "--batch-size", "16") == 0
    assert "--global-batch-size was 8, is 16 from step 24 on" in (left / "out.log").read_text()
    assert metrics(left, "step")[-1] == 36


def test_what_we_write_goes_on_in_an_optimizer_like_openlms(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-openlm-optimizer", "--wd-on", "all") == 0
    folder = bench.folder / "logs/a/checkpoints"
    weights, content = torch.load(folder / "epoch_1.pt", weights_only=True), torch.load(folder / "optimizer_1.pt", weights_only=True)
    assert {"epoch", "name", "optimizer", "evaluation_metrics"} <= set(content)
    assert [len(group["params"]) for group in content["optimizer"]["param_groups"]] == [0, len(content["optimizer"]["state"])]
    parameters = {n: torch.nn.Parameter(v) for n, v in weights["state_dict"].items() if "inv_freq" not in n}
    optimizer = torch.optim.AdamW([{"params": [], "weight_decay": 0.0}, {"params": list(parameters.values()), "weight_decay": 0.2}])
    optimizer.load_state_dict(content["optimizer"])
    assert optimizer.param_groups[1]["lr"] == bench.metrics("a", "lr")[9]
    state = optimizer.state[parameters["output.weight"]]
    assert state["step"] == 10 and state["exp_avg"].shape == parameters["output.weight"].shape
    stats = torch.load(folder / "stats_1.pt", weights_only=True)
    assert {k: stats[k] for k in ("epoch", "name", "is_final_checkpoint", "evaluation_metrics", "percentage_of_data_seen", "step")} == {
        **{"epoch": 1, "name": "a", "is_final_checkpoint": False, "evaluation_metrics": []},
        **{"percentage_of_data_seen": 1.0, "step": 10},
    }
    assert torch.load(folder / "stats_3.pt", weights_only=True)["is_final_checkpoint"]


def test_our_pair_alone_resumes_bit_equal(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-openlm-optimizer") == 0
    checkpoints = bench.folder / "logs/b/checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("epoch_1.pt", "optimizer_1.pt"):
        shutil.copy(bench.folder / "logs/a/checkpoints" / name, checkpoints)
    assert main_here("b", "--resume", "latest") == 0
    assert bench.metrics("b") == bench.metrics("a")[10:]
    assert all(torch.equal(v, bench.weights("a")[n]) for n, v in bench.weights("b").items())


def test_a_pair_of_a_later_step_than_the_whole_run_states_is_taken(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--save-openlm-optimizer") == 0
    (bench.folder / "logs/a/checkpoints/step_30/state.json").write_text("{")
    (bench.folder / "logs/a/checkpoints/epoch_3.pt").write_bytes(b"half")
    assert main_here("a", "--resume", "latest", "--epochs", "4", "--multiple-data-passes") == 0
    assert "Resumed from" in bench.log("a") and "step_20: step 20" in bench.log("a")
    shutil.rmtree(bench.folder / "logs/a/checkpoints/step_20")
    for path in (bench.folder / "logs/a/checkpoints").glob("step_[34]0"):
        (path / "state.json").write_text("{")
    for name in ("epoch_3.pt", "optimizer_3.pt", "epoch_4.pt"):
        (bench.folder / "logs/a/checkpoints" / name).unlink()
    assert main_here("a", "--resume", "latest", "--epochs", "4", "--multiple-data-passes") == 0
    assert "epoch_2.pt: step 20" in bench.log("a")


def test_pretrained_takes_every_form_of_weights(bench: Any, main_here: Main, web: Any) -> None:
    from open_lm.checkpoint.convert import export_weights

    assert main_here("a") == 0
    run = bench.folder / "logs/a"
    torch.save(bench.weights("a"), bench.folder / "bare.pt")
    exported = export_weights(str(run), str(web.folder))
    forms = [
        str(run / "checkpoints/epoch_3.pt"),
        str(bench.folder / "bare.pt"),
        str(run),
        str(run / "checkpoints/step_30"),
        web.url(exported.name),
    ]
    for number, form in enumerate(forms):
        assert main_here(f"b{number}", "--pretrained", form, "--epochs", "1") == 0
        assert bench.metrics(f"b{number}") == bench.metrics("b0")
    assert bench.metrics("b0")[0] < 0.7 * bench.metrics("a")[0]


def test_pretrained_state_goes_on_in_a_new_run(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    step = str(bench.folder / "logs/a/checkpoints/step_10")
    flags = ("--pretrained", step, "--load-pretrained-state", "--resume", "latest")
    assert main_here("b", *flags) == 0
    assert bench.metrics("b") == bench.metrics("a")[10:]
    assert main_here("b", *flags) == 0
    assert "the run is finished (30 steps)" in bench.log("b")


def test_a_reset_trainer_state_keeps_weights_and_moments_and_begins_anew(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a") == 0
    step = str(bench.folder / "logs/a/checkpoints/step_30")
    assert main_here("b", "--resume", step, "--reset-trainer-state", "--epochs", "1", "--seed", "3") == 0
    assert bench.metrics("b", "step") == list(range(1, 11))
    assert bench.metrics("b", "lr")[0] == bench.metrics("a", "lr")[0]
    assert bench.metrics("b")[0] < 0.7 * bench.metrics("a")[0]
    assert "step, schedule and data begin anew" in bench.log("b")
    optimizer = {k: v for k, v in tensors(bench, "b", 10).items() if k.endswith(".step")}
    assert all(v == 40 for v in optimizer.values())
    assert main_here("b", "--resume", step, "--reset-trainer-state") == 2
    assert "has checkpoints of its own; give another --name" in capsys.readouterr().err
    flags = ("--pretrained", step, "--load-pretrained-state", "--reset-trainer-state", "--resume", "latest", "--epochs", "1", "--seed", "3")
    assert main_here("c", *flags) == 0
    assert bench.metrics("c") == bench.metrics("b")
    assert main_here("c", *flags) == 0
    assert "the run is finished (10 steps)" in bench.log("c")


def tensors(bench: Any, name: str, step: int) -> dict[str, torch.Tensor]:
    from open_lm.checkpoint.unshard import read_tensors

    return read_tensors(bench.folder / f"logs/{name}/checkpoints/step_{step}", "")


def test_weights_that_are_not_there_or_of_another_model_are_told_before_the_folder_is_made(
    bench: Any, main_here: Main, web: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a", "--epochs", "1") == 0
    config = json.loads((bench.folder / "tiny.json").read_text())
    (bench.folder / "wide.json").write_text(json.dumps({**config, "hidden_dim": 64}))
    checkpoints = bench.folder / "logs/a/checkpoints"
    other = ("--model", str(bench.folder / "wide.json"))
    for flags, message in (
        (("--pretrained", f"{checkpoints}/epoch_9.pt"), "epoch_9.pt: no such file"),
        (("--pretrained", web.url("epoch_9.pt")), "epoch_9.pt: no such file"),
        ((*other, "--pretrained", f"{checkpoints}/epoch_1.pt"), "belongs to another model"),
        ((*other, "--pretrained", f"{checkpoints}/step_10"), "belongs to another model"),
        (("--average", f"{checkpoints}/step_10", f"{checkpoints}/epoch_9.pt"), "epoch_9.pt: no such file"),
    ):
        assert main_here("b", *flags, "--train-data", "nothing.tar") == 2
        error = capsys.readouterr().err
        assert f"{next(f for f in flags if f in ('--pretrained', '--average'))}: checkpoint " in error and message in error, error
        assert "nothing.tar" in error
        assert not (bench.folder / "logs/b").exists()


def test_average_starts_from_the_weighted_sum(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    one, two = (str(bench.folder / f"logs/a/checkpoints/epoch_{n}.pt") for n in (1, 3))
    assert main_here("b", "--average", one, two, "--average-coefficients", "0", "1", "--epochs", "1") == 0
    assert main_here("c", "--pretrained", two, "--epochs", "1") == 0
    assert main_here("d", "--average", one, two, "--epochs", "1") == 0
    assert bench.metrics("b") == bench.metrics("c")
    assert bench.metrics("d") != bench.metrics("c")
    assert f"Weights: 0.5 x {one} + 0.5 x {two}" in bench.log("d")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load-pretrained-state"], "--load-pretrained-state: needs --pretrained"),
        (["--resume", "latest", "--reset-trainer-state"], "--reset-trainer-state with --resume latest: give --resume PATH"),
        (["--average", "a", "b", "--average-coefficients", "1"], "--average-coefficients: 1 given for 2 checkpoints"),
        (["--average", "a", "--pretrained", "b"], "--average and --pretrained: give one of them"),
    ],
)
def test_starts_that_contradict_each_other_are_told(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_params(["--train-data", "x", *flags])


def test_files_of_epochs_that_were_saved_to_stay_are_not_deleted_when_the_frequency_changes(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--epochs", "1") == 0
    assert main_here("a", "--resume", "latest", "--save-frequency", "2") == 0
    assert {p.name for p in (bench.folder / "logs/a/checkpoints").glob("epoch_*")} == {"epoch_1.pt", "epoch_2.pt", "epoch_3.pt"}


@pytest.mark.slow
def test_fsdp_writes_names_and_resumes_a_pair_of_another_number_of_processes(bench: Any) -> None:
    done = bench.run(2, "a", "--fsdp", "--save-openlm-optimizer", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    content = torch.load(bench.folder / "logs/a/checkpoints/optimizer_1.pt", weights_only=True)
    assert "layers.0.attention.in_proj.weight" in content["optimizer"]["state"]
    for name, processes in (("one", 1), ("two", 2)):
        checkpoints = bench.folder / f"logs/{name}/checkpoints"
        checkpoints.mkdir(parents=True)
        for file in ("epoch_1.pt", "optimizer_1.pt"):
            shutil.copy(bench.folder / "logs/a/checkpoints" / file, checkpoints)
        done = bench.run(processes, name, "--resume", "latest", "--epochs", "2", *(["--fsdp"] if processes > 1 else []))
        assert done.returncode == 0, done.stderr
    assert bench.metrics("two") == bench.metrics("a")[10:]
    assert bench.metrics("one") == pytest.approx(bench.metrics("a")[10:], rel=1e-6)
