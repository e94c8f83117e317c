"""Run states: `checkpoints/step_<n>/`, from which a run continues exactly, on any number of processes.

A folder holds the tensors of model and optimizer as a sharded torch.distributed.checkpoint, and `state.json`: the position, the
plan of the data, the parameters, and of every other file bytes, SHA-256 and the CRC-32 of its entries. `state_writer` writes it,
`part_reader` reads the tensors, `state_folder` knows what is where.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from open_lm import storage
from open_lm.checkpoint.state_folder import read_state_file, run_states, sizes
from open_lm.checkpoint.weights import clean_name
from open_lm.progress import Progress

_THREADS = 4
AVERAGER = "averager."
"""Names of tensors that begin so are of running averages, which a resumed run may leave out."""


@dataclass(frozen=True)
class RunState:
    """Where a run stood, in plain values."""

    step: int
    """Optimizer steps made."""
    sequences: int
    """Sequences trained on: the number of the next row."""
    tokens: int
    """Tokens trained on."""
    global_batch_size: int
    plan: dict[str, Any]
    """What decides the order of the data, as its plan describes itself."""
    model_config: dict[str, Any]
    params: dict[str, Any]
    tokenizer: dict[str, Any] | None = None
    """`Tokenizer.identity` of the shards' tokenizer, and `config`, its `config_json`."""
    versions: dict[str, str] = field(default_factory=dict)
    world_size: int = 1
    epoch: int | None = None
    """Epochs complete; like all that follows, absent in run states of version 0.1."""
    sequences_per_epoch: int | None = None
    plans: list[dict[str, Any]] = field(default_factory=list)
    """The plans of the run, `{"first": number of its first row, "plan": description}`; the last one is `plan`."""
    batches: list[dict[str, int]] = field(default_factory=list)
    """Where each size of batch or row began: step, sequences and tokens before it, global_batch_size, seq_len."""
    lost_rows: int = 0
    """Rows that could not be read and were allowed to be lost, on all processes, since the run began."""


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Every tensor that training changes, by name: `model.<parameter>`, `optimizer.<parameter>.<moment>`. Shards under FSDP.

    Args:
        extra: more tensors of the run, by names that begin otherwise.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{clean_name(name)}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{clean_name(name)}.{key}"] = value
    return {**tensors, **(extra or {})}


def read_run_state(state: str | os.PathLike[str]) -> RunState:
    """The plain part of a run state whose files are all there.

    Files on a disk are checked against their SHA-256. Those behind a URL are listed, and checked entry by entry when they are read.

    Raises:
        ValueError: not whole.
    """
    url = str(state).rstrip("/")
    values = read_state_file(url)
    try:
        files = values.pop("files")
        found = RunState(**values)
        problem = _first_problem(url, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {url}: no whole run state: {error}") from None
    if problem:
        raise ValueError(f"checkpoint {url}: {problem} {_instead(url, problem)}")
    return found


def _instead(url: str, name: str) -> str:
    """What one of its files is that is not what state.json says."""
    try:
        with storage.open_read(storage.join(url, name)) as file:
            kind = storage.file_kind(file.read(storage.FIRST_BYTES))
    except OSError:
        kind = None
    return f"is {kind.name}; {kind.remedy}" if kind and kind.remedy and kind.name != "a zip archive" else "is not as it was written"


def _first_problem(url: str, files: dict[str, dict[str, Any]]) -> str | None:
    """The name of a file that is not what state.json says."""
    there = sizes(url, files)
    wrong = [name for name, about in files.items() if there.get(name) != about["bytes"]]
    if wrong or storage.is_remote(url):
        return wrong[0] if wrong else None
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = Progress("checking", len(files), "files").over(pool.map(lambda name: _sha256(storage.join(url, name)), files))
        return next((name for name, digest in zip(files, sums, strict=True) if digest != files[name]["sha256"]), None)


def _sha256(file: str) -> str:
    with open(storage.local_path(file), "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def newest_run_state(folder: str | os.PathLike[str]) -> tuple[str, RunState] | None:
    """The newest whole run state of a folder or URL; broken ones are named in the log and passed over. None where there is none.

    Raises:
        ValueError: there are run states, and all of them are broken; or a URL that can't be listed.
    """
    try:
        candidates = run_states(str(folder))
    except OSError as error:
        raise ValueError(f"--resume latest: {error}") from None
    for state in candidates:
        try:
            return state, read_run_state(state)
        except ValueError as error:
            logging.warning(f"{error}; trying the checkpoint before it")
    if candidates:
        raise ValueError(f"--resume latest: no checkpoint of {folder} is whole; remove them to start from the beginning")
    return None


def full_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on the CPU of the first process, by clean names, one tensor at a time; empty on the others.

    All processes call this.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    whole: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers()):
        if id(value) not in seen:
            tensor = value.full_tensor() if isinstance(value, DTensor) else value
            seen[id(value)] = tensor.detach().cpu().clone() if first else tensor.new_empty(0)
        if first:
            whole[clean_name(name)] = seen[id(value)]
    return whole
