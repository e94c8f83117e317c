"""A run as OpenLM leaves it: `epoch_N.pt` and `optimizer_N.pt`, beside a `params.txt`; read as a run state to go on from.

Weights, moments and the step are in the files. The position in the data is step x batch of this project's order, since OpenLM's
own order depends on its processes and workers.
"""

from __future__ import annotations

import logging
import numbers
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from open_lm import storage
from open_lm.checkpoint.optimizer_file import load_moments, optimizer_path, read_optimizer
from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.weights import load_weights, read_weights


def is_pair(path: str | Path) -> bool:
    """True for a weights file, false for the folder of a run state."""
    return str(path).endswith(".pt")


def read_pair(path: str) -> RunState:
    """Where the run of an `epoch_N.pt` stood, its optimizer checked to be there and whole.

    For a run that OpenLM left `plan` is empty, and so is `batches` where no params.txt tells the batch (`place_in_data`).

    Raises:
        ValueError: not whole, no step in it, or no optimizer beside it.
    """
    about = read_weights(path).about
    step = about.get("step")
    if not isinstance(step, numbers.Integral):
        raise ValueError(f"checkpoint {path}: tells no step, so it can't be resumed; use it as --pretrained, which starts at step 0")
    beside = optimizer_path(path)
    if not storage.exists(beside):
        raise ValueError(
            f"checkpoint {path}: {beside} is missing, and fresh moments would be another run; put it there, resume an epoch that has one, "
            "or start a new run with --pretrained"
        )
    content = read_optimizer(beside)
    if content.get("epoch") != about.get("epoch"):
        raise ValueError(f"checkpoint {beside}: is of epoch {content.get('epoch')}, the weights are of epoch {about.get('epoch')}")
    if "run_state" in content:
        return _our_state(content["run_state"], int(step), beside)
    state = RunState(int(step), 0, 0, 0, {}, dict(about.get("model_config") or {}), {}, epoch=int(about["epoch"]))
    told = _told_by_params(path)
    return place_in_data(state, *told) if told else state


def _our_state(values: Any, step: int, path: str) -> RunState:
    try:
        known = {field.name for field in fields(RunState)}
        state = RunState(**{name: value for name, value in values.items() if name in known})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path}: no whole run state: {error}") from None
    if state.step != step:
        raise ValueError(f"checkpoint {path}: is of step {state.step}, the weights are of step {step}")
    return state


def _told_by_params(path: str) -> tuple[int, int] | None:
    """Batch and sequence length in the params.txt of the run folder."""
    file = storage.join(storage.parent(storage.parent(path)), "params.txt")
    if not storage.exists(file):
        return None
    text = storage.read_bytes(file).decode("utf-8", "replace")
    found = [re.search(rf"^{name}: *(\d+) *$", text, re.MULTILINE) for name in ("global_batch_size", "seq_len")]
    return (int(found[0][1]), int(found[1][1])) if found[0] and found[1] else None


def place_in_data(state: RunState, global_batch_size: int, seq_len: int) -> RunState:
    """A state that knows its position in the data: as it is, or for one that only knows its step, step x batch."""
    if state.plan or state.batches:
        return state
    sequences = state.step * global_batch_size
    first = {"step": 0, "sequences": 0, "tokens": 0, "global_batch_size": global_batch_size, "seq_len": seq_len}
    tokens = sequences * seq_len
    return replace(state, sequences=sequences, tokens=tokens, global_batch_size=global_batch_size, batches=[first])


def newest_pair(folder: Path, with_optimizer: bool = False) -> tuple[Path, RunState] | None:
    """The newest whole pair by epoch; broken files are named in the log and passed over. None where there is no epoch_N.pt.

    Args:
        with_optimizer: look only at epochs that have an optimizer.

    Raises:
        ValueError: the newest whole one can't be resumed (`read_pair`), or none is whole.
    """
    numbered = [(int(m[1]), p) for p in folder.glob("epoch_*.pt") if (m := re.fullmatch(r"epoch_(\d+)\.pt", p.name))]
    if with_optimizer:
        numbered = [(number, path) for number, path in numbered if Path(optimizer_path(str(path))).is_file()]
    for _, path in sorted(numbered, reverse=True):
        try:
            read_weights(str(path))
            if storage.exists(optimizer_path(str(path))):
                read_optimizer(optimizer_path(str(path)))
        except ValueError as error:
            logging.warning(f"{error}; trying the checkpoint before it")
            continue
        return path, read_pair(str(path))
    if numbered:
        raise ValueError(f"no epoch_N.pt of {folder} is whole; remove them to start from the beginning")
    return None


def load_pair(path: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer, plain or spread over processes. Raises ValueError where the files are of another model."""
    weights, beside = read_weights(str(path)), optimizer_path(str(path))
    load_weights(model, weights.state_dict, str(path), weights.keys)
    load_moments(model, optimizer, read_optimizer(beside), list(weights.state_dict), beside)
