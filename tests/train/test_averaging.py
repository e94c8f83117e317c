"""Running averages: their arithmetic against closed forms, and whole runs with them."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from open_lm import load_model
from open_lm.checkpoint.weights import read_pt
from open_lm.data.batch import Batch
from open_lm.evaluation.validation import validate
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params import OptimizerParams
from open_lm.params.averagers import parse_averagers
from open_lm.report.run import read_run
from open_lm.train import averaging
from open_lm.train.averaging import Averager, Averages
from open_lm.train.loop import Position
from open_lm.train.optimizer import make_optimizer
from open_lm.train.parallel import World
from open_lm.train.step import Step, StepConfig

Main = Callable[..., int]
NO, YES = torch.tensor(False), torch.tensor(True)
BOTH = "ema_0.9_1,poly_16_2"


def averager_of(text: str, *weights: Tensor) -> Averager:
    return Averager(parse_averagers(text)[0], {f"w{i}": w for i, w in enumerate(weights)})


def closed_form(method: str, parameter: float, first: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The average in one sum over all weights that were taken in: taken [updates, n]."""
    n = len(taken)
    if method == "ema":
        shares = (1 - parameter) * parameter ** np.arange(n - 1, -1, -1)
        return parameter**n * first + shares @ taken
    if not n:
        return first
    t = np.arange(1, n + 1)
    logs = [math.lgamma(parameter + k) - math.lgamma(k) + math.lgamma(n) - math.lgamma(parameter + n + 1) for k in t]
    return (parameter + 1) * np.exp(logs) @ taken


@given(
    method=st.sampled_from(["ema_0_", "ema_0.5_", "ema_0.99_", "poly_0_", "poly_1_", "poly_16_", "poly_2.5_"]),
    freq=st.integers(1, 4),
    skipped=st.lists(st.booleans(), min_size=1, max_size=40),
    group=st.sampled_from([1, 6, 1 << 26]),
)
@settings(deadline=None, max_examples=60)
def test_an_average_is_its_closed_form_over_the_weights_of_the_steps_that_count(
    method: str, freq: int, skipped: list[bool], group: int
) -> None:
    rng = np.random.default_rng(len(skipped))
    first, weights = rng.normal(size=5), rng.normal(size=(len(skipped), 5))
    a, b = torch.tensor(first[:2], dtype=torch.float32), torch.tensor(first[2:], dtype=torch.float32)
    before, averaging._GROUP_ELEMENTS = averaging._GROUP_ELEMENTS, group
    averager = averager_of(f"{method}{freq}", a, b)
    averaging._GROUP_ELEMENTS = before
    for step, (now, skip) in enumerate(zip(weights, skipped), start=1):
        a.copy_(torch.tensor(now[:2]))
        b.copy_(torch.tensor(now[2:]))
        averager.update(step, YES if skip else NO)
    counts = [step % freq == 0 and not skip for step, skip in enumerate(skipped, start=1)]
    name, parameter, _ = method.split("_")
    expected = closed_form(name, float(parameter), first, weights[counts])
    assert torch.cat(list(averager.average.values())).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert int(averager.updates) == sum(counts)


def test_poly_0_is_the_mean_and_its_first_update_takes_the_weights() -> None:
    weight = torch.full((3,), 100.0)
    averager = averager_of("poly_0_1", weight)
    for step, value in enumerate((1.0, 2.0, 6.0), start=1):
        weight.fill_(value)
        averager.update(step, NO)
    assert averager.average["w0"].tolist() == [3.0, 3.0, 3.0]


def test_averages_of_bf16_weights_are_fp32() -> None:
    weight = torch.ones(4, dtype=torch.bfloat16)
    averager = averager_of("ema_0.999_1", weight)
    weight.fill_(1.5)
    for step in range(1, 11):
        averager.update(step, NO)
    assert averager.average["w0"].dtype == torch.float32
    assert averager.average["w0"][0].item() == pytest.approx(1.5 - 0.5 * 0.999**10, rel=1e-6)


