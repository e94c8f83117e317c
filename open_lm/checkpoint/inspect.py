"""What a checkpoint is, in words: its step, tokens, model, parameters, types, plans, tokenizer. Tensors are not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from open_lm import storage
from open_lm.checkpoint.find import newest_state
from open_lm.checkpoint.run_state import RunState, read_run_state
from open_lm.checkpoint.state_folder import STATE_FILE
from open_lm.checkpoint.unshard import saved_shapes
from open_lm.checkpoint.weights import WeightsFile, first_names, newest_weights, read_pt, read_weights
from open_lm.params.fields import counted
from open_lm.tokenizer import content_sha256

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


@dataclass(frozen=True)
class Sizes:
    """Numbers and bytes of some tensors."""

    parameters: int
    types: str
    bytes: int

    @classmethod
    def of(cls, shapes: Shapes) -> Sizes:
        """Frequencies, which no training changes, are left out."""
        kept = {name: about for name, about in shapes.items() if not name.endswith("inv_freq")}
        types = sorted({str(dtype).removeprefix("torch.") for _, dtype in kept.values()})
        total = sum(shape.numel() for shape, _ in kept.values())
        return cls(total, ", ".join(types), sum(shape.numel() * dtype.itemsize for shape, dtype in kept.values()))


def describe_checkpoint(checkpoint: str) -> list[str]:
    """Lines about a `step_<n>` folder, a .pt file (weights, optimizer, stats, whatever it holds), or a run folder's newest checkpoint.

    Raises:
        ValueError: it is not there, or not whole.
    """
    if storage.is_remote(checkpoint):
        return list(_file(checkpoint))
    path = storage.local_path(checkpoint)
    if not path.is_dir():
        return list(_file(checkpoint))
    if not (path / STATE_FILE).is_file():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        steps = any((p / STATE_FILE).is_file() for p in folder.glob("step_*"))
        found = newest_state(folder) if steps or any(folder.glob("optimizer_*.pt")) else None
        newest = newest_weights(folder)
        if found is None and newest is None:
            raise ValueError(f"checkpoint {checkpoint}: the folder holds no step_<n> and no epoch_N.pt")
        return [f"{checkpoint}: a folder; its newest checkpoint:", *describe_checkpoint(str(found[0] if found else newest))]
    return list(_state(checkpoint))


def _state(checkpoint: str) -> Iterator[str]:
    path = storage.local_path(checkpoint)
    state, shapes = read_run_state(path), saved_shapes(path)
    model = Sizes.of({name: about for name, about in shapes.items() if name.startswith("model.")})
    everything = Sizes.of(shapes)
    parts = sorted({name.split(".")[0] for name in shapes})
    yield f"{checkpoint}: a run state, whole; resume it with --resume {checkpoint}"
    yield f"  step {state.step}, epoch {state.epoch}, {counted(state.sequences, 'sequence')}, {state.tokens:,} tokens"
    yield f"  model: {_config(state.model_config)}"
    yield f"  {model.parameters:,} parameters, {model.types}; holds {', '.join(parts)}: {everything.bytes:,} bytes"
    versions = ", ".join(f"{name} {version}" for name, version in state.versions.items())
    saved = f"  saved by {counted(state.world_size, 'process')}, global batch size {state.global_batch_size}"
    yield f"{saved}; {versions or 'no versions told'}"
    yield from _plans(state)
    if state.tokenizer:
        template = ", with a chat template" if state.tokenizer.get("config") else ""
        yield f"  tokenizer: sha256 {state.tokenizer.get('sha256')}, end of text {state.tokenizer.get('eot_id')}{template}"


def _plans(state: RunState) -> Iterator[str]:
    plans = state.plans or ([{"first": 0, "plan": state.plan}] if state.plan else [])
    if not plans:
        yield "  data: a run of OpenLM, whose order is not known"
    for plan in plans:
        values = plan["plan"]
        sources = (
            ", ".join(f"{counted(s.get('rows', 0), 'row')} in {counted(s.get('shards', 0), 'shard')}" for s in values.get("sources", []))
            or "synthetic"
        )
        yield f"  data from sequence {plan['first']} on: seed {values.get('seed')}, rows of {values.get('seq_len')} tokens; {sources}"


def _file(checkpoint: str) -> Iterator[str]:
    content = read_pt(checkpoint)
    if isinstance(content, dict) and "optimizer" in content and "state_dict" not in content:
        yield f"{checkpoint}: an optimizer, epoch {content.get('epoch')} of {content.get('name')}"
        if isinstance(content["optimizer"], dict):
            keys = list(content["optimizer"].get("state", {}))
            kind = "names (FSDP)" if keys and isinstance(keys[0], str) else "numbers (single process, DDP)"
            yield f"  the moments of {len(keys)} parameters, by {kind}"
        return
    if not isinstance(content, dict) or not ("state_dict" in content or all(isinstance(v, Tensor) for v in content.values())):
        yield f"{checkpoint}: no weights; holds {', '.join(map(str, content)) if isinstance(content, dict) else type(content).__name__}"
        if isinstance(content, dict):
            yield from (f"  {name}: {value}" for name, value in content.items() if isinstance(value, (str, int, float, bool)))
        return
    yield from _weights(checkpoint, read_weights(checkpoint))


def _weights(checkpoint: str, file: WeightsFile) -> Iterator[str]:
    about = file.about
    tensors = file.state_dict
    sizes = Sizes.of({name: (tensors[name].shape, tensors[name].dtype) for name in first_names(tensors).values()})
    yield f"{checkpoint}: weights; start from them with --pretrained {checkpoint}"
    told = [f"{name} {about[name]}" for name in ("name", "epoch", "step", "tokens") if about.get(name) is not None]
    yield f"  {', '.join(told) or 'says nothing about itself'}"
    config = about.get("model_config")
    yield f"  model: {_config(config) if isinstance(config, dict) else _guess(file.state_dict)}"
    yield f"  {sizes.parameters:,} parameters, {sizes.types}: {sizes.bytes:,} bytes"
    if about.get("average"):
        yield f"  average of {', '.join(f'{factor:g} x {name}' for name, factor in about['average'])}"
    text = about.get("tokenizer_json")
    if text:
        template = ", with a chat template" if about.get("tokenizer_config") else ""
        yield f"  tokenizer: sha256 {content_sha256(str(text))}, end of text {about.get('eot_token')}{template}"
    else:
        yield "  tokenizer: none inside"


def _config(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items()) or "not told"


def _guess(tensors: Mapping[str, Tensor]) -> str:
    layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
    embedding = tensors.get("tok_embeddings.weight")
    shape = f"vocabulary {embedding.shape[0]}, width {embedding.shape[1]}, " if embedding is not None and embedding.ndim == 2 else ""
    return f"no configuration inside; {shape}{len(layers)} layers"
