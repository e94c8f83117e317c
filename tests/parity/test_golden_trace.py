"""Forty training steps of OpenLM: same weights, batches and hyper-parameters give the same losses, rates, norms and end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from open_lm import load_model
from open_lm.checkpoint.weights import read_weights
from open_lm.data.batch import Batch
from open_lm.params import OptimizerParams
from open_lm.train.optimizer import make_optimizer
from open_lm.train.parallel import World
from open_lm.train.schedule import cosine
from open_lm.train.step import Step, StepConfig


def test_forty_steps_equal_openlms(shared: Path) -> None:
    folder = shared / "data/golden/traces/qk_gainlp"
    hyper = json.loads((folder / "hyperparameters.json").read_text())
    trace = np.load(folder / "trace.npz")
    model, _ = load_model(folder / "epoch_0.pt", str(folder / "model_config.json"))
    params = OptimizerParams(lr=hyper["lr"], wd=hyper["wd"], wd_on="all", beta1=hyper["beta1"], beta2=hyper["beta2"], eps=hyper["eps"])
    optimizer = make_optimizer(model.train(), params)
    config = StepConfig(grad_clip_norm=hyper["grad_clip_norm"], z_loss=hyper["z_loss_coefficient"])
    step = Step(model, optimizer, config, World(0, 1, torch.device("cpu")))

    for index, batch in enumerate(trace["batches"]):
        lr = cosine(index, hyper["lr"], hyper["warmup"], hyper["total_steps"], hyper["lr_cooldown_end"], 0.0)
        assert abs(lr - trace["lr"][index]) < 1e-9
        result = step(Batch(torch.from_numpy(batch.astype(np.int64))), lr)
        assert abs(result.loss.item() - trace["loss"][index]) < 1e-4, f"step {index}"
        assert abs(result.grad_norm.item() - trace["grad_norm"][index]) < 1e-3, f"step {index}"

    final = read_weights(str(folder / "epoch_1.pt")).state_dict
    differences = {name: (value - final[name]).abs().max().item() for name, value in model.state_dict().items()}
    assert max(differences.values()) < 1e-4, differences