class Readings(TorchDispatchMode):
    """Counts what the host reads, each of which waits for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("text", ["ema_0.9_1", "poly_16_1"])
def test_an_update_reads_nothing_from_the_device(text: str) -> None:
    averager = averager_of(text, torch.ones(4), torch.ones(2, 2))
    with Readings() as readings:
        averager.update(1, NO)
    assert readings.count == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_average_change_places_and_are_back_to_the_bit(dtype: torch.dtype) -> None:
    weights = [torch.randn(5, 3).to(dtype), torch.randn(7).to(dtype)]
    averager = averager_of("ema_0.9_1", *(w.clone() for w in weights))
    averager.weights = {f"w{i}": w for i, w in enumerate(weights)}
    for value in averager.average.values():
        value.normal_()
    average, kept = [v.clone() for v in averager.average.values()], [w.clone() for w in weights]
    with pytest.raises(RuntimeError, match="out of memory"), averager.in_place_of_weights():
        assert all(torch.equal(w, a.to(dtype)) for w, a in zip(weights, average))
        raise RuntimeError("out of memory")
    assert all(map(torch.equal, weights, kept))
    assert all(map(torch.equal, averager.average.values(), average))


def test_a_failure_half_way_through_the_exchange_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(3) for _ in range(3)]
    averager = averager_of("ema_0.9_1", *weights)
    for value in averager.average.values():
        value.normal_()
    average, kept = [v.clone() for v in averager.average.values()], [w.clone() for w in weights]
    original, calls = averaging._exchange, []

    def fails_at_the_third(average: Tensor, weight: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return original(average, weight)

    monkeypatch.setattr(averaging, "_exchange", fails_at_the_third)
    with pytest.raises(RuntimeError, match="out of memory"), averager.in_place_of_weights():
        pass
    assert all(map(torch.equal, weights, kept))
    assert all(map(torch.equal, averager.average.values(), average))


def test_a_step_with_a_gradient_that_is_not_finite_does_not_enter() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(hidden_dim=16, n_layers=1, n_heads=2, seq_len=8, vocab_size=20))
    model.init_weights()
    step = Step(model, make_optimizer(model, OptimizerParams()), StepConfig(), World(0, 1, torch.device("cpu")))
    averages = Averages(model, parse_averagers("ema_0.5_1,poly_3_1"))
    keep = averaging.KeepAverages(averages, step, 0)
    batch = Batch(torch.randint(0, 20, (2, 9)))
    handle = None
    copies = []
    for number in (1, 2, 3):
        if number == 2:
            handle = model.tok_embeddings.weight.register_hook(lambda grad: grad * math.nan)
        keep.after_step(Position(number, 0, 0, 0), step(batch, 1e-2))
        if handle and number == 2:
            handle.remove()
        copies.append({name: value.clone() for name, value in averages.tensors().items()})
    assert all(torch.equal(copies[0][name], copies[1][name]) for name in copies[0])
    assert not any(torch.equal(copies[1][name], copies[2][name]) for name in copies[0])
    assert [int(v) for name, v in copies[2].items() if name.endswith(".updates")] == [2, 2]


def averaged(bench: Any, name: str, averager: str, epoch: int = 3) -> dict[str, Tensor]:
    return read_pt(str(bench.folder / f"logs/{name}/checkpoints/{averager}_{epoch}.pt"))["av_model_sd"]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def results(bench: Any, name: str) -> list[Any]:
    return [json.loads(line) for line in (bench.folder / f"logs/{name}/checkpoints/results.jsonl").read_text().splitlines()]


def test_an_averager_begins_with_the_pretrained_weights(bench: Any, main_here: Main) -> None:
    """compat.md 6 (23)."""
    assert main_here("before", "--epochs", "1") == 0
    pretrained = str(bench.folder / "logs/before/checkpoints/epoch_1.pt")
    assert main_here("after", "--epochs", "1", "--pretrained", pretrained, "--lr", "1e-12", "--averagers", "ema_0.9999_1") == 0
    average, weights = averaged(bench, "after", "ema_0.9999_1", 1), bench.weights("before", 1)
    assert all(torch.allclose(average[name], weights[name], rtol=1e-5, atol=1e-7) for name in weights)


def test_exports_are_in_openlms_keys_and_load_as_the_model_that_was_validated(
    bench: Any, main_here: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = bench.folder / "shards/shard-0000001.tar"
    told: dict[str, float] = {}
    monkeypatch.setattr("open_lm.train.metrics.MetricsLog.validated", lambda self, metrics, step: told.update(metrics))
    assert main_here("a", "--averagers", BOTH, "--val-data", str(shard)) == 0
    folder = bench.folder / "logs/a/checkpoints"
    ema, poly = read_pt(str(folder / "ema_0.9_1_3.pt")), read_pt(str(folder / "poly_16_2_2.pt"))
    assert [ema[key] for key in ("method", "gamma", "eta", "freq", "step_counter", "update_counter")] == ["ema", 0.9, None, 1, 31, 1]
    assert [poly[key] for key in ("method", "gamma", "eta", "freq", "step_counter", "update_counter")] == ["poly", None, 16.0, 2, 11, 1]
    assert ema["av_model_sd"].keys() == bench.weights("a").keys()
    plain, *averages = results(bench, "a")[-1]
    assert "averager" not in plain
    assert [(r["averager"], Path(r["checkpoint_path"]).name) for r in averages] == [
        ("ema_0.9_1", "ema_0.9_1_3.pt"),
        ("poly_16_2", "poly_16_2_3.pt"),
    ]
    for result in (plain, *averages):
        model, _ = load_model(folder / Path(result["checkpoint_path"]).name)
        assert validate(model, [rows_of(shard)]).loss == pytest.approx(result["loss"], rel=1e-6)
        assert told[f"{result['averager']}/loss" if "averager" in result else "loss"] == result["loss"]
    assert len({r["loss"] for r in (plain, *averages)}) == 3
    assert [v.data for v in read_run(bench.folder / "logs/a").validations[-3:]] == [
        plain["val_data"][0],
        *(f"{plain['val_data'][0]} ({name})" for name in BOTH.split(",")),
    ]


def rows_of(shard: Path) -> Tensor:
    with tarfile.open(shard) as tar:
        members = [np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith(".npy")]
    return torch.from_numpy(np.concatenate(members).astype(np.int64))


def test_averaging_and_validating_change_nothing_in_training(bench: Any, main_here: Main) -> None:
    flags = ("--averagers", BOTH, "--log-avg-model-training-loss", "3", "--val-data", str(bench.folder / "shards/shard-0000001.tar"))
    assert main_here("plain") == 0
    assert main_here("averaged", *flags) == 0
    assert bench.metrics("averaged") == bench.metrics("plain")
    assert same(bench.weights("averaged"), bench.weights("plain"))


def test_the_training_loss_of_an_average_is_on_the_steps_batch_before_the_step(bench: Any, main_here: Main) -> None:
    """An average that keeps nothing is the weights before the step, whose loss is the step's."""
    flags = ("--averagers", "ema_0_1,ema_0.9_1", "--log-avg-model-training-loss", "2", "--accum-freq", "4", "--z-loss-coefficient", "1e-3")
    assert main_here("a", *flags) == 0
    lines = [json.loads(line) for line in (bench.folder / "logs/a/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "ema_0_1_loss" in line] == list(range(2, 31, 2))
    assert all(line["ema_0_1_loss"] == pytest.approx(line["loss"], rel=1e-6) for line in lines if "ema_0_1_loss" in line)
    assert lines[-1]["ema_0.9_1_loss"] != pytest.approx(lines[-1]["loss"], rel=1e-4)


def test_a_resumed_run_goes_on_with_its_averages_to_the_bit(bench: Any, main_here: Main) -> None:
    flags = ("--averagers", BOTH, "--log-avg-model-training-loss", "1", "--save-every-steps", "13")
    assert main_here("whole", *flags) == 0
    bench.copy_at("whole", "again", 13)
    assert main_here("again", *flags, "--resume", "latest") == 0
    assert bench.metrics("again") == bench.metrics("whole")
    for averager in BOTH.split(","):
        assert same(averaged(bench, "again", averager), averaged(bench, "whole", averager))
        assert bench.metrics("again", f"{averager}_loss") == bench.metrics("whole", f"{averager}_loss")


def test_averagers_may_come_and_go_on_resume_and_the_log_says_so(bench: Any, main_here: Main) -> None:
    assert main_here("whole", "--averagers", "ema_0.9_1", "--save-every-steps", "13") == 0
    bench.copy_at("whole", "again", 13)
    assert main_here("again", "--averagers", "ema_0.999999_1", "--resume", "latest", "--lr", "1e-12") == 0
    assert "--averagers ema_0.999999_1: new in this run; begins from the weights of step 13" in bench.log("again")
    assert "--averagers: ema_0.9_1 is no longer asked for; its average ends at step 13" in bench.log("again")
    average, weights = averaged(bench, "again", "ema_0.999999_1"), bench.weights("again")
    assert all(torch.allclose(average[name], weights[name], rtol=1e-5, atol=1e-7) for name in weights)
    assert bench.metrics("again")[:13] == bench.metrics("whole")[:13]


def test_exports_of_passed_over_epochs_go_with_their_weights(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--averagers", "poly", "--save-frequency", "2", "--save-most-recent") == 0
    files = {path.name for path in (bench.folder / "logs/a/checkpoints").glob("[ep]*.pt")}
    assert files == {"epoch_2.pt", "epoch_3.pt", "poly_2.pt", "poly_3.pt"}


@pytest.mark.slow
def test_sharded_averages_are_those_of_one_process_and_move_between_them(bench: Any, main_here: Main) -> None:
    flags = ("--averagers", f"{BOTH},ema_0_1", "--log-avg-model-training-loss", "2", "--save-every-steps", "13")
    # Adam makes a whole step of a gradient that is rounding noise, which differs by processor; not with so large an eps
    flags += ("--val-data", str(bench.folder / "shards/shard-0000001.tar"), "--lr", "1e-2", "--eps", "1e-3")
    assert main_here("one", *flags) == 0
    runs = (("two", 2, ("--fsdp",)), ("ddp", 2, ()))
    for name, processes, more in runs:
        done = bench.run(processes, name, *flags, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    bench.copy_at("two", "again", 13)
    done = bench.run(2, "again", *flags, "--fsdp", "--resume", "latest")
    assert done.returncode == 0, done.stderr[-3000:]
    bench.copy_at("two", "alone", 13)
    assert main_here("alone", *flags, "--resume", "latest") == 0
    for averager in BOTH.split(","):
        assert same(averaged(bench, "again", averager), averaged(bench, "two", averager))
    for name in ("two", "ddp", "alone"):
        assert bench.metrics(name) == pytest.approx(bench.metrics("one"), rel=1e-5)
        for mine, reference in zip(results(bench, name)[-1], results(bench, "one")[-1], strict=True):
            assert mine["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        for averager in BOTH.split(","):
            a, b = averaged(bench, name, averager), averaged(bench, "one", averager)
            assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in b)
        lines = [json.loads(line) for line in (bench.folder / f"logs/{name}/metrics.jsonl").read_text().splitlines()]
        assert all(line["ema_0_1_loss"] == pytest.approx(line["loss"], rel=1e-6) for line in lines if line["step"] % 2 == 0)
