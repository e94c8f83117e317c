"""The tensors of a run state as whole tensors, without a process group and without holding them in memory.

They lie in a temporary file that is mapped, so that the system may write them out and take the memory back; what is peeled from a
sharded file is one tensor's part at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_lm import storage
from open_lm.checkpoint.optimizer_file import MOMENTS
from open_lm.checkpoint.part_reader import load_some, saved_shapes
from open_lm.checkpoint.run_state import RunState, read_run_state
from open_lm.checkpoint.weights import WeightsFile, openlm_order
from open_lm.model.config import model_config_from
from open_lm.model.rotary import SavedFrequencies
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import TOKENIZER, Tokenizer

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


def mapped_tensors(shapes: Shapes, folder: str | Path | None = None) -> dict[str, Tensor]:
    """Zeros in a temporary file that goes with the last of them.

    Args:
        folder: where the file lies, unseen; default the temporary folder.
    """
    sizes = {name: -(-shape.numel() * dtype.itemsize // 64) * 64 for name, (shape, dtype) in shapes.items()}
    with tempfile.NamedTemporaryFile(prefix=".openlm-", suffix=".tmp", dir=folder) as file:
        total = max(64, sum(sizes.values()))
        with storage.tell_full_disk(file.name, total):
            os.posix_fallocate(file.fileno(), 0, total)  # a hole that can't be filled later would be a bus error
        whole = torch.UntypedStorage.from_file(file.name, True, total)
    tensors, place = {}, 0
    for name, (shape, dtype) in shapes.items():
        part: Any = whole[place : place + shape.numel() * dtype.itemsize]
        tensors[name] = torch.empty(0, dtype=dtype).set_(part, 0, shape, torch.empty(shape, device="meta").stride())
        place += sizes[name]
    return tensors


def read_tensors(path: str, prefix: str, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The whole tensors of a run state whose names begin with `prefix`, without it."""
    tensors = mapped_tensors({name: about for name, about in saved_shapes(path).items() if name.startswith(prefix)}, folder)
    load_some(path, tensors)
    return {name[len(prefix) :]: value for name, value in tensors.items()}


def state_weights(path: str, folder: str | Path | None = None) -> WeightsFile:
    """The weights of a run state in OpenLM's keys, with what an epoch_N.pt says about itself.

    Raises:
        ValueError: the state is not whole, or holds no such model.
    """
    state = read_run_state(path)
    given = read_tensors(path, "model.", folder)
    return WeightsFile(whole_state_dict(given, state.model_config, path), about_state(state, path))


def whole_state_dict(given: Mapping[str, Tensor], model_config: Mapping[str, Any], path: str) -> dict[str, Tensor]:
    """All keys of an epoch_N.pt from those of a run state, which has tied and doubled tensors once and no frequencies."""
    with torch.device("meta"):
        model = Transformer(model_config_from(model_config, path))
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {id(named[name]): value for name, value in given.items() if name in named}
    missing = [name for name, parameter in named.items() if id(parameter) not in found]
    if missing:
        raise ValueError(f"checkpoint {path}: lacks {missing[0]}")
    frequencies = {
        f"{name}.inv_freq": SavedFrequencies(module.head_dim, module.theta).inv_freq
        for name, module in model.named_modules()
        if isinstance(module, SavedFrequencies)
    }
    return {name: frequencies[name] if name in frequencies else found[id(named[name])] for name in openlm_order(model.state_dict())}


def about_state(state: RunState, path: str) -> dict[str, Any]:
    """What an epoch_N.pt of this state says about itself, its run folder's tokenizer included."""
    run = storage.parent(storage.parent(path if storage.is_remote(path) else str(storage.local_path(path).resolve())))
    about = {"epoch": state.epoch, "name": state.params.get("name") or run.rpartition("/")[2], "step": state.step, "tokens": state.tokens}
    about |= {"samples_seen": state.sequences, "model_config": dict(state.model_config), "params": dict(state.params)}
    file = storage.join(run, TOKENIZER)
    if storage.exists(file):
        said = state.tokenizer or {}
        about |= Tokenizer(storage.read_bytes(file).decode(), file, said.get("eot_id"), said.get("config")).in_checkpoint()
    return {**about, "evaluation_metrics": []}


def state_moments(path: str, folder: str | Path | None = None) -> dict[str, dict[str, Tensor]]:
    """The moments of a run state by parameter name, in OpenLM's order."""
    flat = read_tensors(path, "optimizer.", folder)
    names = openlm_order(dict.fromkeys(name.rpartition(".")[0] for name in flat))
    return {name: {key: flat[f"{name}.{key}"] for key in MOMENTS} for name in names}
