"""Checkpoints from one form into another; the work behind `scripts/convert_checkpoint.py`. No process group, no GPU.

unshard   step_<n>                  -> epoch_N.pt [+ optimizer_N.pt], which OpenLM reads and a run resumes
reshard   epoch_N.pt + optimizer_N.pt, or step_<n> of many files -> step_<n> of one process, which any number of processes resumes
export    any weights               -> <name>-<first 8 digits of its sha256>.pt: weights, configuration, tokenizer, parameters
average   any weights, coefficients -> one weights file
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from open_lm import storage
from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.epoch_pair import is_pair
from open_lm.checkpoint.find import read_state
from open_lm.checkpoint.load import carried_config, carried_tokenizer, open_weights
from open_lm.checkpoint.optimizer_file import in_openlm_keys, moments_of, optimizer_path, read_optimizer, write_optimizer
from open_lm.checkpoint.state_writer import save_run_state
from open_lm.checkpoint.unshard import mapped_tensors, read_tensors, state_moments, state_weights
from open_lm.checkpoint.weights import first_names, read_weights, write_weights
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.progress import Progress
from open_lm.tokenizer import choose_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def unshard(state: str, out: str, optimizer: bool = False, names: bool = False) -> list[Path]:
    """Write a run state as OpenLM's files.

    Args:
        state: a `step_<n>` folder, or a run folder, whose newest one is taken.
        out: the weights file; with `optimizer` it must be named epoch_N.pt, and optimizer_N.pt is written beside it, before it.
        names: parameters by name, as OpenLM's FSDP runs have them, instead of by number.

    Raises:
        ValueError: the state is not whole, or a file of that name exists.
    """
    target = _absent(out)
    if optimizer and not re.fullmatch(r"epoch_\d+\.pt", target.name):
        raise ValueError(f"--out {out}: with --optimizer, give a name such as epoch_3.pt, beside which optimizer_3.pt is written")
    state, run_state = read_state(state)
    if is_pair(state):
        raise ValueError(f"checkpoint {state}: holds whole weights already; copy it")
    weights = state_weights(state, _folder_of(target))
    written = []
    if optimizer:
        beside = _absent(optimizer_path(str(target)))
        params = run_state.params
        group = {"lr": params.get("lr", 0.0), "betas": (params.get("beta1", 0.9), params.get("beta2", 0.95))}
        group |= {"eps": params.get("eps", 1e-8), "weight_decay": params.get("wd", 0.0)}
        moments = in_openlm_keys(state_moments(state, _folder_of(target)), group, names)
        about = {name: weights.about.get(name) for name in ("epoch", "name", "evaluation_metrics")}
        write_optimizer(beside, {**about, "optimizer": moments}, run_state)
        written.append(beside)
    write_weights(target, weights.state_dict, weights.about)
    return [*written, target]


def reshard(checkpoint: str, out: str, model: str | None = None) -> Path:
    """Write a run state as one process does, to be resumed by any number of processes.

    Args:
        checkpoint: `epoch_N.pt` with its `optimizer_N.pt` beside it, or a `step_<n>` folder.
        out: the checkpoints folder that gets the `step_<n>` folder.
        model: named size or model.json, for weights that carry no configuration.

    Raises:
        ValueError: not whole, of another model, or a `step_<n>` of that number is there.
    """
    path, state = read_state(checkpoint)
    target = storage.local_path(out)
    _absent(str(target / f"step_{state.step}"))
    target.mkdir(parents=True, exist_ok=True)
    if not is_pair(path):
        return Path(save_run_state(str(target), read_tensors(path, "", target), state))
    weights, beside = read_weights(str(path)), optimizer_path(str(path))
    config = get_model_config(model) if model else carried_config(weights, str(path))
    with torch.device("meta"):
        shape = Transformer(config)
    aliases = dict(shape.named_parameters(remove_duplicate=False))
    given = {id(aliases[name]): value for name, value in weights.state_dict.items() if name in aliases}
    tensors = {}
    for name, moments in moments_of(shape, read_optimizer(beside), list(weights.state_dict), beside).items():
        value = given.get(id(aliases[name]))
        if value is None or value.shape != aliases[name].shape:
            raise ValueError(f"checkpoint {path}: lacks {name} of {list(aliases[name].shape)}; check --model")
        tensors[f"model.{name}"] = value
        tensors |= {f"optimizer.{name}.{key}": moment for key, moment in moments.items()}
    return Path(save_run_state(str(target), tensors, replace(state, model_config=config.to_dict())))


def export_weights(
    checkpoint: str,
    out: str,
    name: str | None = None,
    dtype: str | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    allow_mismatch: bool = False,
) -> Path:
    """Write a weights file that says all about itself, named by its content.

    Args:
        checkpoint: whatever `load.open_weights` takes.
        out: the folder that gets `<name>-<hash>.pt`, the hash being the first 8 digits of the file's sha256.
        name: default the name in the checkpoint, else `model`.
        dtype: one of `DTYPES`; default the type of each tensor.
        model: named size or model.json, for weights that carry no configuration.
        tokenizer: a tokenizer.json, its folder, or a Hugging Face name; default the checkpoint's own, if it has one.
        allow_mismatch: `tokenizer` may be another one than the checkpoint's own.

    Raises:
        ValueError: nothing to load, no configuration, or another tokenizer.
    """
    weights, path = open_weights(checkpoint)
    config = get_model_config(model) if model else carried_config(weights, path)
    words = carried_tokenizer(weights, path)
    if tokenizer:
        words = choose_tokenizer(tokenizer, words, config.vocab_size, allow_mismatch)
    about: dict[str, Any] = {key: weights.about[key] for key in ("epoch", "step", "tokens", "params", "average") if key in weights.about}
    called = Path(str(name or weights.about.get("name") or "model")).name  # a file from anywhere may be called ../x
    about |= {"name": called, "model_config": config.to_dict()}
    if words:
        about |= words.in_checkpoint()
    folder = storage.local_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.state_dict
    if dtype is not None:
        wanted = DTYPES[dtype]
        once = first_names(tensors)
        shapes = {n: (tensors[n].shape, tensors[n].dtype if n.endswith("inv_freq") else wanted) for n in once.values()}
        made = mapped_tensors(shapes, folder)
        for key, target in Progress("converting", len(made), "tensors").over(made.items()):
            target.copy_(tensors[key])
        tensors = {name: made[first] for name, first in once.items()}
    temporary = folder / f".{called}.export"
    write_weights(temporary, tensors, about)
    digest = _sha256(temporary)
    final = folder / f"{called}-{digest[:8]}.pt"
    if final.exists() and (final.is_dir() or _sha256(final) != digest):
        temporary.unlink()
        raise ValueError(f"--out {out}: {final} exists and is something else; move it away, or give another --name")
    os.replace(temporary, final)
    return final


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def average(checkpoints: Sequence[str], coefficients: Sequence[float], out: str, allow_mismatch: bool = False) -> Path:
    """Write the weighted sum of several checkpoints. Raises ValueError as `average_weights`, or where the file exists."""
    target = _absent(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = average_weights(checkpoints, coefficients, _folder_of(target), allow_mismatch)
    write_weights(target, weights.state_dict, weights.about)
    return target


def _absent(path: str) -> Path:
    if storage.is_remote(path):
        raise ValueError(f"--out {path}: is written to a local path; copy it from there")
    target = storage.local_path(path)
    if target.exists():
        raise ValueError(f"--out {path}: exists; remove it, or give another name")
    return target


def _folder_of(target: Path) -> Path:
    """Where the temporary file of the tensors goes: beside what is written, where there must be room for it anyway."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent
