"""A model and its tokenizer from a checkpoint, in one line of Python."""

from __future__ import annotations

from pathlib import Path

import torch

from open_lm import storage
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
        checkpoint: an `epoch_N.pt` of ours or of OpenLM, a bare state dict, or a run folder (its newest epoch).
        model_config: named size or model.json, for checkpoints that carry no configuration; it wins over the carried one.
        device: where the weights go.

    Returns:
        The model in eval mode, in the type its weights were saved in; the tokenizer, or None where the run has none.

    Raises:
        ValueError: nothing to load, no configuration, or weights of another model.
    """
    path = find_weights(str(checkpoint))
    file = read_weights(path)
    config = get_model_config(model_config) if model_config else carried_config(file, path)
    with torch.device("meta"):
        model = Transformer(config, get_kernel("auto"))
    model.to_empty(device=device)
    dtype = next(iter(file.state_dict.values())).dtype
    model.to(dtype if dtype.is_floating_point else torch.float32)
    model.init_buffers()
    load_weights(model, file.state_dict, path)
    return model.eval(), carried_tokenizer(file, path)


def find_weights(checkpoint: str) -> str:
    """The weights file that a path means. Raises ValueError where there is none."""
    if storage.is_remote(checkpoint):
        raise ValueError(f"checkpoint {checkpoint}: checkpoints behind a URL are not read yet; copy it to a local folder")
    path = storage.local_path(checkpoint)
    if not path.is_dir():
        return checkpoint
    newest = newest_weights(path)
    if newest is None:
        raise ValueError(f"checkpoint {checkpoint}: the folder holds no epoch_N.pt; weights are written at the end of an epoch")
    return str(newest)


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
    for folder in list(Path(path).resolve().parents)[:2]:
        if (folder / "tokenizer.json").is_file():
            return load_tokenizer(str(folder / "tokenizer.json"))
    return None
