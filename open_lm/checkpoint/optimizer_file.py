"""`optimizer_N.pt`: the state of AdamW in OpenLM's keys, to and from an optimizer that may be spread over processes.

`{"epoch", "name", "optimizer": {"state", "param_groups"}, "evaluation_metrics", "run_state"}`. `state` holds `step`, `exp_avg` and
`exp_avg_sq` of each parameter, by number (OpenLM's single process and DDP) or by name (its FSDP). There are two parameter groups,
and OpenLM's first one is empty: which parameters decay is for the flags to say, not for the file. `run_state` is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.weights import clean_name, fill, openlm_order, read_pt, write_pt

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def optimizer_path(weights: str) -> str:
    """The `optimizer_N.pt` beside an `epoch_N.pt`, whatever its folders are called. Raises ValueError for another file name."""
    folder, _, name = weights.rpartition("/")
    match = re.fullmatch(r"epoch_(\d+)\.pt", name)
    if match is None:
        raise ValueError(f"checkpoint {weights}: is not named epoch_N.pt, so that its optimizer can't be found; give it as --pretrained")
    return f"{folder}/optimizer_{match[1]}.pt" if folder else f"optimizer_{match[1]}.pt"


def full_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The whole state of every parameter on the CPU of the first process, by name in OpenLM's order; empty on the others.

    One tensor is gathered at a time. All processes call this.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    named = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    whole: dict[str, dict[str, Tensor]] = {}
    for name in openlm_order(named):
        for key in MOMENTS:
            value = optimizer.state[named[name]][key]
            value = value.full_tensor() if isinstance(value, DTensor) else value
            if first:
                whole.setdefault(name, {})[key] = value.detach().cpu().clone()
    return whole


def in_openlm_keys(moments: Mapping[str, Mapping[str, Tensor]], group: Mapping[str, Any], by_name: bool) -> dict[str, Any]:
    """A state dict that OpenLM's optimizer loads.

    Args:
        moments: of `full_moments`.
        group: a parameter group of the optimizer: lr, betas, eps, weight_decay.
        by_name: names as OpenLM's FSDP runs have them, else numbers.
    """
    keys: list[Any] = list(moments) if by_name else list(range(len(moments)))
    shared = {name: group[name] for name in ("lr", "betas", "eps")}
    shared |= {"amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None}
    none, all_of_them = {"weight_decay": 0.0, **shared, "params": []}, {"weight_decay": group["weight_decay"], **shared, "params": keys}
    return {"state": {key: dict(value) for key, value in zip(keys, moments.values())}, "param_groups": [none, all_of_them]}


def write_optimizer(path: Path, content: Mapping[str, Any], state: RunState) -> None:
    """Write an optimizer file, whole or not at all, with the state that lets a run of ours go on from it exactly."""
    plain = json.loads(json.dumps(asdict(state)))  # torch's own version is no plain string
    write_pt(path, {**content, "run_state": plain})


def read_optimizer(path: str) -> dict[str, Any]:
    """The content of an optimizer file. Raises ValueError: not whole, or no optimizer in it."""
    content = read_pt(path)
    optimizer = content.get("optimizer") if isinstance(content, dict) else None
    if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= set(optimizer):
        raise ValueError(f"checkpoint {path}: holds no optimizer")
    return content


def moments_by_name(optimizer: Mapping[str, Any], names: Sequence[str], path: str) -> dict[str, dict[str, Tensor]]:
    """The state of each parameter.

    Args:
        optimizer: `{"state", "param_groups"}`.
        names: the parameters in the order in which they are numbered, tied ones once.

    Raises:
        ValueError: another number of parameters, a parameter without moments, or groups that don't tell which is which.
    """
    try:
        state = optimizer["state"]
        if all(isinstance(key, str) for key in state):
            found = {clean_name(key): value for key, value in state.items()}
        else:
            first, *others = [list(group["params"]) for group in optimizer["param_groups"]]
            if first and others:
                raise ValueError("its first group of parameters is not empty, so their numbers don't tell which is which")
            numbers = [number for group in (first, *others) for number in group]
            if len(numbers) != len(names):
                raise ValueError(f"holds {len(numbers)} parameters, the weights {len(names)}")
            found = {name: state[number] for name, number in zip(names, numbers)}
        return {name: {key: torch.as_tensor(value[key]) for key in MOMENTS} for name, value in found.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path}: is not an AdamW optimizer's: {error!r}") from None
    except ValueError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None


def moments_of(model: nn.Module, content: Mapping[str, Any], order: Sequence[str], path: str) -> dict[str, dict[str, Tensor]]:
    """The moments of each parameter of a model (a meta one will do), by the model's own names; see `load_moments`."""
    named = {clean_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    once = {id(named[name]): name for name in reversed(order) if name in named}  # the first name of each
    names = [name for name in order if name in named and once[id(named[name])] == name]
    found = moments_by_name(content["optimizer"], names, path)
    by_parameter = {id(named[name]): value for name, value in found.items() if name in named}
    whole = {}
    for name, parameter in model.named_parameters():
        value = by_parameter.get(id(parameter))
        if value is None or value["exp_avg"].shape != parameter.shape or value["exp_avg_sq"].shape != parameter.shape:
            raise ValueError(f"checkpoint {path}: has no moments of the shape of {clean_name(name)}; check --model")
        whole[clean_name(name)] = {key: value[key].reshape(()) if key == "step" else value[key] for key in MOMENTS}
    return whole


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, content: Mapping[str, Any], order: Sequence[str], path: str) -> None:
    """Fill an optimizer, plain or spread over processes, from an optimizer file.

    Args:
        content: of `read_optimizer`.
        order: the names in the weights file beside it; by their order parameters are numbered.

    Raises:
        ValueError: of another model.
    """
    parameters = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    for name, moments in moments_of(model, content, order, path).items():
        for key, value in moments.items():
            fill(optimizer.state[parameters[name]][key], value)
