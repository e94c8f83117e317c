"""A model and its tokenizer from a checkpoint, in one line of Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from open_lm import storage
from open_lm.checkpoint.part_reader import saved_shapes
from open_lm.checkpoint.run_state import newest_run_state
from open_lm.checkpoint.state_folder import STATE_FILE, read_state_file
from open_lm.checkpoint.unshard import state_weights
from open_lm.checkpoint.weights import WeightsFile, load_weights, newest_weights, read_weights, widest_type
from open_lm.model.attention import KernelName, get_kernel
from open_lm.model.config import ModelConfig, model_config_from
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config, model_values
from open_lm.params.fields import UserError
from open_lm.tokenizer import TOKENIZER, Tokenizer, load_tokenizer


def load_model(
    checkpoint: str | Path,
    model_config: str | None = None,
    device: str | torch.device = "cpu",
    flags: Mapping[str, Any] | None = None,
    kernel: KernelName = "auto",
) -> tuple[Transformer, Tokenizer | None]:
    """A model ready for evaluation.

    Args:
        checkpoint: whatever `open_weights` takes.
        model_config: named size or model.json, for checkpoints that carry no configuration; must agree with the carried one.
        device: where the weights go.
        flags: what a model.json may leave out, as for `choose_config`.
        kernel: of the attention.

    Returns:
        The model in eval mode, in the type its weights were saved in (the widest of several); the tokenizer, or None where the
        run has none.

    Raises:
        ValueError: nothing to load, no configuration, or weights of another model.
    """
    file, path = open_weights(str(checkpoint))
    with torch.device("meta"):
        model = Transformer(choose_config(file, path, model_config, flags), get_kernel(kernel))
    model.to(widest_type(file.state_dict)).to_empty(device=device)
    load_weights(model, file.state_dict, path, file.keys)
    return model.eval(), carried_tokenizer(file, path)


def open_weights(checkpoint: str) -> tuple[WeightsFile, str]:
    """The weights that a path or URL means, and the file or folder that they are from.

    Args:
        checkpoint: an `epoch_N.pt` of ours or OpenLM's, a bare state dict, a weights-only file, a `step_<n>` folder, or a run folder
            (its newest `epoch_N.pt`, or before there is one its newest run state); local or behind a URL. A web server can't list a
            folder, so that an https:// URL is that of a file.

    Raises:
        ValueError: there is nothing to load, or it is not whole.
    """
    path, is_state = find_weights(checkpoint)
    return state_weights(path) if is_state else read_weights(path), path


def outline(checkpoint: str) -> tuple[WeightsFile | None, str]:
    """What `open_weights` would give, for its names, shapes and configuration: tensors that are mapped or empty. None of a file behind a
    URL, which is not fetched for that. Raises ValueError where there is nothing to load.
    """
    path, is_state = find_weights(checkpoint)
    if is_state:
        shapes = {name[len("model.") :]: shape for name, (shape, _) in saved_shapes(path).items() if name.startswith("model.")}
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        state = read_state_file(path)
        return WeightsFile(tensors, {name: state.get(name) for name in ("model_config", "tokenizer")}), path
    if not storage.is_remote(path):
        return read_weights(path), path
    try:
        storage.size(path)
    except FileNotFoundError:
        raise ValueError(f"checkpoint {path}: no such file") from None
    except OSError as error:
        raise ValueError(f"checkpoint {path}: {error}") from None
    return None, path


def find_weights(checkpoint: str) -> tuple[str, bool]:
    """The file or folder whose weights `open_weights` takes, and whether it is a run state. Raises ValueError where there is none."""
    if not storage.is_remote(checkpoint):
        path = storage.local_path(checkpoint)
        if not path.is_dir():
            return checkpoint, False
        if (path / STATE_FILE).is_file():
            return str(path), True
        newest = newest_weights(path)
        if newest is not None:
            return str(newest), False
        found = newest_run_state(path / "checkpoints") or newest_run_state(path)
        if found is None:
            raise ValueError(f"checkpoint {checkpoint}: the folder holds no epoch_N.pt and no step_<n>")
        return found[0], True
    if checkpoint.endswith((".pt", ".pth")) or checkpoint.startswith(("http://", "https://")):
        return checkpoint, False
    return _in_remote_folder(checkpoint)


def _in_remote_folder(url: str) -> tuple[str, bool]:
    """Of a run folder, a checkpoints folder or a run state behind a URL."""
    try:
        files = [stored.url for stored in storage.list_files(url.rstrip("/") + "/")]
    except OSError as error:
        raise ValueError(f"checkpoint {url}: {error}") from None
    epochs = [(int(m[1]), name) for name in files if (m := re.search(r"/epoch_(\d+)\.pt$", name))]
    if epochs:
        return max(epochs)[1], False
    states = [(int(m[1]), storage.parent(name)) for name in files if (m := re.search(r"/step_(\d+)/state\.json$", name))]
    if not states:
        raise ValueError(f"checkpoint {url}: the folder holds no epoch_N.pt and no step_<n>")
    return max(states)[1], True


def choose_config(file: WeightsFile, path: str, model_config: str | None = None, flags: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration that a weights file carries, with which all that is named has to agree; without one, the named one.

    Args:
        file, path: the weights, and what they are from.
        model_config: named size or model.json.
        flags: by key of a model.json, for those that it leaves out.

    Raises:
        ValueError: no configuration, a wrong one, or two that contradict each other.
    """
    flags = flags or {}
    said = model_values(model_config) if model_config else {}
    problems = []
    for key, value in flags.items():
        if said.get(key, value) != value:
            problems.append(f"{_shown(key, value)}: {model_config} says {key} {said[key]}; leave the flag out")
    named = get_model_config(model_config, flags) if model_config and not problems else None
    if not file.about.get("model_config"):
        if problems:
            raise UserError(problems)
        return named or carried_config(file, path)
    carried = carried_config(file, path)
    for key, value in {**flags, **said}.items():
        own = getattr(carried, key, value)
        if own != value and key in said:
            problems.append(f"--model {model_config}: says {key} {value}, but checkpoint {path} carries {own}; leave --model out")
        elif own != value:
            problems.append(f"{_shown(key, value)}: checkpoint {path} carries {key} {own}; leave the flag out")
    if problems:
        raise UserError(problems)
    return carried


def _shown(key: str, value: Any) -> str:
    """A flag as it was given."""
    name = key.replace("_", "-")
    return (f"--{name}" if value else f"--no-{name}") if isinstance(value, bool) else f"--{name} {value}"


def carried_config(file: WeightsFile, path: str) -> ModelConfig:
    """The configuration inside a weights file. Raises ValueError where it has none."""
    values = file.about.get("model_config")
    if not isinstance(values, dict):
        raise ValueError(f"checkpoint {path}: carries no model configuration; give --model-config (a named size or a model.json)")
    return model_config_from(values, path)


def carried_tokenizer(file: WeightsFile | None, path: str) -> Tokenizer | None:
    """The tokenizer inside a weights file, else that of its run folder, else None."""
    inside = Tokenizer.from_checkpoint(file.about, path) if file else None
    if inside or path.startswith(("http://", "https://")):
        return inside
    said = (file.about.get("tokenizer") if file else None) or {}  # of a run state
    folder = storage.parent(path if storage.is_remote(path) else str(storage.local_path(path).resolve()))
    for place in (folder, storage.parent(folder)):
        if place and not place.endswith(":/") and storage.exists(storage.join(place, TOKENIZER)):
            return load_tokenizer(place, said.get("eot_id"))
    return None
