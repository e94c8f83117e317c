"""A model and its tokenizer from a checkpoint, in one line of Python."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from open_lm import storage
from open_lm.checkpoint.run_state import newest_run_state
from open_lm.checkpoint.state_folder import STATE_FILE
from open_lm.checkpoint.unshard import state_weights
from open_lm.checkpoint.weights import WeightsFile, load_weights, newest_weights, read_weights
from open_lm.model.attention import get_kernel
from open_lm.model.config import ModelConfig, model_config_from
from open_lm.model.transformer import Transformer
from open_lm.model.zoo import get_model_config
from open_lm.tokenizer import Tokenizer, load_tokenizer


def load_model(
    checkpoint: str | Path, model_config: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Transformer, Tokenizer | None]:
    """A model ready for evaluation.

    Args:
        checkpoint: whatever `open_weights` takes.
        model_config: named size or model.json, for checkpoints that carry no configuration; it wins over the carried one.
        device: where the weights go.

    Returns:
        The model in eval mode, in the type its weights were saved in; the tokenizer, or None where the run has none.

    Raises:
        ValueError: nothing to load, no configuration, or weights of another model.
    """
    file, path = open_weights(str(checkpoint))
    config = get_model_config(model_config) if model_config else carried_config(file, path)
    with torch.device("meta"):
        model = Transformer(config, get_kernel("auto"))
    model.to_empty(device=device)
    dtype = next(iter(file.state_dict.values())).dtype
    model.to(dtype if dtype.is_floating_point else torch.float32)
    model.init_buffers()
    load_weights(model, file.state_dict, path)
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
    if not storage.is_remote(checkpoint):
        path = storage.local_path(checkpoint)
        if not path.is_dir():
            return read_weights(checkpoint), checkpoint
        if (path / STATE_FILE).is_file():
            return state_weights(str(path)), str(path)
        newest = newest_weights(path)
        if newest is not None:
            return read_weights(str(newest)), str(newest)
        found = newest_run_state(path / "checkpoints") or newest_run_state(path)
        if found is None:
            raise ValueError(f"checkpoint {checkpoint}: the folder holds no epoch_N.pt and no step_<n>")
        return state_weights(found[0]), found[0]
    if checkpoint.endswith((".pt", ".pth")) or checkpoint.startswith(("http://", "https://")):
        return read_weights(checkpoint), checkpoint
    return _remote_folder(checkpoint)


def check_weights(flag: str, checkpoint: str, config: ModelConfig) -> None:
    """Whether `open_weights` finds weights of this model. Of a remote checkpoint only whether it is there; it is fetched once.

    Raises:
        ValueError: naming the flag.
    """
    try:
        if storage.is_remote(checkpoint):
            if not storage.exists(checkpoint):
                raise ValueError(f"checkpoint {checkpoint}: no such file")
            return
        file, path = open_weights(checkpoint)
        with torch.device("meta"):
            model = Transformer(config)
        load_weights(model, file.state_dict, path)  # into nothing: names and shapes are compared
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag}: {error}") from None


def _remote_folder(url: str) -> tuple[WeightsFile, str]:
    """Of a run folder, a checkpoints folder or a run state behind a URL."""
    try:
        files = [stored.url for stored in storage.list_files(url.rstrip("/") + "/")]
    except OSError as error:
        raise ValueError(f"checkpoint {url}: {error}") from None
    epochs = [(int(m[1]), name) for name in files if (m := re.search(r"/epoch_(\d+)\.pt$", name))]
    if epochs:
        return read_weights(max(epochs)[1]), max(epochs)[1]
    states = [(int(m[1]), storage.parent(name)) for name in files if (m := re.search(r"/step_(\d+)/state\.json$", name))]
    if not states:
        raise ValueError(f"checkpoint {url}: the folder holds no epoch_N.pt and no step_<n>")
    newest = max(states)[1]
    return state_weights(newest), newest


def carried_config(file: WeightsFile, path: str) -> ModelConfig:
    """The configuration inside a weights file. Raises ValueError where it has none."""
    values = file.about.get("model_config")
    if not isinstance(values, dict):
        raise ValueError(f"checkpoint {path}: carries no model configuration; give --model-config (a named size or a model.json)")
    return model_config_from(values, path)


def carried_tokenizer(file: WeightsFile, path: str) -> Tokenizer | None:
    """The tokenizer inside a weights file, else the tokenizer.json of its run folder, else None."""
    text = file.about.get("tokenizer_json")
    if text:
        return Tokenizer(str(text), path, file.about.get("eot_token"))
    if storage.is_remote(path):
        return None
    for folder in list(Path(path).resolve().parents)[:2]:
        if (folder / "tokenizer.json").is_file():
            return load_tokenizer(str(folder / "tokenizer.json"))
    return None
