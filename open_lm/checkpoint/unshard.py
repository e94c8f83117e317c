"""The tensors of a run state as whole tensors, without a process group and without holding them in memory.

They lie in a temporary file that is mapped, so that the system may write them out and take the memory back; what is peeled from a
sharded file is one tensor's part at a time.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from open_lm.checkpoint.optimizer_file import MOMENTS
from open_lm.checkpoint.run_state import RunState, _SafeReader, read_run_state
from open_lm.checkpoint.weights import WeightsFile, openlm_order
from open_lm.model.config import model_config_from
from open_lm.model.rotary import SavedFrequencies
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


def mapped_tensors(shapes: Shapes, folder: str | Path | None = None) -> dict[str, Tensor]:
    """Zeros in a temporary file that goes with the last of them.

    Args:
        folder: where the file lies, unseen; default the temporary folder.
    """
    sizes = {name: -(-shape.numel() * dtype.itemsize // 64) * 64 for name, (shape, dtype) in shapes.items()}
    with tempfile.NamedTemporaryFile(prefix=".openlm-", suffix=".tmp", dir=folder) as file:
        file.truncate(max(64, sum(sizes.values())))
        whole = torch.UntypedStorage.from_file(file.name, True, max(64, sum(sizes.values())))
    tensors, place = {}, 0
    for name, (shape, dtype) in shapes.items():
        part: Any = whole[place : place + shape.numel() * dtype.itemsize]
        tensors[name] = torch.empty(0, dtype=dtype).set_(part, 0, shape, torch.empty(shape, device="meta").stride())
        place += sizes[name]
    return tensors


def saved_shapes(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What a run state holds: `model.<parameter>`, `optimizer.<parameter>.<moment>`, ... Raises ValueError where it is not read."""
    saved = _SafeReader(path).read_metadata().state_dict_metadata
    return {name: (value.size, value.properties.dtype) for name, value in saved.items()}


def read_tensors(path: Path, prefix: str, folder: str | Path | None = None) -> dict[str, Tensor]:
    """The whole tensors of a run state whose names begin with `prefix`, without it."""
    tensors = mapped_tensors({name: about for name, about in saved_shapes(path).items() if name.startswith(prefix)}, folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(tensors, storage_reader=_SafeReader(path), no_dist=True)
    return {name[len(prefix) :]: value for name, value in tensors.items()}


def state_weights(path: Path, folder: str | Path | None = None) -> WeightsFile:
    """The weights of a run state in OpenLM's keys, with what an epoch_N.pt says about itself.

    Raises:
        ValueError: the state is not whole, or holds no such model.
    """
    state = read_run_state(path)
    given = read_tensors(path, "model.", folder)
    return WeightsFile(whole_state_dict(given, state.model_config, path), about_state(state, path))


def whole_state_dict(given: Mapping[str, Tensor], model_config: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """All keys of an epoch_N.pt from those of a run state, which has tied and doubled tensors once and no frequencies."""
    with torch.device("meta"):
        model = Transformer(model_config_from(model_config, str(path)))
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


def about_state(state: RunState, path: Path) -> dict[str, Any]:
    """What an epoch_N.pt of this state says about itself, its run folder's tokenizer included."""
    run = path.resolve().parents[1]
    about = {"epoch": state.epoch, "name": state.params.get("name") or run.name, "step": state.step, "tokens": state.tokens}
    about |= {"samples_seen": state.sequences, "model_config": dict(state.model_config), "params": dict(state.params)}
    if (run / "tokenizer.json").is_file():
        tokenizer = Tokenizer((run / "tokenizer.json").read_text(encoding="utf-8"), str(run / "tokenizer.json"))
        eot_id = (state.tokenizer or {}).get("eot_id", tokenizer.eot_id)
        about |= {"tokenizer_json": tokenizer.json_text, "eot_id": eot_id, "eot_token": tokenizer.backend.id_to_token(eot_id)}
    return {**about, "evaluation_metrics": []}


def state_moments(path: Path, folder: str | Path | None = None) -> dict[str, dict[str, Tensor]]:
    """The moments of a run state by parameter name, in OpenLM's order."""
    flat = read_tensors(path, "optimizer.", folder)
    names = openlm_order(dict.fromkeys(name.rpartition(".")[0] for name in flat))
    return {name: {key: flat[f"{name}.{key}"] for key in MOMENTS} for name in names}
