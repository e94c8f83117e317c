"""OpenLM's own checkpoints give OpenLM's own logits and loss."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from open_lm import load_model
from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.convert import average, export_weights
from open_lm.checkpoint.load import open_weights
from open_lm.checkpoint.run_state import RunState, full_tensors, state_tensors
from open_lm.checkpoint.state_writer import save_run_state
from open_lm.checkpoint.weights import WeightsFile, load_weights, write_weights
from open_lm.evaluation.models import ModelChoice
from open_lm.model.head import cross_entropy_sums
from open_lm.model.transformer import Transformer, count_parameters
from open_lm.model.zoo import get_model_config
from open_lm.params import OptimizerParams, ParallelParams
from open_lm.train.optimizer import make_optimizer
from open_lm.train.parallel import join_world, parallelize


@pytest.mark.parametrize("variant", ["default", "gelu_tied", "head_rotary", "qk_gainlp"])
def test_logits_and_loss_equal_openlms(shared: Path, variant: str) -> None:
    folder = shared / "data/golden/models" / variant
    model, tokenizer = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    expected = np.load(folder / "expected.npz")
    ids = torch.from_numpy(expected["input_ids"])
    with torch.no_grad():
        logits = model(ids)
        sums = model(ids[:, :-1], head=lambda hidden, weight: cross_entropy_sums(hidden, weight, ids[:, 1:]))
    assert tokenizer is None
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 96, 384)
    assert (logits - torch.from_numpy(expected["logits"])).abs().max() < 1e-4
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - expected["loss"].item()) < 1e-5
    assert abs(sums.total.item() / ids[:, 1:].numel() - expected["loss"].item()) < 1e-5


def layout(model: torch.nn.Module) -> tuple[set[tuple[str, ...]], dict[str, tuple[Any, ...]], dict[str, torch.Tensor]]:
    """Names that are one tensor; shape, type and gradient of each name; buffers."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    about = {n: (p.shape, p.dtype, p.requires_grad, p.device) for n, p in model.named_parameters(remove_duplicate=False)}
    return {tuple(found) for found in names.values()}, about, dict(model.named_buffers())


def steps_of(model: Any, ids: torch.Tensor) -> list[float]:
    optimizer, losses = make_optimizer(model, OptimizerParams(lr=1e-2)), []
    for _ in range(2):
        loss = F.cross_entropy(model.train()(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("variant", ["default", "gelu_tied", "head_rotary", "qk_gainlp"])
def test_a_loaded_model_is_the_trainers_own_and_trains_as_it_does(shared: Path, tmp_path: Path, variant: str) -> None:
    golden = shared / "data/golden/models" / variant
    config, file = get_model_config(str(golden / "model_config.json")), str(golden / "epoch_1.pt")
    ids = torch.from_numpy(np.load(golden / "expected.npz")["input_ids"])

    def trainers(source: str | WeightsFile = file) -> Transformer:
        model = Transformer(config)
        model.init_weights()
        load_weights(model, (open_weights(source)[0] if isinstance(source, str) else source).state_dict, "w.pt")
        return model

    own = trainers()
    run = tmp_path / "run"
    about = {"model_config": config.to_dict()}
    state = save_run_state(
        str(run / "checkpoints"), state_tensors(own, make_optimizer(own, OptimizerParams())), RunState(7, 8, 64, 8, {}, params={}, **about)
    )
    ours = {"run state": load_model(state)[0], "run folder, before an epoch ended": load_model(run)[0]}
    write_weights(run / "checkpoints/epoch_2.pt", full_tensors(own), about)
    write_weights(tmp_path / "bare.pt", {f"module.{name}": value for name, value in own.state_dict().items()}, about)
    averaged = average([file, file], [], str(tmp_path / "average.pt"))
    exported = export_weights(file, str(tmp_path), dtype="float32", model=str(golden / "model_config.json"))
    assert exported.stat().st_size < 1.2 * Path(file).stat().st_size, "a tied tensor is written once"
    assert averaged.stat().st_size < 1.2 * Path(file).stat().st_size
    ours |= {
        "OpenLM's": load_model(file, str(golden / "model_config.json"))[0],
        "run folder": load_model(run)[0],
        "epoch": load_model(run / "checkpoints/epoch_2.pt")[0],
        "wrapped": load_model(tmp_path / "bare.pt")[0],
        "average": load_model(averaged, str(golden / "model_config.json"))[0],
        "export": load_model(exported)[0],
        "evaluation": ModelChoice().load(state)[0].float(),
        "--pretrained run state": trainers(state),
        "--average": trainers(average_weights([state, file])),
    }
    with join_world(ParallelParams(force_distributed=True)) as world:
        sharded = parallelize(trainers(), ParallelParams(fsdp=True, precision="fp32"), world)
        assert layout(sharded)[0] == layout(own)[0]
        sharded_losses, sharded_weights = steps_of(sharded, ids), full_tensors(sharded)
    ties, parameters, buffers = layout(own)
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    losses = steps_of(own, ids)
    assert sharded_losses == pytest.approx(losses, rel=1e-5)
    assert all(torch.allclose(sharded_weights[name], value, atol=1e-4) for name, value in own.named_parameters(remove_duplicate=False))
    for way, model in ours.items():
        assert layout(model)[:2] == (ties, parameters), way
        assert count_parameters(model) == count_parameters(own), way
        assert all(torch.equal(value, buffers[name]) for name, value in layout(model)[2].items()), way
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters()), way
        assert steps_of(model, ids) == losses, way
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own.parameters(), strict=True)), way
